//! Services, endpoints and the pod network on real sockets.
mod common;
use common::{Caller, dial, dial_once, dropped, error, reaches, weft_json};
use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};
use weft_lab::{Lab, lab::Pod};

const FOLDER: &str = "lab/tests/folders/services";
const WEB_V4: &str = "10.98.0.10";
const WEB_V6: &str = "[fd98::10]";
/// The IPv4 address, named by an IPv6 socket.
const MAPPED: &str = "[::ffff:10.98.0.10]";
const HOWS: [(&str, u16); 3] = [("tcp", 90), ("udp", 91), ("udp-unconnected", 91)];

#[test]
fn every_kind_of_service_is_balanced_in_the_callers_socket() {
    let lab = Lab::up(FOLDER);
    let (client, node) = (lab.pod("one/client"), lab.node("one/one-1"));
    everything_answers(&lab, client);

    cluster_ips_of_both_families_reach_every_endpoint(client);
    sockets_see_the_service_not_the_endpoint(client);
    headless_and_external_name_services_are_left_alone(&lab, client);
    outer_addresses_work_from_pods_and_from_processes_of_the_node(&lab, client);
    node_ports_answer_on_the_nodes_addresses_and_its_loopback(&lab);
    a_client_sticks_to_its_endpoint_until_the_time_is_over(client);
    internal_traffic_stays_on_the_node(client);
    a_service_without_endpoints_refuses_at_once(client);
    // The node's own processes are clients too.
    assert!(reaches(node, "tcp", &format!("{WEB_V4}:90")));
    written_endpoints_count_more_than_derived_ones(&lab, client);
    an_endpoint_that_is_not_ready_gets_no_new_connections(&lab, client);
    no_node_has_a_rule_of_iptables_or_nftables(&lab);
}

#[test]
fn pods_and_nodes_reach_each_other_and_no_pod_speaks_for_another() {
    let lab = Lab::up(FOLDER);
    let client = lab.pod("one/client");
    everything_answers(&lab, client);
    for pod in ["one/web-1", "one/web-2"] {
        for ip in lab.pod(pod).report().ips {
            pods_see_each_others_true_addresses(client, ip);
            let far = lab.node(if pod.ends_with('1') { "one/one-2" } else { "one/one-1" });
            assert!(reaches(far, "tcp", &endpoint(ip, 9000)), "{pod} {ip} from the other node");
        }
    }
    for node in ["172.21.1.1", "172.21.1.2", "[fd21::1:1]", "[fd21::1:2]"] {
        // Nobody listens: it is the node that says so.
        assert_eq!(error(client, "tcp", &format!("{node}:7")), "ConnectionRefused", "{node}");
    }
    packets_with_a_foreign_source_are_dropped_and_counted(&lab, client);
}

fn cluster_ips_of_both_families_reach_every_endpoint(client: Pod) {
    for (how, port) in HOWS {
        for address in [WEB_V4, WEB_V6, MAPPED] {
            let servers = servers(client, how, &format!("{address}:{port}"));
            assert_eq!(servers, ["web-1", "web-2"], "{how} {address}");
        }
    }
    assert!(client.curl(&format!("http://{WEB_V4}/healthz")).ends_with(" 200"));
    assert!(client.curl(&format!("-g http://{WEB_V6}/healthz")).ends_with(" 200"));
}

/// getpeername(2) and recvmsg(2) are translated back, whichever endpoint answers.
fn sockets_see_the_service_not_the_endpoint(client: Pod) {
    for address in [WEB_V4, WEB_V6, MAPPED] {
        for (how, port) in HOWS {
            let service: SocketAddr = format!("{address}:{port}").parse().unwrap();
            for call in dial(client, how, &service.to_string(), 4) {
                let connected = (how != "udp-unconnected").then_some(service);
                let datagrams = (how != "tcp").then_some(service);
                assert_eq!((call.peer, call.from, &call.error), (connected, datagrams, &None), "{how} {service}");
            }
        }
    }
}

