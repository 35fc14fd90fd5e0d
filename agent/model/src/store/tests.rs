//! Scenarios: YAML in, the snapshot out.
use super::{Event, NodeFacts, UnsupportedPolicy};
use crate::{
    parse::{Kind, ObjectKey},
    testing::{cluster, file, name, pod, snapshot, store, told, west, yaml},
    types::{Affinity, Backend, FrontendKind, Protocol, RemoteCluster, RemoteService, Service, ServiceView},
};
use proptest::prelude::*;
use std::{collections::BTreeSet, time::Duration};

mod order;
mod scale;

const WEB: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
";

fn global(affinity: &str) -> String {
    let annotations = format!("{{weft.dev/global: 'true', weft.dev/affinity: {affinity}}}");
    WEB.replace("namespace: shop}", &format!("namespace: shop, annotations: {annotations}}}"))
}

fn slice(name: &str, endpoints: &str) -> String {
    format!(
        "
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints: {endpoints}
"
    )
}

/// `west` offers `web` at this address.
fn offering(ip: &str) -> RemoteCluster {
    let mut remote = west("web", ip);
    let backend = Backend {
        addr: ip.parse().unwrap(),
        port: 8080,
        protocol: Protocol::Tcp,
        port_name: "http".to_owned(),
        cluster: cluster("west"),
        node: None,
        pod: None,
        ready: true,
        serving: true,
        terminating: false,
    };
    remote.services.insert(name("shop/web"), RemoteService { shared: true, backends: vec![backend] });
    remote
}

fn service(yaml: &str) -> Service {
    let snapshot = snapshot(yaml);
    assert_eq!(snapshot.object_errors, [], "{yaml}");
    snapshot.services.values().next().unwrap().service.clone()
}

/// Where new connections to the first frontend go, in words: `10.1.0.1:8080`.
fn usable(view: &ServiceView) -> Vec<String> {
    let found = view.usable_for(&view.service.frontends[0], &cluster("east"), "node-1");
    assert_eq!(found, view.usable(&cluster("east"), "node-1"), "one frontend, one port: the same answer");
    found.iter().map(|backend| format!("{}:{}", backend.addr, backend.port)).collect()
}

fn usable_in(yaml: &str) -> Vec<String> {
    usable(&snapshot(yaml).services[&name("shop/web")])
}

#[test]
fn the_addresses_of_a_service_are_frontends() {
    let service = service(
        "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd00::1']
  externalIPs: [192.0.2.1]
  loadBalancerClass: example.com/any
  allocateLoadBalancerNodePorts: true
  ipFamilies: [IPv4, IPv6]
  ports: [{name: dns, port: 53, protocol: UDP, nodePort: 30053}]
status: {loadBalancer: {ingress: [{ip: 198.51.100.1}, {ip: 198.51.100.2, ipMode: Proxy}, {hostname: lb.example.com}]}}
",
    );
    let found: Vec<String> =
        service.frontends.iter().map(|f| format!("{:?} {} {} {:?}", f.kind, f.addr, f.port, f.protocol)).collect();
    assert_eq!(
        found,
        [
            "ClusterIP 10.96.0.1 53 Udp",
            "ClusterIP fd00::1 53 Udp",
            "ExternalIP 192.0.2.1 53 Udp",
            "LoadBalancer 198.51.100.1 53 Udp",
            "NodePort 0.0.0.0 30053 Udp",
            "NodePort :: 30053 Udp",
        ]
    );
}

#[test]
fn headless_and_external_name_services_have_no_frontend() {
    let headless = service(&WEB.replace("10.96.0.1", "None"));
    assert!(headless.headless && headless.frontends.is_empty());
    let external = WEB.replace("clusterIP: 10.96.0.1,", "type: ExternalName, externalName: a.example.com,");
    let external = service(&external);
    assert!(external.frontends.is_empty() && external.selector.is_none());
}

#[test]
fn session_affinity_has_a_default_timeout() {
    let with = |more: &str| service(&WEB.replace("spec: {", &format!("spec: {{{more}, "))).session_affinity;
    assert_eq!(with("sessionAffinity: None"), None);
    assert_eq!(with("sessionAffinity: ClientIP"), Some(Duration::from_secs(10_800)));
    let given = "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 7}}";
    assert_eq!(with(given), Some(Duration::from_secs(7)));
}

