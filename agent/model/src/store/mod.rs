//! The store: events in, one consistent snapshot out. It has one writer, its owner; readers get snapshots.
mod documents;
mod merge;
mod services;
mod workloads;

#[cfg(test)]
mod tests;

use crate::{
    parse::{Fact, Kind, ObjectKey, Origin, PodFact},
    policy::PolicyStatus,
    resolve::{self, PolicyFact},
    snapshot::{ObjectError, Snapshot},
    types::{ClusterName, Labels, MeshPeer, Node, ObjectName, RemoteCluster, SecurityIdentity, WasmPlugin},
};
use documents::Documents;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use services::Services;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use weft_identity::TrustDomain;
use workloads::Workloads;

/// What becomes of a policy that cannot be honoured whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnsupportedPolicy {
    /// The pods that it selects get and send nothing in the directions that it speaks of.
    #[default]
    FailClosed,
    /// It counts as absent.
    Ignore,
}

#[derive(Clone, Debug)]
pub struct StoreConfig {
    pub cluster: ClusterName,
    /// 1 to 255
    pub cluster_id: u32,
    pub trust_domain: TrustDomain,
    /// The node that this agent runs on.
    pub node_name: String,
    pub unsupported: UnsupportedPolicy,
}

#[derive(Clone, Debug)]
pub enum Event {
    /// One object from a server, which has checked it already: its own kinds are not searched for unknown fields.
    Upsert { source: String, object: Value },
    /// It is gone from the server.
    Delete { source: String, key: ObjectKey },
    /// A full list of one kind was taken again (after a lost watch): what is not in it is gone.
    Relisted { source: String, kind: Kind, present: BTreeSet<ObjectName> },
    /// A file now holds exactly these objects; none: it is gone. `layer` orders folders: of two documents for one object
    /// that of the greater layer counts, then that of the later path, then the later one in the file.
    File { source: String, layer: u32, path: String, objects: Vec<Value> },
    /// Something about a file or a server that is not about one object (broken YAML); `None` clears it. What it held
    /// before stays.
    Problem { source: String, origin: String, message: Option<String> },
    /// The source has delivered its first full list.
    Synced { source: String },
    /// All that a connected cluster has told, replacing what it told before.
    Remote(Box<RemoteCluster>),
    /// The cluster was disconnected: all of it goes.
    RemoteGone(ClusterName),
    /// What a node's own agent says of it, over what its object says. `None`: forget it.
    NodeFacts { node: String, facts: Option<NodeFacts> },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Base64 Curve25519
    pub wireguard_key: String,
    pub wireguard_port: u16,
}

/// What an event may have changed in the snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub services: bool,
    pub nodes: bool,
    /// Pods, namespaces, identities.
    pub workloads: bool,
    pub policies: bool,
    pub plugins: bool,
    /// Mesh peers.
    pub mesh: bool,
    pub errors: bool,
    /// Whether the sources are in sync.
    pub synced: bool,
}

impl Changes {
    pub fn any(self) -> bool {
        self != Self::default()
    }

