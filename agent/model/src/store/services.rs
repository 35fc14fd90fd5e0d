//! Services with their backends, rebuilt one by one as what they are made of changes.
use crate::{
    parse::{PodFact, ServiceFact, ServicePort, SliceFact, TargetPort},
    types::{Backend, ObjectName, RemoteCluster, ServiceView},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// Namespace, label and value.
type Pair = (String, String, String);

#[derive(Debug, Default)]
pub(super) struct Services {
    services: BTreeMap<ObjectName, Arc<ServiceFact>>,
    slices: BTreeMap<ObjectName, Arc<SliceFact>>,
    slices_of: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    /// Services by one pair of their selector; pods by every pair of their labels.
    by_selector: HashMap<Pair, BTreeSet<ObjectName>>,
    pods_by_label: HashMap<Pair, BTreeSet<ObjectName>>,
    dirty: BTreeSet<ObjectName>,
}

impl Services {
    /// True: this changes something.
    pub(super) fn set(&mut self, name: &ObjectName, fact: Option<Arc<ServiceFact>>) -> bool {
        let old = match &fact {
            Some(fact) => self.services.insert(name.clone(), fact.clone()),
            None => self.services.remove(name),
        };
        if old == fact {
            return false;
        }
        if let Some(pair) = old.as_deref().and_then(selector_pair) {
            remove(&mut self.by_selector, &pair, name);
        }
        if let Some(pair) = fact.as_deref().and_then(selector_pair) {
            self.by_selector.entry(pair).or_default().insert(name.clone());
        }
        self.dirty.insert(name.clone());
        true
    }

    pub(super) fn set_slice(&mut self, name: &ObjectName, fact: Option<Arc<SliceFact>>) -> bool {
        let old = match &fact {
            Some(fact) => self.slices.insert(name.clone(), fact.clone()),
            None => self.slices.remove(name),
        };
        if old == fact {
            return false;
        }
        if let Some(service) = old.as_ref().and_then(|slice| slice.service.as_ref()) {
            if let Some(slices) = self.slices_of.get_mut(service) {
                slices.remove(name);
                if slices.is_empty() {
                    self.slices_of.remove(service);
                }
            }
            self.dirty.insert(service.clone());
        }
        if let Some(service) = fact.as_ref().and_then(|slice| slice.service.as_ref()) {
            self.slices_of.entry(service.clone()).or_default().insert(name.clone());
            self.dirty.insert(service.clone());
        }
        true
    }

    /// A pod came, went or changed.
    pub(super) fn pod_changed(&mut self, old: Option<&PodFact>, new: Option<&PodFact>) {
        for pod in old.into_iter().chain(new) {
            for pair in label_pairs(pod) {
                for service in self.by_selector.get(&pair).into_iter().flatten() {
                    let derived = !self.slices_of.contains_key(service);
                    if derived && self.services.get(service).is_some_and(|service| selects(service, pod)) {
                        self.dirty.insert(service.clone());
                    }
                }
            }
        }
        if let Some(pod) = old {
            label_pairs(pod).for_each(|pair| remove(&mut self.pods_by_label, &pair, &pod.workload.pod));
        }
        if let Some(pod) = new {
            for pair in label_pairs(pod) {
                self.pods_by_label.entry(pair).or_default().insert(pod.workload.pod.clone());
            }
        }
    }

    /// Something outside has changed what this service is made of.
    pub(super) fn touch(&mut self, name: &ObjectName) {
        self.dirty.insert(name.clone());
    }

    /// Brings `views` up to date.
    pub(super) fn rebuild<'a>(
        &mut self,
        views: &mut BTreeMap<ObjectName, ServiceView>,
        pods: &BTreeMap<ObjectName, Arc<PodFact>>,
        remotes: impl Iterator<Item = &'a RemoteCluster> + Clone,
    ) {
        for name in std::mem::take(&mut self.dirty) {
            match self.services.get(&name) {
                Some(service) => {
                    let backends = self.backends(service, pods, remotes.clone());
                    views.insert(name, ServiceView { service: service.service.clone(), backends });
                }
                None => drop(views.remove(&name)),
            }
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    fn backends<'a>(
        &self,
        fact: &ServiceFact,
        pods: &BTreeMap<ObjectName, Arc<PodFact>>,
        remotes: impl Iterator<Item = &'a RemoteCluster>,
    ) -> Vec<Backend> {
        let service = &fact.service;
        if service.kind == "ExternalName" {
            return Vec::new();
        }
        let mut backends: Vec<Backend> = match self.slices_of.get(&service.name) {
            Some(slices) => slices
                .iter()
                .filter_map(|name| self.slices.get(name))
                .flat_map(|slice| slice.backends.clone())
                .collect(),
            None => self.selected(fact, pods).flat_map(|pod| derived(fact, pod)).collect(),
        };
        if service.global.is_some() {
            let offered = remotes
                .filter(|remote| remote.alive)
                .filter_map(|remote| remote.services.get(&service.name))
                .filter(|remote| remote.shared);
            backends.extend(offered.flat_map(|remote| remote.backends.iter().cloned()));
        }
        // Slices may overlap for a moment while their controller moves an endpoint: the ready one counts.
        backends.sort_by(|a, b| place(a).cmp(&place(b)).then(b.ready.cmp(&a.ready)));
        backends.dedup_by(|b, a| place(a) == place(b));
        backends
    }

    fn selected<'p>(
        &self,
        fact: &'p ServiceFact,
        pods: &'p BTreeMap<ObjectName, Arc<PodFact>>,
    ) -> impl Iterator<Item = &'p PodFact> {
        let namespace = &fact.service.name.namespace;
        let pairs = fact.service.selector.iter().flatten();
        let smallest = pairs
            .map(|(key, value)| self.pods_by_label.get(&(namespace.clone(), key.clone(), value.clone())))
            .min_by_key(|names| names.map_or(0, BTreeSet::len))
            .flatten();
        let names: Vec<&ObjectName> = smallest.into_iter().flatten().collect();
        let found: Vec<&PodFact> = names
            .into_iter()
            .filter_map(|name| pods.get(name))
            .map(Arc::as_ref)
            .filter(|pod| selects(fact, pod))
            .collect();
        found.into_iter()
    }
}