#[test]
fn annotations_make_a_service_global_and_wefts_own_win() {
    let with = |annotations: &str| {
        let text = format!("namespace: shop, annotations: {{{annotations}}}}}");
        service(&WEB.replace("namespace: shop}", &text)).global.map(|global| (global.shared, global.affinity))
    };
    assert_eq!(with(""), None);
    assert_eq!(with("weft.dev/global: 'true'"), Some((true, Affinity::None)));
    assert_eq!(
        with("service.cilium.io/global: 'true', service.cilium.io/shared: 'false'"),
        Some((false, Affinity::None))
    );
    assert_eq!(with("service.cilium.io/global: 'true', weft.dev/global: 'false'"), None);
    let both = "weft.dev/global: 'true', weft.dev/affinity: local, service.cilium.io/affinity: remote";
    assert_eq!(with(both), Some((true, Affinity::Local)));
}

#[test]
fn endpoints_are_derived_from_pods_where_no_slice_is_given() {
    let pods = pod("web", "node-1", "10.1.0.1") + &pod("db", "node-1", "10.1.0.2");
    assert_eq!(usable_in(&(WEB.to_owned() + &pods)), ["10.1.0.1:8080"]);
    let sliced = WEB.to_owned() + &pods + &slice("s", "[{addresses: [10.1.0.7]}]");
    assert_eq!(usable_in(&sliced), ["10.1.0.7:8080"]);
    let empty = WEB.to_owned() + &pods + &slice("s", "[]");
    assert_eq!(usable_in(&empty), [] as [&str; 0], "a slice without endpoints says that there are none");
}

#[test]
fn pods_come_and_go_from_their_services() {
    let mut store = told(WEB);
    let mut seen = |text: &str| {
        store.apply(file("/pods.yaml", text));
        usable(&store.snapshot().services[&name("shop/web")])
    };
    let ready = pod("web", "node-1", "10.1.0.1");
    assert_eq!(seen(&ready), ["10.1.0.1:8080"]);
    assert_eq!(seen(&ready.replace("status: \"True\"", "status: \"False\"")), [] as [&str; 0]);
    let deleted = "metadata: {deletionTimestamp: '2026-01-01T00:00:00Z', name: web";
    assert_eq!(seen(&ready.replace("metadata: {name: web", deleted)), ["10.1.0.1:8080"], "the last one still serves");
    assert_eq!(seen(&ready.replace("Running", "Succeeded")), [] as [&str; 0]);
    assert_eq!(seen(&ready.replace("labels: {app: web}", "labels: {app: old}")), [] as [&str; 0]);
    assert_eq!(seen(&ready), ["10.1.0.1:8080"]);
    assert_eq!(seen(""), [] as [&str; 0]);
}

#[test]
fn a_named_target_port_is_each_pods_own() {
    let service = WEB.replace("targetPort: 8080", "targetPort: web");
    let pods = pod("web", "node-1", "10.1.0.1")
        + &pod("web", "node-1", "10.1.0.2")
            .replace("name: web, namespace", "name: web2, namespace")
            .replace("8080", "9090")
        + &pod("web", "node-1", "10.1.0.3")
            .replace("name: web, namespace", "name: web3, namespace")
            .replace("name: web, c", "name: x, c");
    assert_eq!(usable_in(&(service + &pods)), ["10.1.0.1:8080", "10.1.0.2:9090"]);
}

#[test]
fn terminating_endpoints_serve_only_where_none_is_ready() {
    let serving = "{addresses: [10.1.0.2], conditions: {ready: false, serving: true, terminating: true}}";
    let gone = "{addresses: [10.1.0.3], conditions: {ready: false, serving: false, terminating: true}}";
    let starting = "{addresses: [10.1.0.4], conditions: {ready: false, serving: false}}";
    let rest = format!("{serving}, {gone}, {starting}");
    let all = slice("s", &format!("[{{addresses: [10.1.0.1]}}, {rest}]"));
    assert_eq!(usable_in(&(WEB.to_owned() + &all)), ["10.1.0.1:8080"]);
    assert_eq!(usable_in(&(WEB.to_owned() + &slice("s", &format!("[{rest}]")))), ["10.1.0.2:8080"]);
}

#[test]
fn not_ready_endpoints_are_published_where_the_service_asks_for_it() {
    let service = WEB.replace("spec: {", "spec: {publishNotReadyAddresses: true, ");
    let starting = pod("web", "node-1", "10.1.0.1").replace("\"True\"", "\"False\"");
    assert_eq!(usable_in(&(service + &starting)), ["10.1.0.1:8080"]);
}

