//! The life of one pod on its node: network, containers, reports, and the way out.
use crate::{
    cni::{Cni, Sandbox},
    container::{Container, Restart, Surroundings, Wish},
    layout::{self, Layout},
    place::{self, Place},
    pods::{ContainerReport, Host, Phase, PodKey, PodReport, now},
    report::Reporter,
};
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod, PodSpec};
use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

const RETRY: Duration = Duration::from_secs(1);
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// The node that a pod runs on.
#[derive(Clone, Debug)]
pub struct NodeContext {
    pub layout: Layout,
    pub cluster: String,
    pub host: Host,
    pub cni: Cni,
    pub binaries: PathBuf,
    /// False: the cluster has no power.
    pub power: watch::Receiver<bool>,
    /// True once the node's agent has been ready: no pod starts before its network is watched over.
    pub agent_ready: watch::Receiver<bool>,
}

/// What its source says of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub pod: Arc<Pod>,
    pub deleted: bool,
}

struct Life {
    key: PodKey,
    node: NodeContext,
    wanted: watch::Receiver<Wanted>,
    reporter: Reporter,
    report: PodReport,
    /// The last report was not taken.
    unreported: bool,
}

/// Runs the pod until it is deleted and gone.
pub async fn live(key: PodKey, node: NodeContext, wanted: watch::Receiver<Wanted>, reporter: Reporter) {
    let report = PodReport {
        key: key.clone(),
        host: node.host.clone(),
        ips: Vec::new(),
        phase: Phase::Pending,
        ready: false,
        deleted: None,
        started: None,
        containers: Vec::new(),
        message: None,
    };
    let mut life = Life { key, node, wanted, reporter, report, unreported: false };
    life.publish().await;
    life.through().await;
}

impl Life {
    async fn through(&mut self) {
        let host_network = self.spec().host_network.unwrap_or(false);
        let sandbox = if host_network { None } else { Some(self.sandbox()) };
        if self.agent_is_ready().await && self.plug(sandbox.as_ref()).await {
            self.run().await;
        }
        self.unplug(sandbox).await;
        let uid = self.wanted.borrow().pod.metadata.uid.clone();
        self.reporter.remove(&self.key, uid.as_deref()).await;
    }

    /// False: the pod was deleted while it waited.
    async fn agent_is_ready(&mut self) -> bool {
        if !*self.node.agent_ready.borrow() {
            self.say("waits for the node's agent").await;
        }
        tokio::select! {
            ready = self.node.agent_ready.wait_for(|ready| *ready) => ready.is_ok(),
            _ = self.wanted.wait_for(|wanted| wanted.deleted) => false,
        }
    }

