//! A network namespace and a cgroup that play a node: sockets made in it meet the programs.
use crate::object::{self, PinFolder};
use aya::{
    Ebpf,
    maps::{Array, HashMap},
    programs::{CgroupAttachMode, CgroupSockAddr},
};
use nix::sched::{CloneFlags, setns, unshare};
use std::{
    fs::{self, File},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    path::PathBuf,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};
use weft_bpf_abi::{
    lb::{self, Backend, BackendKey, MemberKey, Service, ServiceKey},
    net::{self, Addr, NodeConfig, Port},
    program,
};

const SOCK_ADDR: [&str; 10] = [
    program::CONNECT4,
    program::CONNECT6,
    program::SENDMSG4,
    program::SENDMSG6,
    program::RECVMSG4,
    program::RECVMSG6,
    program::GETPEERNAME4,
    program::GETPEERNAME6,
    program::BIND4,
    program::BIND6,
];

/// A cgroup holds processes, not threads: one test at a time.
static PROCESS: Mutex<()> = Mutex::new(());

/// Ends, in this order: the links, the cgroup, the namespace, the maps.
pub struct Node {
    bpf: Ebpf,
    _cgroup: Cgroup,
    _namespace: Namespace,
    _pins: PinFolder,
    next_id: u32,
    _process: MutexGuard<'static, ()>,
}

impl Node {
    /// A node with the given addresses on loopback, besides 127.0.0.0/8 and ::1.
    ///
    /// # Panics
    /// Without root, the object, or cgroup v2.
    pub fn new(addresses: &[&str]) -> Self {
        let process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
        let namespace = Namespace::enter();
        run("ip link set lo up");
        for address in addresses {
            run(&format!("ip address add {address} dev lo{}", if address.contains(':') { " nodad" } else { "" }));
        }
        let cgroup = Cgroup::enter();
        let pins = PinFolder::new();
        let mut bpf = object::load(&pins);
        for name in SOCK_ADDR {
            let program: &mut CgroupSockAddr = bpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap_or_else(|error| panic!("the kernel refuses {name}: {error:#?}"));
            program.attach(File::open(&cgroup.0).unwrap(), CgroupAttachMode::Single).unwrap();
        }
        let mut node = Self { bpf, _cgroup: cgroup, _namespace: namespace, _pins: pins, next_id: 1, _process: process };
        let mut config: Array<_, NodeConfig> = node.bpf.map_mut(net::NODE_CONFIG).unwrap().try_into().unwrap();
        let netns_cookie = netns_cookie();
        config.set(0, NodeConfig { netns_cookie, flags: NodeConfig::READY, wireguard_port: 0 }, 0).unwrap();
        node
    }

    pub fn node_address(&mut self, addr: &str) {
        let addr = Addr::from(addr.parse::<IpAddr>().unwrap());
        self.hash::<Addr, u32>(lb::NODE_ADDRESSES).insert(addr, 1, 0).unwrap();
    }

    /// Publishes a service, in the order that the agent keeps. An unspecified IPv6 address makes a node port.
    pub fn service(&mut self, frontend: &str, proto: u8, backends: &[SocketAddr]) -> Published {
        self.service_with_affinity(frontend, proto, backends, 0)
    }

    pub fn service_with_affinity(
        &mut self,
        frontend: &str,
        proto: u8,
        backends: &[SocketAddr],
        affinity_seconds: u32,
    ) -> Published {
        let frontend: SocketAddr = frontend.parse().unwrap();
        let published = Published {
            key: ServiceKey::new(frontend.ip().into(), Port::new(frontend.port()), proto),
            affinity_seconds,
        };
        self.publish(&published, backends);
        published
    }

    /// Replaces the set of backends.
    pub fn publish(&mut self, service: &Published, backends: &[SocketAddr]) {
        let id = self.next_id;
        self.next_id += 1;
        for (slot, at) in (0..).zip(backends) {
            let backend = Backend::new(at.ip().into(), Port::new(at.port()));
            self.hash(lb::BACKENDS).insert(BackendKey { service: id, slot }, backend, 0).unwrap();
            self.hash(lb::MEMBERS).insert(MemberKey { service: id, backend }, 1_u32, 0).unwrap();
        }
        let value = Service {
            id,
            count: backends.len() as u32,
            affinity_id: u32::from(service.key.port.get()),
            affinity_seconds: service.affinity_seconds,
        };
        self.hash(lb::SERVICES).insert(service.key, value, 0).unwrap();
    }

    fn hash<K: aya::Pod, V: aya::Pod>(&mut self, name: &str) -> HashMap<&mut aya::maps::MapData, K, V> {
        self.bpf.map_mut(name).unwrap().try_into().unwrap()
    }
}

/// A service that can be published again with other backends.
pub struct Published {
    key: ServiceKey,
    affinity_seconds: u32,
}

/// Another network namespace, for as long as the closure runs: what a pod is to the node.
///
/// # Panics
/// Without root.
pub fn in_other_namespace<T>(work: impl FnOnce() -> T) -> T {
    let _namespace = Namespace::enter();
    run("ip link set lo up");
    work()
}

pub(crate) struct Namespace {
    before: File,
}

impl Namespace {
    pub(crate) fn enter() -> Self {
        let before = File::open("/proc/thread-self/ns/net").unwrap();
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace can be made: are the tests run as root?");
        Self { before }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = setns(&self.before, CloneFlags::CLONE_NEWNET);
    }
}

struct Cgroup(PathBuf);

impl Cgroup {
    fn enter() -> Self {
        let path = Self::root().join(format!("weft-bpf-{}", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
        let cgroup = Self(path);
        move_into(&cgroup.0).unwrap();
        cgroup
    }

    fn root() -> PathBuf {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = fields.find(|fields| fields[2] == "cgroup2").expect("cgroup v2 is mounted");
        PathBuf::from(mount[1])
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = move_into(&Self::root());
        let _ = fs::remove_dir(&self.0);
    }
}

fn move_into(cgroup: &std::path::Path) -> std::io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
}

fn netns_cookie() -> u64 {
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as u32;
    // SAFETY: the buffer is `length` bytes long.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    assert_eq!(status, 0, "the kernel tells the namespace's cookie");
    cookie
}

pub(crate) fn run(command: &str) {
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{command}: {status}");
}
