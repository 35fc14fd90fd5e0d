//! A node with two pods on real interfaces, and the proxy's part played by transparent sockets.
use crate::{
    bench::addr,
    node::{Namespace, run},
    object::{self, PinFolder},
};
use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, SockMap, lpm_trie::Key},
    programs::{SchedClassifier, SkLookup, TcAttachType},
};
use socket2::{Domain, Socket, Type};
use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread::JoinHandle,
    time::Duration,
};
use weft_bpf_abi::{
    mark,
    net::{self, AuthDestination, Endpoint, IpInfo, NodeConfig, Port},
    policy::{self, PolicyEntry, PolicyKey},
    program,
};

const LONG: Duration = Duration::from_secs(5);

/// Ids and identities of the two pods.
pub const CLIENT: u32 = 256;
pub const SERVER: u32 = 257;

/// The addresses of one family.
#[derive(Clone, Copy)]
pub struct Family {
    pub gateway: &'static str,
    pub client: &'static str,
    pub server: &'static str,
    pub any: &'static str,
    /// Added to a role's slot.
    pub slot: u32,
}

pub const FAMILIES: [Family; 2] = [
    Family { gateway: "10.0.1.1", client: "10.0.1.2", server: "10.0.1.3", any: "0.0.0.0:0", slot: 0 },
    Family { gateway: "fd00:1::1", client: "fd00:1::2", server: "fd00:1::3", any: "[::]:0", slot: 1 },
];

/// Interfaces first, then the programs and their maps, then the namespaces, which end with the pods' threads.
pub struct Lab {
    pub client: Pod,
    pub server: Pod,
    bpf: Ebpf,
    _pins: PinFolder,
    _namespace: Namespace,
}

impl Lab {
    /// Programs attached, the agent ready, no rules; `server_flags` are the server endpoint's.
    ///
    /// # Panics
    /// Without root or the object.
    pub fn new(server_flags: u32) -> Self {
        let namespace = Namespace::enter();
        run("ip link set lo up");
        for (file, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            // What `to_pod` turns round has an address of the node as its source.
            ("ipv4/conf/default/accept_local", "1"),
        ] {
            fs::write(format!("/proc/sys/net/{file}"), value).unwrap();
        }
        for family in ["-4", "-6"] {
            let (mark, mask, table) = (mark::CAPTURED, mark::MASK, mark::CAPTURED_TABLE);
            run(&format!("ip {family} rule add pref 100 fwmark {mark:#x}/{mask:#x} lookup {table}"));
            run(&format!("ip {family} route add local default dev lo table {table}"));
        }
        let (client, server) = (Pod::new("client", |f| f.client), Pod::new("server", |f| f.server));
        let pins = PinFolder::new();
        let bpf = object::load(&pins);
        let mut lab = Self { client, server, bpf, _pins: pins, _namespace: namespace };
        lab.attach();
        for (pod, flags) in [(CLIENT, 0), (SERVER, server_flags)] {
            lab.endpoint(pod, flags);
        }
        let mut config: Array<_, NodeConfig> = lab.bpf.map_mut(net::NODE_CONFIG).unwrap().try_into().unwrap();
        config.set(0, NodeConfig { netns_cookie: 0, flags: NodeConfig::READY, wireguard_port: 0 }, 0).unwrap();
        lab
    }

    /// An ingress rule of the server for all peers.
    pub fn rule(&mut self, port: u16, flags: u32) {
        let (endpoint, direction) = (SERVER, policy::INGRESS);
        let key =
            PolicyKey { endpoint, identity: net::identity::ANY, direction, proto: net::TCP, port: Port::new(port) };
        let mut trie: LpmTrie<_, PolicyKey, PolicyEntry> =
            self.bpf.map_mut(policy::POLICY).unwrap().try_into().unwrap();
        trie.insert(&Key::new(PolicyKey::ALL_BITS, key), PolicyEntry { flags, rule: 1 }, 0).unwrap();
    }

    pub fn auth(&mut self, ip: &str, port: u16) {
        let mut map: HashMap<_, AuthDestination, u32> =
            self.bpf.map_mut(net::AUTH_DESTINATIONS).unwrap().try_into().unwrap();
        map.insert(AuthDestination::new(addr(ip), port), 1, 0).unwrap();
    }

    /// The proxy's listener of a role and family.
    pub fn listen(&mut self, slot: u32, family: Family) -> TcpListener {
        let socket = proxy_socket(family.any.parse().unwrap());
        socket.listen(16).unwrap();
        let listener = TcpListener::from(socket);
        let mut listeners: SockMap<_> = self.bpf.map_mut(net::LISTENERS).unwrap().try_into().unwrap();
        listeners.set(slot + family.slot, &listener, 0).unwrap();
        listener
    }

