//! Which backend a connection to a frontend gets.
use weft_bpf_abi::{
    lb::{Affinity, AffinityKey, Backend, BackendKey, MemberKey, Service, ServiceKey},
    net::{Addr, Port},
};

/// The tables of the load balancer, wherever they are kept.
pub trait Tables {
    fn service(&self, key: &ServiceKey) -> Option<Service>;
    fn backend(&self, key: &BackendKey) -> Option<Backend>;
    fn is_member(&self, key: &MemberKey) -> bool;
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    fn remember(&self, key: &AffinityKey, value: &Affinity);
    fn is_node_address(&self, addr: &Addr) -> bool;
}

/// Who asks, and when.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub netns_cookie: u64,
    /// The client is in the node's own namespace, where loopback is the node's.
    pub on_host: bool,
    pub now_ns: u64,
    pub random: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Not the address of a service: leave it alone.
    NotAService,
    /// A service without backends: refuse at once.
    NoBackend,
    Backend(Backend),
}

/// The backend for a new connection or datagram to `addr:port`.
#[inline(always)]
pub fn choose(tables: &impl Tables, addr: &Addr, port: Port, proto: u8, client: &Client) -> Choice {
    let mut key = ServiceKey::new(*addr, port, proto);
    if is_loopback(addr) && !client.on_host {
        // A pod's loopback is its own. The unspecified address is one too, and names the entries of node ports.
        return Choice::NotAService;
    }
    let service = match tables.service(&key) {
        Some(service) => service,
        None if !is_node(tables, addr, client) => return Choice::NotAService,
        None => {
            key.addr = every_address(addr);
            match tables.service(&key) {
                Some(service) => service,
                None => return Choice::NotAService,
            }
        }
    };
    match pick(tables, &service, client) {
        Some(backend) => Choice::Backend(backend),
        None if service.count == 0 => Choice::NoBackend,
        // The set was replaced, and its slots deleted, between the two look-ups: ask once more.
        None => match tables.service(&key).and_then(|service| pick(tables, &service, client)) {
            Some(backend) => Choice::Backend(backend),
            None => Choice::NoBackend,
        },
    }
}

/// Whether a process of the node may bind to this address and port.
#[inline(always)]
pub fn is_reserved(tables: &impl Tables, addr: &Addr, port: Port, proto: u8) -> bool {
    // A socket on `::` gets IPv4 connections too.
    let both = *addr == Addr::UNSPECIFIED;
    port.be() != 0
        && (tables.service(&ServiceKey::new(every_address(addr), port, proto)).is_some()
            || both && tables.service(&ServiceKey::new(Addr::UNSPECIFIED_V4, port, proto)).is_some())
        && (is_loopback(addr) || tables.is_node_address(addr))
}

/// Where the node ports of an address's family are. The families have entries of their own: a socket that is for
/// IPv6 alone cannot send to an IPv4 backend, and Linux refuses a datagram whose address changes family.
#[inline(always)]
fn every_address(addr: &Addr) -> Addr {
    if addr.is_v4() { Addr::UNSPECIFIED_V4 } else { Addr::UNSPECIFIED }
}

/// Loopback, or the unspecified address, which Linux takes for loopback when it is a destination.
#[inline(always)]
pub fn is_loopback(addr: &Addr) -> bool {
    let [a, b, c, d] = addr.words_be();
    if addr.is_v4() {
        return d.to_ne_bytes()[0] == 127 || d == 0;
    }
    a | b | c == 0 && u32::from_be(d) <= 1
}

#[inline(always)]
fn is_node(tables: &impl Tables, addr: &Addr, client: &Client) -> bool {
    (client.on_host && is_loopback(addr)) || tables.is_node_address(addr)
}

#[inline(always)]
fn pick(tables: &impl Tables, service: &Service, client: &Client) -> Option<Backend> {
    if service.count == 0 {
        return None;
    }
    if service.affinity_seconds == 0 {
        return random(tables, service, client);
    }
    let key = AffinityKey { netns_cookie: client.netns_cookie, affinity_id: service.affinity_id, reserved: 0 };
    let backend = match previous(tables, service, &key, client.now_ns) {
        Some(backend) => backend,
        None => random(tables, service, client)?,
    };
    tables.remember(&key, &Affinity { last_ns: client.now_ns, backend, reserved: 0 });
    Some(backend)
}

#[inline(always)]
fn random(tables: &impl Tables, service: &Service, client: &Client) -> Option<Backend> {
    // `count` is not 0: `pick` has looked.
    tables.backend(&BackendKey { service: service.id, slot: client.random.checked_rem(service.count)? })
}

/// The backend of last time, if that was recently and it still serves.
#[inline(always)]
fn previous(tables: &impl Tables, service: &Service, key: &AffinityKey, now_ns: u64) -> Option<Backend> {
    let last = tables.affinity(key)?;
    let idle_ns = now_ns.saturating_sub(last.last_ns);
    let fresh = idle_ns < u64::from(service.affinity_seconds) * 1_000_000_000;
    (fresh && tables.is_member(&MemberKey { service: service.id, backend: last.backend })).then_some(last.backend)
}

#[cfg(test)]
mod tests;
