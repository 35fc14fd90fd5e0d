//! Real connections between two pods of a node, with the proxy's part played by transparent sockets.
use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    time::Duration,
};
use weft_bpf_abi::{
    net::{Endpoint, HBONE_PORT, listener},
    policy::PolicyEntry,
};
use weft_bpf_tests::pods::{FAMILIES, Lab, connect_as};

const PROXIED: u32 = Endpoint::PROXIED | Endpoint::ENFORCE_INGRESS;

#[test]
fn without_rules_pods_speak_directly() {
    let lab = Lab::new(0);
    for family in FAMILIES {
        let server = lab.server.listen(family.server, 80);
        let mut client = lab.client.connect(family.server, 80, None).unwrap();
        let mut accepted = server.accept().unwrap().0;
        assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
        exchange(&mut client, &mut accepted);
    }
}

#[test]
fn a_denied_port_stays_silent_and_an_allowed_one_answers() {
    let mut lab = Lab::new(Endpoint::ENFORCE_INGRESS);
    lab.rule(80, PolicyEntry::ALLOW);
    for family in FAMILIES {
        let (allowed, denied) = (lab.server.listen(family.server, 80), lab.server.listen(family.server, 81));
        let mut client = lab.client.connect(family.server, 80, None).unwrap();
        exchange(&mut client, &mut allowed.accept().unwrap().0);
        denied.set_nonblocking(true).unwrap();
        let to: SocketAddr = denied.local_addr().unwrap();
        let refused = lab.client.run(move || TcpStream::connect_timeout(&to, Duration::from_millis(300)));
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        assert!(denied.accept().is_err());
    }
}

#[test]
fn the_proxy_takes_a_connection_as_the_server_and_goes_on_as_the_client() {
    let mut lab = Lab::new(PROXIED);
    lab.rule(80, PolicyEntry::L7);
    for family in FAMILIES {
        let proxy = lab.listen(listener::INGRESS4, family);
        let server = lab.server.listen(family.server, 80);
        let mut client = lab.client.connect(family.server, 80, None).unwrap();
        let mut accepted = proxy.accept().unwrap().0;
        assert_eq!(accepted.local_addr().unwrap(), server.local_addr().unwrap());
        assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
        exchange(&mut client, &mut accepted);

        let mut upstream = connect_as(client.local_addr().unwrap(), server.local_addr().unwrap());
        let mut served = server.accept().unwrap().0;
        assert_eq!(served.peer_addr().unwrap(), client.local_addr().unwrap());
        exchange(&mut upstream, &mut served);
        // Both legs have the same four-tuple: each packet still finds its own socket.
        exchange(&mut client, &mut accepted);
        exchange(&mut served, &mut upstream);
    }
}

#[test]
fn hbone_and_connections_to_mutual_tls_ports_reach_their_listeners() {
    let mut lab = Lab::new(0);
    for family in FAMILIES {
        lab.auth(family.server, 8080);
        for (port, slot) in [(8080, listener::OUTBOUND4), (HBONE_PORT, listener::HBONE4)] {
            let proxy = lab.listen(slot, family);
            let mut client = lab.client.connect(family.server, port, None).unwrap();
            let mut accepted = proxy.accept().unwrap().0;
            assert_eq!(accepted.local_addr().unwrap(), client.peer_addr().unwrap());
            exchange(&mut client, &mut accepted);
        }
    }
}

#[test]
fn what_reaches_a_pod_without_the_proxy_is_turned_round_to_it() {
    let mut lab = Lab::new(PROXIED);
    lab.rule(80, PolicyEntry::L7);
    for family in FAMILIES {
        let proxy = lab.listen(listener::INGRESS4, family);
        // The node's own process. Its address has no entry here, so the node is anybody.
        let to = SocketAddr::new(family.server.parse().unwrap(), 80);
        let mut client = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut accepted = proxy.accept().unwrap().0;
        assert_eq!(accepted.local_addr().unwrap(), to);
        exchange(&mut client, &mut accepted);
    }
}

#[test]
fn a_client_that_uses_its_port_again_finds_the_proxy_at_once() {
    let mut lab = Lab::new(PROXIED);
    lab.rule(80, PolicyEntry::L7);
    for family in FAMILIES {
        let proxy = lab.listen(listener::INGRESS4, family);
        let client = lab.client.connect(family.server, 80, None).unwrap();
        let from = client.local_addr().unwrap();
        close_first(&proxy, client);
        for round in 0..5 {
            let client = lab.client.connect(family.server, 80, Some(from)).unwrap();
            assert_eq!(retransmits(&client), 0, "round {round}");
            close_first(&proxy, client);
        }
    }
}

/// The proxy closes first, so that the remnant in TIME_WAIT is its own.
fn close_first(proxy: &TcpListener, mut client: TcpStream) {
    drop(proxy.accept().unwrap().0);
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
}

/// How often this side had to send something again.
fn retransmits(stream: &TcpStream) -> u32 {
    // SAFETY: a struct of integers; all zeroes is valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as u32;
    // SAFETY: the buffer is `length` bytes long.
    let status = unsafe {
        let buffer = (&raw mut info).cast();
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, buffer, &raw mut length)
    };
    assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
    info.tcpi_total_retrans
}

/// A word each way.
fn exchange(one: &mut TcpStream, other: &mut TcpStream) {
    let mut word = [0; 4];
    one.write_all(b"ping").unwrap();
    other.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    other.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"ping");
    other.write_all(b"pong").unwrap();
    one.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    one.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"pong");
}
