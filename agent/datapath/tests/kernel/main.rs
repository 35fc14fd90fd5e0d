//! The real programs on a real kernel: loaded, attached, fed and replaced. Needs root and the built object.
mod node;

use aya::programs::{
    SchedClassifier,
    TcAttachType::{Egress, Ingress},
};
use node::{BACKENDS, Node, object, plan, sh};
use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    time::{Duration, Instant},
};
use weft_bpf_abi::{
    lb::{self, Backend, BackendKey},
    net::{Addr, Port},
};
use weft_datapath::{
    AttachMode, Datapath, Desired, Events, Router, check, cleanup, load, plan::Route, status, sys, sysctl,
};

const BPF_CGROUP_INET4_CONNECT: u32 = 10;
/// Connects as often as it is told to, and ends with the first failure.
const CONNECT_LOOP: &str =
    "for i in $(seq 2000); do exec 3<>/dev/tcp/10.96.0.10/80 || exit 1; read -u3 who || exit 2; exec 3>&-; done";
/// Ten program links of the cgroup, two on the uplink, two on the pod, one on the namespace.
const LINKS: usize = 15;

/// What is on the BPF file system, but for what the kernel puts on every one.
fn left(node: &Node) -> Vec<String> {
    let names =
        std::fs::read_dir(&node.bpf_dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.ends_with(".debug")).collect()
}