    fn endpoint(&mut self, number: u32, flags: u32) {
        let name = if number == CLIENT { "client" } else { "server" };
        let ifindex = nix::net::if_::if_nametoindex(format!("weft-{name}").as_str()).unwrap();
        for family in FAMILIES {
            let at = addr(if number == CLIENT { family.client } else { family.server });
            let mut endpoints: HashMap<_, _, Endpoint> = self.bpf.map_mut(net::ENDPOINTS).unwrap().try_into().unwrap();
            endpoints.insert(at, Endpoint { id: number, identity: number, ifindex, flags }, 0).unwrap();
            let mut ipcache: LpmTrie<_, _, IpInfo> = self.bpf.map_mut(net::IPCACHE).unwrap().try_into().unwrap();
            ipcache.insert(&Key::new(128, at), IpInfo { identity: number, flags: 0 }, 0).unwrap();
        }
    }

    fn attach(&mut self) {
        for (name, hook) in [(program::FROM_POD, TcAttachType::Ingress), (program::TO_POD, TcAttachType::Egress)] {
            let program: &mut SchedClassifier = self.bpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
            for device in ["weft-client", "weft-server"] {
                program.attach(device, hook).unwrap();
            }
        }
        let program: &mut SkLookup = self.bpf.program_mut(program::REOPEN_TIME_WAIT).unwrap().try_into().unwrap();
        program.load().unwrap();
        program.attach(File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
    }
}

type Work = Box<dyn FnOnce() + Send>;

/// A network namespace, kept by a thread that works in it.
pub struct Pod {
    work: Option<mpsc::Sender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Pod {
    fn new(name: &str, ip: fn(Family) -> &'static str) -> Self {
        let (work, inbox) = mpsc::channel::<Work>();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _namespace = Namespace::enter();
            tell.send(nix::unistd::gettid()).unwrap();
            inbox.into_iter().for_each(|work| work());
        });
        let pod = Self { work: Some(work), thread: Some(thread) };
        let thread_id = told.recv().unwrap();
        run(&format!("ip link add weft-{name} type veth peer name eth0 netns {thread_id}"));
        for family in FAMILIES {
            let (length, flags) = if family.slot == 0 { (32, "") } else { (128, " nodad") };
            run(&format!("ip address add {}/{length} dev weft-{name}{flags}", family.gateway));
        }
        run(&format!("ip link set weft-{name} up"));
        pod.run(move || {
            run("ip link set lo up");
            run("ip link set eth0 up");
            for family in FAMILIES {
                let (length, flags) = if family.slot == 0 { (32, "") } else { (128, " nodad") };
                run(&format!("ip address add {}/{length} dev eth0{flags}", ip(family)));
                run(&format!("ip route add {}/{length} dev eth0", family.gateway));
                run(&format!("ip route add default via {} dev eth0", family.gateway));
            }
        });
        for family in FAMILIES {
            let length = if family.slot == 0 { 32 } else { 128 };
            run(&format!("ip route add {}/{length} dev weft-{name}", ip(family)));
        }
        pod
    }

    /// Does something in the pod.
    ///
    /// # Panics
    /// If that panics.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        let work: Work = Box::new(move || drop(tell.send(work())));
        self.work.as_ref().expect("until dropped").send(work).expect("the pod's thread works");
        told.recv().expect("the work in the pod succeeds")
    }

    pub fn listen(&self, ip: &str, port: u16) -> TcpListener {
        let at = SocketAddr::new(ip.parse().unwrap(), port);
        self.run(move || TcpListener::bind(at).unwrap())
    }

    /// Connects, from a port if one is named.
    pub fn connect(&self, ip: &str, port: u16, from: Option<SocketAddr>) -> std::io::Result<TcpStream> {
        let to = SocketAddr::new(ip.parse().unwrap(), port);
        self.run(move || {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            if let Some(from) = from {
                socket.bind(&from.into())?;
            }
            socket.connect_timeout(&to.into(), LONG)?;
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(LONG))?;
            Ok(stream)
        })
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.work.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A connection of the proxy to `to` that seems to come from `from`.
pub fn connect_as(from: SocketAddr, to: SocketAddr) -> TcpStream {
    let socket = proxy_socket(from);
    socket.connect_timeout(&to.into(), LONG).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

fn proxy_socket(at: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_mark(mark::PROXY).unwrap();
    match at {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true).unwrap(),
        SocketAddr::V6(_) => {
            socket.set_only_v6(true).unwrap();
            set_transparent_v6(&socket);
        }
    }
    socket.bind(&at.into()).unwrap();
    socket
}

fn set_transparent_v6(socket: &Socket) {
    use std::os::fd::AsRawFd as _;
    let on = 1_i32;
    // SAFETY: the value is as long as said.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_TRANSPARENT,
            (&raw const on).cast(),
            size_of_val(&on) as u32,
        )
    };
    assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
}
