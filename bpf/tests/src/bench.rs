//! A packet goes in, a verdict and a packet come out: the tc programs under BPF_PROG_TEST_RUN.
//!
//! The packets come in on this thread's loopback, whose index (1) stands for the pod's veth.
use crate::{
    node::Namespace,
    object::{self, PinFolder},
};
use aya::{
    Ebpf, TestRunOptions,
    maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, RingBuf, SockMap, lpm_trie::Key},
    programs::{SchedClassifier, TestRun as _},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, TcpListener},
};
use weft_bpf_abi::{
    event::{self, Event, Reason},
    mark,
    net::{self, Addr, AuthDestination, Endpoint, IpInfo, NodeConfig, Port},
    policy::{self, Conn, ConnKey, PolicyEntry, PolicyKey},
    program,
};

/// Loopback's index.
pub const DEVICE: u32 = 1;

const TC: [&str; 5] =
    [program::FROM_POD, program::TO_POD, program::FROM_NETWORK, program::FROM_TUNNEL, program::TO_NETWORK];

/// What a program made of a packet. No program changes a packet: `Bench::send` asserts that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Dropped(Reason),
    /// Sent back through the ingress hook of the same device.
    Turned,
    /// To a socket of the proxy: passed with the mark `CAPTURED`.
    Captured,
}

pub struct Bench {
    bpf: Ebpf,
    _pins: PinFolder,
    _namespace: Namespace,
}

impl Bench {
    /// All maps empty, the agent ready, allowed connections traced.
    ///
    /// # Panics
    /// Without root or the object.
    pub fn new() -> Self {
        let namespace = Namespace::enter();
        crate::node::run("ip link set lo up");
        let pins = PinFolder::new();
        let mut bpf = object::load(&pins);
        for name in TC {
            let program: &mut SchedClassifier = bpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap_or_else(|error| panic!("the kernel refuses {name}: {error:#?}"));
        }
        let mut bench = Self { bpf, _pins: pins, _namespace: namespace };
        bench.config(NodeConfig::READY | NodeConfig::TRACE_ALLOWED);
        bench
    }

    pub fn config(&mut self, flags: u32) {
        let mut config: Array<_, NodeConfig> = self.bpf.map_mut(net::NODE_CONFIG).unwrap().try_into().unwrap();
        config.set(0, NodeConfig { netns_cookie: 0, flags, wireguard_port: 0 }, 0).unwrap();
    }

    pub fn epoch(&mut self, epoch: u32) {
        let mut array: Array<_, u32> = self.bpf.map_mut(policy::POLICY_EPOCH).unwrap().try_into().unwrap();
        array.set(0, epoch, 0).unwrap();
    }

    /// A pod on this device. Its number is its endpoint id, and its identity too.
    pub fn pod(&mut self, ip: &str, number: u32, flags: u32) {
        self.pod_on(ip, number, flags, DEVICE);
    }

    pub fn pod_on(&mut self, ip: &str, number: u32, flags: u32, ifindex: u32) {
        let endpoint = Endpoint { id: number, identity: number, ifindex, flags };
        self.hash(net::ENDPOINTS).insert(addr(ip), endpoint, 0).unwrap();
        self.identity(ip, number, 0);
    }

    /// Who has an address.
    pub fn identity(&mut self, ip: &str, identity: u32, flags: u32) {
        let mut trie: LpmTrie<_, Addr, IpInfo> = self.bpf.map_mut(net::IPCACHE).unwrap().try_into().unwrap();
        trie.insert(&Key::new(128, addr(ip)), IpInfo { identity, flags }, 0).unwrap();
    }

    /// Port 0: every port. The rule's number is what events name.
    pub fn rule(&mut self, number: u32, of: (u32, u8), peer: u32, proto: u8, port: u16, flags: u32) {
        let key = PolicyKey { endpoint: of.0, identity: peer, direction: of.1, proto, port: Port::new(port) };
        let bits = if port == 0 { PolicyKey::FIXED_BITS } else { PolicyKey::ALL_BITS };
        let mut trie: LpmTrie<_, PolicyKey, PolicyEntry> =
            self.bpf.map_mut(policy::POLICY).unwrap().try_into().unwrap();
        trie.insert(&Key::new(bits, key), PolicyEntry { flags, rule: number }, 0).unwrap();
    }

    /// A port that takes mutual TLS only; 0: every port.
    pub fn auth(&mut self, ip: &str, port: u16) {
        self.hash(net::AUTH_DESTINATIONS).insert(AuthDestination::new(addr(ip), port), 1_u32, 0).unwrap();
    }