fn headless_and_external_name_services_are_left_alone(lab: &Lab, client: Pod) {
    let services = weft_json(lab, "one", &["service", "list"]);
    for name in ["headless", "elsewhere"] {
        let mut listed = services.as_array().into_iter().flatten();
        let service = listed.find(|service| service["name"]["name"] == name);
        let service = service.unwrap_or_else(|| panic!("{name} is not in {services}"));
        assert_eq!(service["frontends"].as_array().map(Vec::len), Some(0), "{service}");
    }
    // What a resolver would give for the headless one.
    let pod = endpoint(lab.pod("one/web-2").ip(), 9000);
    assert_eq!(dial_once(client, "tcp", &pod).peer, Some(pod.parse().unwrap()));
}

fn outer_addresses_work_from_pods_and_from_processes_of_the_node(lab: &Lab, client: Pod) {
    let node = lab.node("one/one-1");
    for address in ["192.0.2.10", "192.0.2.20"] {
        for (how, port) in HOWS {
            let to = format!("{address}:{port}");
            assert!(reaches(client, how, &to), "{how} {to} from a pod");
            assert!(reaches(node, how, &to), "{how} {to} from the node");
        }
    }
}

fn node_ports_answer_on_the_nodes_addresses_and_its_loopback(lab: &Lab) {
    let node = lab.node("one/one-1");
    for (how, port) in [("tcp", 30090), ("udp", 30091), ("udp-unconnected", 30091)] {
        for address in ["127.0.0.1", "172.21.1.1", "[fd21::1:1]"] {
            let to = format!("{address}:{port}");
            let call = dial_once(node, how, &to);
            assert!(call.server.is_some(), "{how} {to}: {call:?}");
            let seen = call.from.or(call.peer);
            assert_eq!(seen, Some(to.parse().unwrap()), "{how} {to}: {call:?}");
        }
    }
    // Elsewhere the number means nothing.
    assert_eq!(error(node, "tcp", "127.0.0.1:30092"), "ConnectionRefused");
}

fn a_client_sticks_to_its_endpoint_until_the_time_is_over(client: Pod) {
    let sticky = "10.98.0.12:90";
    let first = servers_of(&dial(client, "tcp", sticky, 20));
    assert_eq!(first.len(), 1, "one client, one endpoint: {first:?}");
    // After the time-out the choice is free again: with two endpoints it is the other one every second time.
    let changed = (0..12).any(|_| {
        thread::sleep(Duration::from_millis(2500));
        servers_of(&dial(client, "tcp", sticky, 1)) != first
    });
    assert!(changed, "the client is bound to {first:?} for ever");
}

fn internal_traffic_stays_on_the_node(client: Pod) {
    assert_eq!(servers(client, "tcp", "10.98.0.13:90"), ["web-1"]);
    assert_eq!(error(client, "tcp", "10.98.0.14:90"), "ConnectionRefused", "the only endpoint is on another node");
}

fn a_service_without_endpoints_refuses_at_once(client: Pod) {
    for address in ["10.98.0.15", "[fd98::15]"] {
        for (how, port) in HOWS {
            assert_eq!(error(client, how, &format!("{address}:{port}")), "ConnectionRefused", "{how} {address}");
        }
    }
    // 7: could not connect; 28 would be a time-out.
    assert_eq!(client.curl("http://10.98.0.15:90/"), " 000 curl exit 7");
}

fn written_endpoints_count_more_than_derived_ones(lab: &Lab, client: Pod) {
    let written = "10.98.0.16:90";
    assert_eq!(servers(client, "tcp", written), ["web-1", "web-2"]);
    let slice = |conditions: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: written-1, namespace: shop, labels: {{kubernetes.io/service-name: written}}}}
addressType: IPv4
ports: [{{name: tcp, port: 9000, protocol: TCP}}]
endpoints:
- addresses: [{}]
  nodeName: one-2
  conditions: {{{conditions}}}
",
            lab.pod("one/web-2").ip()
        )
    };
    lab.write("one/slice.yaml", &slice("ready: true"));
    lab.wait_for("only the endpoint that is written", || servers(client, "tcp", written) == ["web-2"]);
    lab.write("one/slice.yaml", &slice("ready: false, serving: false, terminating: false"));
    lab.wait_for("an endpoint that is not ready gets nothing", || {
        dial_once(client, "tcp", written).error.as_deref() == Some("ConnectionRefused")
    });
    // Better one that is on its way out than none.
    lab.write("one/slice.yaml", &slice("ready: false, serving: true, terminating: true"));
    lab.wait_for("the last endpoints serve on while they terminate", || servers(client, "tcp", written) == ["web-2"]);
    lab.delete("one/slice.yaml");
    lab.wait_for("endpoints are derived from pods again", || servers(client, "tcp", written) == ["web-1", "web-2"]);
}

