//! The plugin on real namespaces: what it makes, what it refuses, and that it leaves nothing behind.

mod common;

use std::collections::HashSet;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use common::{Namespace, Node, addresses};
use serde_json::{Value, json};

const DUAL: [&str; 2] = ["10.1.0.0/24", "fd00:10:1::/64"];

fn message(outcome: Result<Value, Value>, code: u32) -> String {
    let error = outcome.expect_err("it is refused");
    assert_eq!(error["code"], code, "{error}");
    assert_eq!(error["cniVersion"], "1.0.0");
    error["msg"].as_str().expect("text").to_owned()
}

#[test]
fn a_pod_gets_its_network_only_after_the_agent_knows_it() {
    let (node, pod) = (Node::new(&DUAL), Namespace::new("pod"));
    let agent = node.start_agent();
    let result = node.call("ADD", "abc", Some(&pod)).expect("ADD works");
    let interfaces = result["interfaces"].as_array().expect("interfaces");
    let host = interfaces[0]["name"].as_str().expect("a name");
    let pod_mac = interfaces[1]["mac"].as_str().expect("a hardware address");
    let expected = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "weftba7816bf8f", "mac": interfaces[0]["mac"]},
            {"name": "eth0", "mac": pod_mac, "sandbox": pod.path},
        ],
        "ips": [
            {"address": "10.1.0.2/32", "gateway": "169.254.1.1", "interface": 1},
            {"address": "fd00:10:1::2/128", "gateway": "fe80::1", "interface": 1},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}],
        "dns": {},
    });
    assert_eq!(result, expected);

    let seen = agent.seen.lock().expect("no panic").clone();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].request, "POST /v1/endpoints");
    let told = json!({
        "containerId": "abc", "namespace": "shop", "pod": "abc", "interface": host,
        "addresses": ["10.1.0.2", "fd00:10:1::2"], "netns": pod.path, "mac": pod_mac,
    });
    assert_eq!(seen[0].body, told);
    assert!(seen[0].link.contains("state DOWN"), "the host's end is down: {}", seen[0].link);

    assert!(pod.ip(&["route"]).starts_with("default via 169.254.1.1 dev eth0 proto 77 onlink mtu 1420"));
    assert!(pod.ip(&["-6", "route"]).contains("default via fe80::1 dev eth0 proto 77 metric 1024 onlink mtu 1420"));
    assert!(node.namespace.ip(&["route"]).contains(&format!("10.1.0.2 dev {host} proto 77 scope link")));
    for family in ["-4", "-6"] {
        let addresses = pod.ip(&[family, "-o", "addr", "show", "dev", "eth0"]);
        assert!(!addresses.contains("tentative") && addresses.lines().count() == 1, "{addresses}");
    }
    for (name, value) in [("rp_filter", "0"), ("accept_local", "1"), ("forwarding", "1")] {
        let output = node.namespace.exec(&["sysctl", "-n", &format!("net.ipv4.conf.{host}.{name}")]);
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), value, "{name}");
    }
}

#[test]
fn check_finds_what_add_has_made_and_names_what_is_missing() {
    let (node, pod) = (Node::new(&DUAL), Namespace::new("pod"));
    let agent = node.start_agent();
    let result = node.call("ADD", "abc", Some(&pod)).expect("ADD works");
    assert_eq!(node.call("CHECK", "abc", Some(&pod)), Ok(Value::Null));
    let last = agent.seen.lock().expect("no panic").last().expect("a request").request.clone();
    assert_eq!(last, "GET /v1/endpoints/abc");

    let host = result["interfaces"][0]["name"].as_str().expect("a name");
    node.namespace.ip(&["route", "del", "10.1.0.2/32", "dev", host]);
    assert!(message(node.call("CHECK", "abc", Some(&pod)), 104).contains("no route to 10.1.0.2"));
    node.namespace.ip(&["route", "add", "10.1.0.2/32", "dev", host, "proto", "77"]);
    pod.ip(&["-6", "route", "del", "default"]);
    assert!(message(node.call("CHECK", "abc", Some(&pod)), 104).contains("no default route over fe80::1"));
    pod.ip(&["addr", "del", "10.1.0.2/32", "dev", "eth0"]);
    assert!(message(node.call("CHECK", "abc", Some(&pod)), 104).contains("lost 10.1.0.2"));
    assert!(message(node.call("CHECK", "other", Some(&pod)), 104).contains("no addresses"));
}