#[test]
fn internal_traffic_policy_local_keeps_to_the_own_node() {
    let service = WEB.replace("spec: {", "spec: {internalTrafficPolicy: Local, ");
    let pods =
        pod("web", "node-1", "10.1.0.1") + &pod("web", "node-2", "10.1.0.2").replace("name: web, n", "name: web2, n");
    assert_eq!(usable_in(&(service.clone() + &pods)), ["10.1.0.1:8080"]);
    assert_eq!(usable_in(&(service + &pods.replace("node-1", "node-3"))), [] as [&str; 0]);
}

#[test]
fn a_frontend_gets_backends_of_its_port_protocol_and_family() {
    let service = "
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIPs: [10.96.0.1, 'fd00::1']
  selector: {app: web}
  ports: [{name: dns, port: 53}, {name: dns-udp, port: 53, protocol: UDP, targetPort: 5353}]
";
    let pod = pod("web", "node-1", "10.1.0.1").replace("[{ip: 10.1.0.1}]", "[{ip: 10.1.0.1}, {ip: 'fd01::1'}]");
    let snapshot = snapshot(&(service.to_owned() + &pod));
    let view = &snapshot.services[&name("shop/web")];
    let found: Vec<String> = view
        .service
        .frontends
        .iter()
        .map(|frontend| {
            let backends = view.usable_for(frontend, &cluster("east"), "node-1");
            let backends: Vec<String> =
                backends.iter().map(|b| format!("{:?} {} {}", b.protocol, b.addr, b.port)).collect();
            format!("{} -> {}", frontend.addr, backends.join(", "))
        })
        .collect();
    assert_eq!(
        found,
        [
            "10.96.0.1 -> Tcp 10.1.0.1 53",
            "fd00::1 -> Tcp fd01::1 53",
            "10.96.0.1 -> Udp 10.1.0.1 5353",
            "fd00::1 -> Udp fd01::1 5353",
        ]
    );
    assert_eq!(view.usable(&cluster("east"), "node-1").len(), 4);
}

#[test]
fn a_global_service_has_the_backends_of_every_living_cluster() {
    let local = pod("web", "node-1", "10.1.0.1");
    let mut store = told(&(global("none") + &local));
    let mut seen = |event: Event| {
        store.apply(event);
        usable(&store.snapshot().services[&name("shop/web")])
    };
    let alive = offering("10.9.0.1");
    assert_eq!(seen(Event::Remote(Box::new(alive.clone()))), ["10.1.0.1:8080", "10.9.0.1:8080"]);
    let dead = RemoteCluster { alive: false, ..alive.clone() };
    assert_eq!(seen(Event::Remote(Box::new(dead))), ["10.1.0.1:8080"]);
    assert_eq!(seen(Event::Remote(Box::new(alive.clone()))), ["10.1.0.1:8080", "10.9.0.1:8080"]);
    let mut selfish = alive.clone();
    selfish.services.get_mut(&name("shop/web")).unwrap().shared = false;
    assert_eq!(seen(Event::Remote(Box::new(selfish))), ["10.1.0.1:8080"]);
    assert_eq!(seen(Event::Remote(Box::new(alive))), ["10.1.0.1:8080", "10.9.0.1:8080"]);
    assert_eq!(seen(file("/cluster/all.yaml", &(WEB.to_owned() + &local))), ["10.1.0.1:8080"], "no longer global");
    assert_eq!(seen(file("/cluster/all.yaml", &global("none"))), ["10.9.0.1:8080"], "local pods are gone");
    assert_eq!(seen(Event::RemoteGone(cluster("west"))), [] as [&str; 0]);
}

#[test]
fn affinity_prefers_a_side_while_it_has_ready_backends() {
    let local = pod("web", "node-1", "10.1.0.1");
    let draining = local.replace("metadata: {name", "metadata: {deletionTimestamp: '2026-01-01T00:00:00Z', name");
    let cases = [
        ("local", &local, vec!["10.1.0.1:8080"]),
        ("remote", &local, vec!["10.9.0.1:8080"]),
        ("local", &draining, vec!["10.9.0.1:8080"]),
    ];
    for (affinity, pods, expected) in cases {
        let mut store = told(&(global(affinity) + pods));
        store.apply(Event::Remote(Box::new(offering("10.9.0.1"))));
        assert_eq!(usable(&store.snapshot().services[&name("shop/web")]), expected, "{affinity}");
    }
    let mut store = told(&(global("remote") + &local));
    store.apply(Event::Remote(Box::new(RemoteCluster { alive: false, ..offering("10.9.0.1") })));
    assert_eq!(usable(&store.snapshot().services[&name("shop/web")]), ["10.1.0.1:8080"]);
}