fn an_endpoint_that_is_not_ready_gets_no_new_connections(lab: &Lab, client: Pod) {
    let web = format!("{WEB_V4}:90");
    let path = format!("/tmp/weft-{}-unready", lab.pod("one/web-2").ip());
    let flag = tempfile::TempPath::try_from_path(path).unwrap();
    fs::write(&flag, "").unwrap();
    lab.wait_for("the endpoint is out", || servers(client, "tcp", &web) == ["web-1"]);
    drop(flag);
    lab.wait_for("the endpoint is back", || servers(client, "tcp", &web) == ["web-1", "web-2"]);
}

fn no_node_has_a_rule_of_iptables_or_nftables(lab: &Lab) {
    let rules = |node: &str| {
        let mut rules = lab.node(node).exec(["nft", "list", "ruleset"]);
        for command in ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"] {
            let saved = lab.node(node).exec([command]);
            rules.extend(saved.lines().filter(|line| line.starts_with("-A")));
        }
        rules
    };
    for node in ["one/one-1", "one/one-2"] {
        assert_eq!(rules(node), "", "{node}");
    }
    // The same look sees a rule where there is one.
    lab.node("one/one-1").exec(["nft", "add", "table", "ip", "somebody"]);
    assert!(rules("one/one-1").contains("somebody"));
}

fn pods_see_each_others_true_addresses(client: Pod, server: IpAddr) {
    let own = client.report().ips.into_iter().find(|own| own.is_ipv4() == server.is_ipv4()).unwrap();
    let seen = client.curl(&format!("-g http://{}/", endpoint(server, 8080)));
    let peer = format!("\"peer\":\"{}", SocketAddr::new(own, 0).to_string().trim_end_matches('0'));
    assert!(seen.contains(&peer), "{peer} is not in {seen}");
    for (how, port) in [("tcp", 9000), ("udp", 9001), ("udp-unconnected", 9001)] {
        assert!(reaches(client, how, &endpoint(server, port)), "{how} {server}");
    }
}

fn packets_with_a_foreign_source_are_dropped_and_counted(lab: &Lab, client: Pod) {
    let before = dropped(lab, "one", "spoofed-source");
    let server = lab.pod("one/web-2").report().ips;
    for (foreign, prefix, server) in [("10.3.1.250", 32, server[0]), ("fd10:3:1::fa", 128, server[1])] {
        client.exec(["ip", "address", "add", &format!("{foreign}/{prefix}"), "dev", "eth0", "nodad"]);
        let url = format!("http://{}/healthz", endpoint(server, 8080));
        let reply = client.curl(&format!("-g --max-time 2 --interface {foreign} {url}"));
        assert_eq!(reply, " 000 curl exit 28", "a pod speaks as {foreign}");
        client.exec(["ip", "address", "del", &format!("{foreign}/{prefix}"), "dev", "eth0"]);
        assert!(client.curl(&format!("-g {url}")).ends_with(" 200"), "its own address is still good");
    }
    lab.wait_for("both are counted", || dropped(lab, "one", "spoofed-source") >= before + 2);
}

/// Endpoints are known a moment after their pods are ready.
fn everything_answers(lab: &Lab, client: Pod) {
    for address in [WEB_V4, WEB_V6] {
        lab.wait_for("both endpoints are known", || {
            servers(client, "tcp", &format!("{address}:90")) == ["web-1", "web-2"]
        });
    }
}

/// All that answer; enough calls that a missing one is no accident (one in a million).
fn servers<'a>(from: impl Into<Caller<'a>>, how: &str, to: &str) -> Vec<String> {
    servers_of(&dial(from, how, to, 20)).into_iter().collect()
}

fn servers_of(calls: &[weft_lab::dial::Call]) -> BTreeSet<String> {
    calls.iter().map(|call| call.server.clone().unwrap_or_else(|| format!("{call:?}"))).collect()
}

fn endpoint(ip: IpAddr, port: u16) -> String {
    SocketAddr::new(ip, port).to_string()
}
