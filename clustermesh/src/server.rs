//! This cluster's keys, offered read-only to agents of connected clusters.
mod accept;
mod facade;
mod status;
pub(crate) mod store;
mod watch;

use self::store::{HistoryLimits, Store};
use crate::{pb::etcdserverpb::ResponseHeader, task::OwnedTask};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, Weak},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch as level},
    time::MissedTickBehavior,
};
use tokio_stream::wrappers::ReceiverStream;
use weft_clustermesh_core::{Change, Key, heartbeat, liveness::HEARTBEAT_EVERY};
use weft_identity::TrustDomain;
use weft_model::types::ClusterName;

/// A peer that answers no ping for both together is dropped, and its watches with it.
const PING_EVERY: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Of keys and values in one revision: a revision is one answer, and clients take 4 MiB by default.
const REVISION_BYTES: usize = 512 << 10;

#[derive(Clone, Debug)]
pub struct MeshServerConfig {
    /// Port 0: any free one.
    pub listen: SocketAddr,
    pub cluster: ClusterName,
    /// Two servers of one cluster count revisions apart, so they need different names.
    pub node: String,
    /// Connections at a time; more wait in the kernel's queue.
    pub connections: usize,
    /// How long changes are gathered before watchers hear of them.
    pub coalesce: Duration,
}

impl MeshServerConfig {
    pub fn new(listen: SocketAddr, cluster: ClusterName, node: impl Into<String>) -> Self {
        Self { listen, cluster, node: node.into(), connections: 1024, coalesce: Duration::from_millis(5) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(
        "the mesh server cannot listen on {address}: is another process using the port? Set another mesh listen address"
    )]
    Listen {
        address: SocketAddr,
        #[source]
        cause: io::Error,
    },
}

/// A running server. Dropping it ends every watch ('server stopped', so that peers go to another server at once) and then
/// the server.
#[derive(Debug)]
pub struct MeshServer {
    address: SocketAddr,
    publisher: Arc<Publisher>,
    connected: level::Sender<accept::Connected>,
    _tasks: [OwnedTask; 2],
}

impl MeshServer {
    /// `tls`: from `tls::server`. Heartbeats begin at once; keys come with `publish`.
    pub async fn start(config: MeshServerConfig, tls: Arc<rustls::ServerConfig>) -> Result<Self, ServerError> {
        let failed = |cause| ServerError::Listen { address: config.listen, cause };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let publisher = Arc::new(Publisher::new(HistoryLimits::default()));
        let view = publisher.view(Member::of(&config, address));

        let (streams, incoming) = mpsc::channel(16);
        let (connected, known) = level::channel(None);
        let accept = OwnedTask::spawn(accept::accept(listener, tls, config.connections, known, streams));
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(PING_EVERY))
            .http2_keepalive_timeout(Some(PING_TIMEOUT));
        let served = facade::services(server, view.clone())
            .serve_with_incoming_shutdown(ReceiverStream::new(incoming), view.unpublished());
        // It ends by itself when the publisher is gone; ended from outside it would leave its connections behind.
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::warn!(%address, %error, "the mesh server has ended");
            }
        });
        let beat = OwnedTask::spawn(beat(config.cluster, Arc::downgrade(&publisher)));
        Ok(Self { address, publisher, connected, _tasks: [accept, beat] })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes `state` (from `core::export`) the whole of what is offered, heartbeats aside: what is no longer in it is
    /// deleted, what is as it was makes no event. An empty state changes nothing: it is what an agent has before its
    /// sources are in sync, and peers must not take it for the truth.
    pub fn publish(&self, state: BTreeMap<Bytes, Bytes>) {
        if !state.is_empty() {
            self.publisher.replace(state);
        }
    }

    /// Ends the connections of clusters of other trust domains than these. Whom new connections are taken from is the trust
    /// bundles' to say; call it after they have changed.
    pub fn keep_only(&self, trust_domains: impl IntoIterator<Item = TrustDomain>) {
        self.connected.send_replace(Some(trust_domains.into_iter().collect()));
    }

    /// Forgets the history: watches that are behind are told to list again. For tests and memory emergencies.
    pub fn compact(&self) {
        self.publisher.forget_history();
    }
}

/// Who we say we are. Peers pin `cluster_id`, since a revision means something on one server only; it is the same after a
/// restart.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub cluster_id: u64,
    pub member_id: u64,
    pub name: String,
    /// Clients that 'sync' replace their endpoints by these: never empty.
    pub client_urls: Vec<String>,
    pub coalesce: Duration,
    /// How often a watch that asked for it hears that nothing has happened.
    pub progress: Duration,
}

