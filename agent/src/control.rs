//! The control loop: the one owner of the store, the datapath and the mesh. Everything that happens comes in as an
//! event or a command; what follows is always the same: snapshot, plans, appliers, report.
use crate::{
    api::types::NewEndpoint,
    apply::{Applied, Appliers},
    endpoints::{EndpointTable, take_tombstones},
    identities::IdentityFile,
    mesh::{Mesh, Updates},
    overlay::PodOverlay,
    proxy::link::ProxyState,
    shared::Shared,
    sources::{self, writer::Writer},
};
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{self, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use weft_clustermesh_core::connect::ConnectInfo;
use weft_model::store::{Event, Store};

pub type Done = oneshot::Sender<Result<(), String>>;

/// What the API asks for. Each is answered.
pub enum Command {
    AddEndpoint(NewEndpoint, Done),
    RemoveEndpoint(String, Done),
    AddPeer(ConnectInfo, Done),
    RemovePeer(String, Done),
}

/// How many commands may wait.
pub const COMMANDS_IN_FLIGHT: usize = 64;
/// Events taken in one go before plans are made.
const BATCH: usize = 4096;
/// Certificates, the tunnel's interface, links and routes are looked after this often, without any event.
const UPKEEP: Duration = Duration::from_secs(1);

pub struct Control {
    pub store: Store,
    pub overlay: PodOverlay,
    pub endpoints: EndpointTable,
    pub cni_dir: PathBuf,
    pub identities: IdentityFile,
    pub appliers: Appliers,
    pub mesh: Mesh,
    pub writer: Writer,
    pub shared: Arc<Shared>,
}

/// Where events come from.
pub struct Inputs {
    pub events: mpsc::Receiver<Event>,
    pub commands: mpsc::Receiver<Command>,
    pub mesh: Updates,
    pub proxy: watch::Receiver<ProxyState>,
}

impl Control {
    /// Runs until the token is cancelled. What is in the kernel stays there.
    pub async fn run(mut self, mut inputs: Inputs, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut upkeep = time::interval(UPKEEP);
        upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut waiting: Vec<Done> = Vec::new();
            tokio::select! {
                () = stop.cancelled() => return,
                taken = inputs.events.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        // Every source has ended: only a stop does that.
                        return;
                    }
                    for event in batch.drain(..) {
                        self.take(event);
                    }
                }
                Some(command) = inputs.commands.recv() => waiting.extend(self.obey(command).await),
                Some(update) = inputs.mesh.peers.recv() => {
                    if let Some(event) = self.mesh.peer_told(update) {
                        self.store.apply(event);
                    }
                }
                Some(update) = inputs.mesh.nodes.recv() => {
                    let event = self.mesh.node_told(update);
                    self.store.apply(event);
                }
                Ok(()) = inputs.proxy.changed() => inputs.proxy.mark_unchanged(),
                _ = upkeep.tick() => {
                    for container in take_tombstones(&self.cni_dir) {
                        self.remove_endpoint(&container);
                    }
                }
            }
            let applied = self.round().await;
            let result = match applied.failure {
                None => Ok(()),
                Some(failure) => Err(failure),
            };
            for done in waiting {
                let _ = done.send(result.clone());
            }
        }
    }

    fn take(&mut self, event: Event) {
        for extra in self.overlay.see(&event) {
            self.store.apply(extra);
        }
        self.store.apply(event);
    }

    /// A command whose result is known only after the next round is handed back.
    async fn obey(&mut self, command: Command) -> Option<Done> {
        let (done, result) = match command {
            Command::AddEndpoint(new, done) => match self.add_endpoint(new) {
                Ok(()) => return Some(done),
                Err(error) => (done, Err(error)),
            },
            Command::RemoveEndpoint(container, done) => {
                self.remove_endpoint(&container);
                (done, Ok(()))
            }
            Command::AddPeer(info, done) => (done, self.add_peer(&info).await),
            Command::RemovePeer(cluster, done) => {
                let removed = self.writer.delete_mesh_peer(&cluster).await;
                (done, removed.map_err(|error| chain(&error)))
            }
        };
        let _ = done.send(result);
        None
    }

    fn add_endpoint(&mut self, new: NewEndpoint) -> Result<(), String> {
        let ifindex = self.appliers.attach_endpoint(&new.interface).map_err(|error| chain(&error))?;
        let endpoint = self.endpoints.add(new, ifindex).map_err(|error| chain(&error))?;
        for event in self.overlay.connected(&endpoint.pod(), &endpoint.created.addresses) {
            self.store.apply(event);
        }
        self.shared.endpoints.store(Arc::new(self.endpoints.clone()));
        Ok(())
    }

    fn remove_endpoint(&mut self, container: &str) {
        let Some(endpoint) = self.endpoints.remove(container) else { return };
        self.appliers.detach_endpoint(&endpoint.created.interface);
        for event in self.overlay.disconnected(&endpoint.pod()) {
            self.store.apply(event);
        }
        self.shared.endpoints.store(Arc::new(self.endpoints.clone()));
    }

    async fn add_peer(&mut self, info: &ConnectInfo) -> Result<(), String> {
        let own = crate::api::rows::connect_info(&self.shared);
        let peers = self.store.snapshot().mesh_peers.clone();
        own.check_with_peers(info, &peers).map_err(|error| chain(&error))?;
        let peer = info.to_peer();
        self.writer.apply_mesh_peer(&peer).await.map_err(|error| chain(&error))
    }

    async fn round(&mut self) -> Applied {
        let mut snapshot = self.store.snapshot();
        let recalled = self.mesh.recall(&snapshot, Instant::now());
        if !recalled.is_empty() {
            for event in recalled {
                self.store.apply(event);
            }
            snapshot = self.store.snapshot();
        }
        match self.mesh.follow(&snapshot, matches!(self.writer, Writer::Directory(_))) {
            Ok(events) if events.is_empty() => self.appliers.mesh_error(None),
            Ok(events) => {
                for event in events {
                    self.store.apply(event);
                }
                snapshot = self.store.snapshot();
                self.appliers.mesh_error(None);
            }
            Err(error) => self.appliers.mesh_error(Some(chain(&error))),
        }
        self.shared.snapshot.store(Some(snapshot.clone()));
        if snapshot.synced {
            self.mesh.publish(&snapshot);
            self.identities.keep(&snapshot);
        }
        let applied = self.appliers.apply(&snapshot, &self.endpoints, &self.mesh, &self.writer, &self.shared).await;
        self.shared.report.store(Arc::new(applied.report.clone()));
        applied
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// Starts the source that the settings name.
pub async fn start_source(
    source: &crate::config::SourceConfig,
    events: mpsc::Sender<Event>,
) -> Result<(Writer, &'static str, futures::future::BoxFuture<'static, ()>), sources::kube::KubeError> {
    use crate::config::SourceConfig::{Directory, Kubernetes};
    match source {
        Directory { paths } => {
            let last = paths.last().cloned().unwrap_or_default();
            let follow = Box::pin(sources::dir::follow(paths.clone(), events));
            Ok((Writer::Directory(last), sources::DIRECTORY, follow))
        }
        Kubernetes { kubeconfig, context } => {
            let client = sources::kube::client(kubeconfig.as_deref(), context.as_deref()).await?;
            let follow = Box::pin(sources::kube::follow(client.clone(), events));
            Ok((Writer::Kubernetes(client), sources::KUBERNETES, follow))
        }
    }
}
