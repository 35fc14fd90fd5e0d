//! Which backends of a service new connections may go to: as kube-proxy has it, and across clusters.
use crate::types::{Affinity, Backend, ClusterName, Frontend, Protocol, ServiceView};
use std::collections::BTreeMap;

impl ServiceView {
    /// All usable backends, each port judged alone. `own` is this cluster, `node` this node.
    pub fn usable(&self, own: &ClusterName, node: &str) -> Vec<&Backend> {
        let mut by_port: BTreeMap<(&str, Protocol), Vec<&Backend>> = BTreeMap::new();
        for backend in &self.backends {
            by_port.entry((&backend.port_name, backend.protocol)).or_default().push(backend);
        }
        by_port.into_values().flat_map(|backends| self.pick(backends, own, node)).collect()
    }

    /// The usable backends behind one of its addresses: of the same port name, protocol and IP family.
    pub fn usable_for(&self, frontend: &Frontend, own: &ClusterName, node: &str) -> Vec<&Backend> {
        let fits = |backend: &&Backend| {
            backend.port_name == frontend.port_name
                && backend.protocol == frontend.protocol
                && backend.addr.is_ipv4() == frontend.addr.is_ipv4()
        };
        self.pick(self.backends.iter().filter(fits).collect(), own, node)
    }

    fn pick<'a>(&self, backends: Vec<&'a Backend>, own: &ClusterName, node: &str) -> Vec<&'a Backend> {
        if self.service.internal_traffic_local {
            let here = |b: &&Backend| b.cluster == *own && b.node.as_deref() == Some(node);
            return self.alive(backends.into_iter().filter(here).collect());
        }
        let Some(global) = self.service.global else { return self.alive(backends) };
        match global.affinity {
            Affinity::None => self.alive(backends),
            preference => {
                let (local, remote): (Vec<_>, Vec<_>) = backends.into_iter().partition(|b| b.cluster == *own);
                let (first, second) = if preference == Affinity::Local { (local, remote) } else { (remote, local) };
                // A draining backend of the preferred side must not hold back ready ones of the other.
                let (ready, rest) = (self.ready(&first), self.ready(&second));
                match (ready.is_empty(), rest.is_empty()) {
                    (false, _) => ready,
                    (true, false) => rest,
                    (true, true) => self.alive(first.into_iter().chain(second).collect()),
                }
            }
        }
    }

    /// The ready ones, or, where there is none, those that still serve while they terminate.
    fn alive<'a>(&self, backends: Vec<&'a Backend>) -> Vec<&'a Backend> {
        let ready = self.ready(&backends);
        if !ready.is_empty() {
            return ready;
        }
        backends.into_iter().filter(|b| b.serving && b.terminating).collect()
    }

    fn ready<'a>(&self, backends: &[&'a Backend]) -> Vec<&'a Backend> {
        let ready = |b: &&&Backend| b.ready && (!b.terminating || self.service.publish_not_ready);
        backends.iter().filter(ready).copied().collect()
    }
}