    /// Makes namespace, cgroup and interface, again and again until it works. False: deleted before it did.
    async fn plug(&mut self, sandbox: Option<&Sandbox>) -> bool {
        if let Err(error) = place::make_cgroup(&self.cgroup()) {
            self.say(&error.to_string()).await;
            return false;
        }
        let Some(sandbox) = sandbox else {
            self.report.ips = self.node.host.addresses.clone();
            return true;
        };
        loop {
            let (layout, cni, sandbox) = (self.node.layout.clone(), self.node.cni.clone(), sandbox.clone());
            let name = self.netns();
            let added = tokio::task::spawn_blocking(move || -> Result<Vec<IpAddr>, String> {
                if !layout::netns_path(&name).exists() {
                    place::make_netns(&layout, &name).map_err(|error| error.to_string())?;
                }
                cni.add(&sandbox).map_err(|error| error.to_string())
            });
            match added.await.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(ips) => {
                    self.report.ips = ips;
                    return true;
                }
                Err(error) => self.say(&error).await,
            }
            if timeout(RETRY, self.wanted.wait_for(|wanted| wanted.deleted)).await.is_ok() {
                return false;
            }
        }
    }

    async fn run(&mut self) {
        let around = Arc::new(self.surroundings());
        let spec = self.spec();
        let init = spec.init_containers.clone().unwrap_or_default();
        let parsed = |list: &[ContainerSpec]| -> Result<Vec<Container>, String> {
            list.iter().map(|container| Container::of(container, &around)).collect()
        };
        let (first, main) = match parsed(&init).and_then(|first| Ok((first, parsed(&spec.containers)?))) {
            Ok(both) => both,
            Err(error) => {
                self.report.phase = Phase::Failed;
                self.say(&error).await;
                // Nothing more happens until the pod is deleted.
                let _ = self.wanted.wait_for(|wanted| wanted.deleted).await;
                return;
            }
        };
        self.report.started = Some(now());
        self.report.message = None;
        for container in first {
            let on_failure = match around.restart {
                Restart::Never => Restart::Never,
                _ => Restart::OnFailure,
            };
            let around = Arc::new(Surroundings { restart: on_failure, ..(*around).clone() });
            let name = container.name.clone();
            let reports = self.containers(vec![container], around).await;
            if self.wanted.borrow().deleted {
                return;
            }
            if reports.iter().any(|report| report.exit != Some(0)) {
                self.report.phase = Phase::Failed;
                self.say(&format!("init container {name} failed")).await;
                let _ = self.wanted.wait_for(|wanted| wanted.deleted).await;
                return;
            }
        }
        self.report.phase = Phase::Running;
        let reports = self.containers(main, around).await;
        if !self.wanted.borrow().deleted {
            let failed = reports.iter().any(|report| report.exit != Some(0));
            self.report.phase = if failed { Phase::Failed } else { Phase::Succeeded };
            self.publish().await;
            let _ = self.wanted.wait_for(|wanted| wanted.deleted).await;
        }
    }

    /// Runs the containers until all have ended for good, and reports each change.
    async fn containers(&mut self, containers: Vec<Container>, around: Arc<Surroundings>) -> Vec<ContainerReport> {
        let (wish, wishes) = watch::channel(self.wish(false));
        let mut tasks = JoinSet::new();
        let mut views = Vec::new();
        for container in containers {
            let report = ContainerReport { name: container.name.clone(), ..ContainerReport::default() };
            let (publish, view) = watch::channel(report);
            views.push(view);
            tasks.spawn(container.run(around.clone(), wishes.clone(), publish));
        }
        let mut deleted = false;
        loop {
            self.report.containers = views.iter_mut().map(|view| view.borrow_and_update().clone()).collect();
            let ready = !deleted && self.report.containers.iter().all(|container| container.ready);
            self.report.ready = ready && self.report.phase == Phase::Running;
            // A cluster without power reports nothing.
            if *self.node.power.borrow() {
                self.publish().await;
            }
            tokio::select! {
                ended = tasks.join_next() => if ended.is_none() { break },
                () = any_changed(&mut views) => {}
                () = sleep(RETRY), if self.unreported => {}
                Ok(()) = self.node.power.changed() => {
                    wish.send_replace(self.wish(deleted));
                }
                Ok(()) = self.wanted.changed(), if !deleted => {
                    if self.wanted.borrow_and_update().deleted {
                        deleted = true;
                        self.report.deleted = Some(now());
                        self.report.ready = false;
                        // Endpoints hear of it before the process does, as far as that can be had.
                        self.publish().await;
                        wish.send_replace(self.wish(deleted));
                    }
                }
            }
        }
        views.iter().map(|view| view.borrow().clone()).collect()
    }

    fn wish(&self, deleted: bool) -> Wish {
        match (*self.node.power.borrow(), deleted) {
            (_, true) => Wish::End { grace: self.grace() },
            (true, false) => Wish::Run,
            (false, false) => Wish::Dark,
        }
    }

    async fn unplug(&mut self, sandbox: Option<Sandbox>) {
        let (layout, cni, cgroup, netns) =
            (self.node.layout.clone(), self.node.cni.clone(), self.cgroup(), self.netns());
        let key = self.key.clone();
        let done = tokio::task::spawn_blocking(move || {
            place::remove_cgroup(&cgroup);
            if let Some(sandbox) = sandbox {
                if layout::netns_path(&netns).exists()
                    && let Err(error) = cni.del(&sandbox)
                {
                    tracing::warn!(pod = %key, %error, "the pod's network was not taken down by the plugin");
                }
                place::remove_netns(&layout, &netns);
            }
        });
        // It only fails when it panics, and then there is nothing more to take down.
        let _ = done.await;
    }

    async fn say(&mut self, message: &str) {
        if self.report.message.as_deref() != Some(message) {
            tracing::info!(pod = %self.key, message, "a pod waits");
            self.report.message = Some(message.to_owned());
            self.publish().await;
        }
    }

    async fn publish(&mut self) {
        let pod = self.wanted.borrow().pod.clone();
        self.unreported = !self.reporter.publish(&pod, &self.report).await;
    }

    fn spec(&self) -> PodSpec {
        self.wanted.borrow().pod.spec.clone().unwrap_or_default()
    }

    fn grace(&self) -> Duration {
        let seconds = self.spec().termination_grace_period_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        seconds.map_or(DEFAULT_GRACE, Duration::from_secs)
    }

    fn netns(&self) -> String {
        self.node.layout.pod_netns(&self.node.cluster, &self.key.namespace, &self.key.name)
    }

    fn cgroup(&self) -> PathBuf {
        let PodKey { namespace, name } = &self.key;
        self.node.layout.pod_cgroup(&self.node.cluster, &self.node.host.node, namespace, name)
    }

    fn sandbox(&self) -> Sandbox {
        let id = format!("{}-{}", self.netns(), std::process::id());
        Sandbox { id, netns: layout::netns_path(&self.netns()), pod: self.key.clone() }
    }

    fn surroundings(&self) -> Surroundings {
        let spec = self.spec();
        let node_place = Place::node(&self.node.layout, &self.node.cluster, &self.node.host.node);
        let netns = if spec.host_network.unwrap_or(false) { node_place.netns.clone() } else { self.netns() };
        let log = format!("{}_{}.log", self.key.namespace, self.key.name);
        Surroundings {
            pod: self.key.clone(),
            node: self.node.host.node.clone(),
            ips: self.report.ips.clone(),
            service_account: spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned()),
            place: Place { netns, cgroup: self.cgroup() },
            node_place,
            log: self.node.layout.logs(&self.node.cluster).join(log),
            binaries: self.node.binaries.clone(),
            restart: Restart::of(&spec),
        }
    }
}

async fn any_changed(views: &mut [watch::Receiver<ContainerReport>]) {
    let changes = views.iter_mut().map(|view| {
        Box::pin(async move {
            if view.changed().await.is_err() {
                // This container has ended; its task's end is what counts.
                std::future::pending::<()>().await;
            }
        })
    });
    let changes: Vec<_> = changes.collect();
    if changes.is_empty() {
        sleep(RETRY).await;
    } else {
        futures::future::select_all(changes).await;
    }
}
