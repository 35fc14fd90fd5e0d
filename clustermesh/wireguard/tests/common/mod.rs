//! Two nodes on one wire: network namespaces, a capture of what passes between them, and transfers through the tunnel.

// Each test file is a program of its own and uses a part of this.
#![allow(dead_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, id};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use socket2::{Domain, Socket, Type};
use weft_netlink::namespace;
use weft_wireguard::{Device, DeviceConfig, Error, PeerConfig, PrivateKey};

pub const PORT: u16 = 51_871;
pub const MTU: u32 = 1420;
pub const INTERFACE: &str = "weft-wg0";
const PATIENCE: Duration = Duration::from_secs(20);

/// A network namespace that is removed with its guard.
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    pub fn new(label: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("weft-wg-{}-{}-{label}", id(), COUNT.fetch_add(1, Ordering::Relaxed));
        command("ip", &["netns", "add", &name]);
        let file = File::open(format!("/run/netns/{name}")).expect("the namespace just added");
        let namespace = Self { name, file };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    pub fn ip(&self, arguments: &[&str]) -> String {
        command("ip", &[&["-n", &self.name], arguments].concat())
    }

    /// Runs `work` inside; sockets it opens stay inside.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        namespace::within(&self.file, work).expect("the namespace can be entered")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

fn command(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program can be started");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// One end: its namespace, key and, while it runs, its device.
pub struct Node {
    pub namespace: Namespace,
    pub number: u8,
    pub key: PrivateKey,
    pub device: Option<Device>,
}

impl Node {
    fn new(number: u8) -> Self {
        let namespace = Namespace::new(&number.to_string());
        Self { namespace, number, key: PrivateKey::generate(), device: None }
    }

    /// Inner address.
    pub fn inner(&self, v6: bool) -> IpAddr {
        let text = if v6 { format!("fd0{}::1", self.number) } else { format!("10.{}.0.1", self.number) };
        text.parse().expect("an address")
    }

    /// Outer address.
    pub fn outer(&self, v6: bool) -> SocketAddr {
        let number = self.number;
        let text = if v6 { format!("[fd99::{number}]:{PORT}") } else { format!("192.0.2.{number}:{PORT}") };
        text.parse().expect("an address")
    }

    pub fn config(&self) -> DeviceConfig {
        DeviceConfig {
            interface: INTERFACE.to_owned(),
            private_key: self.key.clone(),
            listen_port: PORT,
            mtu: MTU,
            mark: 0x400,
            addresses: vec![self.inner(false), self.inner(true)],
        }
    }

    pub fn start(&mut self) {
        // A child that another test is just starting shares our descriptors until its exec, so what a stopped device
        // has closed can stay taken for some milliseconds.
        eventually("the device starts", || {
            let config = self.config();
            match self.namespace.within(|| Device::start(config)) {
                Ok(device) => self.device = Some(device),
                Err(Error::Bind { .. } | Error::InterfaceBusy { .. }) => {}
                Err(error) => panic!("the device does not start: {error}"),
            }
            self.device.is_some()
        });
    }

    pub fn device(&self) -> &Device {
        self.device.as_ref().expect("the device runs")
    }

    /// How the other node sees this one.
    pub fn as_peer(&self, outer_v6: bool) -> PeerConfig {
        let number = self.number;
        PeerConfig {
            name: format!("test/node-{number}"),
            public_key: self.key.public_key(),
            endpoint: Some(self.outer(outer_v6)),
            allowed_ips: [format!("10.{number}.0.0/24"), format!("fd0{number}::/64")]
                .map(|prefix| prefix.parse().expect("a prefix"))
                .to_vec(),
            persistent_keepalive: None,
        }
    }
}

/// Two nodes joined by a wire, devices not started.
pub fn wired_nodes() -> (Node, Node) {
    let (a, b) = (Node::new(1), Node::new(2));
    a.namespace.ip(&["link", "add", "wan", "type", "veth", "peer", "name", "wan", "netns", &b.namespace.name]);
    for node in [&a, &b] {
        let outer = |v6| node.outer(v6).ip().to_string();
        node.namespace.ip(&["addr", "add", &(outer(false) + "/24"), "dev", "wan"]);
        node.namespace.ip(&["addr", "add", &(outer(true) + "/64"), "dev", "wan", "nodad"]);
        node.namespace.ip(&["link", "set", "wan", "up"]);
    }
    (a, b)
}

/// Two nodes whose devices know each other.
pub fn tunnel(outer_v6: bool) -> (Node, Node) {
    let (mut a, mut b) = wired_nodes();
    a.start();
    b.start();
    a.device().set_peers(vec![b.as_peer(outer_v6)]).expect("the peer is taken");
    b.device().set_peers(vec![a.as_peer(outer_v6)]).expect("the peer is taken");
    (a, b)
}

/// Waits for a condition; fails with `what` when it does not come.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what} within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes that look random and are the same each time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A TCP connection through the tunnel: the client's and the server's end.
pub fn connect(client: &Node, server: &Node, v6: bool) -> (TcpStream, TcpStream) {
    let listener = server.namespace.within(|| TcpListener::bind((server.inner(v6), 0)).expect("a free port"));
    let to = listener.local_addr().expect("bound");
    let from = client.namespace.within(|| TcpStream::connect_timeout(&to, PATIENCE).expect("the tunnel carries TCP"));
    let (accepted, _) = listener.accept().expect("a connection");
    for stream in [&from, &accepted] {
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        stream.set_write_timeout(Some(PATIENCE)).expect("a time-out");
    }
    (from, accepted)
}

/// Sends `bytes` both ways at once and compares hashes.
pub fn exchange(client: &Node, server: &Node, v6: bool, bytes: usize) {
    let (a, b) = connect(client, server, v6);
    let data = Arc::new(noise(bytes));
    let expected = Sha256::digest(&*data);
    let ends: Vec<JoinHandle<()>> = [a, b]
        .into_iter()
        .flat_map(|stream| {
            let (mut reader, mut writer) = (stream.try_clone().expect("a clone"), stream);
            let data = data.clone();
            let write = thread::spawn(move || {
                writer.write_all(&data).expect("the tunnel takes it all");
                writer.shutdown(std::net::Shutdown::Write).expect("an open stream");
            });
            let read = thread::spawn(move || {
                let mut received = Vec::new();
                reader.read_to_end(&mut received).expect("the tunnel brings it all");
                assert_eq!(Sha256::digest(&received), expected, "{} bytes", received.len());
            });
            [write, read]
        })
        .collect();
    for end in ends {
        end.join().expect("the transfer is complete");
    }
}

/// What passes on a node's outer interface, seen by an eavesdropper.
pub struct Capture {
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Bytes of a frame that are kept.
    const KEPT: usize = 128;

    pub fn start(node: &Node) -> Self {
        // Protocol 0 receives nothing. With ETH_P_ALL here it would receive from all interfaces until it is bound.
        let socket = node.namespace.within(|| Socket::new(Domain::PACKET, Type::RAW, None).expect("CAP_NET_RAW"));
        let index = node.namespace.ip(&["-o", "link", "show", "wan"]);
        let index: i32 = index.split(':').next().and_then(|index| index.parse().ok()).expect("an index");
        // SAFETY: an all-zero sockaddr_ll is valid, and it fits into the storage.
        let ((), address) = unsafe {
            socket2::SockAddr::try_init(|storage, length| {
                let address: *mut libc::sockaddr_ll = storage.cast();
                (*address).sll_family = libc::AF_PACKET as u16;
                (*address).sll_protocol = (libc::ETH_P_ALL as u16).to_be();
                (*address).sll_ifindex = index;
                *length = size_of::<libc::sockaddr_ll>() as u32;
                Ok(())
            })
            .expect("infallible")
        };
        socket.bind(&address).expect("the interface exists");
        socket.set_recv_buffer_size(64 << 20).expect("a buffer");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a time-out");
        let (frames, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (to, stopped) = (frames.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let mut buffer = [MaybeUninit::uninit(); Self::KEPT];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(length) = socket.recv(&mut buffer) {
                    // SAFETY: the kernel has written this many bytes.
                    let frame = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
                    to.lock().expect("no panic under the lock").push(frame);
                }
            }
        });
        Self { frames, stop, thread: Some(thread) }
    }

    /// Frames so far, without those of neighbour discovery, router solicitation and multicast listeners.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        let frames = self.frames.lock().expect("no panic under the lock");
        frames.iter().filter(|frame| !is_link_local_chatter(frame)).cloned().collect()
    }

    /// Every frame is whole WireGuard UDP; says how many there were.
    pub fn assert_only_wireguard(&self) -> usize {
        let frames = self.frames();
        for frame in &frames {
            let (transport, protocol) = match frame[12..14] {
                [0x08, 0x00] => {
                    let fragment = u16::from_be_bytes([frame[20], frame[21]]) & 0x3fff;
                    assert_eq!(fragment, 0, "an IP fragment: {frame:02x?}");
                    (14 + usize::from(frame[14] & 0xf) * 4, frame[23])
                }
                [0x86, 0xdd] => (54, frame[20]),
                _ => panic!("neither IPv4 nor IPv6: {frame:02x?}"),
            };
            assert_eq!(protocol, 17, "not UDP: {frame:02x?}");
            let port = u16::from_be_bytes([frame[transport + 2], frame[transport + 3]]);
            assert_eq!(port, PORT, "another port: {frame:02x?}");
            assert!((1..=4).contains(&frame[transport + 8]), "not WireGuard: {frame:02x?}");
        }
        frames.len()
    }
}

fn is_link_local_chatter(frame: &[u8]) -> bool {
    match frame[12..14] {
        [0x08, 0x06] => true,
        // ICMPv6 133 to 137 and 143, perhaps behind a hop-by-hop header.
        [0x86, 0xdd] if frame[20] == 58 => matches!(frame[54], 133..=137),
        [0x86, 0xdd] if frame[20] == 0 => frame[62] == 143,
        _ => false,
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
