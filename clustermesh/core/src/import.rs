//! A peer's keys, gathered until they are a whole `RemoteCluster`.
//!
//! What one value can say by itself is checked as it comes; what needs others (the cluster's id, the labels of an
//! identity) when the whole is built, since keys come in any order. A bad value counts as absent and is named.
use crate::{
    Change,
    ids::CLUSTER_IDS,
    key::{Key, Part},
    value::{
        AddressValue, AuthValue, CLUSTER_LABEL, ClusterConfigValue, NodeValue, SERVICE_ACCOUNT_LABEL, ServiceValue,
        ValueError, WeftClusterValue, WeftServiceValue, identity_range, parse_labels,
    },
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
};
use weft_identity::TrustDomain;
use weft_model::types::{ClusterName, Labels, Node, ObjectName, RemoteCluster, RemoteService, Workload};

/// More is refused: a broken peer must not eat this node's memory.
pub const MAX_KEYS: usize = 500_000;
/// Bad values that are named one by one; beyond, they are only counted.
const NAMED_PROBLEMS: usize = 100;
const K8S: &str = "k8s:";

/// Why there is nothing to hand on yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    #[error("{0} has not said its id yet (no key cilium/cluster-config/{0}): is that the name it gives itself?")]
    NoClusterConfig(ClusterName),
    #[error("{cluster} has id {found}, but was connected as {expected}: disconnect it and connect it again")]
    OtherId { cluster: ClusterName, found: u32, expected: u32 },
    #[error("{cluster} has id {found}; ids are 1 to 255")]
    InvalidId { cluster: ClusterName, found: u32 },
    #[error(
        "{cluster} says it is trust domain {found}, but was connected as {expected}: disconnect it and connect it again"
    )]
    OtherTrustDomain { cluster: ClusterName, found: TrustDomain, expected: TrustDomain },
    #[error("{cluster} is still filling {}", parts.iter().map(|part| part.prefix()).collect::<Vec<_>>().join(", "))]
    Unsynced { cluster: ClusterName, parts: Vec<Part> },
}

/// A value that counts as absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub key: String,
    pub error: ValueError,
}

/// What is known of the peer: its cluster name, and what was agreed when it was connected.
#[derive(Clone, Debug)]
pub struct Importer {
    cluster: ClusterName,
    /// `None`: whatever it says.
    expected_id: Option<u32>,
    trust_domain: TrustDomain,
    facts: Facts,
    /// What the last `build` found wrong between values.
    mismatches: BTreeMap<Key, ValueError>,
}

#[derive(Clone, Debug, Default)]
struct Facts {
    config: Option<ClusterConfigValue>,
    weft: Option<WeftClusterValue>,
    synced: BTreeSet<Part>,
    services: BTreeMap<ObjectName, ServiceValue>,
    weft_services: BTreeMap<ObjectName, WeftServiceValue>,
    nodes: BTreeMap<String, NodeValue>,
    addresses: BTreeMap<IpAddr, AddressValue>,
    identities: BTreeMap<u32, Labels>,
    auth: BTreeMap<IpAddr, Vec<u16>>,
    problems: BTreeMap<Key, ValueError>,
}

impl Importer {
    pub fn new(cluster: ClusterName, expected_id: Option<u32>, trust_domain: TrustDomain) -> Self {
        Self { cluster, expected_id, trust_domain, facts: Facts::default(), mismatches: BTreeMap::new() }
    }

    /// Forgets all: a new list follows.
    pub fn clear(&mut self) {
        self.facts = Facts::default();
        self.mismatches.clear();
    }

    /// Takes one change. Keys of other clusters and unknown ones are passed over.
    pub fn apply(&mut self, change: &Change) {
        let (key, value) = match change {
            Change::Put { key, value } => (key, Some(value)),
            Change::Delete { key } => (key, None),
        };
        let Some(key) = Key::parse(key) else { return };
        if key.cluster().is_some_and(|cluster| *cluster != self.cluster) {
            return;
        }
        self.facts.problems.remove(&key);
        if let Err(error) = self.facts.set(&key, value, &self.cluster) {
            // The value before it is of the past: a bad one leaves nothing.
            let _: Result<(), ValueError> = self.facts.set(&key, None, &self.cluster);
            if self.facts.problems.len() < MAX_KEYS {
                self.facts.problems.insert(key, error);
            }
        }
    }

    /// Whether the peer writes Weft's own keys.
    pub fn is_weft(&self) -> bool {
        self.facts.weft.is_some()
    }

