//! A node for one test: a network namespace with an uplink and a pod's veth, a cgroup and a BPF file system. Everything
//! goes when it is dropped.
use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};
use weft_bpf_abi::{
    lb::{Backend, ServiceKey},
    net::{Addr, Port},
};
use weft_datapath::{
    Datapath, Desired,
    plan::{AddrPrefix, ServiceSet},
};

pub const VIP: &str = "10.96.0.10:80";
/// Addresses on the node's loopback interface, with a server on port 8080 each.
pub const BACKENDS: [&str; 3] = ["10.9.0.1:8080", "10.9.0.2:8080", "10.9.0.3:8080"];

pub struct Node {
    name: String,
    pub cgroup: PathBuf,
    pub bpf_dir: PathBuf,
}

impl Node {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("weft-dp-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let node = Self { cgroup: cgroup_root().join(&name), bpf_dir: std::env::temp_dir().join(&name), name };
        let (ns, peer) = (&node.name, node.peer());
        sh(&format!("ip netns add {ns} && ip netns add {peer} && ip -n {ns} link set lo up"));
        sh(&format!("ip -n {ns} link add up0 type veth peer name up0 netns {peer}"));
        sh(&format!("ip -n {ns} link add pod0 type veth peer name eth0 netns {peer}"));
        sh(&format!(
            "ip -n {ns} addr add 192.168.7.1/24 dev up0 && ip -n {ns} link set up0 up && ip -n {peer} link set up0 up"
        ));
        sh(&format!("ip -n {ns} link set pod0 up && ip -n {peer} link set eth0 up"));
        for backend in BACKENDS {
            let (addr, _) = backend.split_once(':').unwrap();
            sh(&format!("ip -n {ns} addr add {addr}/32 dev lo"));
        }
        fs::create_dir(&node.cgroup).unwrap();
        for backend in BACKENDS {
            serve(node.run(|| TcpListener::bind(backend).unwrap()));
        }
        node
    }

    /// Runs the closure on a thread of its own inside the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let netns = self.netns();
        let inside = move || {
            // SAFETY: plain system call on an open descriptor; it concerns this new thread alone.
            assert_eq!(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
            work()
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// The same, with a tokio runtime.
    pub fn block_on<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        self.run(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future))
    }

    /// As an agent that starts: loads and attaches.
    pub fn start(&self) -> Datapath {
        self.run(|| {
            let mut datapath = Datapath::load(&object(), &self.bpf_dir).unwrap();
            datapath.attach_node(&self.cgroup, &["up0"], None).unwrap();
            datapath.attach_endpoint("pod0").unwrap();
            datapath
        })
    }

    /// A process of this node: in its namespace and cgroup.
    pub fn process(&self, script: &str) -> Child {
        let (netns, procs) = (self.netns(), self.cgroup.join("cgroup.procs"));
        let mut command = Command::new("bash");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let enter = move || {
            fs::write(&procs, "0")?;
            // SAFETY: plain system call on an open descriptor.
            match unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: `enter` makes system calls only; the short write allocates a path, which glibc allows after fork here
        // because this thread holds no lock of its own.
        unsafe { command.pre_exec(enter) };
        command.spawn().unwrap()
    }

    /// Waits for it, and gives what it said.
    pub fn sh(&self, script: &str) -> Output {
        self.process(script).wait_with_output().unwrap()
    }

    /// The namespace at the other ends of its interfaces.
    pub fn peer(&self) -> String {
        format!("{}-p", self.name)
    }

    fn netns(&self) -> File {
        File::open(format!("/run/netns/{}", self.name)).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.bpf_dir.join("v1"));
        let _ = Command::new("umount").args(["-l".as_ref(), self.bpf_dir.as_os_str()]).stderr(Stdio::null()).status();
        let _ = fs::remove_dir(&self.bpf_dir);
        for role in ["", "-p"] {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}{role}", self.name)]).status();
        }
        // Processes that were just waited for may linger for a moment.
        for _ in 0..50 {
            if fs::remove_dir(&self.cgroup).is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A plan with one service behind `VIP`.
pub fn plan(backends: &[&str]) -> Desired {
    let backend = |at: &&str| {
        let at: SocketAddr = at.parse().unwrap();
        Backend::new(Addr::from(at.ip()), Port::new(at.port()))
    };
    let vip: SocketAddr = VIP.parse().unwrap();
    let key = ServiceKey::new(Addr::from(vip.ip()), Port::new(vip.port()), 6);
    let set = ServiceSet { backends: backends.iter().map(backend).collect(), affinity_seconds: 0 };
    let node: IpAddr = "192.168.7.1".parse().unwrap();
    let host = weft_bpf_abi::net::IpInfo { identity: weft_bpf_abi::net::identity::HOST, flags: 0 };
    Desired {
        services: [(key, set)].into(),
        ipcache: [(AddrPrefix::from(node), host)].into(),
        node_addresses: [Addr::from(node)].into(),
        ..Desired::default()
    }
}

/// The object with the kernel programs. A test without it fails.
pub fn object() -> Vec<u8> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bpfel-unknown-none/release/weft");
    let path = std::env::var_os("WEFT_BPF_OBJECT").map_or(default, PathBuf::from);
    fs::read(&path).unwrap_or_else(|error| {
        panic!(
            "no kernel programs at {}: {error}. Build them with `cargo xtask build`, or set WEFT_BPF_OBJECT",
            path.display()
        )
    })
}

pub fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let of_type = |line: &&str| line.split(' ').nth(2) == Some("cgroup2");
    let line = mounts.lines().find(of_type).expect("cgroup v2 is mounted somewhere");
    line.split(' ').nth(1).unwrap().into()
}

/// Answers each connection with its own address and a newline, then echoes until the other side closes.
fn serve(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || {
                let mut stream = stream.unwrap();
                let hello = format!("{}\n", stream.local_addr().unwrap());
                let mut buffer = [0; 4096];
                let mut alive = stream.write_all(hello.as_bytes()).is_ok();
                while alive {
                    let read = stream.read(&mut buffer).unwrap_or(0);
                    alive = read > 0 && stream.write_all(&buffer[..read]).is_ok();
                }
            });
        }
    });
}