#[test]
fn a_dead_cluster_keeps_its_pods_and_identities_and_a_disconnected_one_goes() {
    let mut store = told(&global("none"));
    store.apply(Event::Remote(Box::new(RemoteCluster { alive: false, ..offering("10.9.0.1") })));
    let snapshot = store.snapshot();
    assert_eq!(snapshot.workloads.len(), 1);
    assert!(snapshot.identities.contains_key(&snapshot.workloads[0].identity));
    store.apply(Event::RemoteGone(cluster("west")));
    assert!(store.snapshot().workloads.is_empty());
}

#[test]
fn a_cluster_with_our_name_or_id_is_refused_by_name() {
    let mut store = told("");
    store.apply(Event::Remote(Box::new(RemoteCluster { id: 1, ..offering("10.9.0.1") })));
    let snapshot = store.snapshot();
    assert!(snapshot.workloads.is_empty());
    assert!(snapshot.object_errors[0].message.contains("cluster id 1 is this cluster, east's already"));
    store.apply(Event::Remote(Box::new(offering("10.9.0.1"))));
    assert_eq!(store.snapshot().object_errors, []);
}

#[test]
fn an_address_belongs_to_one_pod_and_two_clusters_with_the_same_are_told() {
    let mut store = told(&pod("web", "node-1", "10.9.0.1"));
    store.apply(Event::Remote(Box::new(offering("10.9.0.1"))));
    let snapshot = store.snapshot();
    assert_eq!(snapshot.workloads.len(), 1);
    assert_eq!(snapshot.workloads[0].cluster, cluster("east"));
    assert!(snapshot.object_errors[0].message.contains("must not overlap"), "{:?}", snapshot.object_errors);
}

#[test]
fn nodes_have_their_addresses_region_and_key() {
    let text = "
apiVersion: v1
kind: Node
metadata: {name: node-1, labels: {topology.kubernetes.io/region: eu}, annotations: {weft.dev/wireguard-public-key: old}}
spec: {podCIDRs: [10.1.0.0/24]}
status: {addresses: [{type: Hostname, address: node-1}, {type: ExternalIP, address: 192.0.2.1}, {type: InternalIP, address: 172.16.0.1}]}
";
    let mut store = told(text);
    let facts = NodeFacts { wireguard_key: "new".to_owned(), wireguard_port: 51900 };
    store.apply(Event::NodeFacts { node: "node-1".to_owned(), facts: Some(facts) });
    let snapshot = store.snapshot();
    let node = snapshot.this_node().unwrap();
    assert_eq!(node.addresses, ["172.16.0.1", "192.0.2.1"].map(|ip| ip.parse::<std::net::IpAddr>().unwrap()));
    assert_eq!((node.region.as_deref(), node.wireguard_key.as_deref()), (Some("eu"), Some("new")));
    assert_eq!((node.wireguard_port, node.pod_cidrs[0].to_string()), (51900, "10.1.0.0/24".to_owned()));
}

#[test]
fn host_network_pods_have_no_identity_but_serve() {
    let pod = pod("web", "node-1", "172.16.0.1").replace("spec: {", "spec: {hostNetwork: true, ");
    let snapshot = snapshot(&(WEB.to_owned() + &pod));
    assert!(snapshot.workloads.is_empty());
    assert_eq!(snapshot.services[&name("shop/web")].backends.len(), 1);
}

#[test]
fn the_later_file_counts_and_uncovers_the_earlier_when_it_goes() {
    let mut store = store(UnsupportedPolicy::FailClosed);
    let mut address = |path: &str, layer: u32, text: &str| {
        store.apply(Event::File { source: "directory".into(), layer, path: path.into(), objects: yaml(text) });
        let snapshot = store.snapshot();
        snapshot.services.get(&name("shop/web")).map(|view| view.service.frontends[0].addr.to_string())
    };
    let with = |ip: &str| WEB.replace("10.96.0.1", ip);
    assert_eq!(address("/b.yaml", 0, &with("10.96.0.2")).as_deref(), Some("10.96.0.2"));
    assert_eq!(address("/a.yaml", 0, &with("10.96.0.1")).as_deref(), Some("10.96.0.2"));
    assert_eq!(address("/a.yaml", 1, &with("10.96.0.3")).as_deref(), Some("10.96.0.3"));
    assert_eq!(address("/a.yaml", 1, "").as_deref(), Some("10.96.0.2"));
    assert_eq!(address("/b.yaml", 0, "").as_deref(), Some("10.96.0.1"));
    assert_eq!(address("/a.yaml", 0, "").as_deref(), None);
}

