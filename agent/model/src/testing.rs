//! One vocabulary for the tests of this crate: Kubernetes YAML in, the snapshot out.
use crate::{
    policy::{EndpointPolicy, Verdict},
    snapshot::Snapshot,
    store::{Event, Store, StoreConfig, UnsupportedPolicy},
    types::{ClusterName, Labels, ObjectName, Protocol, RemoteCluster, Workload},
};
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

pub(crate) fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap_or(("", text));
    ObjectName::new(namespace, name)
}

pub(crate) fn cluster(name: &str) -> ClusterName {
    ClusterName::try_from(name.to_owned()).unwrap()
}

pub(crate) fn yaml(text: &str) -> Vec<Value> {
    let documents = serde_norway::Deserializer::from_str(text).map(|document| Value::deserialize(document).unwrap());
    documents.filter(|document| !document.is_null()).collect()
}

pub(crate) fn store(unsupported: UnsupportedPolicy) -> Store {
    Store::new(StoreConfig {
        cluster: cluster("east"),
        cluster_id: 1,
        trust_domain: "east.test".parse().unwrap(),
        node_name: "node-1".to_owned(),
        unsupported,
    })
}

pub(crate) fn file(path: &str, text: &str) -> Event {
    Event::File { source: "directory".to_owned(), layer: 0, path: path.to_owned(), objects: yaml(text) }
}

/// A store that has read this YAML.
pub(crate) fn told(text: &str) -> Store {
    let mut store = store(UnsupportedPolicy::FailClosed);
    store.apply(file("/cluster/all.yaml", text));
    store
}

pub(crate) fn snapshot(text: &str) -> Arc<Snapshot> {
    told(text).snapshot()
}

/// A running pod of namespace `shop` with the label `app`, in YAML.
pub(crate) fn pod(app: &str, node: &str, ip: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: {app}, namespace: shop, labels: {{app: {app}}}}}
spec: {{nodeName: {node}, serviceAccountName: {app}, containers: [{{name: main, ports: [{{name: web, containerPort: 8080}}]}}]}}
status: {{phase: Running, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: \"True\"}}]}}
"
    )
}

/// A connected cluster `west` with one pod of namespace `shop`.
pub(crate) fn west(app: &str, ip: &str) -> RemoteCluster {
    let workload = Workload {
        cluster: cluster("west"),
        pod: name(&format!("shop/{app}")),
        service_account: app.to_owned(),
        trust_domain: "west.test".parse().unwrap(),
        labels: Labels::from([("app".to_owned(), app.to_owned())]),
        addresses: vec![ip.parse().unwrap()],
        node: Some("west-1".to_owned()),
        node_ip: None,
        host_network: false,
        ready: true,
        identity: 0,
    };
    RemoteCluster {
        name: cluster("west"),
        id: 2,
        trust_domain: "west.test".parse().unwrap(),
        alive: true,
        services: BTreeMap::new(),
        nodes: BTreeMap::new(),
        workloads: vec![workload],
        auth_destinations: Vec::new(),
        hbone: true,
    }
}

/// A snapshot with questions to ask.
pub(crate) struct Judge(pub Arc<Snapshot>);

impl Judge {
    pub(crate) fn identity(&self, address: &str) -> u32 {
        let ip: IpAddr = address.parse().unwrap();
        let workload = self.0.workloads.iter().find(|workload| workload.addresses.contains(&ip));
        if let Some(workload) = workload {
            return workload.identity;
        }
        // As the kernel would: the longest prefix that has an identity.
        let cidrs = self.0.identities.values().filter_map(|identity| Some((identity.cidr?, identity.id)));
        let longest = cidrs.filter(|(net, _)| net.contains(&ip)).max_by_key(|(net, _)| net.prefix_len());
        longest.map_or(crate::identity::WORLD, |(_, id)| id)
    }

    pub(crate) fn policy(&self, pod: &str) -> &EndpointPolicy {
        &self.0.policies[&name(&format!("shop/{pod}"))]
    }

    /// `allow`, `deny`, `http`; with `+auth` where authentication is required.
    pub(crate) fn verdict(&self, pod: &str, ingress: bool, peer: u32, protocol: Protocol, port: u16) -> String {
        let (word, auth) = match self.policy(pod).judge(ingress, peer, protocol, port) {
            Verdict::Allow { auth_required, .. } => ("allow", auth_required),
            Verdict::Http { auth_required, .. } => ("http", auth_required),
            Verdict::Deny { .. } => ("deny", false),
        };
        format!("{word}{}", if auth { "+auth" } else { "" })
    }

    /// TCP from an address to a pod.
    pub(crate) fn from(&self, address: &str, pod: &str, port: u16) -> String {
        self.verdict(pod, true, self.identity(address), Protocol::Tcp, port)
    }

    /// TCP from a pod to an address.
    pub(crate) fn to(&self, pod: &str, address: &str, port: u16) -> String {
        self.verdict(pod, false, self.identity(address), Protocol::Tcp, port)
    }

    pub(crate) fn state(&self, policy: &str) -> &str {
        &self.0.policy_status.iter().find(|status| status.name == policy).unwrap().state
    }
}
