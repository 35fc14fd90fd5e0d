//! This node's part in the mesh: the server that others read, and a reader for each connected cluster; with the
//! directory source also one for each other node of this cluster, for what only that node knows.
use crate::{api::types::MeshPeerStatus, memory::MeshMemory};
use arc_swap::ArcSwap;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Instant, SystemTime},
};
use tokio::sync::mpsc;
use weft_certs::{CaError, ClusterCa, Identity, SVID_LIFETIME, SharedIdentity, TlsError, TrustBundles, rotation};
use weft_clustermesh::{
    MeshServer, MeshServerConfig, NodeReader, NodeUpdate, PeerConfig, PeerReader, PeerState, PeerUpdate, ServerError,
    tls,
};
use weft_clustermesh_core::{ExportOptions, export, liveness::PeerKind};
use weft_identity::TrustDomain;
use weft_model::{
    snapshot::Snapshot,
    store::{Event, NodeFacts},
    types::{ClusterName, MeshPeer, RemoteCluster},
};

/// How many updates of readers may wait for the control loop.
const UPDATES_IN_FLIGHT: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    #[error("cannot issue the agent's own certificate")]
    Certificate(#[from] CaError),
    #[error("cannot use the agent's own certificate")]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// What the API reads.
#[derive(Clone, Default)]
pub struct MeshView(Arc<ArcSwap<BTreeMap<String, MeshPeerStatus>>>);

impl MeshView {
    pub fn peers(&self) -> Vec<MeshPeerStatus> {
        self.0.load().values().cloned().collect()
    }
}

pub struct Mesh {
    cluster: ClusterName,
    node: String,
    trust_domain: TrustDomain,
    ca: Arc<ClusterCa>,
    listen: Option<SocketAddr>,
    identity: SharedIdentity,
    issued: (SystemTime, SystemTime),
    bundles: TrustBundles,
    /// The peers whose bundles are in `bundles`.
    trusted: Vec<MeshPeer>,
    since: SystemTime,
    server: Option<MeshServer>,
    readers: BTreeMap<ClusterName, (MeshPeer, PeerReader)>,
    node_readers: BTreeMap<String, (SocketAddr, NodeReader)>,
    states: BTreeMap<ClusterName, PeerState>,
    clusters: BTreeMap<ClusterName, RemoteCluster>,
    memory: MeshMemory,
    /// Clusters known from an earlier run alone, and since when they are waited for.
    unheard: BTreeMap<ClusterName, Instant>,
    /// Nodes that the memory was asked for.
    recalled: BTreeSet<String>,
    published: Option<Arc<Snapshot>>,
    view: MeshView,
    updates: mpsc::Sender<PeerUpdate>,
    node_updates: mpsc::Sender<NodeUpdate>,
}

/// What the readers tell; the control loop owns it.
pub struct Updates {
    pub peers: mpsc::Receiver<PeerUpdate>,
    pub nodes: mpsc::Receiver<NodeUpdate>,
}

/// Who this agent is in the mesh.
pub struct Setting {
    pub cluster: ClusterName,
    pub node: String,
    pub trust_domain: TrustDomain,
    pub listen: Option<SocketAddr>,
}

impl Mesh {
    /// Starts the server, where there is an address for it. Readers come with `follow`.
    /// `memory`: what an earlier run of this agent knew of the others.
    pub async fn start(setting: Setting, ca: Arc<ClusterCa>, memory: MeshMemory) -> Result<(Self, Updates), MeshError> {
        let (updates, peers) = mpsc::channel(UPDATES_IN_FLIGHT);
        let (node_updates, nodes) = mpsc::channel(UPDATES_IN_FLIGHT);
        let Setting { cluster, node, trust_domain, listen } = setting;
        let since = SystemTime::now();
        let (identity, issued) = issue(&ca, &trust_domain, listen, since)?;
        let identity = SharedIdentity::new(identity);
        let bundles = TrustBundles::from_pem([(&trust_domain, ca.bundle_pem())])?;
        let server = match listen {
            Some(listen) => {
                let config = MeshServerConfig::new(listen, cluster.clone(), node.as_str());
                Some(MeshServer::start(config, tls::server(&identity, &bundles)?).await?)
            }
            None => None,
        };
        let mesh = Self {
            cluster,
            node,
            trust_domain,
            ca,
            listen,
            identity,
            issued,
            bundles,
            trusted: vec![],
            since,
            server,
            readers: BTreeMap::new(),
            node_readers: BTreeMap::new(),
            states: BTreeMap::new(),
            clusters: BTreeMap::new(),
            memory,
            unheard: BTreeMap::new(),
            recalled: BTreeSet::new(),
            published: None,
            view: MeshView::default(),
            updates,
            node_updates,
        };
        Ok((mesh, Updates { peers, nodes }))
    }

    pub fn view(&self) -> MeshView {
        self.view.clone()
    }

    /// What an earlier run knew of the clusters and nodes that the snapshot names, until they are heard: the store must
    /// hear it before anything is written. A cluster that does not speak up counts as dead in time, and stays known.
    pub fn recall(&mut self, snapshot: &Snapshot, now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        for peer in &snapshot.mesh_peers {
            if !self.readers.contains_key(&peer.cluster)
                && !self.clusters.contains_key(&peer.cluster)
                && let Some(cluster) = self.memory.cluster(peer)
            {
                self.clusters.insert(cluster.name.clone(), cluster.clone());
                self.unheard.insert(cluster.name.clone(), now);
                events.push(Event::Remote(Box::new(cluster.clone())));
            }
        }
        for (name, since) in &self.unheard {
            let Some(cluster) = self.clusters.get_mut(name).filter(|cluster| cluster.alive) else { continue };
            let kind = if cluster.hbone { PeerKind::Weft } else { PeerKind::Cilium };
            if now.saturating_duration_since(*since) > kind.timeout() {
                cluster.alive = false;
                events.push(Event::Remote(Box::new(cluster.clone())));
            }
        }
        for node in snapshot.nodes.iter().filter(|node| node.cluster == self.cluster && node.name != self.node) {
            if !self.node_readers.contains_key(&node.name)
                && self.recalled.insert(node.name.clone())
                && let Some(facts) = self.memory.node(&node.name)
            {
                events.push(Event::NodeFacts { node: node.name.clone(), facts: Some(facts.clone()) });
            }
        }
        if snapshot.synced {
            let has_node = |name: &str| snapshot.nodes.iter().any(|n| n.cluster == self.cluster && n.name == name);
            self.recalled.retain(|name| has_node(name));
            self.memory.keep_only(|name| snapshot.mesh_peers.iter().any(|peer| peer.cluster == *name), has_node);
        }
        self.memory.save(now);
        events
    }

    /// Starts and stops readers so that they match the snapshot. `nodes_too`: the source does not carry what only a node
    /// knows, so the cluster's other nodes are read as well. Answers what the store must hear.
    pub fn follow(&mut self, snapshot: &Snapshot, nodes_too: bool) -> Result<Vec<Event>, MeshError> {
        self.renew()?;
        if self.trusted != snapshot.mesh_peers {
            let peers = snapshot.mesh_peers.iter().map(|peer| (&peer.trust_domain, peer.trust_bundle.as_str()));
            self.bundles.replace(peers.chain([(&self.trust_domain, self.ca.bundle_pem())]))?;
            self.trusted.clone_from(&snapshot.mesh_peers);
            if let Some(server) = &self.server {
                let trusted = snapshot.mesh_peers.iter().map(|peer| peer.trust_domain.clone());
                server.keep_only(trusted.chain([self.trust_domain.clone()]));
            }
        }
        let mut events = Vec::new();
        let wanted: BTreeMap<&ClusterName, &MeshPeer> =
            snapshot.mesh_peers.iter().map(|peer| (&peer.cluster, peer)).collect();
        let ended: Vec<ClusterName> = self
            .readers
            .iter()
            .filter(|(name, (peer, _))| wanted.get(name).is_none_or(|wanted| *wanted != peer))
            .map(|(name, _)| name.clone())
            .collect();
        for name in ended {
            self.readers.remove(&name);
            self.states.remove(&name);
            // A peer that only moved stays known until its new reader has heard it.
            if !wanted.contains_key(&name) {
                self.clusters.remove(&name);
                self.unheard.remove(&name);
                events.push(Event::RemoteGone(name));
            }
        }
        for (name, peer) in wanted {
            if !self.readers.contains_key(name) {
                let client = tls::client(&self.identity, &self.bundles, &peer.trust_domain)?;
                let reader = PeerReader::spawn(PeerConfig::from(peer), Some(client), self.updates.clone());
                self.readers.insert(name.clone(), (peer.clone(), reader));
            }
        }
        if nodes_too {
            events.extend(self.follow_nodes(snapshot)?);
        }
        self.show();
        Ok(events)
    }

    fn follow_nodes(&mut self, snapshot: &Snapshot) -> Result<Vec<Event>, MeshError> {
        let Some(port) = self.listen.map(|listen| listen.port()) else { return Ok(vec![]) };
        let others = snapshot.nodes.iter().filter(|node| node.cluster == self.cluster && node.name != self.node);
        let wanted: BTreeMap<String, SocketAddr> = others
            .filter_map(|node| Some((node.name.clone(), SocketAddr::new(*node.addresses.first()?, port))))
            .collect();
        let mut events = Vec::new();
        self.node_readers.retain(|node, (address, _)| {
            let keep = wanted.get(node) == Some(address);
            if !keep && !wanted.contains_key(node) {
                events.push(Event::NodeFacts { node: node.clone(), facts: None });
            }
            keep
        });
        for (node, address) in wanted {
            if !self.node_readers.contains_key(&node) {
                let client = tls::client(&self.identity, &self.bundles, &self.trust_domain)?;
                let endpoint = address.to_string();
                let updates = self.node_updates.clone();
                let reader = NodeReader::spawn(self.cluster.clone(), node.clone(), endpoint, Some(client), updates);
                self.node_readers.insert(node, (address, reader));
            }
        }
        Ok(events)
    }

    /// Offers the snapshot to the others.
    pub fn publish(&mut self, snapshot: &Arc<Snapshot>) {
        if self.published.as_ref().is_some_and(|published| Arc::ptr_eq(published, snapshot)) {
            return;
        }
        if let Some(server) = &self.server {
            server.publish(export(snapshot, &ExportOptions { hbone: true, since: self.since }));
        }
        self.published = Some(snapshot.clone());
    }

    /// Takes in what a reader of a cluster says; answers what the store must hear.
    pub fn peer_told(&mut self, update: PeerUpdate) -> Option<Event> {
        match update {
            PeerUpdate::Cluster(cluster) => {
                // A reader that was just stopped may still have said something.
                if !self.readers.contains_key(&cluster.name) {
                    return None;
                }
                self.unheard.remove(&cluster.name);
                self.memory.cluster_told(&cluster);
                self.clusters.insert(cluster.name.clone(), (*cluster).clone());
                Some(Event::Remote(cluster))
            }
            PeerUpdate::State(state) => {
                self.states.insert(state.cluster.clone(), state);
                None
            }
        }
    }

    pub fn node_told(&mut self, update: NodeUpdate) -> Event {
        let facts = update.facts.and_then(|node| {
            Some(NodeFacts { wireguard_key: node.wireguard_key?, wireguard_port: node.wireguard_port })
        });
        self.memory.node_told(&update.node, facts.as_ref());
        Event::NodeFacts { node: update.node, facts }
    }

    /// PEM by trust domain, our own left out.
    pub fn trust_bundles(&self, snapshot: &Snapshot) -> BTreeMap<TrustDomain, String> {
        snapshot.mesh_peers.iter().map(|peer| (peer.trust_domain.clone(), peer.trust_bundle.clone())).collect()
    }

    pub fn hbone_clusters(&self) -> BTreeSet<ClusterName> {
        self.clusters.values().filter(|cluster| cluster.hbone).map(|cluster| cluster.name.clone()).collect()
    }

    fn renew(&mut self) -> Result<(), MeshError> {
        let now = SystemTime::now();
        if rotation::due(self.issued.0, self.issued.1, 0, now) {
            let (identity, issued) = issue(&self.ca, &self.trust_domain, self.listen, now)?;
            self.identity.replace(identity);
            self.issued = issued;
        }
        Ok(())
    }

    fn show(&self) {
        let now = SystemTime::now();
        let rows = self.readers.iter().map(|(name, (peer, _))| {
            let state = self.states.get(name);
            let cluster = self.clusters.get(name);
            let word = match state {
                Some(state) if state.connected && state.alive => "connected",
                Some(state) if state.last_heartbeat.is_some() => "dead",
                _ => "connecting",
            };
            let heartbeat = state.and_then(|state| state.last_heartbeat);
            let row = MeshPeerStatus {
                cluster: name.to_string(),
                cluster_id: peer.cluster_id,
                trust_domain: peer.trust_domain.to_string(),
                state: word.to_owned(),
                endpoint: state.map(|state| state.endpoint.clone()).unwrap_or_default(),
                heartbeat_age_s: heartbeat.and_then(|at| now.duration_since(at).ok()).map(|age| age.as_secs_f64()),
                synced: state.is_some_and(|state| state.synced),
                services: cluster.map_or(0, |cluster| cluster.services.len() as u64),
                nodes: cluster.map_or(0, |cluster| cluster.nodes.len() as u64),
                endpoints: cluster.map_or(0, |cluster| cluster.workloads.len() as u64),
                error: state.map(error_of).unwrap_or_default(),
            };
            (name.to_string(), row)
        });
        self.view.0.store(Arc::new(rows.collect()));
    }
}

fn error_of(state: &PeerState) -> String {
    let mut text = state.error.clone().unwrap_or_default();
    if let Some(problem) = state.problems.first() {
        let more = if text.is_empty() { "" } else { "; " };
        text += &format!(
            "{more}{} keys are not usable, the first: {}: {}",
            state.problem_count, problem.key, problem.error
        );
    }
    text
}

fn issue(
    ca: &ClusterCa,
    trust_domain: &TrustDomain,
    listen: Option<SocketAddr>,
    now: SystemTime,
) -> Result<(Identity, (SystemTime, SystemTime)), MeshError> {
    let addresses: Vec<IpAddr> = listen.iter().map(SocketAddr::ip).collect();
    let id = tls::agent_id(trust_domain);
    // The names are what Cilium's agents look for.
    let svid = ca.issue_server(&id, "remote", &["*.mesh.cilium.io"], &addresses, SVID_LIFETIME, now)?;
    let identity = Identity::from_pem(&svid.certificates_pem, &svid.private_key_pem)?;
    Ok((identity, (svid.not_before, svid.not_after)))
}
