//! What this cluster tells the others: every key with its value, made from a snapshot. Only facts of our own cluster;
//! what we heard from peers is not passed on.
use crate::{
    ids::fnv1a,
    key::{Key, Part},
    time::rfc3339,
    value::{
        AddressValue, AuthValue, CLUSTER_LABEL, Capabilities, ClusterConfigValue, NAMESPACE_LABEL, NodeValue,
        PortValue, SERVICE_ACCOUNT_LABEL, ServiceValue, WeftBackend, WeftClusterValue, WeftServiceValue, format_labels,
    },
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::SystemTime,
};
use weft_model::{
    snapshot::Snapshot,
    types::{Backend, ClusterName, FrontendKind, Labels, ServiceView, Workload},
};

/// Cilium's; all connected clusters must have the same.
const MAX_CONNECTED_CLUSTERS: u32 = 255;
/// Numbers below are Cilium's reserved identities.
const FIRST_LOCAL_IDENTITY: u32 = 256;
const LOCAL_IDENTITIES: u32 = (1 << 16) - FIRST_LOCAL_IDENTITY;

#[derive(Clone, Copy, Debug)]
pub struct ExportOptions {
    /// Our pods take HBONE on port 15008.
    pub hbone: bool,
    /// When this process first had everything; written where peers look for 'complete since'.
    pub since: SystemTime,
}

/// The whole state to publish. Empty until the snapshot is synced: a peer must not take a beginning for the truth.
pub fn export(snapshot: &Snapshot, options: &ExportOptions) -> BTreeMap<Bytes, Bytes> {
    let mut keys = BTreeMap::new();
    if !snapshot.synced {
        return keys;
    }
    let own = &snapshot.cluster;
    let mut put = |key: Key, value: Bytes| {
        keys.insert(key.to_bytes(), value);
    };
    let capabilities =
        Capabilities { synced_canaries: true, cached: false, max_connected_clusters: MAX_CONNECTED_CLUSTERS };
    put(Key::ClusterConfig(own.clone()), ClusterConfigValue { id: snapshot.cluster_id, capabilities }.to_bytes());
    let weft = WeftClusterValue { trust_domain: snapshot.trust_domain.clone(), hbone: options.hbone };
    put(Key::WeftCluster(own.clone()), weft.to_bytes());

    for node in snapshot.nodes.iter().filter(|node| node.cluster == *own) {
        let value = NodeValue::from_node(node, snapshot.cluster_id);
        put(Key::Node(own.clone(), node.name.clone()), value.to_bytes());
    }
    for view in snapshot.services.values() {
        let Some(global) = view.service.global else { continue };
        let name = &view.service.name;
        put(Key::Service(own.clone(), name.clone()), service(snapshot, view, global.shared).to_bytes());
        let backends = own_backends(view, own, global.shared).map(WeftBackend::from).collect();
        let value = WeftServiceValue { shared: global.shared, backends };
        put(Key::WeftService(own.clone(), name.clone()), value.to_bytes());
    }
    let workloads: Vec<_> = snapshot.workloads.iter().filter(|w| w.cluster == *own && !w.host_network).collect();
    let numbers = identity_numbers(workloads.iter().map(|w| identity_labels(snapshot, w)), snapshot.cluster_id);
    for (text, number) in &numbers {
        put(Key::Identity(*number), Bytes::from(text.clone()));
    }
    for workload in &workloads {
        // More sets of labels than numbers: the rest has none, and peers do not select it.
        let Some(&id) = numbers.get(&identity_labels(snapshot, workload)) else { continue };
        for &address in &workload.addresses {
            put(Key::Address(address.into()), address_of(workload, address, id).to_bytes());
        }
    }
    for (address, ports) in auth_destinations(snapshot, &workloads) {
        put(Key::WeftAuth(own.clone(), address), AuthValue { ports: ports.into_iter().collect() }.to_bytes());
    }
    for part in Part::CILIUM.into_iter().chain([Part::Weft]) {
        put(Key::Synced(own.clone(), part), rfc3339(options.since).into());
    }
    keys
}

