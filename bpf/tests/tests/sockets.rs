//! Real sockets in a namespace and cgroup of their own: what a process sees of socket load balancing.
use socket2::{Domain, Socket, Type};
use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};
use weft_bpf_abi::{
    mark,
    net::{TCP, UDP},
};
use weft_bpf_tests::node::{Node, in_other_namespace};

const VIP4: &str = "10.96.0.10:80";
const VIP6: &str = "[fd00:96::10]:80";
const NODE_PORT: &str = "0.0.0.0:30080";
const NODE_PORT6: &str = "[::]:30080";
const LONG: Duration = Duration::from_secs(5);

#[test]
fn a_connection_to_a_service_reaches_its_backend_and_sees_the_service_as_its_peer() {
    for (vip, local) in [(VIP4, "127.0.0.1:0"), (VIP6, "[::1]:0")] {
        let mut node = Node::new(&[]);
        let server = TcpListener::bind(local).unwrap();
        node.service(vip, TCP, &[server.local_addr().unwrap()]);
        let client = TcpStream::connect(vip).unwrap();
        assert_eq!(client.peer_addr().unwrap(), addr(vip));
        let (accepted, _) = server.accept().unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
    }
}

#[test]
fn an_ipv6_socket_reaches_an_ipv4_service_by_its_mapped_address() {
    let mut node = Node::new(&[]);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    node.service(VIP4, TCP, &[server.local_addr().unwrap()]);
    let client = TcpStream::connect("[::ffff:10.96.0.10]:80").unwrap();
    assert_eq!(client.peer_addr().unwrap(), addr("[::ffff:10.96.0.10]:80"));
    server.accept().unwrap();

    let datagrams = echo("127.0.0.1:0");
    node.service("10.96.0.10:53", UDP, &[datagrams]);
    let client = udp("[::]:0");
    client.send_to(b"hello", "[::ffff:10.96.0.10]:53").unwrap();
    assert_eq!(receive(&client), (b"hello".to_vec(), addr("[::ffff:10.96.0.10]:53")));
}