#[test]
fn del_removes_everything_and_may_come_twice_without_namespace_or_agent() {
    let (node, pod) = (Node::new(&DUAL), Namespace::new("pod"));
    {
        let agent = node.start_agent();
        node.call("ADD", "abc", Some(&pod)).expect("ADD works");
        for _ in 0..2 {
            assert_eq!(node.call("DEL", "abc", Some(&pod)), Ok(Value::Null));
            assert_eq!(node.namespace.links(), [""; 0]);
            assert_eq!(pod.links(), [""; 0]);
            assert!(!node.data("deleted/abc").exists(), "the agent was told");
        }
        assert_eq!(agent.seen.lock().expect("no panic").len(), 3);
        node.call("ADD", "abc", Some(&pod)).expect("ADD works again");
    }
    drop(pod);
    fs::remove_file(node.socket()).expect("the agent is gone");
    assert_eq!(node.call("DEL", "abc", None), Ok(Value::Null));
    assert_eq!(node.namespace.links(), [""; 0]);
    assert!(node.data("deleted/abc").exists(), "the agent will read it");
    let leases: Value = serde_json::from_slice(&fs::read(node.data("leases.json")).expect("there")).expect("JSON");
    assert_eq!(leases["leases"], json!({}));
}

#[test]
fn without_an_agent_add_fails_and_leaves_nothing() {
    let (node, pod) = (Node::new(&DUAL), Namespace::new("pod"));
    let text = message(node.call("ADD", "abc", Some(&pod)), 11);
    assert!(text.contains("start weft-agent"), "{text}");
    let agent = node.start_agent();
    agent.post_status.store(503, Ordering::Relaxed);
    let text = message(node.call("ADD", "abc", Some(&pod)), 11);
    assert!(text.contains("status 503: as the test wants"), "{text}");
    assert_eq!(node.namespace.links(), [""; 0]);
    assert_eq!(pod.links(), [""; 0]);
    let leases: Value = serde_json::from_slice(&fs::read(node.data("leases.json")).expect("there")).expect("JSON");
    assert_eq!(leases["leases"], json!({}));
    agent.post_status.store(201, Ordering::Relaxed);
    node.call("ADD", "abc", Some(&pod)).expect("the next try works");
}

#[test]
fn parallel_adds_give_different_addresses_and_pods_reach_each_other() {
    let node = Node::new(&DUAL);
    let _agent = node.start_agent();
    let pods: Vec<_> = (0..6).map(|number| (format!("pod{number}"), Namespace::new("pod"))).collect();
    let results: Vec<Value> = thread::scope(|scope| {
        let calls: Vec<_> =
            pods.iter().map(|(id, pod)| scope.spawn(|| node.call("ADD", id, Some(pod)).expect("ADD works"))).collect();
        calls.into_iter().map(|call| call.join().expect("no panic")).collect()
    });
    let all: HashSet<_> = results.iter().flat_map(addresses).collect();
    assert_eq!(all.len(), 12);
    for (from, to) in [(0, 1), (3, 2)] {
        for (address, own) in addresses(&results[to]).into_iter().zip(addresses(&results[from])) {
            let listener = pods[to].1.within(|| TcpListener::bind((address.as_str(), 8080)).expect("its own address"));
            let to = SocketAddr::new(address.parse().expect("an address"), 8080);
            let client = pods[from].1.within(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)));
            let client = client.unwrap_or_else(|error| panic!("{own} cannot reach {address}: {error}"));
            assert_eq!(listener.accept().expect("a connection").1, client.local_addr().expect("connected"));
            assert_eq!(client.local_addr().expect("connected").ip().to_string(), own);
        }
    }
}