    /// The first of the values that count as absent, and how many there are.
    pub fn problems(&self) -> (Vec<Problem>, usize) {
        let all = || self.facts.problems.iter().chain(&self.mismatches);
        let named = all().take(NAMED_PROBLEMS);
        let named = named.map(|(key, error)| Problem { key: key.to_string(), error: error.clone() });
        (named.collect(), all().count())
    }

    /// The whole, once the peer has said that all its parts are complete.
    pub fn build(&mut self, alive: bool) -> Result<RemoteCluster, NotReady> {
        let config = self.checked_config()?;
        let facts = &self.facts;
        let mut problems = vec![];
        let id = config.id;
        let own_id = |field, found: u32| match found == id {
            true => Ok(()),
            false => Err(ValueError::ClusterMismatch { field, found: found.to_string(), expected: id.to_string() }),
        };

        let mut nodes = BTreeMap::new();
        for (name, value) in &facts.nodes {
            match own_id("ClusterID", value.cluster_id).and_then(|()| value.to_node(&self.cluster)) {
                Ok(node) => drop(nodes.insert(name.clone(), node)),
                Err(error) => problems.push((Key::Node(self.cluster.clone(), name.clone()), error)),
            }
        }
        let mut services = BTreeMap::new();
        for (name, value) in &facts.services {
            if let Err(error) = own_id("clusterID", value.cluster_id) {
                problems.push((Key::Service(self.cluster.clone(), name.clone()), error));
                continue;
            }
            let backends = if value.shared { value.backends(&self.cluster) } else { vec![] };
            services.insert(name.clone(), RemoteService { shared: value.shared, backends });
        }
        for (name, value) in &facts.weft_services {
            let backends = if value.shared { value.backends(&self.cluster) } else { vec![] };
            services.insert(name.clone(), RemoteService { shared: value.shared, backends });
        }
        let range = identity_range(id, config.capabilities.max_connected_clusters);
        let labels_of = |number: u32| {
            // The first 256 are reserved; another cluster's must never match ours.
            let labels =
                facts.identities.get(&number).filter(|_| range.contains(&number) && number - range.start() > 255)?;
            let cluster = labels.get(&format!("{K8S}{CLUSTER_LABEL}"))?;
            (cluster == self.cluster.as_str()).then_some(labels)
        };
        for &number in facts.identities.keys().filter(|&&number| labels_of(number).is_none()) {
            let (cluster, first, last) = (self.cluster.to_string(), *range.start(), *range.end());
            problems.push((Key::Identity(number), ValueError::IdentityRange { id: number, cluster, first, last }));
        }
        let workloads = workloads(&self.cluster, &self.trust_domain, &facts.addresses, &nodes, labels_of);
        let auth = facts.auth.iter().flat_map(|(&addr, ports)| ports.iter().map(move |&port| (addr, port)));
        let cluster = RemoteCluster {
            name: self.cluster.clone(),
            id,
            trust_domain: self.trust_domain.clone(),
            alive,
            services,
            nodes,
            workloads,
            auth_destinations: auth.collect(),
            hbone: facts.weft.as_ref().is_some_and(|weft| weft.hbone),
        };
        self.mismatches = problems.into_iter().collect();
        Ok(cluster)
    }

    fn checked_config(&self) -> Result<ClusterConfigValue, NotReady> {
        let cluster = || self.cluster.clone();
        let config = self.facts.config.clone().ok_or_else(|| NotReady::NoClusterConfig(cluster()))?;
        let found = config.id;
        if !CLUSTER_IDS.contains(&found) {
            return Err(NotReady::InvalidId { cluster: cluster(), found });
        }
        if let Some(expected) = self.expected_id.filter(|&expected| expected != found) {
            return Err(NotReady::OtherId { cluster: cluster(), found, expected });
        }
        if let Some(weft) = self.facts.weft.as_ref().filter(|weft| weft.trust_domain != self.trust_domain) {
            let (found, expected) = (weft.trust_domain.clone(), self.trust_domain.clone());
            return Err(NotReady::OtherTrustDomain { cluster: cluster(), found, expected });
        }
        let mut parts: Vec<Part> = if config.capabilities.synced_canaries { Part::CILIUM.into() } else { vec![] };
        parts.extend(self.facts.weft.is_some().then_some(Part::Weft));
        parts.retain(|part| !self.facts.synced.contains(part));
        if parts.is_empty() { Ok(config) } else { Err(NotReady::Unsynced { cluster: cluster(), parts }) }
    }
}

