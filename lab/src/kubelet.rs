//! Keeps a cluster's running pods as its source wants them, and finds a node for those that have none.
use crate::{
    pod::{self, NodeContext, Wanted},
    pods::{PodKey, Pods},
    report::Reporter,
};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::{sync::watch, task::JoinSet};

/// A node that pods can be put on.
#[derive(Clone, Debug)]
pub struct Slot {
    pub labels: BTreeMap<String, String>,
    pub context: NodeContext,
}

struct Running {
    pod: Arc<Pod>,
    wanted: watch::Sender<Wanted>,
}

/// Runs until the source ends, or for ever.
pub async fn run(nodes: BTreeMap<String, Slot>, mut source: watch::Receiver<Pods>, reporter: Reporter) {
    let mut scheduler = Scheduler::default();
    let mut running: BTreeMap<PodKey, Running> = BTreeMap::new();
    let mut lives = JoinSet::new();
    loop {
        let desired = source.borrow_and_update().clone();
        scheduler.forget_all_but(&desired);
        for (key, pod) in &mut running {
            let now = desired.get(key);
            // Its processes and its network cannot change: a pod with another spec is another pod.
            let same = now.is_some_and(|now| same_pod(now, &pod.pod));
            pod.wanted.send_if_modified(|wanted| {
                let next = Wanted {
                    pod: now.filter(|_| same).unwrap_or(&wanted.pod).clone(),
                    deleted: wanted.deleted || !same || now.is_some_and(|now| is_deleted(now)),
                };
                let changed = *wanted != next;
                *wanted = next;
                changed
            });
        }
        for (key, pod) in desired {
            if running.contains_key(&key) || is_deleted(&pod) {
                continue;
            }
            let Some(node) = scheduler.place(&key, &pod, &nodes) else { continue };
            let context = nodes[&node].context.clone();
            let (wanted, receiver) = watch::channel(Wanted { pod: pod.clone(), deleted: false });
            let (life, reporter) = (key.clone(), reporter.clone());
            lives.spawn(async move {
                pod::live(life.clone(), context, receiver, reporter).await;
                life
            });
            running.insert(key, Running { pod, wanted });
        }
        tokio::select! {
            changed = source.changed() => if changed.is_err() { return },
            Some(ended) = lives.join_next() => match ended {
                Ok(key) => drop(running.remove(&key)),
                Err(error) => tracing::error!(%error, "a pod's task broke: the pod stays as it is"),
            },
        }
    }
}

fn same_pod(one: &Pod, other: &Pod) -> bool {
    one.metadata.uid == other.metadata.uid && settings(one) == settings(other)
}

/// What of a spec is the pod's own: in Kubernetes other fields are filled in while it runs.
fn settings(pod: &Pod) -> impl PartialEq {
    let spec = pod.spec.clone().unwrap_or_default();
    (spec.containers, spec.init_containers, spec.host_network, spec.service_account_name)
}

fn is_deleted(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Round robin over the nodes that a pod may run on; a pod keeps its node.
#[derive(Debug, Default)]
struct Scheduler {
    placed: BTreeMap<PodKey, String>,
    turn: usize,
    refused: BTreeSet<PodKey>,
}

impl Scheduler {
    fn place(&mut self, key: &PodKey, pod: &Pod, nodes: &BTreeMap<String, Slot>) -> Option<String> {
        let labels = nodes.iter().map(|(name, slot)| (name.as_str(), &slot.labels)).collect();
        let node = self.choose(key, pod.spec.as_ref(), &labels);
        if node.is_none() && self.refused.insert(key.clone()) {
            tracing::warn!(pod = %key, "no node of the cluster fits the pod's nodeName or nodeSelector");
        }
        node
    }

    fn choose(
        &mut self,
        key: &PodKey,
        spec: Option<&PodSpec>,
        nodes: &BTreeMap<&str, &BTreeMap<String, String>>,
    ) -> Option<String> {
        if let Some(node) = spec.and_then(|spec| spec.node_name.as_ref()) {
            return nodes.contains_key(node.as_str()).then(|| node.clone());
        }
        let selector = spec.and_then(|spec| spec.node_selector.clone()).unwrap_or_default();
        let fits =
            |labels: &BTreeMap<String, String>| selector.iter().all(|(key, value)| labels.get(key) == Some(value));
        let fitting: Vec<&str> = nodes.iter().filter(|(_, labels)| fits(labels)).map(|(name, _)| *name).collect();
        if let Some(node) = self.placed.get(key)
            && fitting.contains(&node.as_str())
        {
            return Some(node.clone());
        }
        let node = (*fitting.get(self.turn % fitting.len().max(1))?).to_owned();
        self.turn += 1;
        self.placed.insert(key.clone(), node.clone());
        Some(node)
    }

    fn forget_all_but(&mut self, desired: &Pods) {
        self.placed.retain(|key, _| desired.contains_key(key));
        self.refused.retain(|key| desired.contains_key(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_go_round_the_nodes_that_fit_and_keep_theirs() {
        let label = |region: &str| BTreeMap::from([("region".to_owned(), region.to_owned())]);
        let (us, eu) = (label("us"), label("eu"));
        let nodes = BTreeMap::from([("a", &us), ("b", &us), ("c", &eu)]);
        let mut scheduler = Scheduler::default();
        let mut choose = |name: &str, spec: &PodSpec| {
            let key = PodKey { namespace: "shop".into(), name: name.into() };
            scheduler.choose(&key, Some(spec), &nodes)
        };
        let anywhere = PodSpec::default();
        let in_eu = PodSpec { node_selector: Some(eu.clone()), ..PodSpec::default() };
        let named = |node: &str| PodSpec { node_name: Some(node.into()), ..PodSpec::default() };
        let first = ["1", "2", "3", "4", "1"].map(|name| choose(name, &anywhere).unwrap());
        assert_eq!(first, ["a", "b", "c", "a", "a"]);
        assert_eq!(choose("5", &in_eu), Some("c".into()));
        assert_eq!(choose("6", &named("b")), Some("b".into()));
        assert_eq!(choose("7", &named("elsewhere")), None);
    }
}