/// The keys to write every `liveness::HEARTBEAT_EVERY`, all with the same value.
pub fn heartbeat(cluster: &ClusterName, now: SystemTime) -> [(Bytes, Bytes); 2] {
    let value = Bytes::from(rfc3339(now));
    [(Key::Heartbeat.to_bytes(), value.clone()), (Key::WeftHeartbeat(cluster.clone()).to_bytes(), value)]
}

/// A service that is not shared says so and no more.
fn own_backends<'a>(view: &'a ServiceView, own: &ClusterName, shared: bool) -> impl Iterator<Item = &'a Backend> {
    view.backends.iter().filter(move |b| shared && b.cluster == *own)
}

fn service(snapshot: &Snapshot, view: &ServiceView, shared: bool) -> ServiceValue {
    let mut value = ServiceValue {
        cluster: snapshot.cluster.to_string(),
        namespace: view.service.name.namespace.clone(),
        name: view.service.name.name.clone(),
        labels: view.service.labels.clone(),
        selector: view.service.selector.clone().unwrap_or_default(),
        include_external: true,
        shared,
        cluster_id: snapshot.cluster_id,
        ..ServiceValue::default()
    };
    for f in view.service.frontends.iter().filter(|f| f.kind == FrontendKind::ClusterIP) {
        let port = PortValue { protocol: f.protocol, port: f.port };
        value.frontends.entry(f.addr).or_default().insert(f.port_name.clone(), port);
    }
    for b in own_backends(view, &snapshot.cluster, shared).filter(|b| b.ready && !b.terminating) {
        let port = PortValue { protocol: b.protocol, port: b.port };
        value.backends.entry(b.addr).or_default().insert(b.port_name.clone(), port);
    }
    value
}

/// With their source, as policy selects by them: what the store resolved, namespace labels among it, and the labels
/// that no identity may lack.
fn identity_labels(snapshot: &Snapshot, workload: &Workload) -> String {
    let known = snapshot.identities.get(&workload.identity).filter(|identity| identity.cidr.is_none());
    let mut labels: Labels = match known {
        Some(identity) => identity.labels.clone(),
        None => workload.labels.iter().map(|(key, value)| (format!("k8s:{key}"), value.clone())).collect(),
    };
    labels.insert(format!("k8s:{CLUSTER_LABEL}"), snapshot.cluster.to_string());
    labels.insert(format!("k8s:{NAMESPACE_LABEL}"), workload.pod.namespace.clone());
    labels.insert(format!("k8s:{SERVICE_ACCOUNT_LABEL}"), workload.service_account.clone());
    format_labels(&labels)
}

/// A number for each set of labels, drawn from the labels themselves: every mesh server of the cluster gives the same
/// ones, without an allocator, and they seldom move when others come and go.
fn identity_numbers(texts: impl Iterator<Item = String>, cluster_id: u32) -> BTreeMap<String, u32> {
    let (mut taken, mut numbers) = (BTreeSet::new(), BTreeMap::new());
    for text in texts.collect::<BTreeSet<_>>().into_iter().take(LOCAL_IDENTITIES as usize) {
        let mut local = fnv1a(text.as_bytes()) % LOCAL_IDENTITIES;
        while !taken.insert(local) {
            local = (local + 1) % LOCAL_IDENTITIES;
        }
        numbers.insert(text, (cluster_id << 16) + FIRST_LOCAL_IDENTITY + local);
    }
    numbers
}

fn address_of(workload: &Workload, address: IpAddr, id: u32) -> AddressValue {
    AddressValue {
        ip: address.to_string(),
        host_ip: workload.node_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        id,
        namespace: workload.pod.namespace.clone(),
        pod: workload.pod.name.clone(),
        service_account: workload.service_account.clone(),
        ..AddressValue::default()
    }
}

fn auth_destinations(snapshot: &Snapshot, workloads: &[&Workload]) -> BTreeMap<IpAddr, BTreeSet<u16>> {
    let own: BTreeSet<IpAddr> = workloads.iter().flat_map(|w| w.addresses.iter().copied()).collect();
    let mut ports: BTreeMap<IpAddr, BTreeSet<u16>> = BTreeMap::new();
    for &(address, port) in snapshot.auth_destinations.iter().filter(|(address, _)| own.contains(address)) {
        ports.entry(address).or_default().insert(port);
    }
    ports
}
