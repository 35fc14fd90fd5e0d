//! Peers and processes come and go.

mod common;

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use common::{Capture, INTERFACE, PORT, connect, eventually, exchange, tunnel, wired_nodes};
use weft_wireguard::{Device, DeviceConfig, Error, PrivateKey, remove_interface};

#[test]
fn a_restart_keeps_interface_and_connections_and_nothing_is_sent_plain_meanwhile() {
    let (mut a, b) = tunnel(false);
    let (mut client, mut server) = connect(&a, &b, false);
    client.write_all(b"before").expect("open");
    let mut buffer = [0; 6];
    server.read_exact(&mut buffer).expect("open");

    let capture = Capture::start(&a);
    let routes = a.namespace.ip(&["route"]);
    a.device = None;
    assert_eq!(a.namespace.ip(&["route"]).replace(" linkdown", ""), routes, "routes stay");
    client.write_all(b"during").expect("open");
    let plain = a.namespace.within(|| UdpSocket::bind("0.0.0.0:0").expect("a free port"));
    for _ in 0..10 {
        let _ = plain.send_to(b"secret", (b.inner(false), 9));
        thread::sleep(Duration::from_millis(20));
    }
    a.start();
    a.device().set_peers(vec![b.as_peer(false)]).expect("the peer is taken");
    server.read_exact(&mut buffer).expect("the connection has survived");
    assert_eq!(&buffer, b"during");
    exchange(&a, &b, true, 1 << 20);
    capture.assert_only_wireguard();
}

#[test]
fn the_side_that_did_not_restart_gets_through_at_once() {
    let (mut a, b) = tunnel(true);
    exchange(&a, &b, false, 1 << 16);
    a.device = None;
    a.start();
    a.device().set_peers(vec![b.as_peer(true)]).expect("the peer is taken");
    let start = std::time::Instant::now();
    exchange(&b, &a, false, 1 << 16);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn a_peer_with_a_new_key_is_reached_once_the_key_is_known() {
    let (a, mut b) = tunnel(false);
    exchange(&a, &b, false, 1 << 16);
    b.device = None;
    b.key = PrivateKey::generate();
    b.start();
    b.device().set_peers(vec![a.as_peer(false)]).expect("the peer is taken");
    eventually("the unknown key is refused", || a.device().status().dropped.unknown_peer > 0);
    assert_eq!(b.device().status().peers[0].handshake_age, None);
    a.device().set_peers(vec![b.as_peer(false)]).expect("the peer is taken");
    exchange(&a, &b, false, 1 << 20);
}

#[test]
fn the_same_peers_again_change_nothing() {
    let (a, b) = tunnel(false);
    let (mut client, mut server) = connect(&a, &b, true);
    for _ in 0..50 {
        a.device().set_peers(vec![b.as_peer(false)]).expect("the peer is taken");
        client.write_all(b"x").expect("open");
        server.read_exact(&mut [0]).expect("open");
    }
    assert_eq!(a.device().status().dropped.not_encrypted(), 0);
    let capture = Capture::start(&a);
    exchange(&a, &b, false, 1 << 16);
    let handshakes = capture.frames().iter().filter(|frame| frame[42] == 1).count();
    assert_eq!(handshakes, 0, "the session is the old one");
}

#[test]
fn a_peer_that_moves_is_followed() {
    let (a, b) = tunnel(false);
    exchange(&a, &b, false, 1 << 16);
    b.namespace.ip(&["addr", "add", "192.0.2.77/24", "dev", "wan"]);
    b.namespace.ip(&["addr", "del", "192.0.2.2/24", "dev", "wan"]);
    b.namespace.ip(&["addr", "replace", "192.0.2.77/24", "dev", "wan"]);
    exchange(&b, &a, false, 1 << 16);
    let endpoint = a.device().status().peers[0].endpoint;
    assert_eq!(endpoint, format!("192.0.2.77:{PORT}").parse().ok());
}

#[test]
fn routes_are_those_of_the_allowed_ips_with_mtu_and_source() {
    let (a, b) = tunnel(false);
    let routes = |v6| {
        let mut routes: Vec<String> = a
            .namespace
            .ip(&[if v6 { "-6" } else { "-4" }, "route", "show", "dev", INTERFACE, "proto", "78"])
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        routes.sort();
        routes
    };
    assert_eq!(routes(false), ["10.2.0.0/24 scope link src 10.1.0.1 mtu 1420"]);
    assert_eq!(routes(true), ["fd02::/64 src fd01::1 metric 1024 mtu 1420 pref medium"]);
    let mut peer = b.as_peer(false);
    peer.allowed_ips = vec!["10.2.0.0/24".parse().expect("a prefix"), "10.3.0.0/24".parse().expect("a prefix")];
    a.device().set_peers(vec![peer]).expect("the peer is taken");
    assert_eq!(routes(false).len(), 2);
    assert_eq!(routes(true), [""; 0]);
    a.device().set_peers(Vec::new()).expect("no peers");
    assert_eq!(routes(false), [""; 0]);
    a.namespace.within(|| remove_interface(INTERFACE)).expect("it is removed");
    a.namespace.within(|| remove_interface(INTERFACE)).expect("removing it again is no error");
}

#[test]
fn a_device_that_cannot_start_says_what_is_in_the_way() {
    let (mut a, _b) = wired_nodes();
    a.start();
    let start = |config: DeviceConfig| a.namespace.within(|| Device::start(config)).expect_err("it cannot start");
    assert!(matches!(start(a.config()), Error::Bind { port: PORT, .. }));
    let other_port = DeviceConfig { listen_port: 0, ..a.config() };
    assert!(matches!(start(other_port.clone()), Error::InterfaceBusy { .. }));
    assert!(matches!(start(DeviceConfig { mtu: 500, ..other_port.clone() }), Error::Mtu { mtu: 500, .. }));
    let long = "a-name-that-is-too-long".to_owned();
    assert!(matches!(start(DeviceConfig { interface: long, ..other_port.clone() }), Error::InterfaceName { .. }));
    let other_kind = DeviceConfig { interface: "wan".to_owned(), ..other_port };
    assert!(matches!(start(other_kind), Error::InterfaceKind { .. }));
    let own = a.as_peer(false);
    assert!(matches!(a.device().set_peers(vec![own]), Err(Error::OwnKey { .. })));
}