    /// The proxy listens in this slot, as long as the listener lives.
    pub fn listener(&mut self, slot: u32) -> TcpListener {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let mut listeners: SockMap<_> = self.bpf.map_mut(net::LISTENERS).unwrap().try_into().unwrap();
        listeners.set(slot, &listener, 0).unwrap();
        listener
    }

    pub fn connections(&mut self) -> BTreeMap<ConnKeyOrd, Conn> {
        let table: HashMap<&mut MapData, ConnKey, Conn> = self.hash(policy::CONNTRACK);
        table.iter().map(|entry| entry.unwrap()).map(|(key, conn)| (ConnKeyOrd::from(key), conn)).collect()
    }

    /// Makes every connection look as old as this.
    pub fn age_connections(&mut self, seconds: u64) {
        let mut table: HashMap<&mut MapData, ConnKey, Conn> = self.hash(policy::CONNTRACK);
        let entries: Vec<_> = table.iter().map(|entry| entry.unwrap()).collect();
        for (key, conn) in entries {
            let last_ns = conn.last_ns.saturating_sub(seconds * 1_000_000_000);
            table.insert(key, Conn { last_ns, ..conn }, 0).unwrap();
        }
    }

    /// Runs a packet through a program.
    ///
    /// # Panics
    /// The packet was changed, or its counters do not fit its verdict.
    pub fn send(&mut self, program: &str, packet: &[u8]) -> Outcome {
        self.send_marked(program, packet, 0)
    }

    pub fn send_marked(&mut self, program: &str, packet: &[u8], mark: u32) -> Outcome {
        const MARK_AT: usize = 8;
        let before = self.drops();
        let mut context = [0; 192];
        context[MARK_AT..MARK_AT + 4].copy_from_slice(&mark.to_ne_bytes());
        let mut context_out = [0; 192];
        let mut out = vec![0; packet.len() + 64];
        let classifier: &SchedClassifier = self.bpf.program(program).unwrap().try_into().unwrap();
        let run = classifier
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ctx_out: Some(&mut context_out),
                ..Default::default()
            })
            .unwrap();
        out.truncate(run.data_size_out as usize);
        assert_eq!(out, packet, "no program changes a packet");
        let mark = u32::from_ne_bytes(context_out[MARK_AT..MARK_AT + 4].try_into().unwrap()) & mark::MASK;
        let counted: Vec<_> = self
            .drops()
            .into_iter()
            .filter(|(reason, count)| *count != before[reason])
            .map(|(reason, _)| reason)
            .collect();
        match (run.return_value, mark, counted[..].as_ref()) {
            (0, mark::CAPTURED, []) => Outcome::Captured,
            (0, _, []) => Outcome::Passed,
            (2, _, [reason]) => Outcome::Dropped(*reason),
            (7, mark::TURNED, []) => Outcome::Turned,
            other => panic!("verdict, mark and counted reasons: {other:?}"),
        }
    }

    /// The events since the last call, without their time.
    pub fn events(&mut self) -> Vec<Event> {
        let mut ring: RingBuf<_> = self.bpf.map_mut(event::EVENTS).unwrap().try_into().unwrap();
        let mut events = Vec::new();
        while let Some(bytes) = ring.next() {
            assert_eq!(bytes.len(), size_of::<Event>());
            // SAFETY: the bytes are an `Event`, for which every bit pattern is valid.
            let event: Event = unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() };
            assert_ne!(event.at_ns, 0);
            events.push(Event { at_ns: 0, ..event });
        }
        events
    }

    fn drops(&mut self) -> BTreeMap<Reason, u64> {
        let drops: PerCpuArray<_, u64> = self.bpf.map_mut(event::DROPS).unwrap().try_into().unwrap();
        Reason::ALL.into_iter().map(|reason| (reason, drops.get(&(reason as u32), 0).unwrap().iter().sum())).collect()
    }

    fn hash<K: aya::Pod, V: aya::Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        self.bpf.map_mut(name).unwrap().try_into().unwrap()
    }
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

/// A connection's key as tests name it: `10.0.0.1:1 > 10.0.0.2:2 tcp`, and whose decision it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnKeyOrd {
    pub direction: u8,
    pub text: String,
}

impl From<ConnKey> for ConnKeyOrd {
    fn from(key: ConnKey) -> Self {
        let text =
            format!("{}:{} > {}:{} {}", key.from.ip(), key.from_port.get(), key.to.ip(), key.to_port.get(), key.proto);
        Self { direction: key.direction, text }
    }
}

pub fn addr(ip: &str) -> Addr {
    Addr::from(ip.parse::<IpAddr>().unwrap())
}