    pub fn join(self, other: Self) -> Self {
        Self {
            services: self.services | other.services,
            nodes: self.nodes | other.nodes,
            workloads: self.workloads | other.workloads,
            policies: self.policies | other.policies,
            plugins: self.plugins | other.plugins,
            mesh: self.mesh | other.mesh,
            errors: self.errors | other.errors,
            synced: self.synced | other.synced,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Store {
    config: StoreConfig,
    expected: BTreeSet<String>,
    delivered: BTreeSet<String>,
    documents: Documents,
    problems: BTreeMap<(String, String), String>,

    services: Services,
    workloads: Workloads,
    nodes: BTreeMap<ObjectName, Arc<Node>>,
    node_facts: BTreeMap<String, NodeFacts>,
    policies: BTreeMap<(Kind, ObjectName), Arc<PolicyFact>>,
    plugins: BTreeMap<ObjectName, Arc<WasmPlugin>>,
    peers: BTreeMap<ObjectName, Arc<MeshPeer>>,
    remotes: BTreeMap<ClusterName, RemoteCluster>,
    refused_remotes: BTreeMap<ClusterName, String>,

    /// Not yet in `current`.
    pending: Changes,
    current: Arc<Snapshot>,
}

impl Store {
    pub fn new(config: StoreConfig) -> Self {
        let current = Arc::new(Snapshot {
            cluster: config.cluster.clone(),
            cluster_id: config.cluster_id,
            trust_domain: config.trust_domain.clone(),
            node_name: config.node_name.clone(),
            synced: false,
            services: BTreeMap::new(),
            nodes: Vec::new(),
            workloads: Vec::new(),
            identities: crate::identity::reserved().map(|identity| (identity.id, identity)).into(),
            policies: BTreeMap::new(),
            auth_destinations: Vec::new(),
            policy_status: Vec::new(),
            plugins: Vec::new(),
            mesh_peers: Vec::new(),
            object_errors: Vec::new(),
        });
        Self {
            config,
            expected: BTreeSet::new(),
            delivered: BTreeSet::new(),
            documents: Documents::default(),
            problems: BTreeMap::new(),
            services: Services::default(),
            workloads: Workloads::default(),
            nodes: BTreeMap::new(),
            node_facts: BTreeMap::new(),
            policies: BTreeMap::new(),
            plugins: BTreeMap::new(),
            peers: BTreeMap::new(),
            remotes: BTreeMap::new(),
            refused_remotes: BTreeMap::new(),
            pending: Changes::default(),
            current,
        }
    }

    /// Names the sources that must have delivered before the snapshot counts as in sync. Never remote clusters: a dead
    /// one must not hold up anything.
    pub fn expect_sources<S: Into<String>>(&mut self, sources: impl IntoIterator<Item = S>) {
        self.expected = sources.into_iter().map(Into::into).collect();
        self.pending.synced = true;
    }

    /// Takes up the identities of an earlier run (its snapshot's), so that a restart renumbers none. Before any event.
    pub fn restore_identities(&mut self, identities: impl IntoIterator<Item = SecurityIdentity>) {
        self.workloads.restore(identities);
    }

    /// Takes in one event. The snapshot is made anew when it is next asked for.
    pub fn apply(&mut self, event: Event) -> Changes {
        let mut changes = Changes::default();
        match event {
            Event::Upsert { source, object } => {
                let origin = Origin::server(source.as_str());
                let touched = self.documents.put(&self.config, source, origin, &object, false, &mut changes.errors);
                self.settle(touched, &mut changes);
            }
            Event::Delete { source, key } => {
                let origin = Origin::server(source.as_str());
                let touched = self.documents.remove(&key, &source, &origin, &mut changes.errors);
                self.settle(touched.then_some(key), &mut changes);
            }
            Event::Relisted { source, kind, present } => {
                let gone = self.documents.relisted(&source, kind, &present, &mut changes.errors);
                self.settle(gone, &mut changes);
            }
            Event::File { source, layer, path, objects } => {
                let touched = self.documents.file(&self.config, &source, layer, &path, &objects, &mut changes.errors);
                self.settle(touched, &mut changes);
            }
            Event::Problem { source, origin, message } => {
                let key = (source, origin);
                let old = match &message {
                    Some(message) => self.problems.insert(key, message.clone()),
                    None => self.problems.remove(&key),
                };
                changes.errors = old != message;
            }
            Event::Synced { source } => changes.synced = self.delivered.insert(source),
            Event::Remote(cluster) => self.set_remote(*cluster, &mut changes),
            Event::RemoteGone(name) => self.remove_remote(&name, &mut changes),
            Event::NodeFacts { node, facts } => {
                let old = match &facts {
                    Some(facts) => self.node_facts.insert(node, facts.clone()),
                    None => self.node_facts.remove(&node),
                };
                changes.nodes = old != facts;
            }
        }
        self.pending = self.pending.join(changes);
        changes
    }

    /// The picture after all events so far. Cheap where nothing changed.
    pub fn snapshot(&mut self) -> Arc<Snapshot> {
        if self.pending.any() || self.services.is_dirty() {
            self.rebuild();
        }
        self.current.clone()
    }

    /// What a connected cluster has told.
    pub fn remote(&self, name: &ClusterName) -> Option<&RemoteCluster> {
        self.remotes.get(name)
    }

    /// All connected clusters, dead ones too.
    pub fn remotes(&self) -> impl Iterator<Item = &RemoteCluster> {
        self.remotes.values()
    }

    /// Documents of kinds that are left alone.
    pub fn ignored_documents(&self) -> u64 {
        self.documents.ignored()
    }

    /// Puts the facts that now count for these objects into the tables.
    fn settle(&mut self, keys: impl IntoIterator<Item = ObjectKey>, changes: &mut Changes) {
        for key in keys {
            let fact = self.documents.fact(&key);
            let ObjectKey { kind, name } = key;
            match kind {
                Kind::Service => {
                    let fact = fact.and_then(|fact| if let Fact::Service(s) = fact { Some(s) } else { None });
                    changes.services |= self.services.set(&name, fact);
                }
                Kind::EndpointSlice => {
                    let fact = fact.and_then(|fact| if let Fact::Slice(s) = fact { Some(s) } else { None });
                    changes.services |= self.services.set_slice(&name, fact);
                }
                Kind::Pod => {
                    let fact = fact.and_then(|fact| if let Fact::Pod(p) = fact { Some(p) } else { None });
                    self.set_pod(&name, fact, changes);
                }
                Kind::Namespace => {
                    let fact: Option<Arc<Labels>> =
                        fact.and_then(|fact| if let Fact::Namespace(n) = fact { Some(n) } else { None });
                    changes.workloads |= self.workloads.set_namespace(&name.name, fact);
                }
                Kind::Node => {
                    let fact = fact.and_then(|fact| if let Fact::Node(n) = fact { Some(n) } else { None });
                    changes.nodes |= replace(&mut self.nodes, name, fact);
                }
                Kind::NetworkPolicy | Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => {
                    let fact = fact.and_then(|fact| if let Fact::Policy(p) = fact { Some(p) } else { None });
                    changes.policies |= replace(&mut self.policies, (kind, name), fact);
                }
                Kind::WasmPlugin => {
                    let fact = fact.and_then(|fact| if let Fact::Plugin(p) = fact { Some(p) } else { None });
                    changes.plugins |= replace(&mut self.plugins, name, fact);
                }
                Kind::MeshPeer => {
                    let fact = fact.and_then(|fact| if let Fact::Peer(p) = fact { Some(p) } else { None });
                    changes.mesh |= replace(&mut self.peers, name, fact);
                }
            }
        }
    }

    fn set_pod(&mut self, name: &ObjectName, fact: Option<Arc<PodFact>>, changes: &mut Changes) {
        let (old, changed) = self.workloads.set_pod(name, fact.clone());
        if changed {
            self.services.pod_changed(old.as_deref(), fact.as_deref());
            changes.workloads = true;
            changes.services |= self.services.is_dirty();
        }
    }

    fn rebuild(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        // Once it was said that all sources are in sync: remote clusters of an earlier run come right after.
        if self.current.synced {
            self.workloads.settle_identities();
        }
        let snapshot = Self::writable(&mut self.current, pending);
        snapshot.synced = !self.expected.is_empty() && self.expected.is_subset(&self.delivered);
        self.services.rebuild(&mut snapshot.services, self.workloads.pods(), self.remotes.values());
        if pending.nodes {
            snapshot.nodes = merge::nodes(&self.nodes, &self.node_facts, &self.remotes);
        }
        if pending.nodes || pending.workloads || pending.policies {
            snapshot.workloads =
                self.workloads.rebuild(&self.config.cluster, &snapshot.nodes, &self.remotes, &self.policies);
            snapshot.identities = self.workloads.identities();
            let resolved = resolve::resolve(&resolve::Input {
                cluster: &self.config.cluster,
                node_name: &self.config.node_name,
                ignore_unsupported: self.config.unsupported == UnsupportedPolicy::Ignore,
                identities: &snapshot.identities,
                workloads: &snapshot.workloads,
                pods: self.workloads.pods(),
                policies: &self.policies,
            });
            snapshot.policies = resolved.policies;
            snapshot.policy_status = resolved.status;
            snapshot.auth_destinations =
                merge::auth_destinations(resolved.auth_destinations, &self.remotes, &snapshot.workloads);
        }
        snapshot.plugins = self.plugins.values().map(|plugin| WasmPlugin::clone(plugin)).collect();
        snapshot.mesh_peers = self.peers.values().map(|peer| MeshPeer::clone(peer)).collect();
        // Workloads and remote clusters have errors of their own.
        if pending.errors || pending.workloads || pending.nodes {
            let errors = self.object_errors();
            Arc::make_mut(&mut self.current).object_errors = errors;
        }
    }

    /// The snapshot to write to. Readers may still hold the last one; then it is copied, but for what is made anew.
    fn writable(current: &mut Arc<Snapshot>, pending: Changes) -> &mut Snapshot {
        if Arc::get_mut(current).is_none() && (pending.nodes || pending.workloads || pending.policies) {
            let old = current.as_ref();
            *current = Arc::new(Snapshot {
                cluster: old.cluster.clone(),
                trust_domain: old.trust_domain.clone(),
                node_name: old.node_name.clone(),
                services: old.services.clone(),
                nodes: old.nodes.clone(),
                workloads: Vec::new(),
                identities: BTreeMap::new(),
                policies: BTreeMap::new(),
                auth_destinations: Vec::new(),
                policy_status: Vec::new(),
                plugins: Vec::new(),
                mesh_peers: Vec::new(),
                object_errors: old.object_errors.clone(),
                ..**current
            });
        }
        Arc::make_mut(current)
    }

    fn object_errors(&self) -> Vec<ObjectError> {
        let mut errors = self.documents.errors();
        errors.extend(self.problems.iter().map(|((_, origin), message)| ObjectError {
            origin: origin.clone(),
            object: String::new(),
            message: message.clone(),
        }));
        errors.extend(self.refused_remotes.iter().map(|(cluster, message)| ObjectError {
            origin: "mesh".to_owned(),
            object: format!("cluster {cluster}"),
            message: message.clone(),
        }));
        errors.extend(self.workloads.conflicts().iter().cloned());
        errors.sort();
        errors.dedup();
        errors
    }
}

/// Sets or removes; true: this changes something.
fn replace<K: Ord, V: PartialEq>(table: &mut BTreeMap<K, Arc<V>>, key: K, value: Option<Arc<V>>) -> bool {
    let (old, new) = match value {
        Some(value) => (table.insert(key, value.clone()), Some(value)),
        None => (table.remove(&key), None),
    };
    old != new
}

/// The states of all policies, as `weft policy list` sorts them.
pub(crate) fn sort_status(status: &mut [PolicyStatus]) {
    status.sort_by(|a, b| (&a.name, &a.kind).cmp(&(&b.name, &b.kind)));
}
