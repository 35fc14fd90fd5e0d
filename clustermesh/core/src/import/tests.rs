//! What one cluster exports, another imports; and what a hostile or broken peer can do.
use super::*;
use crate::{
    export::{ExportOptions, export},
    value::Capabilities,
};
use proptest::prelude::*;
use std::time::SystemTime;
use weft_model::{
    snapshot::Snapshot,
    types::{
        Affinity, Backend, Frontend, FrontendKind, GlobalService, Protocol, SecurityIdentity, Service, ServiceView,
    },
};

fn cluster(name: &str) -> ClusterName {
    ClusterName::try_from(name.to_owned()).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn backend(addr: &str, of: &str) -> Backend {
    Backend {
        addr: ip(addr),
        port: 8080,
        protocol: Protocol::Tcp,
        port_name: "http".into(),
        cluster: cluster(of),
        node: Some("node-1".into()),
        pod: Some(ObjectName::new("shop", "backend-1")),
        ready: true,
        serving: true,
        terminating: false,
    }
}

fn service(name: &str, shared: Option<bool>, backends: Vec<Backend>) -> (ObjectName, ServiceView) {
    let name = ObjectName::new("shop", name);
    let service = Service {
        name: name.clone(),
        kind: "ClusterIP".into(),
        labels: Labels::new(),
        selector: None,
        frontends: vec![Frontend {
            addr: ip("10.96.0.7"),
            port: 80,
            protocol: Protocol::Tcp,
            port_name: "http".into(),
            kind: FrontendKind::ClusterIP,
        }],
        headless: false,
        session_affinity: None,
        internal_traffic_local: false,
        external_traffic_local: false,
        publish_not_ready: false,
        global: shared.map(|shared| GlobalService { shared, affinity: Affinity::None }),
    };
    (name, ServiceView { service, backends })
}

fn node(name: &str, of: &str, addr: &str) -> Node {
    Node {
        cluster: cluster(of),
        name: name.into(),
        labels: Labels::from([("topology.kubernetes.io/region".into(), "north".into())]),
        region: Some("north".into()),
        addresses: vec![ip(addr)],
        pod_cidrs: vec!["10.1.1.0/24".parse().unwrap()],
        wireguard_key: None,
        wireguard_port: 51820,
    }
}

fn workload(pod: &str, of: &str, addresses: &[&str]) -> Workload {
    Workload {
        cluster: cluster(of),
        pod: ObjectName::new("shop", pod),
        service_account: "backend".into(),
        trust_domain: format!("{of}.example").parse().unwrap(),
        labels: Labels::from([("app".into(), "backend".into())]),
        addresses: addresses.iter().map(|addr| ip(addr)).collect(),
        node: Some("node-1".into()),
        node_ip: Some(ip("192.0.2.11")),
        host_network: false,
        ready: true,
        identity: 0,
    }
}

/// East, which has heard of west.
fn east() -> Snapshot {
    let mut leaving = backend("10.1.1.6", "east");
    (leaving.ready, leaving.terminating) = (false, true);
    Snapshot {
        cluster: cluster("east"),
        cluster_id: 3,
        trust_domain: "east.example".parse().unwrap(),
        node_name: "node-1".into(),
        synced: true,
        services: BTreeMap::from([
            service("global", Some(true), vec![backend("10.1.1.5", "east"), leaving, backend("10.2.1.5", "west")]),
            service("kept", Some(false), vec![backend("10.1.1.5", "east")]),
            service("local", None, vec![backend("10.1.1.5", "east")]),
        ]),
        nodes: vec![node("node-1", "east", "192.0.2.11"), node("node-1", "west", "192.0.2.21")],
        workloads: vec![
            workload("backend-1", "east", &["10.1.1.5", "fd00::1:5"]),
            Workload { host_network: true, ..workload("agent", "east", &["192.0.2.11"]) },
            workload("backend-1", "west", &["10.2.1.5"]),
        ],
        identities: BTreeMap::new(),
        policies: BTreeMap::new(),
        auth_destinations: vec![(ip("10.1.1.5"), 8080), (ip("10.1.1.5"), 9090), (ip("10.2.1.5"), 0)],
        policy_status: vec![],
        plugins: vec![],
        mesh_peers: vec![],
        object_errors: vec![],
    }
}

fn exported(snapshot: &Snapshot) -> BTreeMap<Bytes, Bytes> {
    export(snapshot, &ExportOptions { hbone: true, since: SystemTime::UNIX_EPOCH })
}

fn importer() -> Importer {
    Importer::new(cluster("east"), Some(3), "east.example".parse().unwrap())
}

fn put_all(importer: &mut Importer, keys: &BTreeMap<Bytes, Bytes>) {
    for (key, value) in keys {
        importer.apply(&Change::Put { key: key.clone(), value: value.clone() });
    }
}

fn put(importer: &mut Importer, key: &str, value: &str) {
    importer.apply(&Change::Put { key: key.to_owned().into(), value: value.to_owned().into() });
}

fn delete(importer: &mut Importer, key: &str) {
    importer.apply(&Change::Delete { key: key.to_owned().into() });
}

#[test]
fn a_cluster_arrives_as_it_was_exported_and_without_what_is_not_its_own() {
    let snapshot = east();
    let mut importer = importer();
    put_all(&mut importer, &exported(&snapshot));
    let mut leaving = backend("10.1.1.6", "east");
    (leaving.ready, leaving.terminating) = (false, true);
    let shared = RemoteService { shared: true, backends: vec![backend("10.1.1.5", "east"), leaving] };
    let expected = RemoteCluster {
        name: cluster("east"),
        id: 3,
        trust_domain: "east.example".parse().unwrap(),
        alive: true,
        services: BTreeMap::from([
            (ObjectName::new("shop", "global"), shared),
            (ObjectName::new("shop", "kept"), RemoteService { shared: false, backends: vec![] }),
        ]),
        nodes: BTreeMap::from([("node-1".to_owned(), node("node-1", "east", "192.0.2.11"))]),
        workloads: vec![workload("backend-1", "east", &["10.1.1.5", "fd00::1:5"])],
        auth_destinations: vec![(ip("10.1.1.5"), 8080), (ip("10.1.1.5"), 9090)],
        hbone: true,
    };
    assert_eq!(importer.build(true), Ok(expected));
    assert_eq!(importer.problems(), (vec![], 0));
}

/// A reader that knows only Cilium's keys sees ready backends alone, and no key of ours is needed.
#[test]
fn without_our_own_keys_a_cilium_peer_is_understood() {
    let mut importer = importer();
    let mut keys = exported(&east());
    keys.retain(|key, _| key.starts_with(b"cilium/"));
    put_all(&mut importer, &keys);
    let found = importer.build(false).unwrap();
    let service = &found.services[&ObjectName::new("shop", "global")];
    let addresses: Vec<_> = service.backends.iter().map(|b| (b.addr, b.ready)).collect();
    assert_eq!((addresses, found.hbone, found.alive), (vec![(ip("10.1.1.5"), true)], false, false));
    assert!(!importer.is_weft());
}

#[test]
fn labels_of_the_namespace_travel_with_the_identity() {
    let mut snapshot = east();
    snapshot.workloads[0].identity = 70;
    let label = "io.cilium.k8s.namespace.labels.team";
    let labels = Labels::from([("k8s:app".into(), "backend".into()), (format!("k8s:{label}"), "red".into())]);
    snapshot.identities.insert(70, SecurityIdentity { id: 70, labels, cidr: None });
    let mut importer = importer();
    put_all(&mut importer, &exported(&snapshot));
    let expected = Labels::from([("app".into(), "backend".into()), (label.into(), "red".into())]);
    assert_eq!(importer.build(true).unwrap().workloads[0].labels, expected);
}

#[test]
fn nothing_is_published_before_the_snapshot_is_synced() {
    assert_eq!(exported(&Snapshot { synced: false, ..east() }), BTreeMap::new());
}

#[test]
fn nothing_is_handed_on_before_every_part_is_announced_as_complete() {
    let keys = exported(&east());
    let mut importer = importer();
    assert_eq!(importer.build(true), Err(NotReady::NoClusterConfig(cluster("east"))));
    let (canaries, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
        keys.into_iter().partition(|(key, _)| matches!(Key::parse(key), Some(Key::Synced(..))));
    assert_eq!(canaries.len(), 5);
    put_all(&mut importer, &rest);
    for (key, value) in canaries {
        assert!(matches!(importer.build(true), Err(NotReady::Unsynced { .. })));
        importer.apply(&Change::Put { key, value });
    }
    importer.build(true).unwrap();
    delete(&mut importer, "cilium/synced/east/cilium/state/ip/v1");
    assert_eq!(importer.build(true).unwrap_err().to_string(), "east is still filling cilium/state/ip/v1");
}

#[test]
fn a_peer_that_is_not_who_it_was_is_refused_with_the_remedy() {
    let keys = exported(&east());
    let domain = |name: &str| name.parse().unwrap();
    let mut other_id = Importer::new(cluster("east"), Some(9), domain("east.example"));
    put_all(&mut other_id, &keys);
    let error = other_id.build(true).unwrap_err().to_string();
    assert_eq!(error, "east has id 3, but was connected as 9: disconnect it and connect it again");

    let mut other_domain = Importer::new(cluster("east"), None, domain("west.example"));
    put_all(&mut other_domain, &keys);
    assert!(matches!(other_domain.build(true), Err(NotReady::OtherTrustDomain { .. })));

    let mut importer = importer();
    put_all(&mut importer, &keys);
    for id in [0, 256] {
        let capabilities = Capabilities { synced_canaries: true, ..Default::default() };
        let value = ClusterConfigValue { id, capabilities }.to_bytes();
        importer.apply(&Change::Put { key: "cilium/cluster-config/east".into(), value });
        assert_eq!(importer.build(true), Err(NotReady::InvalidId { cluster: cluster("east"), found: id }));
    }
}

#[test]
fn a_bad_value_is_named_counts_as_absent_and_harms_nothing_else() {
    let mut importer = importer();
    put_all(&mut importer, &exported(&east()));
    let before = importer.build(true).unwrap();

    put(&mut importer, "cilium/state/nodes/v1/east/node-1", "{");
    put(
        &mut importer,
        "cilium/state/services/v1/east/shop/evil",
        r#"{"cluster":"east","namespace":"shop","name":"evil","clusterID":4,"shared":true}"#,
    );
    // Reserved numbers and those of other clusters match no policy here.
    put(&mut importer, "cilium/state/identities/v1/id/1", "k8s:io.cilium.k8s.policy.cluster=east;");
    put(&mut importer, "cilium/state/identities/v1/id/196608", "k8s:io.cilium.k8s.policy.cluster=east;");
    put(
        &mut importer,
        "cilium/state/ip/v1/default/10.9.9.9",
        r#"{"IP":"10.9.9.9","ID":1,"K8sNamespace":"shop","K8sPodName":"evil"}"#,
    );
    // A key that another cluster should write is no business of this peer.
    put(&mut importer, "cilium/state/nodes/v1/west/node-9", "{");

    let mut after = importer.build(true).unwrap();
    assert!(after.nodes.is_empty());
    let (problems, count) = importer.problems();
    let named: Vec<_> = problems.iter().map(|p| p.key.as_str()).collect();
    assert_eq!(count, 4, "{problems:?}");
    assert!(named.contains(&"cilium/state/nodes/v1/east/node-1") && named.contains(&"cilium/state/identities/v1/id/1"));

    // Without its node the workload's node has no name; all else is as before.
    after.nodes = before.nodes.clone();
    after.workloads[0].node = before.workloads[0].node.clone();
    assert_eq!(after, before);

    put_all(&mut importer, &exported(&east()));
    for key in [
        "cilium/state/identities/v1/id/1",
        "cilium/state/identities/v1/id/196608",
        "cilium/state/services/v1/east/shop/evil",
    ] {
        delete(&mut importer, key);
    }
    assert_eq!(importer.build(true), Ok(before));
    assert_eq!(importer.problems().1, 0);
}

#[test]
fn what_is_deleted_is_gone() {
    let keys = exported(&east());
    let mut importer = importer();
    put_all(&mut importer, &keys);
    for key in keys.keys().filter(|key| key.starts_with(b"weft/state/") || key.starts_with(b"cilium/state/")) {
        importer.apply(&Change::Delete { key: key.clone() });
    }
    let found = importer.build(true).unwrap();
    assert!(found.services.is_empty() && found.nodes.is_empty() && found.workloads.is_empty());
    assert!(found.auth_destinations.is_empty());
}

#[test]
fn identities_have_the_same_numbers_on_every_server_and_keep_them_when_others_come() {
    let mut snapshot = east();
    let numbers = |snapshot: &Snapshot| -> BTreeMap<Bytes, Bytes> {
        exported(snapshot).into_iter().filter(|(key, _)| matches!(Key::parse(key), Some(Key::Identity(_)))).collect()
    };
    let before = numbers(&snapshot);
    assert_eq!(before.len(), 1);
    let mut other = workload("other", "east", &["10.1.1.9"]);
    other.labels.insert("app".into(), "a-first-one".into());
    snapshot.workloads.insert(0, other);
    let after = numbers(&snapshot);
    assert_eq!(after.len(), 2);
    assert!(before.iter().all(|(key, value)| after.get(key) == Some(value)));
}

proptest! {
    /// Any order of writes, with any bytes among them, ends in the same cluster or in a refusal; never in a panic.
    #[test]
    fn any_bytes_under_any_key_are_survived(
        noise in proptest::collection::vec((0usize..40, proptest::collection::vec(any::<u8>(), 0..40)), 0..40)
    ) {
        let keys = exported(&east());
        let mut importer = importer();
        put_all(&mut importer, &keys);
        for (index, value) in noise {
            let key = keys.keys().nth(index % keys.len()).unwrap().clone();
            importer.apply(&Change::Put { key, value: value.into() });
            let _ = importer.build(true);
        }
        put_all(&mut importer, &keys);
        prop_assert!(importer.build(true).is_ok());
        prop_assert_eq!(importer.problems().1, 0);
    }
}