impl Facts {
    /// `None` removes. Reading fails before anything is changed.
    fn set(&mut self, key: &Key, value: Option<&Bytes>, cluster: &ClusterName) -> Result<(), ValueError> {
        match key {
            Key::ClusterConfig(_) => self.config = value.map(|v| ClusterConfigValue::read(v)).transpose()?,
            Key::WeftCluster(_) => self.weft = value.map(|v| WeftClusterValue::read(v)).transpose()?,
            Key::Synced(_, part) if value.is_some() => drop(self.synced.insert(*part)),
            Key::Synced(_, part) => drop(self.synced.remove(part)),
            Key::Service(_, name) => {
                let value = value.map(|v| ServiceValue::read(v, cluster, name)).transpose()?;
                put(&mut self.services, name.clone(), value)?;
            }
            Key::WeftService(_, name) => {
                let value = value.map(|v| WeftServiceValue::read(v)).transpose()?;
                put(&mut self.weft_services, name.clone(), value)?;
            }
            Key::Node(_, name) => {
                let value = value.map(|v| NodeValue::read(v, cluster, name)).transpose()?;
                put(&mut self.nodes, name.clone(), value)?;
            }
            // CIDRs here are of Cilium's external workloads: no pods.
            Key::Address(net) if net.prefix_len() != net.max_prefix_len() => {}
            Key::Address(net) => {
                let value = value.map(|v| AddressValue::read(v, net.addr())).transpose()?;
                put(&mut self.addresses, net.addr(), value)?;
            }
            Key::Identity(number) => {
                let value = value.map(|v| parse_labels(v)).transpose()?;
                put(&mut self.identities, *number, value)?;
            }
            Key::WeftAuth(_, address) => {
                let value = value.map(|v| AuthValue::read(v)).transpose()?;
                put(&mut self.auth, *address, value.map(|v| v.ports))?;
            }
            Key::Heartbeat | Key::WeftHeartbeat(_) => {}
        }
        Ok(())
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> Result<(), ValueError> {
    let full = map.len() >= MAX_KEYS;
    match (map.entry(key), value) {
        (Entry::Occupied(mut entry), Some(value)) => drop(entry.insert(value)),
        (Entry::Occupied(entry), None) => drop(entry.remove()),
        (Entry::Vacant(_), Some(_)) if full => return Err(ValueError::TooManyKeys(MAX_KEYS)),
        (Entry::Vacant(entry), Some(value)) => drop(entry.insert(value)),
        (Entry::Vacant(_), None) => {}
    }
    Ok(())
}

/// Pods whose identity is known: without it policy would take them for the world outside, or for the wrong ones.
fn workloads<'a>(
    cluster: &ClusterName,
    trust_domain: &TrustDomain,
    addresses: &BTreeMap<IpAddr, AddressValue>,
    nodes: &BTreeMap<String, Node>,
    labels_of: impl Fn(u32) -> Option<&'a Labels>,
) -> Vec<Workload> {
    let node_at: BTreeMap<IpAddr, &str> =
        nodes.values().flat_map(|node| node.addresses.iter().map(|&ip| (ip, node.name.as_str()))).collect();
    let mut pods: BTreeMap<ObjectName, Workload> = BTreeMap::new();
    for (&address, value) in addresses.iter().filter(|(_, value)| !value.pod.is_empty()) {
        let Some(labels) = labels_of(value.id) else { continue };
        let pod = ObjectName::new(&value.namespace, &value.pod);
        let workload = pods.entry(pod.clone()).or_insert_with(|| {
            let node_ip = value.node_ip();
            let account = match value.service_account.as_str() {
                "" => labels.get(&format!("{K8S}{SERVICE_ACCOUNT_LABEL}")).map_or("", String::as_str),
                account => account,
            };
            Workload {
                cluster: cluster.clone(),
                pod,
                service_account: if account.is_empty() { "default" } else { account }.to_owned(),
                trust_domain: trust_domain.clone(),
                labels: pod_labels(labels),
                addresses: vec![],
                node: node_ip.and_then(|ip| node_at.get(&ip)).map(|&name| name.to_owned()),
                node_ip,
                host_network: false,
                ready: true,
                identity: 0,
            }
        });
        workload.addresses.push(address);
    }
    pods.into_values().collect()
}

/// Without the source, and without what the workload's own fields say. Labels of its namespace keep their prefix.
fn pod_labels(labels: &Labels) -> Labels {
    use crate::value::NAMESPACE_LABEL;
    let plain = |(key, value): (&String, &String)| {
        let name = key.strip_prefix(K8S)?;
        let implied = [CLUSTER_LABEL, NAMESPACE_LABEL, SERVICE_ACCOUNT_LABEL].contains(&name);
        (!implied).then(|| (name.to_owned(), value.clone()))
    };
    labels.iter().filter_map(plain).collect()
}

#[cfg(test)]
mod tests;
