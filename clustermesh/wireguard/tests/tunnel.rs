//! Two devices on a real wire: what is sent arrives, and the wire shows nothing else than WireGuard.

mod common;

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::Duration;

use common::{Capture, MTU, Node, eventually, exchange, noise, tunnel};

/// Sends each datagram from `a` to `b` and expects it there unchanged.
fn send_each(a: &Node, b: &Node, v6: bool, sizes: impl Iterator<Item = usize>) {
    let receiver = b.namespace.within(|| UdpSocket::bind((b.inner(v6), 0)).expect("a free port"));
    let sender = a.namespace.within(|| UdpSocket::bind((a.inner(v6), 0)).expect("a free port"));
    receiver.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
    let to = receiver.local_addr().expect("bound");
    let data = noise(65_000);
    let mut buffer = vec![0; 65_536];
    for size in sizes {
        sender.send_to(&data[..size], to).expect("the tunnel takes it");
        let (length, from) = receiver.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{size} bytes: {error}"));
        assert_eq!(buffer[..length], data[..size], "{size} bytes");
        assert_eq!(from.ip(), a.inner(v6));
    }
}

#[test]
fn tcp_arrives_whole_both_ways_and_the_wire_shows_only_whole_wireguard_packets() {
    for outer_v6 in [false, true] {
        let (a, b) = tunnel(outer_v6);
        let capture = Capture::start(&a);
        for inner_v6 in [false, true] {
            exchange(&a, &b, inner_v6, 12 << 20);
        }
        assert!(capture.assert_only_wireguard() > 500);
        for node in [&a, &b] {
            let status = node.device().status();
            assert_eq!(status.failure, None);
            assert_eq!(status.dropped.too_big, 0);
            assert_eq!(status.dropped.source_not_allowed, 0);
            assert!(status.peers[0].handshake_age.is_some());
            assert!(status.peers[0].received_bytes > 24 << 20, "{status:?}");
        }
    }
}

#[test]
fn udp_of_every_size_arrives_unchanged() {
    let (a, b) = tunnel(false);
    for v6 in [false, true] {
        let largest = MTU as usize - if v6 { 48 } else { 28 };
        send_each(&a, &b, v6, (1..=largest).step_by(7).chain(largest - 20..=largest));
        // Fragments inside the tunnel.
        send_each(&a, &b, v6, [largest + 1, 5_000, 60_000].into_iter());
    }
}

#[test]
fn a_udp_super_packet_arrives_as_its_segments() {
    let (a, b) = tunnel(true);
    for v6 in [false, true] {
        let receiver = b.namespace.within(|| UdpSocket::bind((b.inner(v6), 0)).expect("a free port"));
        let sender = a.namespace.within(|| UdpSocket::bind((a.inner(v6), 0)).expect("a free port"));
        receiver.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
        let segment: libc::c_int = 1_200;
        // SAFETY: the value is an int that outlives the call, and its size is given.
        let result = unsafe {
            libc::setsockopt(sender.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, (&raw const segment).cast(), 4)
        };
        assert_eq!(result, 0);
        let data = noise(40 * 1_200 + 77);
        sender.send_to(&data, receiver.local_addr().expect("bound")).expect("the tunnel takes it");
        let mut received = Vec::new();
        let mut buffer = [0; 2_048];
        while received.len() < data.len() {
            let length = receiver.recv(&mut buffer).expect("all segments arrive");
            assert_eq!(length, 1_200.min(data.len() - received.len()));
            received.extend_from_slice(&buffer[..length]);
        }
        assert_eq!(received, data);
    }
}

#[test]
fn packets_sent_before_the_first_handshake_arrive_after_it() {
    let (mut a, mut b) = common::wired_nodes();
    a.start();
    a.device().set_peers(vec![b.as_peer(false)]).expect("the peer is taken");
    let sender = a.namespace.within(|| UdpSocket::bind((a.inner(false), 0)).expect("a free port"));
    for number in 0..10_u8 {
        sender.send_to(&[number], (b.inner(false), 9_000)).expect("the interface takes it");
    }
    eventually("the packets wait", || a.device().status().peers[0].queued == 10);
    b.start();
    let receiver = b.namespace.within(|| UdpSocket::bind((b.inner(false), 9_000)).expect("a free port"));
    receiver.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
    b.device().set_peers(vec![a.as_peer(false)]).expect("the peer is taken");
    let mut buffer = [0; 16];
    let received: Vec<_> =
        (0..10).map(|_| receiver.recv(&mut buffer).map(|_| buffer[0]).expect("it arrives")).collect();
    assert_eq!(received, (0..10).collect::<Vec<_>>());
    assert_eq!(a.device().status().dropped.not_encrypted(), 0);
}

#[test]
fn garbage_at_the_port_is_counted_and_harms_nothing() {
    let (a, b) = tunnel(false);
    exchange(&a, &b, false, 1 << 20);
    let noisy = b.namespace.within(|| UdpSocket::bind("192.0.2.2:0").expect("a free port"));
    let data = noise(70_000);
    for number in 0..4_000 {
        let mut datagram = data[number..number + number % 300].to_vec();
        // Some that look right at the start.
        if let Some(kind) = datagram.get_mut(..4).filter(|_| number % 2 == 0) {
            kind.copy_from_slice(&[(number % 5) as u8, 0, 0, 0]);
        }
        if number % 64 == 4 && datagram.len() > 16 {
            datagram[8..16].fill(0xff);
        }
        let _ = noisy.send_to(&datagram, a.outer(false));
    }
    eventually("garbage is counted", || a.device().status().dropped.bad_packet > 3_000);
    exchange(&a, &b, true, 1 << 20);
    assert_eq!(a.device().status().failure, None);
}

#[test]
fn a_packet_from_an_address_that_is_not_the_peers_is_dropped() {
    let (a, b) = tunnel(false);
    exchange(&a, &b, false, 1 << 16);
    b.namespace.ip(&["addr", "add", "10.7.0.1/32", "dev", "lo"]);
    let spoofing = b.namespace.within(|| UdpSocket::bind("10.7.0.1:0").expect("a free port"));
    spoofing.send_to(b"x", (a.inner(false), 9)).expect("the tunnel takes it");
    eventually("the packet is dropped", || a.device().status().dropped.source_not_allowed == 1);
}

#[test]
fn what_no_peer_has_is_dropped_and_counted() {
    let (a, _b) = tunnel(false);
    let capture = Capture::start(&a);
    a.namespace.ip(&["route", "add", "10.55.0.0/16", "dev", common::INTERFACE]);
    let sender = a.namespace.within(|| UdpSocket::bind("0.0.0.0:0").expect("a free port"));
    sender.send_to(b"secret", "10.55.0.1:9").expect("the interface takes it");
    eventually("the packet is dropped", || a.device().status().dropped.no_peer == 1);
    capture.assert_only_wireguard();
}

#[test]
fn a_path_narrower_than_the_interface_slows_nothing_but_the_first_packets() {
    let (a, b) = tunnel(false);
    let capture = Capture::start(&a);
    a.namespace.ip(&["route", "add", "192.0.2.2/32", "dev", "wan", "mtu", "1400"]);
    b.namespace.ip(&["route", "add", "192.0.2.1/32", "dev", "wan", "mtu", "1400"]);
    for v6 in [false, true] {
        exchange(&a, &b, v6, 4 << 20);
    }
    let status = a.device().status();
    assert!(status.dropped.too_big > 0 && status.failure.is_none(), "{status:?}");
    capture.assert_only_wireguard();
}