#[test]
fn a_broken_file_is_told_and_keeps_what_it_held() {
    let mut store = told(WEB);
    let broken = |message: Option<&str>| Event::Problem {
        source: "directory".into(),
        origin: "/cluster/all.yaml".into(),
        message: message.map(str::to_owned),
    };
    assert!(store.apply(broken(Some("line 3: did not find expected key"))).errors);
    let snapshot = store.snapshot();
    assert_eq!((snapshot.services.len(), snapshot.object_errors[0].origin.as_str()), (1, "/cluster/all.yaml"));
    assert!(!store.apply(broken(Some("line 3: did not find expected key"))).any());
    store.apply(broken(None));
    assert_eq!(store.snapshot().object_errors, []);
}

#[test]
fn a_list_holds_objects_like_documents() {
    let items = yaml(&(WEB.to_owned() + &pod("web", "node-1", "10.1.0.1")));
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items});
    let mut store = store(UnsupportedPolicy::FailClosed);
    store.apply(Event::File { source: "d".into(), layer: 0, path: "/l".into(), objects: vec![list] });
    assert_eq!(usable(&store.snapshot().services[&name("shop/web")]), ["10.1.0.1:8080"]);
}

#[test]
fn a_relist_deletes_what_was_missed() {
    let mut store = store(UnsupportedPolicy::FailClosed);
    for object in yaml(&(WEB.to_owned() + &pod("web", "node-1", "10.1.0.1") + &pod("db", "node-1", "10.1.0.2"))) {
        store.apply(Event::Upsert { source: "kubernetes".into(), object });
    }
    let present = BTreeSet::from([name("shop/db")]);
    let changes = store.apply(Event::Relisted { source: "kubernetes".into(), kind: Kind::Pod, present });
    assert!(changes.workloads && changes.services && !changes.nodes);
    let after = store.snapshot();
    assert_eq!((after.workloads.len(), after.services[&name("shop/web")].backends.len()), (1, 0));
    let key = ObjectKey { kind: Kind::Service, name: name("shop/web") };
    assert!(store.apply(Event::Delete { source: "kubernetes".into(), key }).services);
    assert!(store.snapshot().services.is_empty());
}

#[test]
fn the_snapshot_is_in_sync_once_every_expected_source_has_delivered() {
    let mut store = store(UnsupportedPolicy::FailClosed);
    assert!(!store.snapshot().synced, "nobody is expected: nothing can be known");
    store.expect_sources(["directory", "kubernetes"]);
    store.apply(Event::Synced { source: "directory".into() });
    assert!(!store.snapshot().synced);
    assert!(store.apply(Event::Synced { source: "kubernetes".into() }).synced);
    assert!(store.snapshot().synced);
    store.apply(Event::Remote(Box::new(RemoteCluster { alive: false, ..offering("10.9.0.1") })));
    assert!(store.snapshot().synced, "a dead cluster holds up nothing");
}

#[test]
fn nothing_new_changes_nothing() {
    let text = WEB.to_owned() + &pod("web", "node-1", "10.1.0.1");
    let mut store = told(&text);
    store.apply(Event::Remote(Box::new(offering("10.9.0.1"))));
    let before = store.snapshot();
    assert!(!store.apply(file("/cluster/all.yaml", &text)).any());
    assert!(!store.apply(Event::Remote(Box::new(offering("10.9.0.1")))).any());
    assert!(std::sync::Arc::ptr_eq(&before, &store.snapshot()));
}

#[test]
fn identities_keep_their_numbers_over_a_restart() {
    let text = pod("b", "node-1", "10.1.0.1") + &pod("c", "node-1", "10.1.0.2");
    let before = snapshot(&text);
    let mut after = store(UnsupportedPolicy::FailClosed);
    after.restore_identities(before.identities.values().cloned());
    after.apply(file("/x.yaml", &(pod("a", "node-1", "10.1.0.3") + &text)));
    let after = after.snapshot();
    for workload in &before.workloads {
        assert!(after.workloads.contains(workload), "{workload:?} has another identity now");
    }
    assert_eq!(after.workloads.len(), 3);
}

#[test]
fn node_ports_have_unspecified_addresses() {
    let text = WEB.replace("spec: {", "spec: {type: NodePort, ").replace("port: 80,", "port: 80, nodePort: 30080,");
    let frontends = service(&text).frontends;
    assert_eq!(frontends[1].kind, FrontendKind::NodePort);
    assert!(frontends[1].addr.is_unspecified() && frontends[1].addr.is_ipv4());
}