#[test]
fn an_exhausted_range_is_an_error_until_a_pod_goes() {
    let node = Node::new(&["10.1.0.0/30"]);
    let _agent = node.start_agent();
    let (first, second) = (Namespace::new("pod"), Namespace::new("pod"));
    node.call("ADD", "first", Some(&first)).expect("there is one address");
    let text = message(node.call("ADD", "second", Some(&second)), 102);
    assert!(text.contains("every address of 10.1.0.0/30 is taken"), "{text}");
    node.call("DEL", "first", Some(&first)).expect("DEL works");
    node.call("ADD", "second", Some(&second)).expect("the address is free again");
}

#[test]
fn the_same_container_again_keeps_its_addresses() {
    let (node, pod) = (Node::new(&DUAL), Namespace::new("pod"));
    let _agent = node.start_agent();
    let first = node.call("ADD", "abc", Some(&pod)).expect("ADD works");
    assert_eq!(node.call("ADD", "abc", Some(&pod)), Ok(first));
    node.call("CHECK", "abc", Some(&pod)).expect("all is there");
}

#[test]
fn gc_removes_what_the_runtime_does_not_know() {
    let (node, kept, lost) = (Node::new(&DUAL), Namespace::new("pod"), Namespace::new("pod"));
    let _agent = node.start_agent();
    node.call("ADD", "kept", Some(&kept)).expect("ADD works");
    node.call("ADD", "lost", Some(&lost)).expect("ADD works");
    let mut config = node.config();
    config["cniVersion"] = json!("1.1.0");
    config["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
    assert_eq!(node.call_with(&config, &[("CNI_COMMAND", "GC")]), Ok(Value::Null));
    assert_eq!(node.namespace.links().len(), 1);
    node.call("CHECK", "kept", Some(&kept)).expect("it is untouched");
    assert_eq!(node.call_with(&config, &[("CNI_COMMAND", "STATUS")]), Ok(Value::Null));
    fs::remove_file(node.socket()).expect("the agent is gone");
    message(node.call_with(&config, &[("CNI_COMMAND", "STATUS")]), 50);
}

#[test]
fn bad_input_is_refused_by_name() {
    let (node, pod) = (Node::new(&DUAL), Namespace::new("pod"));
    let version = node.call_with(&json!({"cniVersion": "1.0.0"}), &[("CNI_COMMAND", "VERSION")]);
    assert_eq!(version, Ok(json!({"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]})));
    assert!(message(node.call("ADD", "../x", Some(&pod)), 4).contains("CNI_CONTAINERID"));
    assert!(message(node.call("ADD", "abc", None), 4).contains("CNI_NETNS is not set"));
    assert!(message(node.call("FROB", "abc", Some(&pod)), 4).contains("FROB"));
    let mut config = node.config();
    config["podCidr"] = json!("10.1.0.0/24");
    assert!(message(node.call_with(&config, &[("CNI_COMMAND", "ADD")]), 6).contains("unknown field `podCidr`"));
    let gone = Namespace::new("gone");
    let path = gone.path.to_string_lossy().into_owned();
    run_in_vain(&node, &path, gone);
    pod.ip(&["link", "add", "eth0", "type", "bridge"]);
    let _agent = node.start_agent();
    assert!(message(node.call("ADD", "abc", Some(&pod)), 101).contains("eth0 exists already"));
    assert_eq!(pod.links(), ["eth0"]);
}

fn run_in_vain(node: &Node, path: &str, gone: Namespace) {
    drop(gone);
    let variables = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "abc"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", path),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=x"),
    ];
    let text = message(node.call_with(&node.config(), &variables), 100);
    assert!(text.contains(path) && text.contains("sandbox"), "{text}");
}
