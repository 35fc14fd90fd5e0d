//! Pods of all clusters with their security identities.
use crate::{
    identity::{self, Allocator, Namespace},
    parse::{Kind, PodFact},
    resolve::{self, PolicyFact},
    snapshot::ObjectError,
    types::{ClusterName, Labels, Node, ObjectName, RemoteCluster, SecurityIdentity, Workload},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

#[derive(Debug, Default)]
pub(super) struct Workloads {
    pods: BTreeMap<ObjectName, Arc<PodFact>>,
    namespaces: BTreeMap<String, Arc<Labels>>,
    /// Identity labels, made once a pod.
    own_labels: BTreeMap<ObjectName, Arc<Labels>>,
    remote_labels: BTreeMap<ClusterName, Vec<Arc<Labels>>>,
    /// Noisy labels that policies name.
    named: BTreeSet<String>,
    allocator: Allocator,
    conflicts: Vec<ObjectError>,
}

impl Workloads {
    pub(super) fn restore(&mut self, identities: impl IntoIterator<Item = SecurityIdentity>) {
        self.allocator.restore(identities);
    }

    pub(super) fn settle_identities(&mut self) {
        self.allocator.settle();
    }

    pub(super) fn pods(&self) -> &BTreeMap<ObjectName, Arc<PodFact>> {
        &self.pods
    }

    pub(super) fn identities(&self) -> BTreeMap<u32, SecurityIdentity> {
        self.allocator.identities()
    }

    pub(super) fn conflicts(&self) -> &[ObjectError] {
        &self.conflicts
    }

    /// The fact before, and whether this changes something.
    pub(super) fn set_pod(&mut self, name: &ObjectName, fact: Option<Arc<PodFact>>) -> (Option<Arc<PodFact>>, bool) {
        let old = match &fact {
            Some(fact) => self.pods.insert(name.clone(), fact.clone()),
            None => self.pods.remove(name),
        };
        let changed = old != fact;
        if changed {
            self.own_labels.remove(name);
        }
        (old, changed)
    }

    pub(super) fn set_namespace(&mut self, name: &str, labels: Option<Arc<Labels>>) -> bool {
        let old = match &labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels.clone()),
            None => self.namespaces.remove(name),
        };
        if old == labels {
            return false;
        }
        self.own_labels.retain(|pod, _| pod.namespace != name);
        true
    }

    pub(super) fn remote_changed(&mut self, cluster: &ClusterName) {
        self.remote_labels.remove(cluster);
    }

    /// All workloads with an address, with their identities.
    pub(super) fn rebuild(
        &mut self,
        own: &ClusterName,
        nodes: &[Node],
        remotes: &BTreeMap<ClusterName, RemoteCluster>,
        policies: &BTreeMap<(Kind, ObjectName), Arc<PolicyFact>>,
    ) -> Vec<Workload> {
        let named =
            resolve::label_names(policies).filter(|label| identity::is_noise(label)).map(str::to_owned).collect();
        if self.named != named {
            self.named = named;
            self.own_labels.clear();
            self.remote_labels.clear();
        }
        self.fill_label_caches(remotes);
        let node_ips: HashMap<(&ClusterName, &str), IpAddr> = nodes
            .iter()
            .filter_map(|node| Some(((&node.cluster, node.name.as_str()), *node.addresses.first()?)))
            .collect();
        let node_ip = |workload: &Workload| {
            workload.node_ip.or_else(|| node_ips.get(&(&workload.cluster, workload.node.as_deref()?)).copied())
        };

        // While a pod's address passes to a new pod, both may be known: the one that does not go has it. Between clusters
        // the own pod has it; that two have it at all is worth a word.
        let mut claimed: HashMap<IpAddr, (ClusterName, ObjectName)> = HashMap::new();
        let mut conflicts = Vec::new();
        let mut claim = |workload: &mut Workload| {
            workload.addresses.retain(|ip| match claimed.get(ip) {
                None => {
                    claimed.insert(*ip, (workload.cluster.clone(), workload.pod.clone()));
                    true
                }
                Some((cluster, pod)) => {
                    if *cluster != workload.cluster {
                        conflicts.push(ObjectError {
                            origin: "mesh".to_owned(),
                            object: format!("Pod {} of cluster {}", workload.pod, workload.cluster),
                            message: format!(
                                "status.podIPs: {ip} is Pod {pod}'s of cluster {cluster}: pod CIDRs of connected \
                                 clusters must not overlap"
                            ),
                        });
                    }
                    false
                }
            });
            !workload.addresses.is_empty()
        };
        let mut found: Vec<(Workload, &Arc<Labels>)> = Vec::with_capacity(self.own_labels.len());
        for going in [false, true] {
            for (name, pod) in self.pods.iter().filter(|(_, pod)| pod.terminating == going) {
                let Some(labels) = self.own_labels.get(name) else { continue };
                let mut workload = pod.workload.clone();
                workload.node_ip = node_ip(&workload);
                if claim(&mut workload) {
                    found.push((workload, labels));
                }
            }
        }
        found.sort_by(|a, b| a.0.pod.cmp(&b.0.pod));
        for (name, remote) in remotes.iter().filter(|(name, _)| *name != own) {
            let labels = self.remote_labels.get(name).into_iter().flatten();
            for (workload, labels) in remote.workloads.iter().zip(labels) {
                let mut workload = workload.clone();
                workload.node_ip = node_ip(&workload);
                if !workload.host_network && claim(&mut workload) {
                    found.push((workload, labels));
                }
            }
        }

        let addresses: BTreeSet<IpAddr> =
            claimed.keys().copied().chain(nodes.iter().flat_map(|node| node.addresses.iter().copied())).collect();
        let cidrs = resolve::prefixes(policies, &addresses);
        if !self.allocator.assign(found.iter().map(|(_, labels)| *labels), &cidrs) {
            conflicts.push(ObjectError {
                origin: "agent".to_owned(),
                object: "security identities".to_owned(),
                message: "all numbers are in use: pods with new labels have no identity".to_owned(),
            });
        }
        self.conflicts = conflicts;
        found
            .into_iter()
            .map(|(workload, labels)| Workload {
                identity: self.allocator.of_labels(labels).unwrap_or_default(),
                ..workload
            })
            .collect()
    }

    fn fill_label_caches(&mut self, remotes: &BTreeMap<ClusterName, RemoteCluster>) {
        let Self { pods, namespaces, own_labels, remote_labels, named, .. } = self;
        for (name, pod) in pods.iter() {
            let workload = &pod.workload;
            if workload.host_network || pod.finished || workload.addresses.is_empty() {
                own_labels.remove(name);
            } else if !own_labels.contains_key(name) {
                let namespace = Namespace::Own(namespaces.get(&name.namespace).map(Arc::as_ref));
                own_labels.insert(name.clone(), Arc::new(identity::identity_labels(workload, namespace, named)));
            }
        }
        remote_labels.retain(|name, _| remotes.contains_key(name));
        for (name, remote) in remotes {
            if !remote_labels.contains_key(name) {
                let labels = remote.workloads.iter();
                let labels =
                    labels.map(|workload| Arc::new(identity::identity_labels(workload, Namespace::Told, named)));
                remote_labels.insert(name.clone(), labels.collect());
            }
        }
    }
}