impl Member {
    fn of(config: &MeshServerConfig, address: SocketAddr) -> Self {
        let cluster_id = hash(&format!("{}/{}", config.cluster, config.node));
        Self {
            cluster_id,
            member_id: cluster_id ^ 1,
            name: config.node.clone(),
            client_urls: vec![format!("https://{address}")],
            coalesce: config.coalesce,
            progress: Duration::from_secs(60),
        }
    }
}

/// The only writer.
#[derive(Debug)]
struct Publisher {
    store: Arc<RwLock<Store>>,
    revision: level::Sender<i64>,
}

impl Publisher {
    fn new(limits: HistoryLimits) -> Self {
        // The clock in microseconds is above all that an earlier run can have shown.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let store = Store::new(i64::try_from(now.as_micros()).unwrap_or(1), limits);
        let (revision, _) = level::channel(store.revision());
        Self { store: Arc::new(RwLock::new(store)), revision }
    }

    fn apply(&self, changes: impl IntoIterator<Item = Change>) {
        let revision = self.store.write().unwrap_or_else(PoisonError::into_inner).apply(changes);
        self.revision.send_if_modified(|known| std::mem::replace(known, revision) != revision);
    }

    /// In revisions of bounded size; 'complete' is said last, and taken back first.
    fn replace(&self, state: BTreeMap<Bytes, Bytes>) {
        let gone: Vec<Bytes> = {
            let store = self.store.read().unwrap_or_else(PoisonError::into_inner);
            store.keys().filter(|key| !state.contains_key(*key) && !is_heartbeat(key)).cloned().collect()
        };
        let is_canary = |key: &Bytes| matches!(Key::parse(key), Some(Key::Synced(..)));
        let (gone_canaries, gone): (Vec<_>, Vec<_>) = gone.into_iter().partition(is_canary);
        let (canaries, rest): (Vec<_>, Vec<_>) = state.into_iter().partition(|(key, _)| is_canary(key));
        let delete = |key| Change::Delete { key };
        let put = |(key, value)| Change::Put { key, value };
        let changes = gone_canaries.into_iter().chain(gone).map(delete);
        let mut batch = Batch { publisher: self, changes: vec![], bytes: 0 };
        changes.chain(rest.into_iter().chain(canaries).map(put)).for_each(|change| batch.push(change));
        batch.flush();
    }

    fn forget_history(&self) {
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        let revision = store.revision();
        store.forget_through(revision);
    }

    fn view(&self, member: Member) -> View {
        View { store: self.store.clone(), revision: self.revision.subscribe(), member: Arc::new(member) }
    }
}

struct Batch<'a> {
    publisher: &'a Publisher,
    changes: Vec<Change>,
    bytes: usize,
}

impl Batch<'_> {
    fn push(&mut self, change: Change) {
        self.bytes += match &change {
            Change::Put { key, value } => key.len() + value.len(),
            Change::Delete { key } => key.len(),
        };
        self.changes.push(change);
        if self.bytes >= REVISION_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.bytes = 0;
        self.publisher.apply(self.changes.drain(..));
    }
}

/// What the services hold: they read, and hear when there is more to read.
#[derive(Clone)]
pub(crate) struct View {
    store: Arc<RwLock<Store>>,
    pub(crate) revision: level::Receiver<i64>,
    pub(crate) member: Arc<Member>,
}

impl View {
    pub(crate) fn store(&self) -> RwLockReadGuard<'_, Store> {
        self.store.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn header(&self, revision: i64) -> Option<ResponseHeader> {
        let Member { cluster_id, member_id, .. } = *self.member;
        Some(ResponseHeader { cluster_id, member_id, revision, raft_term: 1 })
    }

    /// Ends when the publisher is gone.
    async fn unpublished(mut self) {
        while self.revision.changed().await.is_ok() {}
    }
}

async fn beat(cluster: ClusterName, publisher: Weak<Publisher>) {
    let mut ticks = tokio::time::interval(HEARTBEAT_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(publisher) = publisher.upgrade() else { return };
        let keys = heartbeat(&cluster, SystemTime::now());
        publisher.apply(keys.map(|(key, value)| Change::Put { key, value }));
    }
}

fn is_heartbeat(key: &[u8]) -> bool {
    matches!(Key::parse(key), Some(Key::Heartbeat | Key::WeftHeartbeat(_)))
}

/// FNV-1a, never zero: peers take zero for 'no id'.
fn hash(text: &str) -> u64 {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, hash).max(2)
}

#[cfg(test)]
mod tests;
