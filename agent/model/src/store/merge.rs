//! What other clusters say, merged into our own picture.
use super::{Changes, NodeFacts, Store};
use crate::types::{ClusterName, Node, ObjectName, RemoteCluster, Workload};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

impl Store {
    pub(super) fn set_remote(&mut self, mut cluster: RemoteCluster, changes: &mut Changes) {
        let name = cluster.name.clone();
        speak_for_itself(&mut cluster);
        if let Some(problem) = self.refusal(&cluster) {
            // What it told under another id is void too.
            self.remove_remote(&name, changes);
            changes.errors |= self.refused_remotes.insert(name, problem.clone()) != Some(problem);
            return;
        }
        changes.errors |= self.refused_remotes.remove(&name).is_some();
        let old = self.remotes.get(&name);
        if old == Some(&cluster) {
            return;
        }
        let was_alive = old.is_some_and(|old| old.alive);
        let none = BTreeMap::new();
        let services = old.map_or(&none, |old| &old.services);
        for service in services.keys().chain(cluster.services.keys()) {
            if was_alive != cluster.alive || services.get(service) != cluster.services.get(service) {
                self.services.touch(service);
                changes.services = true;
            }
        }
        changes.nodes |= old.is_none_or(|old| old.nodes != cluster.nodes);
        let workloads = old.is_none_or(|old| old.workloads != cluster.workloads);
        changes.workloads |= workloads || old.is_none_or(|old| old.auth_destinations != cluster.auth_destinations);
        if workloads {
            self.workloads.remote_changed(&name);
        }
        // Only its liveness, trust domain or protocol may have changed: readers of the mesh state want to know.
        changes.mesh = true;
        self.remotes.insert(name, cluster);
    }

    pub(super) fn remove_remote(&mut self, name: &ClusterName, changes: &mut Changes) {
        changes.errors |= self.refused_remotes.remove(name).is_some();
        if let Some(old) = self.remotes.remove(name) {
            old.services.keys().for_each(|service| self.services.touch(service));
            self.workloads.remote_changed(name);
            *changes = changes.join(Changes { services: true, nodes: true, workloads: true, mesh: true, ..*changes });
        }
    }

    fn refusal(&self, cluster: &RemoteCluster) -> Option<String> {
        let taken = |who: &str| {
            Some(format!("cluster id {} is {who}'s already: give one of them another id and connect anew", cluster.id))
        };
        if cluster.name == self.config.cluster {
            return Some(format!("it has this cluster's own name, {}: rename one of them", cluster.name));
        }
        if cluster.id == self.config.cluster_id {
            return taken(&format!("this cluster, {}", self.config.cluster));
        }
        self.remotes
            .values()
            .find(|other| other.id == cluster.id && other.name != cluster.name)
            .and_then(|other| taken(other.name.as_str()))
    }
}

/// A cluster tells of its own only, whatever it writes.
fn speak_for_itself(cluster: &mut RemoteCluster) {
    let RemoteCluster { name, trust_domain, services, nodes, workloads, .. } = cluster;
    let backends = services.values_mut().flat_map(|service| &mut service.backends).map(|backend| &mut backend.cluster);
    let nodes = nodes.values_mut().map(|node| &mut node.cluster);
    for told in backends.chain(nodes).filter(|told| *told != name) {
        told.clone_from(name);
    }
    for workload in workloads {
        workload.cluster.clone_from(name);
        workload.trust_domain.clone_from(trust_domain);
    }
}

/// Own nodes first, then those of the other clusters by name.
pub(super) fn nodes(
    own: &BTreeMap<ObjectName, Arc<Node>>,
    facts: &BTreeMap<String, NodeFacts>,
    remotes: &BTreeMap<ClusterName, RemoteCluster>,
) -> Vec<Node> {
    let own = own.values().map(|node| {
        let mut node = Node::clone(node);
        if let Some(facts) = facts.get(&node.name) {
            node.wireguard_key = Some(facts.wireguard_key.clone());
            node.wireguard_port = facts.wireguard_port;
        }
        node
    });
    own.chain(remotes.values().flat_map(|remote| remote.nodes.values().cloned())).collect()
}

pub(super) fn auth_destinations(
    own: BTreeSet<(IpAddr, u16)>,
    remotes: &BTreeMap<ClusterName, RemoteCluster>,
    workloads: &[Workload],
) -> Vec<(IpAddr, u16)> {
    let mut all = own;
    // What a cluster asks for counts for its own pods.
    let owners: HashMap<IpAddr, &ClusterName> =
        workloads.iter().flat_map(|workload| workload.addresses.iter().map(|ip| (*ip, &workload.cluster))).collect();
    for (name, remote) in remotes {
        all.extend(remote.auth_destinations.iter().filter(|(ip, _)| owners.get(ip) == Some(&name)).copied());
    }
    all.into_iter().collect()
}
