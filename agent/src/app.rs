//! The wiring: everything is built here, and nowhere else.
use crate::{
    api::server,
    apply::{self, Appliers, WriteBack},
    config::Config,
    control::{COMMANDS_IN_FLIGHT, Control, Inputs, chain, start_source},
    endpoints::EndpointTable,
    host,
    identities::IdentityFile,
    memory::MeshMemory,
    mesh::{Mesh, Setting},
    overlay::PodOverlay,
    proxy::link::{Link, ProxyState},
    shared::{Report, Shared},
    sources::EVENTS_IN_FLIGHT,
    svids::Svids,
    wireguard_key,
};
use anyhow::{Context, Result};
use arc_swap::{ArcSwap, ArcSwapOption};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use weft_certs::ClusterCa;
use weft_clustermesh_core::ids::propose_id;
use weft_datapath::{Datapath, Events, Router};
use weft_flows::{event::Names, ring::FlowRing};
use weft_model::store::{Event, NodeFacts, Store, StoreConfig};

/// Flows that `weft observe` can look back on.
const FLOWS_KEPT: usize = 16_384;

/// A running agent. Dropping it ends every task; what is in the kernel stays.
pub struct App {
    stop: CancellationToken,
    tasks: JoinSet<(&'static str, Result<()>)>,
}

impl App {
    pub async fn start(config: Config) -> Result<Self> {
        let stop = CancellationToken::new();
        let mut tasks: JoinSet<(&'static str, Result<()>)> = JoinSet::new();
        // Before anything is touched: a second agent on these sockets must not get further.
        let api = server::bind(&config.api_socket()).context("cannot serve the agent's API")?;
        let metrics = TcpListener::bind(config.metrics.listen).await.with_context(|| {
            format!(
                "cannot serve metrics on {}: the port is taken; set metrics.listen to another one",
                config.metrics.listen
            )
        })?;

        let cluster_id = match config.cluster_id {
            Some(id) => id,
            None => propose_id(&config.cluster, &BTreeSet::new()).context("no cluster id is free")?,
        };
        let trust_domain = config.trust_domain();
        let ca = Arc::new(ClusterCa::load_or_create(&config.ca_dir, &trust_domain)?);
        let wireguard_key = wireguard_key::load_or_create(&config.state_dir)?;

        let object = std::fs::read(&config.bpf_object).with_context(|| {
            format!("cannot read the kernel programs {}: set bpfObject", config.bpf_object.display())
        })?;
        let datapath = Datapath::load(&object, &config.bpf_dir)?;
        let mut kernel_events = Events::open(&datapath.map_dir())?;
        let router = Router::new()?;
        let devices = match &config.devices[..] {
            [] => host::native_devices(&config.encryption.interface),
            named => named.to_vec(),
        };
        let mtu = host::mtu(&devices).await;
        let cgroup = match &config.cgroup {
            Some(cgroup) => cgroup.clone(),
            None => cgroup_root().context("no cgroup v2 hierarchy is mounted: mount one, or set cgroup")?,
        };

        let (events, event_source) = mpsc::channel(EVENTS_IN_FLIGHT);
        let (commands, command_queue) = mpsc::channel(COMMANDS_IN_FLIGHT);
        let (proxy_config, proxy_config_wanted) = watch::channel(None);
        let (proxy_state, proxy) = watch::channel(ProxyState::default());
        let (write_back, write_back_wanted) = watch::channel(WriteBack::default());
        let flows = FlowRing::new(FLOWS_KEPT);
        let names: Arc<ArcSwap<Names>> = Arc::default();

        let (writer, source, follow) = start_source(&config.source, events).await?;
        let mut store = Store::new(StoreConfig {
            cluster: config.cluster.clone(),
            cluster_id,
            trust_domain: trust_domain.clone(),
            node_name: config.node.clone(),
            unsupported: config.unsupported_policy,
        });
        store.expect_sources([source]);
        let (identities, known) = IdentityFile::restore(&config.runtime_dir);
        store.restore_identities(known);
        store.apply(Event::NodeFacts {
            node: config.node.clone(),
            facts: Some(NodeFacts {
                wireguard_key: wireguard_key.public_key().to_string(),
                wireguard_port: config.encryption.listen_port,
            }),
        });
        let setting = Setting {
            cluster: config.cluster.clone(),
            node: config.node.clone(),
            trust_domain,
            listen: config.mesh.listen,
        };
        let (mesh, mesh_updates) = Mesh::start(setting, ca.clone(), MeshMemory::restore(&config.state_dir)).await?;

        let (mut endpoints, bad) = EndpointTable::restore(config.runtime_dir.join("endpoints"))?;
        for file in bad {
            tracing::warn!(file, "an endpoint's file cannot be read: its pod stays cut off until it is made anew");
        }
        let mut overlay = PodOverlay::new(&config.node);
        let gone: Vec<String> = endpoints
            .all()
            .filter(|endpoint| host::ifindex(&endpoint.created.interface) != Some(endpoint.ifindex))
            .map(|endpoint| endpoint.created.container_id.clone())
            .collect();
        for container in gone {
            endpoints.remove(&container);
        }
        for endpoint in endpoints.all() {
            for event in overlay.connected(&endpoint.pod(), &endpoint.created.addresses) {
                store.apply(event);
            }
        }
        let shared = Arc::new(Shared {
            cluster_id,
            trust_bundle_pem: ca.bundle_pem().to_owned(),
            snapshot: ArcSwapOption::empty(),
            report: ArcSwap::from_pointee(Report::default()),
            endpoints: ArcSwap::from_pointee(endpoints.clone()),
            flows: flows.clone(),
            proxy: proxy.clone(),
            mesh: mesh.view(),
            commands,
            config,
        });
        let config = &shared.config;
        let mut appliers = Appliers {
            datapath,
            router,
            ca,
            svids: Svids::default(),
            wireguard_key,
            cgroup,
            devices,
            mtu,
            names: names.clone(),
            proxy: proxy_config,
            write_back,
            state: Default::default(),
        };
        appliers.take_over(&endpoints);

        let node = config.node.clone();
        tasks.spawn(async move {
            follow.await;
            ("source", Ok(()))
        });
        tasks.spawn({
            let writer = writer.clone();
            async move {
                apply::write_back(node, writer, write_back_wanted).await;
                ("write-back", Ok(()))
            }
        });
        let link = Link {
            socket: config.proxy_socket(),
            config: proxy_config_wanted,
            state: proxy_state,
            flows: flows.clone(),
        };
        tasks.spawn(async move {
            link.run().await;
            ("proxy link", Ok(()))
        });
        tasks.spawn(async move {
            loop {
                match kernel_events.next().await {
                    Ok(event) => flows.push(names.load().flow(&event)),
                    Err(error) => return ("kernel events", Err(error.into())),
                }
            }
        });
        tasks.spawn({
            let (shared, stop) = (shared.clone(), stop.clone());
            async move { ("API", server::serve(api, shared, stop).await.map_err(Into::into)) }
        });
        tasks.spawn({
            let (shared, stop) = (shared.clone(), stop.clone());
            async move { ("metrics", server::serve_metrics(metrics, shared, stop).await.map_err(Into::into)) }
        });
        let cni_dir = config.state_dir.join("cni");
        let control =
            Control { store, overlay, endpoints, cni_dir, identities, appliers, mesh, writer, shared: shared.clone() };
        let inputs = Inputs { events: event_source, commands: command_queue, mesh: mesh_updates, proxy };
        let token = stop.clone();
        tasks.spawn(async move {
            control.run(inputs, token).await;
            ("control", Ok(()))
        });
        tracing::info!(node = config.node, cluster = %config.cluster, cluster_id, "weft-agent runs");
        Ok(Self { stop, tasks })
    }

    /// Until SIGTERM or SIGINT, or until a task ends that should not.
    pub async fn until_shutdown(mut self) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let result = tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            Some(ended) = self.tasks.join_next() => {
                let (task, result) = ended.context("a task panicked")?;
                result.with_context(|| format!("the {task} task failed")).and_then(|()| {
                    anyhow::bail!("the {task} task ended without a reason")
                })
            }
        };
        self.stop.cancel();
        self.tasks.shutdown().await;
        if let Err(error) = &result {
            tracing::error!(error = format!("{error:#}"), "weft-agent ends");
        }
        result
    }
}

impl Appliers {
    /// Puts this version's programs on the interfaces of the pods that an earlier agent knew, and lets go of those that
    /// went in the meantime.
    fn take_over(&mut self, endpoints: &EndpointTable) {
        let known: BTreeMap<&str, ()> = endpoints.all().map(|e| (e.created.interface.as_str(), ())).collect();
        for interface in self.datapath.attached_endpoints() {
            if !known.contains_key(interface.as_str()) {
                self.detach_endpoint(&interface);
            }
        }
        for interface in known.into_keys() {
            if let Err(error) = self.attach_endpoint(interface) {
                tracing::error!(interface, error = chain(&error), "cannot attach to a pod's interface");
            }
        }
    }
}

/// The mount point of cgroup v2, wherever it is.
fn cgroup_root() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    line.split(' ').nth(1).map(|path| Path::new(path).to_owned())
}
