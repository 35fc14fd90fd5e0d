//! Every map, and the only code that touches them. All are pinned by name, so that they outlive the agent.
use crate::packet::Packet;
use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockMap, lpm_trie::Key},
};
use weft_bpf_abi::{
    event::{EVENTS_BYTES, Event, Reason},
    lb::{
        AFFINITY_MAX, Affinity, AffinityKey, BACKENDS_MAX, Backend, BackendKey, Frontend, MEMBERS_MAX, MemberKey,
        NODE_ADDRESSES_MAX, REVERSE_MAX, ReverseKey, SERVICES_MAX, Service, ServiceKey,
    },
    net::{
        AUTH_DESTINATIONS_MAX, Addr, AuthDestination, ENDPOINTS_MAX, Endpoint, IPCACHE_MAX, IpInfo, NodeConfig, Port,
        identity, listener,
    },
    policy::{CONNTRACK_MAX, Conn, ConnKey, POLICY_MAX, PolicyEntry, PolicyKey},
};
use weft_bpf_core::{lb, policy};

// Tables that only the agent writes take memory as they fill.
#[map]
static SERVICES: HashMap<ServiceKey, Service> = HashMap::pinned(SERVICES_MAX, BPF_F_NO_PREALLOC);
#[map]
static BACKENDS: HashMap<BackendKey, Backend> = HashMap::pinned(BACKENDS_MAX, BPF_F_NO_PREALLOC);
#[map]
static MEMBERS: HashMap<MemberKey, u32> = HashMap::pinned(MEMBERS_MAX, BPF_F_NO_PREALLOC);
#[map]
static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::pinned(AFFINITY_MAX, 0);
#[map]
static REVERSE: LruHashMap<ReverseKey, Frontend> = LruHashMap::pinned(REVERSE_MAX, 0);
#[map]
static NODE_ADDRESSES: HashMap<Addr, u32> = HashMap::pinned(NODE_ADDRESSES_MAX, BPF_F_NO_PREALLOC);
#[map]
static IPCACHE: LpmTrie<Addr, IpInfo> = LpmTrie::pinned(IPCACHE_MAX, BPF_F_NO_PREALLOC);
#[map]
static ENDPOINTS: HashMap<Addr, Endpoint> = HashMap::pinned(ENDPOINTS_MAX, BPF_F_NO_PREALLOC);
#[map]
static AUTH_DESTINATIONS: HashMap<AuthDestination, u32> = HashMap::pinned(AUTH_DESTINATIONS_MAX, BPF_F_NO_PREALLOC);
#[map]
pub static LISTENERS: SockMap = SockMap::pinned(listener::COUNT, 0);
#[map]
static NODE_CONFIG: Array<NodeConfig> = Array::pinned(1, 0);
#[map]
static POLICY: LpmTrie<PolicyKey, PolicyEntry> = LpmTrie::pinned(POLICY_MAX, BPF_F_NO_PREALLOC);
#[map]
static CONNTRACK: LruHashMap<ConnKey, Conn> = LruHashMap::pinned(CONNTRACK_MAX, 0);
#[map]
static POLICY_EPOCH: Array<u32> = Array::pinned(1, 0);
#[map]
static DROPS: PerCpuArray<u64> = PerCpuArray::pinned(Reason::ALL.len() as u32, 0);
#[map]
static EVENTS: RingBuf = RingBuf::pinned(EVENTS_BYTES, 0);
#[map]
static LOST_EVENTS: PerCpuArray<u64> = PerCpuArray::pinned(1, 0);

/// The packet that this CPU looks at. Only this object's programs see it: no pin.
#[map]
static PACKET: PerCpuArray<Packet> = PerCpuArray::with_max_entries(1, 0);

/// The maps, as the decisions see them.
pub struct KernelTables;

impl lb::Tables for KernelTables {
    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        // SAFETY: copied out at once, so that a slot reused by a concurrent change is not seen twice.
        unsafe { SERVICES.get(key) }.copied()
    }
    #[inline(always)]
    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        // SAFETY: as above.
        unsafe { BACKENDS.get(key) }.copied()
    }
    #[inline(always)]
    fn is_member(&self, key: &MemberKey) -> bool {
        MEMBERS.get_ptr(key).is_some()
    }
    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        // SAFETY: copied out at once; a torn read names a backend that `is_member` then judges.
        unsafe { AFFINITY.get(key) }.copied()
    }
    #[inline(always)]
    fn remember(&self, key: &AffinityKey, value: &Affinity) {
        if AFFINITY.insert(key, value, 0).is_err() {
            count(Reason::MapFull);
        }
    }
    #[inline(always)]
    fn is_node_address(&self, addr: &Addr) -> bool {
        NODE_ADDRESSES.get_ptr(addr).is_some()
    }
}

