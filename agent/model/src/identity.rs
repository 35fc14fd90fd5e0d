//! Security identities: numbers for sets of labels and for prefixes, local to this node.
use crate::{
    resolve::label,
    types::{Labels, SecurityIdentity, Workload},
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

// The kernel's programs know these by the same numbers (weft-bpf-abi, `identity`), which this crate does not depend on.
/// This node.
pub const HOST: u32 = 1;
/// Everything that has no other identity.
pub const WORLD: u32 = 2;
/// Other nodes.
pub const REMOTE_NODE: u32 = 3;
/// Numbers from here on are handed out by this node's agent.
pub const FIRST_LOCAL: u32 = 256;
/// The greatest number that fits a VXLAN network identifier, should it ever travel in one.
const LAST_LOCAL: u32 = 0x00ff_ffff;

/// Labels that differ between pods that are otherwise alike: each would cost an identity of its own.
const NOISE: [&str; 7] = [
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
    "controller-revision-hash",
    "controller-uid",
    "pod-template-generation",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
];

/// This label of pods counts for identities only where some policy names it.
pub fn is_noise(label: &str) -> bool {
    NOISE.contains(&label) || label == "batch.kubernetes.io/controller-uid"
}

/// Where the labels of a workload's namespace are from.
#[derive(Clone, Copy, Debug)]
pub enum Namespace<'a> {
    /// From its object, where there is one.
    Own(Option<&'a Labels>),
    /// Another cluster tells them among the labels of the workload.
    Told,
}

/// The labels of a workload's identity. `named` are the noisy labels that policies name.
pub fn identity_labels(workload: &Workload, namespace: Namespace<'_>, named: &BTreeSet<String>) -> Labels {
    let mut labels = Labels::new();
    let mut put = |key: &str, value: &str| {
        labels.insert(format!("{}{key}", label::K8S), value.to_owned());
    };
    for (key, value) in &workload.labels {
        // Other clusters tell the labels of their identities, with the source.
        let key = key.strip_prefix(label::K8S).unwrap_or(key);
        let facts = key == label::NAMESPACE || key.starts_with("io.cilium.k8s.");
        let told = matches!(namespace, Namespace::Told) && key.starts_with(label::NAMESPACE_LABELS);
        // A pod must not pass itself off as of another namespace or cluster by a label.
        if (!facts || told) && (!is_noise(key) || named.contains(key)) {
            put(key, value);
        }
    }
    let own = if let Namespace::Own(labels) = namespace { labels } else { None };
    for (key, value) in own.into_iter().flatten() {
        put(&format!("{}{key}", label::NAMESPACE_LABELS), value);
    }
    put(&format!("{}kubernetes.io/metadata.name", label::NAMESPACE_LABELS), &workload.pod.namespace);
    put(label::NAMESPACE, &workload.pod.namespace);
    put(label::SERVICE_ACCOUNT, &workload.service_account);
    put(label::CLUSTER, workload.cluster.as_str());
    labels
}

/// The reserved identities, as selectors see them.
pub fn reserved() -> [SecurityIdentity; 3] {
    [(HOST, "host"), (WORLD, "world"), (REMOTE_NODE, "remote-node")].map(|(id, name)| SecurityIdentity {
        id,
        labels: Labels::from([(format!("{}{name}", label::RESERVED), String::new())]),
        cidr: None,
    })
}

/// Hands out numbers. A number stays with its labels or prefix while these are in use, and is not given to others again
/// before all numbers were used: whatever still holds an old number never meets a new meaning.
#[derive(Debug)]
pub struct Allocator {
    by_labels: HashMap<Arc<Labels>, u32>,
    by_cidr: BTreeMap<IpNet, u32>,
    used: BTreeSet<u32>,
    next: u32,
    /// Numbers of an earlier run stay though nothing (yet) uses them.
    holds: bool,
}

impl Default for Allocator {
    fn default() -> Self {
        Self {
            by_labels: HashMap::new(),
            by_cidr: BTreeMap::new(),
            used: BTreeSet::new(),
            next: FIRST_LOCAL,
            holds: false,
        }
    }
}

impl Allocator {
    /// Takes up the numbers of an earlier run, so that a restart changes none. They are kept until `settle`: objects come
    /// one after the other, and a namespace may come after its pods.
    pub fn restore(&mut self, identities: impl IntoIterator<Item = SecurityIdentity>) {
        self.holds = true;
        for identity in identities {
            if !(FIRST_LOCAL..=LAST_LOCAL).contains(&identity.id) || !self.used.insert(identity.id) {
                continue;
            }
            let earlier = match identity.cidr {
                Some(cidr) => self.by_cidr.insert(cidr, identity.id),
                None => self.by_labels.insert(Arc::new(identity.labels), identity.id),
            };
            earlier.map(|id| self.used.remove(&id));
            self.next = self.next.max(identity.id + 1);
        }
    }

    /// All objects are known: from now on a number that is not in use is given back.
    pub fn settle(&mut self) {
        self.holds = false;
    }

    /// Makes exactly these the ones in use. New ones get their numbers in sorted order. False: the numbers ran out, and
    /// the last ones went without.
    pub fn assign<'a>(
        &mut self,
        labels: impl IntoIterator<Item = &'a Arc<Labels>>,
        cidrs: impl IntoIterator<Item = &'a IpNet>,
    ) -> bool {
        let labels: HashSet<&Arc<Labels>> = labels.into_iter().collect();
        let cidrs: BTreeSet<&IpNet> = cidrs.into_iter().collect();
        if !self.holds {
            let used = &mut self.used;
            self.by_labels.retain(|set, id| labels.contains(set) || !used.remove(id));
            self.by_cidr.retain(|net, id| cidrs.contains(net) || !used.remove(id));
        }
        let mut complete = true;
        let mut new: Vec<&Arc<Labels>> =
            labels.into_iter().filter(|set| !self.by_labels.contains_key(set.as_ref())).collect();
        new.sort_unstable();
        for set in new {
            match self.fresh() {
                Some(id) => drop(self.by_labels.insert(set.clone(), id)),
                None => complete = false,
            }
        }
        for net in cidrs {
            if !self.by_cidr.contains_key(net) {
                match self.fresh() {
                    Some(id) => drop(self.by_cidr.insert(*net, id)),
                    None => complete = false,
                }
            }
        }
        complete
    }

    pub fn of_labels(&self, labels: &Labels) -> Option<u32> {
        self.by_labels.get(labels).copied()
    }

    pub fn cidrs(&self) -> &BTreeMap<IpNet, u32> {
        &self.by_cidr
    }

    /// All that are in use, with the reserved ones.
    pub fn identities(&self) -> BTreeMap<u32, SecurityIdentity> {
        let pods = self.by_labels.iter().map(|(labels, id)| (*id, Labels::clone(labels), None));
        let cidrs = self.by_cidr.iter().map(|(net, id)| (*id, Labels::new(), Some(*net)));
        let local = pods.chain(cidrs).map(|(id, labels, cidr)| SecurityIdentity { id, labels, cidr });
        reserved().into_iter().chain(local).map(|identity| (identity.id, identity)).collect()
    }

    fn fresh(&mut self) -> Option<u32> {
        if self.used.len() > (LAST_LOCAL - FIRST_LOCAL) as usize {
            return None;
        }
        loop {
            if !(FIRST_LOCAL..=LAST_LOCAL).contains(&self.next) {
                self.next = FIRST_LOCAL;
            }
            let id = self.next;
            self.next += 1;
            if self.used.insert(id) {
                return Some(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(app: &str) -> Arc<Labels> {
        Arc::new(Labels::from([("k8s:app".to_owned(), app.to_owned())]))
    }

    /// A restarted agent hears of pods before their namespace: the labels that it sees first are not yet the whole ones.
    #[test]
    fn restored_numbers_wait_until_all_objects_are_known() {
        let whole = labels("web");
        let known = SecurityIdentity { id: 300, labels: Labels::clone(&whole), cidr: None };
        let mut allocator = Allocator::default();
        allocator.restore([known]);
        allocator.assign([&labels("half")], []);
        allocator.assign([&whole], []);
        assert_eq!(allocator.of_labels(&whole), Some(300));
        allocator.settle();
        allocator.assign([], []);
        assert_eq!(allocator.of_labels(&whole), None);
    }

    #[test]
    fn a_number_stays_while_in_use_and_is_not_given_to_others() {
        let mut allocator = Allocator::default();
        let (a, b, c) = (labels("a"), labels("b"), labels("c"));
        assert!(allocator.assign([&b, &a], []));
        assert_eq!((allocator.of_labels(&a), allocator.of_labels(&b)), (Some(256), Some(257)));
        assert!(allocator.assign([&b], []));
        assert!(allocator.assign([&b, &c], []));
        assert_eq!((allocator.of_labels(&a), allocator.of_labels(&b)), (None, Some(257)));
        assert_eq!(allocator.of_labels(&c), Some(258));
    }

    #[test]
    fn a_restart_changes_no_number() {
        let mut allocator = Allocator::default();
        let (a, b) = (labels("a"), labels("b"));
        let net: IpNet = "10.0.0.0/8".parse().unwrap();
        allocator.assign([&b], [&net]);
        allocator.assign([&a, &b], [&net]);
        let before = allocator.identities();
        let mut again = Allocator::default();
        again.restore(before.values().cloned());
        again.assign([&a, &b], [&net]);
        assert_eq!(again.identities(), before);
    }

    #[test]
    fn restored_numbers_outside_the_range_are_not_taken_up() {
        let mut allocator = Allocator::default();
        allocator.restore([SecurityIdentity { id: HOST, labels: Labels::clone(&labels("evil")), cidr: None }]);
        assert_eq!(allocator.identities().len(), 3);
        assert_eq!(allocator.of_labels(&labels("evil")), None);
    }
}
