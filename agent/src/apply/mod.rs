//! The appliers: bring the kernel, the routes, the proxy and what is written back to what a snapshot says, and report.
//! Each diffs desired against actual, so that start, change and restart are one path.
mod conditions;
mod writeback;

pub use writeback::{WriteBack, write_back};

use crate::{
    control::chain,
    endpoints::EndpointTable,
    host,
    mesh::Mesh,
    proxy::plan::{self, local_identities},
    shared::{Report, Shared},
    sources::writer::Writer,
    svids::Svids,
};
use arc_swap::ArcSwap;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{sync::watch, task::block_in_place, time};
use weft_certs::ClusterCa;
use weft_datapath::{
    Datapath, DatapathError, NodeSettings, Router, plan::entries, routing::RouteReport, status, sysctl,
};
use weft_flows::event::Names;
use weft_model::{
    parse::{WIREGUARD_KEY, WIREGUARD_PORT},
    snapshot::Snapshot,
};
use weft_proxy_api::config::ProxyConfig;
use weft_wireguard::PrivateKey;

/// How often the kernel's maps are read again, to find what somebody else has changed.
const AUDIT: Duration = Duration::from_secs(60);
/// How often the connection tables are counted: it walks them.
const COUNT: Duration = Duration::from_secs(5);
/// How long one round waits for the proxy.
const PROXY_PATIENCE: Duration = Duration::from_secs(3);
/// After this long without an answer the kernel's maps are written without the proxy.
const PROXY_HANGS: Duration = Duration::from_secs(20);

pub struct Appliers {
    pub datapath: Datapath,
    pub router: Router,
    pub ca: Arc<ClusterCa>,
    pub svids: Svids,
    pub wireguard_key: PrivateKey,
    pub cgroup: PathBuf,
    pub devices: Vec<String>,
    pub mtu: u32,
    pub names: Arc<ArcSwap<Names>>,
    pub proxy: watch::Sender<Option<Arc<ProxyConfig>>>,
    pub write_back: watch::Sender<WriteBack>,
    pub state: State,
}

/// What the appliers remember from round to round.
#[derive(Default)]
pub struct State {
    snapshot: Option<Arc<Snapshot>>,
    endpoints: Option<weft_datapath::LocalEndpoints>,
    host_addresses: Vec<IpAddr>,
    written_addresses: Vec<IpAddr>,
    tunnel: Option<u32>,
    attached: bool,
    kernel: weft_datapath::Report,
    routes: RouteReport,
    desired: weft_datapath::Desired,
    errors: BTreeMap<&'static str, String>,
    status: Option<weft_datapath::status::Status>,
    /// The proxy has run a configuration of this agent's: from then on the agent counts as ready whatever becomes of it.
    proxy_heard: bool,
    /// Since when the proxy owes an answer to its configuration.
    unheard: Option<Instant>,
    counted: Option<Instant>,
    audited: Option<Instant>,
}

/// What came of a round.
pub struct Applied {
    pub report: Report,
    /// Something that a new pod must wait for does not work.
    pub failure: Option<String>,
}

impl Appliers {
    /// Attaches the policy programs to a pod's veth; answers its index. Called before the CNI plugin sets the link up.
    pub fn attach_endpoint(&mut self, interface: &str) -> Result<u32, DatapathError> {
        let index = host::ifindex(interface).ok_or_else(|| DatapathError::Target {
            target: format!("interface {interface}"),
            cause: std::io::ErrorKind::NotFound.into(),
        })?;
        sysctl::endpoint(interface)?;
        self.datapath.attach_endpoint(interface)?;
        Ok(index)
    }

    pub fn detach_endpoint(&mut self, interface: &str) {
        if let Err(error) = self.datapath.detach_endpoint(interface) {
            tracing::warn!(interface, error = chain(&error), "cannot detach from a pod's interface");
        }
    }