impl policy::Rules for KernelTables {
    #[inline(always)]
    fn entry(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        POLICY.get(Key::new(PolicyKey::ALL_BITS, *key)).copied()
    }
}

/// Where `packet::parse` puts the packet, and nothing else writes.
#[inline(always)]
pub fn packet() -> Option<&'static mut Packet> {
    // SAFETY: this CPU's own slot. tc programs run with bottom halves off, never one within another: only `parse`
    // holds the reference for writing, and ends before anybody reads.
    PACKET.get_ptr_mut(0).map(|packet| unsafe { &mut *packet })
}

#[inline(always)]
pub fn frontend_of(key: &ReverseKey) -> Option<Frontend> {
    // SAFETY: copied out at once; the key holds a socket cookie, which is never used twice.
    unsafe { REVERSE.get(key) }.copied()
}

#[inline(always)]
pub fn set_frontend(key: &ReverseKey, frontend: &Frontend) {
    // Written once for a socket that sends many datagrams.
    if frontend_of(key) != Some(*frontend) && REVERSE.insert(key, frontend, 0).is_err() {
        count(Reason::MapFull);
    }
}

#[inline(always)]
pub fn forget_frontend(key: &ReverseKey) {
    if REVERSE.get_ptr(key).is_some() {
        // Gone already is as good.
        let _ = REVERSE.remove(key);
    }
}

#[inline(always)]
pub fn endpoint(addr: &Addr) -> Option<Endpoint> {
    // SAFETY: copied out at once, so that a slot reused by a concurrent change is not seen twice.
    unsafe { ENDPOINTS.get(addr) }.copied()
}

/// Who has the address: the world, where nobody else claims it.
#[inline(always)]
pub fn ip_info(addr: &Addr) -> IpInfo {
    match IPCACHE.get(Key::new(128, *addr)) {
        Some(info) => *info,
        None => IpInfo { identity: identity::WORLD, flags: 0 },
    }
}

/// Whether a pod's port takes mutual TLS only.
#[inline(always)]
pub fn is_auth_destination(addr: &Addr, port: Port) -> bool {
    let mut key = AuthDestination { addr: *addr, port, reserved: [0; 2] };
    if AUTH_DESTINATIONS.get_ptr(key).is_some() {
        return true;
    }
    key.port = Port::new(0);
    AUTH_DESTINATIONS.get_ptr(key).is_some()
}

#[inline(always)]
pub fn connection(key: &ConnKey) -> Option<*mut Conn> {
    CONNTRACK.get_ptr_mut(key)
}

#[inline(always)]
pub fn set_connection(key: &ConnKey, conn: &Conn) {
    // Without its entry the connection is judged packet by packet, which is slow but right.
    if CONNTRACK.insert(key, conn, 0).is_err() {
        count(Reason::MapFull);
    }
}

#[inline(always)]
pub fn forget_connection(key: &ConnKey) {
    // Gone already is as good.
    let _ = CONNTRACK.remove(key);
}

#[inline(always)]
pub fn policy_epoch() -> u32 {
    POLICY_EPOCH.get(0).copied().unwrap_or(0)
}

#[inline(always)]
pub fn node_config() -> NodeConfig {
    NODE_CONFIG.get(0).copied().unwrap_or(NodeConfig { netns_cookie: 0, flags: 0, wireguard_port: 0 })
}

#[inline(always)]
pub fn count(reason: Reason) {
    increment(&DROPS, reason as u32);
}

#[inline(always)]
pub fn emit(event: impl FnOnce() -> Event) {
    match EVENTS.reserve::<Event>(0) {
        Some(mut entry) => {
            entry.write(event());
            entry.submit(0);
        }
        None => increment(&LOST_EVENTS, 0),
    }
}

#[inline(always)]
fn increment(counters: &PerCpuArray<u64>, index: u32) {
    if let Some(counter) = counters.get_ptr_mut(index) {
        // SAFETY: this CPU's own slot; a program is not preempted by itself on the same CPU.
        unsafe { *counter += 1 };
    }
}
