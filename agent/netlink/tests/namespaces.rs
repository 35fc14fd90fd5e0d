//! Against the real kernel, in unnamed network namespaces that end with the file that holds them.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use weft_netlink::{Error, Mac, Netlink, Route, Veth, namespace};

fn new_namespace() -> File {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("CAP_SYS_ADMIN");
        File::open("/proc/thread-self/ns/net").expect("this thread's namespace")
    };
    thread::spawn(make).join().expect("no panic")
}

/// A connection to a namespace with one end of a veth pair, up, and the index of that end.
fn with_veth() -> (Netlink, u32, File) {
    let (here, there) = (new_namespace(), new_namespace());
    let mut netlink = namespace::within(&here, || Netlink::open().expect("a socket")).expect("entered");
    let veth = Veth {
        name: "here",
        mac: Mac([2, 0, 0, 0, 0, 1]),
        peer_name: "there",
        peer_mac: Mac([2, 0, 0, 0, 0, 2]),
        peer_namespace: there.as_fd(),
        mtu: 1400,
    };
    netlink.create_veth(&veth).expect("created");
    let link = netlink.link("here").expect("asked").expect("it exists");
    assert_eq!((link.mtu, link.up, link.mac), (1400, false, Some(veth.mac)));
    netlink.set_up(link.index, true).expect("up");
    assert!(netlink.link("here").expect("asked").expect("it exists").up);
    (netlink, link.index, there)
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn the_peer_of_a_veth_is_born_in_the_other_namespace() {
    let (mut here, _, there) = with_veth();
    assert_eq!(here.link("there").expect("asked"), None);
    let names = |netlink: &mut Netlink| netlink.links().expect("listed").into_iter().map(|link| link.name).collect();
    let here: Vec<String> = names(&mut here);
    assert!(here.contains(&"here".to_owned()), "{here:?}");
    let there: Vec<String> =
        namespace::within(&there, || names(&mut Netlink::open().expect("a socket"))).expect("entered");
    assert!(there.contains(&"there".to_owned()), "{there:?}");
}

#[test]
fn routes_and_addresses_are_read_back_as_they_were_written() {
    let (mut netlink, link, _there) = with_veth();
    for address in ["10.9.0.1/32", "fd09::1/128"] {
        let address = address.parse().expect("a prefix");
        netlink.add_address(link, address).expect("added");
        netlink.add_address(link, address).expect("adding it again is no error");
        assert!(netlink.addresses(link).expect("listed").contains(&address));
    }
    let route = |destination: &str, gateway: Option<&str>, source: Option<&str>| Route {
        destination: destination.parse().expect("a prefix"),
        link,
        gateway: gateway.map(ip),
        source: source.map(ip),
        mtu: Some(1300),
        protocol: 77,
    };
    let routes = [
        route("0.0.0.0/0", Some("169.254.1.1"), None),
        route("::/0", Some("fe80::1"), None),
        route("10.8.0.0/24", None, Some("10.9.0.1")),
        route("fd08::/64", None, Some("fd09::1")),
    ];
    for route in &routes {
        netlink.replace_route(route).expect("added");
        assert!(netlink.routes().expect("listed").contains(route), "{route:?}");
        let wider = Route { mtu: Some(1350), ..route.clone() };
        netlink.replace_route(&wider).expect("replaced");
        let listed = netlink.routes().expect("listed");
        assert!(listed.contains(&wider) && !listed.contains(route), "{route:?}");
        netlink.delete_route(route).expect("removed");
        netlink.delete_route(route).expect("removing it again is no error");
        assert!(!netlink.routes().expect("listed").contains(&wider), "{route:?}");
    }
}

#[test]
fn what_the_kernel_refuses_is_named() {
    let (mut netlink, link, _there) = with_veth();
    let error = netlink.set_mtu(link, 10_000_000).expect_err("too much");
    assert_eq!(error.to_string(), format!("cannot set MTU 10000000 on interface {link}"));
    assert_eq!(error.errno(), Some(nix::libc::EINVAL));
    assert!(matches!(netlink.delete_link(9_999), Err(Error::Refused { .. })));
}