    pub async fn apply(
        &mut self,
        snapshot: &Arc<Snapshot>,
        endpoints: &EndpointTable,
        mesh: &Mesh,
        writer: &Writer,
        shared: &Shared,
    ) -> Applied {
        self.attach_node(shared).await;
        if snapshot.synced {
            self.look_at_host().await;
            // The proxy first: what the kernel hands over must meet the rules that it is handed over for.
            let version = self.tell_proxy(snapshot, mesh, shared);
            let heard = heard(shared, version).await;
            let since = *self.state.unheard.get_or_insert_with(Instant::now);
            if heard {
                self.state.unheard = None;
            }
            // A proxy that hangs must not hold up the kernel for ever: what needs it does not work anyway.
            if heard || since.elapsed() > PROXY_HANGS {
                self.write_kernel(snapshot, endpoints, shared).await;
            }
            let runs = shared.proxy.borrow().status.as_ref().is_some_and(|status| status.config_version >= version);
            self.state.proxy_heard |= runs;
            self.write_back(snapshot, writer, shared);
        }
        self.look();
        let report = conditions::report(self, snapshot, shared);
        let failure = match self.state.errors.get("attach") {
            Some(error) => Some(error.clone()),
            None if !snapshot.synced => Some("the agent has not yet heard from all its sources: try again".to_owned()),
            None if self.state.kernel.failed > 0 => {
                self.state.kernel.failures.first().map(|f| format!("{} {}: {}", f.map, f.entry, f.reason))
            }
            None => None,
        };
        Applied { report, failure }
    }

    /// The tunnel's interface comes and goes with the proxy's configuration, so this is asked each time.
    async fn attach_node(&mut self, shared: &Shared) {
        let tunnel_name = &shared.config.encryption.interface;
        let tunnel = host::ifindex(tunnel_name);
        if self.state.attached && tunnel == self.state.tunnel {
            return;
        }
        let devices: Vec<&str> = self.devices.iter().map(String::as_str).collect();
        let tunnel_device = tunnel.map(|_| tunnel_name.as_str());
        let attached = block_in_place(|| {
            sysctl::node()?;
            for device in devices.iter().copied().chain(tunnel_device) {
                sysctl::device(device)?;
            }
            self.datapath.attach_node(&self.cgroup, &devices, tunnel_device)
        });
        let delivered = self.router.deliver_captured().await;
        self.note("attach", attached.and(delivered));
        if !self.state.errors.contains_key("attach") {
            (self.state.attached, self.state.tunnel) = (true, tunnel);
        }
    }

    async fn look_at_host(&mut self) {
        let addresses = self.router.local_addresses().await;
        if let Ok(addresses) = &addresses {
            self.state.host_addresses.clone_from(addresses);
        }
        self.note("addresses", addresses);
    }

    async fn write_kernel(&mut self, snapshot: &Arc<Snapshot>, endpoints: &EndpointTable, shared: &Shared) {
        let local = endpoints.local();
        let audit_due = self.state.audited.is_none_or(|at| at.elapsed() > AUDIT);
        if audit_due {
            self.state.audited = Some(Instant::now());
            let audited = block_in_place(|| self.datapath.audit());
            if let Ok(1..) = audited {
                tracing::warn!(entries = ?audited, "the kernel's maps differ from what was written: written again");
            }
            self.note("audit", audited);
        }
        let unchanged = self.state.snapshot.as_ref().is_some_and(|last| Arc::ptr_eq(last, snapshot))
            && self.state.endpoints.as_ref() == Some(&local)
            && self.state.written_addresses == self.state.host_addresses
            && self.state.kernel.complete()
            && self.state.routes.failures.is_empty()
            && !audit_due;
        if unchanged {
            return;
        }
        let settings = NodeSettings {
            encryption: shared.config.encryption.mode,
            host_addresses: self.state.host_addresses.clone(),
            trace_allowed: shared.config.observe_allowed,
        };
        let (desired, kernel) = block_in_place(|| {
            let desired = entries(snapshot, &local, &settings);
            let report = self.datapath.reconcile(&desired);
            (desired, report)
        });
        for failure in &kernel.failures {
            tracing::warn!(map = failure.map, entry = failure.entry, reason = failure.reason, "not written");
        }
        match self.router.reconcile(&desired.routes).await {
            Ok(report) => self.state.routes = report,
            Err(error) => self.state.routes.failures = vec![("all".to_owned(), chain(&error))],
        }
        let rules = desired.rules.iter().map(|(number, name)| (number, name.to_owned())).collect();
        self.names.store(Arc::new(Names::new(snapshot, rules)));
        self.state.kernel = kernel;
        self.state.desired = desired;
        self.state.snapshot = Some(snapshot.clone());
        self.state.endpoints = Some(local);
        self.state.written_addresses.clone_from(&self.state.host_addresses);
    }