#[test]
fn a_service_without_backends_refuses_connections_at_once() {
    let mut node = Node::new(&[]);
    for vip in [VIP4, VIP6] {
        node.service(vip, TCP, &[]);
        node.service(vip, UDP, &[]);
        let before = Instant::now();
        assert_eq!(TcpStream::connect(vip).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let any = if vip == VIP4 { "0.0.0.0:0" } else { "[::]:0" };
        let datagrams = UdpSocket::bind(any).unwrap();
        assert_eq!(datagrams.connect(vip).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(datagrams.send_to(b"x", vip).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert!(before.elapsed() < Duration::from_millis(500), "{:?}", before.elapsed());
    }
}

#[test]
fn what_is_no_service_is_left_alone() {
    let mut node = Node::new(&[]);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    node.service(VIP4, TCP, &[]);
    let direct = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    assert_eq!(direct.peer_addr().unwrap(), server.local_addr().unwrap());
    // The same address and port under another protocol is another service.
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_ne!(datagrams.connect(VIP4).map_err(|error| error.kind()), Err(ErrorKind::ConnectionRefused));
}

#[test]
fn connected_datagram_sockets_speak_to_the_backend_and_see_the_service() {
    for (vip, local) in [(VIP4, "127.0.0.1:0"), (VIP6, "[::1]:0")] {
        let mut node = Node::new(&[]);
        node.service(vip, UDP, &[echo(local)]);
        let client = udp(local);
        client.connect(vip).unwrap();
        assert_eq!(client.peer_addr().unwrap(), addr(vip));
        client.send(b"hello").unwrap();
        assert_eq!(receive(&client), (b"hello".to_vec(), addr(vip)));
    }
}

#[test]
fn answers_to_unconnected_datagram_sockets_come_from_the_service() {
    for (vip, local) in [(VIP4, "127.0.0.1:0"), (VIP6, "[::1]:0")] {
        let mut node = Node::new(&[]);
        node.service(vip, UDP, &[echo(local), echo(local)]);
        let client = udp(local);
        for number in 0..20_u8 {
            client.send_to(&[number], vip).unwrap();
            assert_eq!(receive(&client), (vec![number], addr(vip)));
        }
    }
}

#[test]
fn a_backend_spoken_to_by_its_own_name_answers_by_its_own_name() {
    let mut node = Node::new(&[]);
    let backend = echo("127.0.0.1:0");
    node.service(VIP4, UDP, &[backend]);
    let client = udp("127.0.0.1:0");
    client.send_to(b"by service", VIP4).unwrap();
    assert_eq!(receive(&client).1, addr(VIP4));
    client.send_to(b"directly", backend).unwrap();
    assert_eq!(receive(&client).1, backend);
}

#[test]
fn every_backend_gets_connections() {
    let mut node = Node::new(&[]);
    let servers: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addrs: Vec<_> = servers.iter().map(|server| server.local_addr().unwrap()).collect();
    node.service(VIP4, TCP, &addrs);
    let clients: Vec<_> = (0..60).map(|_| TcpStream::connect(VIP4).unwrap()).collect();
    let used: BTreeSet<_> = clients.iter().map(real_peer).collect();
    assert_eq!(used, addrs.into_iter().collect());
}

#[test]
fn session_affinity_keeps_a_client_at_its_backend_until_it_leaves_or_time_passes() {
    let mut node = Node::new(&[]);
    let servers: Vec<_> = (0..8).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addrs: Vec<_> = servers.iter().map(|server| server.local_addr().unwrap()).collect();
    let service = node.service_with_affinity(VIP4, TCP, &addrs, 1);

    let first = real_peer(&TcpStream::connect(VIP4).unwrap());
    let again: BTreeSet<_> = (0..20).map(|_| real_peer(&TcpStream::connect(VIP4).unwrap())).collect();
    assert_eq!(again, BTreeSet::from([first]));

    let others: Vec<_> = addrs.iter().copied().filter(|at| *at != first).collect();
    node.publish(&service, &others);
    let second = real_peer(&TcpStream::connect(VIP4).unwrap());
    assert_ne!(second, first);
    node.publish(&service, &addrs);
    assert_eq!(real_peer(&TcpStream::connect(VIP4).unwrap()), second);

    // Chosen anew each time the second is over, so soon another one.
    let left = (0..12).any(|_| {
        std::thread::sleep(Duration::from_millis(1_050));
        real_peer(&TcpStream::connect(VIP4).unwrap()) != second
    });
    assert!(left, "the client is still at {second}");
}

#[test]
fn node_ports_answer_on_loopback_and_on_the_nodes_addresses() {
    let mut node = Node::new(&["192.0.2.7/32", "fd00::7/128"]);
    node.node_address("192.0.2.7");
    node.node_address("fd00::7");
    for (node_port, local, any, addresses) in [
        (NODE_PORT, "127.0.0.1:0", "0.0.0.0:0", ["127.0.0.1:30080", "127.1.2.3:30080", "192.0.2.7:30080"].as_slice()),
        (NODE_PORT6, "[::1]:0", "[::]:0", &["[::1]:30080", "[fd00::7]:30080"]),
    ] {
        let server = TcpListener::bind(local).unwrap();
        node.service(node_port, TCP, &[server.local_addr().unwrap()]);
        node.service(node_port, UDP, &[echo(local)]);
        for at in addresses {
            let client = TcpStream::connect(at).unwrap_or_else(|error| panic!("{at}: {error}"));
            assert_eq!(client.peer_addr().unwrap(), addr(at));
            server.accept().unwrap();
            let client = udp(any);
            client.send_to(b"hello", at).unwrap();
            assert_eq!(receive(&client), (b"hello".to_vec(), addr(at)));
        }
    }
}

/// An IPv6 socket sends to an IPv4 peer by IPv4's hooks, which name the backend that connect() chose.
#[test]
fn an_ipv6_socket_that_is_connected_to_an_ipv4_service_sees_the_service() {
    let mut node = Node::new(&[]);
    node.service(VIP4, UDP, &[echo("127.0.0.1:0")]);
    let mapped = "[::ffff:10.96.0.10]:80";
    let client = udp("[::]:0");
    client.connect(mapped).unwrap();
    for _ in 0..2 {
        client.send(b"hello").unwrap();
        assert_eq!(receive(&client), (b"hello".to_vec(), addr(mapped)));
    }
}

#[test]
fn loopback_of_a_pod_is_its_own() {
    let mut node = Node::new(&[]);
    node.service(NODE_PORT, TCP, &[]);
    in_other_namespace(|| {
        let server = TcpListener::bind("127.0.0.1:30080").unwrap();
        let client = TcpStream::connect("127.0.0.1:30080").unwrap();
        assert_eq!(client.peer_addr().unwrap(), server.local_addr().unwrap());
    });
}

#[test]
fn node_ports_are_reserved_on_the_node_and_free_in_pods() {
    let mut node = Node::new(&["192.0.2.7/32"]);
    node.node_address("192.0.2.7");
    node.service(NODE_PORT, TCP, &[]);
    node.service(NODE_PORT6, TCP, &[]);
    for at in ["0.0.0.0:30080", "127.0.0.1:30080", "192.0.2.7:30080", "[::]:30080", "[::1]:30080"] {
        assert_eq!(TcpListener::bind(at).unwrap_err().kind(), ErrorKind::AddrInUse, "{at}");
    }
    UdpSocket::bind("0.0.0.0:30080").expect("the UDP port of this number is another");
    TcpListener::bind("0.0.0.0:30081").expect("the next port is nobody's");
    in_other_namespace(|| TcpListener::bind("0.0.0.0:30080").expect("a pod's ports are its own"));
}

#[test]
fn sockets_of_the_proxy_are_left_alone() {
    let mut node = Node::new(&["10.96.0.10/32"]);
    let server = TcpListener::bind("10.96.0.10:80").unwrap();
    node.service(VIP4, TCP, &[]);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_mark(mark::PROXY).unwrap();
    socket.connect(&addr(VIP4).into()).unwrap();
    let mut accepted = server.accept().unwrap().0;
    accepted.write_all(b"direct").unwrap();
    drop(accepted);
    let mut got = String::new();
    TcpStream::from(socket).read_to_string(&mut got).unwrap();
    assert_eq!(got, "direct");
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn udp(local: &str) -> UdpSocket {
    let socket = UdpSocket::bind(local).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    let from = match from {
        SocketAddr::V4(v4) => SocketAddrV4::new(*v4.ip(), v4.port()).into(),
        SocketAddr::V6(v6) => SocketAddrV6::new(*v6.ip(), v6.port(), 0, 0).into(),
    };
    (buffer[..length].to_vec(), from)
}

/// A server that sends datagrams back, until nobody has spoken to it for a while.
fn echo(local: &str) -> SocketAddr {
    let socket = udp(local);
    let at = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if socket.send_to(&buffer[..length], from).is_err() {
                return;
            }
        }
    });
    at
}

/// The backend behind a connection, which getpeername does not tell: the kernel's own record does.
fn real_peer(client: &TcpStream) -> SocketAddr {
    let local = client.local_addr().unwrap();

    let table = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let wanted = format!(":{:04X}", local.port());
    let row = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| fields[1].ends_with(&wanted) && fields[3] != "0A" && !fields[2].ends_with(&wanted))
        .unwrap_or_else(|| panic!("no row for port {} in\n{table}", local.port()));
    let (ip, port) = row[2].split_once(':').unwrap();
    let ip = u32::from_str_radix(ip, 16).unwrap().to_ne_bytes();
    SocketAddr::from((ip, u16::from_str_radix(port, 16).unwrap()))
}
