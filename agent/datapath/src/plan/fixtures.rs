//! The vocabulary of the plan's tests: cluster `east`, this node is `n1`.
use std::net::IpAddr;
use weft_model::{
    snapshot::Snapshot,
    types::{
        Backend, ClusterName, Frontend, FrontendKind, Labels, Node, ObjectName, Protocol, Service, ServiceView,
        Workload,
    },
};

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectName::new(namespace, name)
}

pub fn cluster(text: &str) -> ClusterName {
    ClusterName::try_from(text.to_owned()).unwrap()
}

pub fn snapshot() -> Snapshot {
    Snapshot {
        cluster: cluster("east"),
        cluster_id: 1,
        trust_domain: "east.local".parse().unwrap(),
        node_name: "n1".into(),
        synced: true,
        services: Default::default(),
        nodes: vec![node("east", "n1", "eu", "192.168.0.1", "10.1.0.0/24")],
        workloads: vec![],
        identities: Default::default(),
        policies: Default::default(),
        auth_destinations: vec![],
        policy_status: vec![],
        plugins: vec![],
        mesh_peers: vec![],
        object_errors: vec![],
    }
}

pub fn node(of: &str, name: &str, region: &str, addr: &str, pods: &str) -> Node {
    Node {
        cluster: cluster(of),
        name: name.into(),
        labels: Labels::new(),
        region: (!region.is_empty()).then(|| region.into()),
        addresses: vec![ip(addr)],
        pod_cidrs: vec![pods.parse().unwrap()],
        wireguard_key: None,
        wireguard_port: 51820,
    }
}

pub fn pod(of: &str, pod: &str, on: &str, addr: &str, identity: u32) -> Workload {
    Workload {
        cluster: cluster(of),
        pod: name(pod),
        service_account: "default".into(),
        trust_domain: format!("{of}.local").parse().unwrap(),
        labels: Labels::new(),
        addresses: vec![ip(addr)],
        node: (!on.is_empty()).then(|| on.into()),
        node_ip: None,
        host_network: false,
        ready: true,
        identity,
    }
}

pub fn service(of: &str, vip: &str, port: u16, backends: &[&str]) -> ServiceView {
    let frontend = Frontend {
        addr: ip(vip),
        port,
        protocol: Protocol::Tcp,
        port_name: "http".into(),
        kind: FrontendKind::ClusterIP,
    };
    let backend = |addr: &&str| Backend {
        addr: ip(addr),
        port: 8080,
        protocol: Protocol::Tcp,
        port_name: "http".into(),
        cluster: cluster("east"),
        node: Some("n1".into()),
        pod: None,
        ready: true,
        serving: true,
        terminating: false,
    };
    ServiceView {
        service: Service {
            name: name(of),
            kind: "ClusterIP".into(),
            labels: Labels::new(),
            selector: None,
            frontends: vec![frontend],
            headless: false,
            session_affinity: None,
            internal_traffic_local: false,
            external_traffic_local: false,
            publish_not_ready: false,
            global: None,
        },
        backends: backends.iter().map(backend).collect(),
    }
}

pub fn add(snapshot: &mut Snapshot, view: ServiceView) {
    snapshot.services.insert(view.service.name.clone(), view);
}