    /// Answers the version that the proxy should run.
    fn tell_proxy(&mut self, snapshot: &Snapshot, mesh: &Mesh, shared: &Shared) -> u64 {
        let kept = self.svids.keep(&self.ca, &local_identities(snapshot), SystemTime::now());
        self.note("svids", kept);
        let mut trust_bundles = mesh.trust_bundles(snapshot);
        trust_bundles.insert(shared.config.trust_domain(), self.ca.bundle_pem().to_owned());
        let inputs = plan::Inputs {
            config: &shared.config,
            map_dir: self.datapath.map_dir(),
            svids: self.svids.for_proxy(),
            trust_bundles,
            hbone_clusters: mesh.hbone_clusters(),
            wireguard_key: &self.wireguard_key.to_base64(),
            mtu: self.mtu,
            host_addresses: &self.state.host_addresses,
        };
        let version = self.proxy.borrow().as_ref().map_or(0, |config| config.version);
        let config = plan::config(snapshot, inputs, version);
        if self.proxy.borrow().as_deref() == Some(&config) {
            return version;
        }
        // Above all that an earlier run of this agent has given out.
        let version = version.max(weft_flows::event::now_ms()) + 1;
        self.proxy.send_replace(Some(Arc::new(ProxyConfig { version, ..config })));
        version
    }

    fn write_back(&mut self, snapshot: &Snapshot, writer: &Writer, shared: &Shared) {
        if matches!(writer, Writer::Directory(_)) {
            return;
        }
        let annotations = BTreeMap::from([
            (WIREGUARD_KEY.to_owned(), self.wireguard_key.public_key().to_string()),
            (WIREGUARD_PORT.to_owned(), shared.config.encryption.listen_port.to_string()),
        ]);
        let proxy = shared.proxy.borrow();
        let verdicts = writeback::verdicts(snapshot, proxy.status.as_ref());
        drop(proxy);
        let wanted = WriteBack { annotations, verdicts };
        self.write_back.send_if_modified(|current| {
            let changed = *current != wanted;
            if changed {
                *current = wanted;
            }
            changed
        });
    }

    fn look(&mut self) {
        if self.state.counted.is_none_or(|at| at.elapsed() > COUNT) {
            self.state.counted = Some(Instant::now());
            match block_in_place(|| self.datapath.status()) {
                Ok(status) => {
                    self.state.status = Some(status);
                    self.state.errors.remove("status");
                }
                Err(error) => drop(self.state.errors.insert("status", chain(&error))),
            }
        } else if let Some(known) = &mut self.state.status
            && let Ok((drops, lost)) = status::counters(&self.datapath.map_dir())
        {
            (known.drops, known.lost_events) = (drops, lost);
        }
    }

    /// What keeps this node from its part in the mesh.
    pub fn mesh_error(&mut self, error: Option<String>) {
        match error {
            None => drop(self.state.errors.remove("mesh")),
            Some(error) => drop(self.state.errors.insert("mesh", error)),
        }
    }

    /// Remembers an error until the same step works again.
    fn note<T>(&mut self, step: &'static str, result: Result<T, impl std::error::Error>) {
        match result {
            Ok(_) => drop(self.state.errors.remove(step)),
            Err(error) => {
                let text = chain(&error);
                if self.state.errors.get(step) != Some(&text) {
                    tracing::error!(step, error = text, "does not work");
                }
                self.state.errors.insert(step, text);
            }
        }
    }
}

/// Waits a while for the proxy to run this configuration, or to be known to be away: without it the kernel drops what it
/// is due. False: it is there and does not run it yet.
async fn heard(shared: &Shared, version: u64) -> bool {
    let mut proxy = shared.proxy.clone();
    let answered = proxy.wait_for(|proxy| match &proxy.status {
        Some(status) => status.config_version >= version,
        None => !proxy.error.is_empty(),
    });
    time::timeout(PROXY_PATIENCE, answered).await.is_ok()
}