/// Who answers a connection to the service.
fn answered_by(node: &Node) -> String {
    let output = node.sh("exec 3<>/dev/tcp/10.96.0.10/80 && read -u3 who && echo $who");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn what_is_loaded_is_attached_and_the_maps_hold_the_plan() {
    let node = Node::new();
    let mut datapath = node.start();
    assert!(!datapath.ready(), "nothing passes before the first plan is written");
    let report = datapath.reconcile(&plan(&BACKENDS[..1]));
    assert!(report.complete() && report.ready, "{report:?}");
    assert_eq!(datapath.reconcile(&plan(&BACKENDS[..1])).changes(), 0);
    assert_eq!(datapath.audit().unwrap(), 0);
    assert_eq!(answered_by(&node), BACKENDS[0]);

    let status = datapath.status().unwrap();
    assert_eq!((status.links.len(), status.links.iter().filter(|link| link.attached).count()), (LINKS, LINKS));
    assert_eq!(status.attach_mode, AttachMode::Tcx);
    let services = status.maps.iter().find(|map| map.name == lb::SERVICES).unwrap();
    assert_eq!((services.entries, services.max), (1, lb::SERVICES_MAX));
    assert!(status.programs.iter().all(|program| program.id > 0 && program.verified_instructions > 0));
}

#[test]
fn a_restart_changes_the_programs_and_nothing_else() {
    let node = Node::new();
    let mut first = node.start();
    first.reconcile(&plan(&BACKENDS[..2]));
    let attached = || {
        let cgroup = sys::attached(File::open(&node.cgroup).unwrap().as_fd(), BPF_CGROUP_INET4_CONNECT).unwrap();
        let hooks = [("up0", Ingress), ("up0", Egress), ("pod0", Ingress), ("pod0", Egress)];
        let on = |(interface, hook)| SchedClassifier::query_tcx(interface, hook).unwrap().1;
        let interfaces: Vec<u32> = node.run(|| hooks.into_iter().flat_map(on).map(|program| program.id()).collect());
        (cgroup, interfaces)
    };
    let before = attached();
    assert_eq!((before.0.len(), before.1.len()), (1, 4));

    let mut long = node.process("exec 3<>/dev/tcp/10.96.0.10/80; read -u3 who; while read line; do echo $line >&3; read -u3 back; echo $back; done");
    let mut said = BufReader::new(long.stdout.take().unwrap()).lines();
    let mut ask = |word: &str| {
        writeln!(long.stdin.as_mut().unwrap(), "{word}").unwrap();
        said.next().unwrap().unwrap()
    };
    assert_eq!(ask("before"), "before");
    let mut connecting = node.process(CONNECT_LOOP);
    drop(first);
    assert_eq!(attached(), before, "the programs stay when the agent goes");
    for _ in 0..3 {
        let mut next = node.start();
        assert!(next.ready(), "ready from the first moment");
        assert_eq!(next.reconcile(&plan(&BACKENDS[..2])).changes(), 0, "the same plan needs no write");
    }
    let after = attached();
    assert_eq!((after.0.len(), after.1.len()), (1, 4), "exactly one of ours at each hook");
    assert_ne!(after, before, "and it is the new one");
    assert_eq!(ask("after"), "after");
    drop(long.stdin.take());
    long.wait().unwrap();
    let status = connecting.wait().unwrap();
    assert!(status.success(), "no new connection failed: {status}");
}

#[test]
fn connections_never_see_half_of_a_changing_service() {
    let node = Node::new();
    let mut datapath = node.start();
    datapath.reconcile(&plan(&BACKENDS));
    let mut connecting = node.process(CONNECT_LOOP);
    let mut changes = 0;
    while connecting.try_wait().unwrap().is_none() {
        let (first, last) = [(0, 3), (0, 1), (1, 3), (2, 3)][changes % 4];
        assert!(datapath.reconcile(&plan(&BACKENDS[first..last])).complete());
        changes += 1;
    }
    let status = connecting.wait().unwrap();
    assert!(status.success() && changes > 10, "{status} after {changes} changes");
}

#[test]
fn a_service_without_backends_refuses_at_once() {
    let node = Node::new();
    let mut datapath = node.start();
    datapath.reconcile(&plan(&[]));
    let output = node.sh("exec 3<>/dev/tcp/10.96.0.10/80");
    assert!(String::from_utf8_lossy(&output.stderr).contains("Connection refused"), "{output:?}");
}

#[test]
fn what_a_killed_agent_left_half_done_is_mended_while_the_node_stays_ready() {
    let node = Node::new();
    node.start().reconcile(&plan(&BACKENDS[..1]));
    let pinned = aya::maps::MapData::from_pin(load::map_dir(&node.bpf_dir).join(lb::BACKENDS)).unwrap();
    let mut slots: aya::maps::HashMap<_, BackendKey, Backend> = aya::maps::Map::HashMap(pinned).try_into().unwrap();
    let orphan = BackendKey { service: 4711, slot: 0 };
    slots.insert(orphan, Backend::new(Addr::from("10.9.0.9".parse::<IpAddr>().unwrap()), Port::new(1)), 0).unwrap();

    let mut next = node.start();
    assert!(next.ready());
    let report = next.reconcile(&plan(&BACKENDS[..1]));
    assert_eq!((report.written, report.removed, report.ready), (0, 1, true));
    assert!(slots.get(&orphan, 0).is_err());

    slots.insert(orphan, Backend::new(Addr::UNSPECIFIED, Port::new(1)), 0).unwrap();
    assert_eq!(next.audit().unwrap(), 1, "an audit sees what somebody else wrote");
    assert_eq!(next.reconcile(&plan(&BACKENDS[..1])).removed, 1);
}

#[test]
fn ten_thousand_services_are_written_and_read_back_quickly() {
    let node = Node::new();
    let vip = |n: u32| Addr::from(IpAddr::from((0x0a60_0000 + n).to_be_bytes()));
    let mut desired = plan(&BACKENDS);
    let (_, set) = desired.services.first_key_value().map(|(key, set)| (*key, set.clone())).unwrap();
    desired.services.extend((0..10_000).map(|n| (lb::ServiceKey::new(vip(n), Port::new(80), 6), set.clone())));
    let timed = |what: &str, work: &mut dyn FnMut() -> u64| {
        let start = Instant::now();
        let changes = work();
        println!("{what}: {changes} changes in {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(10), "{what} took {:?}", start.elapsed());
        changes
    };
    let mut first = node.start();
    assert!(timed("first write", &mut || first.reconcile(&desired).changes()) > 40_000);
    let mut next = None;
    timed("restart", &mut || {
        next = Some(node.start());
        0
    });
    let mut next = next.unwrap();
    assert_eq!(timed("nothing new", &mut || next.reconcile(&desired).changes()), 0);
    assert_eq!(timed("audit", &mut || next.audit().unwrap() as u64), 0);
    assert_eq!(answered_by(&node).len(), BACKENDS[0].len());
}

#[test]
fn interfaces_that_come_again_under_the_same_name_are_attached_again() {
    let node = Node::new();
    let mut datapath = node.start();
    node.sh("ip link del pod0 && ip link add pod0 type veth peer name pod0p && ip link set pod0 up");
    node.run(|| datapath.attach_endpoint("pod0")).unwrap();
    assert_eq!(node.run(|| SchedClassifier::query_tcx("pod0", Ingress).unwrap().1.len()), 1);
    assert_eq!(datapath.attached_endpoints(), ["pod0"]);
    datapath.detach_endpoint("pod0").unwrap();
    assert_eq!(node.run(|| SchedClassifier::query_tcx("pod0", Ingress).unwrap().1.len()), 0);
    node.run(|| datapath.attach_node(&node.cgroup, &[], Some("up0"))).unwrap();
    let pins: Vec<_> =
        datapath.status().unwrap().links.into_iter().map(|link| link.name).filter(|l| l.contains("up0")).collect();
    assert_eq!(pins, ["from_tunnel-up0"], "devices that are no longer named are left");
}

#[test]
fn programs_of_another_layout_go_when_those_of_this_one_are_attached() {
    let node = Node::new();
    node.start();
    // As an agent of version 77 would have left it.
    std::fs::rename(node.bpf_dir.join("v1"), node.bpf_dir.join("v77")).unwrap();
    let next = node.start();
    assert_eq!(left(&node), ["v1"]);
    assert_eq!(next.status().unwrap().links.iter().filter(|link| link.attached).count(), LINKS);
    let attached = sys::attached(File::open(&node.cgroup).unwrap().as_fd(), BPF_CGROUP_INET4_CONNECT).unwrap();
    assert_eq!(attached.len(), 1);
}

#[test]
fn before_tcx_filters_are_replaced_in_place_and_cleaned_up() {
    let node = Node::new();
    let filters = || {
        let shown = node.sh("tc filter show dev up0 ingress; tc filter show dev up0 egress");
        String::from_utf8_lossy(&shown.stdout).lines().filter(|line| line.contains("direct-action")).count()
    };
    for _ in 0..2 {
        node.run(|| {
            let mut datapath = Datapath::load_as(&object(), &node.bpf_dir, AttachMode::Clsact).unwrap();
            datapath.attach_node(&node.cgroup, &["up0"], None).unwrap();
        });
        assert_eq!(filters(), 2, "one at each hook, with or without an agent");
    }
    assert_eq!(node.block_on(cleanup::cleanup(&node.bpf_dir)).unwrap().filters, 2);
    assert_eq!(filters(), 0);
}

#[test]
fn routes_and_rules_are_set_once_and_those_of_others_are_left_alone() {
    let node = Node::new();
    node.sh("ip route add 10.50.0.0/16 via 192.168.7.9; ip route add 10.51.0.0/16 via 192.168.7.9 proto 77; ip route add 10.1.0.5 dev pod0 proto 77");
    let route = |net: &str, via: &str| Route { destination: net.parse().unwrap(), via: via.parse().unwrap() };
    let desired = BTreeSet::from([route("10.1.1.0/24", "192.168.7.2"), route("10.1.2.0/24", "172.31.0.1")]);
    let (first, second, addresses) = node.block_on(async {
        let router = Router::new().unwrap();
        router.deliver_captured().await.unwrap();
        router.deliver_captured().await.unwrap();
        let first = router.reconcile(&desired).await.unwrap();
        (first, router.reconcile(&desired).await.unwrap(), router.local_addresses().await.unwrap())
    });
    assert_eq!((first.added, first.removed, first.failures.len()), (1, 1, 1), "{first:?}");
    assert!(first.failures[0].0.contains("172.31.0.1"), "a gateway that is not reachable is named: {first:?}");
    assert_eq!((second.added, second.removed), (0, 0));
    assert!(addresses.contains(&"192.168.7.1".parse::<IpAddr>().unwrap()));
    let shown = |what: &str| String::from_utf8(node.sh(what).stdout).unwrap();
    assert_eq!(shown("ip rule show pref 100").trim(), "100:\tfrom all fwmark 0x200/0xf00 lookup 200 proto 77");
    assert!(shown("ip route show table 200").contains("local default dev lo proto 77"));
    assert!(shown("ip -6 rule show pref 100").contains("fwmark 0x200/0xf00 lookup 200"));
    let marked = shown("ip route get 10.77.0.1 from 10.66.0.1 iif up0 mark 0x200");
    assert!(marked.starts_with("local 10.77.0.1"), "{marked}");

    let removed = node.block_on(cleanup::cleanup(&node.bpf_dir)).unwrap();
    assert_eq!((removed.routes, removed.rules), (3, 2));
    let left = shown("ip route show");
    assert!(
        left.contains("10.50.0.0/16") && left.contains("10.1.0.5 dev pod0") && !left.contains("10.1.1.0/24"),
        "{left}"
    );
}

#[test]
fn settings_of_node_and_veth_are_those_that_capture_needs() {
    let node = Node::new();
    node.sh("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.all.src_valid_mark=1");
    node.run(|| {
        sysctl::node().unwrap();
        sysctl::endpoint("pod0").unwrap();
    });
    let shown = node.sh("sysctl -n net.ipv4.ip_forward net.ipv4.conf.all.rp_filter net.ipv4.conf.all.src_valid_mark net.ipv4.conf.pod0.rp_filter net.ipv4.conf.pod0.accept_local");
    assert_eq!(
        String::from_utf8_lossy(&shown.stdout).split_whitespace().collect::<Vec<_>>(),
        ["1", "2", "0", "2", "1"]
    );
    let error = node.run(|| sysctl::endpoint("none0")).unwrap_err();
    assert!(error.to_string().contains("net.ipv4.conf.none0.rp_filter"), "{error}");
}

#[test]
fn cleanup_leaves_nothing_behind() {
    let node = Node::new();
    node.start().reconcile(&plan(&BACKENDS[..1]));
    let removed = node.block_on(cleanup::cleanup(&node.bpf_dir)).unwrap();
    assert_eq!(removed.links, LINKS);
    assert!(removed.maps > 10);
    let attached = sys::attached(File::open(&node.cgroup).unwrap().as_fd(), BPF_CGROUP_INET4_CONNECT).unwrap();
    assert_eq!(attached, [0_u32; 0]);
    assert_eq!(left(&node), [""; 0]);
}

#[test]
fn a_dropped_connection_is_told_of_and_counted() {
    let node = Node::new();
    let mut datapath = node.start();
    // The pod that owns 10.1.0.5 may send nothing.
    let pod: IpAddr = "10.1.0.5".parse().unwrap();
    let ifindex = node.run(|| nix::net::if_::if_nametoindex("pod0").unwrap());
    let flags = weft_bpf_abi::net::Endpoint::ENFORCE_EGRESS;
    let endpoint = weft_bpf_abi::net::Endpoint { id: 7, identity: 300, ifindex, flags };
    datapath.reconcile(&Desired { endpoints: [(Addr::from(pod), endpoint)].into(), ..plan(&[]) });
    let maps = datapath.map_dir();
    let peer = node.peer();
    sh(&format!(
        "ip -n {peer} addr add 10.1.0.5/24 dev eth0; ip -n {peer} neigh add 10.1.0.1 lladdr 02:00:00:00:00:01 dev eth0"
    ));
    let event = node.block_on(async {
        let mut events = Events::open(&maps).unwrap();
        let _ = std::process::Command::new("ip")
            .args(["netns", "exec", &peer, "timeout", "0.3", "bash", "-c", "exec 3<>/dev/tcp/10.1.0.1/81"])
            .status();
        let wanted = async {
            loop {
                let event = events.next().await.unwrap();
                if event.to_port.get() == 81 {
                    return event;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(5), wanted).await.expect("an event within 5 s")
    });
    let to = SocketAddr::new(event.to.ip(), event.to_port.get());
    assert_eq!((event.from.ip(), to, event.verdict), (pod, "10.1.0.1:81".parse().unwrap(), 0), "{event:?}");
    let (drops, lost) = status::counters(&maps).unwrap();
    assert!(drops["policy-denied"] >= 1 && lost == 0, "{drops:?}");
}

#[test]
fn the_check_tries_every_feature_and_loads_every_program() {
    let node = Node::new();
    let missing: Vec<_> = check::features().into_iter().filter(|feature| feature.required && !feature.ok).collect();
    assert_eq!(missing, []);
    let programs = check::programs(&object(), &node.bpf_dir).unwrap();
    assert!(programs.len() >= 15 && programs.iter().all(|(_, instructions)| *instructions > 0), "{programs:?}");
    assert_eq!(left(&node), [""; 0], "nothing is left");
    let error = check::programs(b"not an object", &node.bpf_dir).unwrap_err();
    assert!(error.to_string().contains("cargo xtask build"), "{error}");
}

#[test]
fn an_unknown_device_is_named() {
    let node = Node::new();
    let error = node.run(|| {
        let mut datapath = Datapath::load(&object(), &node.bpf_dir).unwrap();
        datapath.attach_node(&node.cgroup, &["eth9"], None).unwrap_err()
    });
    assert_eq!(error.to_string(), "there is no interface eth9 to attach to: check the agent's settings");
}