fn place(backend: &Backend) -> (&str, std::net::IpAddr, u16, crate::types::Protocol, &str) {
    (backend.cluster.as_str(), backend.addr, backend.port, backend.protocol, &backend.port_name)
}

fn label_pairs(pod: &PodFact) -> impl Iterator<Item = Pair> {
    let namespace = &pod.workload.pod.namespace;
    pod.workload.labels.iter().map(move |(key, value)| (namespace.clone(), key.clone(), value.clone()))
}

/// The longest pair is likely the one that fewest share.
fn selector_pair(fact: &ServiceFact) -> Option<Pair> {
    let (key, value) = fact.service.selector.as_ref()?.iter().max_by_key(|(key, value)| key.len() + value.len())?;
    Some((fact.service.name.namespace.clone(), key.clone(), value.clone()))
}

fn selects(fact: &ServiceFact, pod: &PodFact) -> bool {
    fact.service.name.namespace == pod.workload.pod.namespace
        && fact
            .service
            .selector
            .as_ref()
            .is_some_and(|wanted| wanted.iter().all(|(key, value)| pod.workload.labels.get(key) == Some(value)))
}

/// The endpoints of one pod, as the EndpointSlice controller would make them.
fn derived(fact: &ServiceFact, pod: &PodFact) -> Vec<Backend> {
    if pod.finished {
        return Vec::new();
    }
    let workload = &pod.workload;
    let number = |port: &ServicePort| match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => pod.named_port(name, port.protocol),
    };
    let mut backends = Vec::new();
    for port in &fact.ports {
        let Some(number) = number(port) else { continue };
        backends.extend(workload.addresses.iter().map(|addr| Backend {
            addr: *addr,
            port: number,
            protocol: port.protocol,
            port_name: port.name.clone(),
            cluster: workload.cluster.clone(),
            node: workload.node.clone(),
            pod: Some(workload.pod.clone()),
            ready: fact.service.publish_not_ready || (workload.ready && !pod.terminating),
            serving: workload.ready,
            terminating: pod.terminating,
        }));
    }
    backends
}

fn remove(index: &mut HashMap<Pair, BTreeSet<ObjectName>>, pair: &Pair, name: &ObjectName) {
    if let Some(names) = index.get_mut(pair) {
        names.remove(name);
        if names.is_empty() {
            index.remove(pair);
        }
    }
}
