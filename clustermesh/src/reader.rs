//! Following another cluster, or one node of our own, through its mesh servers.
//!
//! A connection task keeps to one server, lists, watches, and lists anew after every break: nothing is resumed across
//! servers, whose revisions have nothing to do with each other. What it hears goes to a judge, which builds whole
//! pictures and decides when the cluster is dead.
mod connection;
mod connector;
mod judge;
mod session;

use self::{
    connection::{Connection, Event},
    judge::{Judge, Output},
    session::Span,
};
use crate::task::OwnedTask;
use serde::Serialize;
use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};
use tokio::sync::mpsc;
use weft_clustermesh_core::{Change, Importer, Key, import::Problem, key, value::NodeValue};
use weft_identity::TrustDomain;
use weft_model::types::{ClusterName, MeshPeer, Node, RemoteCluster};

/// Between the connection and who judges what it heard. A full channel stops the reading, and so the server.
const EVENTS_IN_FLIGHT: usize = 16;

/// Another cluster to follow.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    pub cluster: ClusterName,
    /// `None`: whatever it says.
    pub cluster_id: Option<u32>,
    pub trust_domain: TrustDomain,
    /// `host:port` of its mesh servers; one is used at a time.
    pub endpoints: Vec<String>,
}

impl From<&MeshPeer> for PeerConfig {
    fn from(peer: &MeshPeer) -> Self {
        Self {
            cluster: peer.cluster.clone(),
            cluster_id: Some(peer.cluster_id),
            trust_domain: peer.trust_domain.clone(),
            endpoints: peer.endpoints.clone(),
        }
    }
}

#[derive(Clone, Debug)]
pub enum PeerUpdate {
    /// All that is known of the cluster, in place of what was known.
    Cluster(Box<RemoteCluster>),
    /// How the following goes.
    State(PeerState),
}

/// For status. Sent when something in it changes; a heartbeat is a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerState {
    pub cluster: ClusterName,
    pub connected: bool,
    /// The mesh server in use, or tried last.
    pub endpoint: String,
    pub last_heartbeat: Option<SystemTime>,
    /// A whole picture of the cluster was handed on, and nothing keeps the next one back.
    pub synced: bool,
    pub alive: bool,
    /// It writes Weft's own keys.
    pub weft: bool,
    /// What keeps it from being connected or synced.
    pub error: Option<String>,
    /// The first of its keys that count as absent because of their value, and why.
    #[serde(serialize_with = "problems_as_text")]
    pub problems: Vec<Problem>,
    pub problem_count: usize,
}

/// Follows a cluster until dropped. What it was the last to say stays with who received it: remove that too.
#[derive(Debug)]
pub struct PeerReader {
    _tasks: [OwnedTask; 2],
}

impl PeerReader {
    /// `tls`: from `tls::client` for the peer's trust domain. `None` is plain text: for an etcd on this machine only.
    pub fn spawn(
        config: PeerConfig,
        tls: Option<Arc<rustls::ClientConfig>>,
        updates: mpsc::Sender<PeerUpdate>,
    ) -> Self {
        let PeerConfig { cluster, cluster_id, trust_domain, endpoints } = config;
        let spans = vec![
            Span::prefix(key::HEARTBEAT),
            Span::key(Key::ClusterConfig(cluster.clone()).to_string()),
            Span::prefix(format!("cilium/synced/{cluster}/")),
            Span::prefix(key::STATE_PREFIX),
            Span::prefix(key::WEFT_PREFIX).optional(),
        ];
        let (events, heard) = mpsc::channel(EVENTS_IN_FLIGHT);
        let connection = Connection { name: cluster.to_string(), endpoints, spans, tls, events };
        let judge = Judge::new(Importer::new(cluster.clone(), cluster_id, trust_domain), cluster);
        Self { _tasks: [OwnedTask::spawn(connection.run()), OwnedTask::spawn(judge_events(judge, heard, updates))] }
    }
}

/// Waits for events and for the moments that the judge names.
async fn judge_events(mut judge: Judge, mut events: mpsc::Receiver<Event>, updates: mpsc::Sender<PeerUpdate>) {
    loop {
        let wake = judge.wake_at().map(tokio::time::Instant::from_std);
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => judge.handle(event, Instant::now()),
                None => return,
            },
            () = async { match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            } } => {}
        }
        for output in judge.outputs(Instant::now(), SystemTime::now()) {
            let update = match output {
                Output::Cluster(cluster) => PeerUpdate::Cluster(cluster),
                Output::State(state) => PeerUpdate::State(state),
            };
            if updates.send(update).await.is_err() {
                return;
            }
        }
    }
}

/// What another node of our own cluster says of itself. `None`: it says nothing yet, or took it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeUpdate {
    pub node: String,
    pub facts: Option<Node>,
}

/// Follows one node's own facts (its WireGuard key above all) on its mesh server, until dropped. While the node cannot be
/// reached, its last facts stand.
#[derive(Debug)]
pub struct NodeReader {
    _tasks: [OwnedTask; 2],
}

impl NodeReader {
    /// `endpoint`: `host:port`; `tls`: from `tls::client` for our own trust domain.
    pub fn spawn(
        cluster: ClusterName,
        node: String,
        endpoint: String,
        tls: Option<Arc<rustls::ClientConfig>>,
        updates: mpsc::Sender<NodeUpdate>,
    ) -> Self {
        let key = Key::Node(cluster.clone(), node.clone());
        let (events, heard) = mpsc::channel(EVENTS_IN_FLIGHT);
        // The heartbeat shows that the other end still lives.
        let spans = vec![Span::key(key.to_string()), Span::prefix(key::HEARTBEAT)];
        let connection =
            Connection { name: format!("{cluster}/{node}"), endpoints: vec![endpoint], spans, tls, events };
        let follow = follow_node(cluster, node, key, heard, updates);
        Self { _tasks: [OwnedTask::spawn(connection.run()), OwnedTask::spawn(follow)] }
    }
}

async fn follow_node(
    cluster: ClusterName,
    node: String,
    key: Key,
    mut events: mpsc::Receiver<Event>,
    updates: mpsc::Sender<NodeUpdate>,
) {
    let (key, mut known) = (key.to_bytes(), None);
    while let Some(event) = events.recv().await {
        let mut facts = known.clone();
        let changes = match event {
            // A node whose agent has just started has not yet written of itself: its last facts stand.
            Event::Listed(kvs) => kvs.into_iter().map(|(key, value)| Change::Put { key, value }).collect(),
            Event::Changes(changes) => changes,
            Event::Connected(_) | Event::Disconnected { .. } => continue,
        };
        for change in changes {
            match change {
                Change::Put { key: found, value } if found == key => {
                    let read = NodeValue::read(&value, &cluster, &node).and_then(|value| value.to_node(&cluster));
                    facts =
                        read.inspect_err(|error| tracing::warn!(%node, %error, "a node's facts are not usable")).ok();
                }
                Change::Delete { key: found } if found == key => facts = None,
                _ => {}
            }
        }
        if facts != known {
            known = facts.clone();
            if updates.send(NodeUpdate { node: node.clone(), facts }).await.is_err() {
                return;
            }
        }
    }
}

fn problems_as_text<S: serde::Serializer>(problems: &[Problem], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(problems.iter().map(|problem| format!("{}: {}", problem.key, problem.error)))
}
