//! Socket load balancing: services, their backends, session affinity and the way back.
use crate::{
    abi,
    net::{Addr, Port},
};

/// `SERVICES`, a hash: a frontend. Published after its backends, under a fresh `id` at every change of the set, so a
/// reader never sees half of one.
pub const SERVICES: &str = "SERVICES";
pub const SERVICES_MAX: u32 = 65_536;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// `Addr::UNSPECIFIED`, `Addr::UNSPECIFIED_V4`: a node port of that family, on every address of every node (see `NODE_ADDRESSES`) and loopback.
    pub addr: Addr,
    pub port: Port,
    /// IPPROTO_TCP or IPPROTO_UDP
    pub proto: u8,
    pub reserved: u8,
}
abi!(ServiceKey { addr: Addr, port: Port, proto: u8, reserved: u8 });

impl ServiceKey {
    pub const fn new(addr: Addr, port: Port, proto: u8) -> Self {
        Self { addr, port, proto, reserved: 0 }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Names the set of slots in `BACKENDS`; 0 is never used.
    pub id: u32,
    /// How many slots. 0: connections are refused at once.
    pub count: u32,
    /// Stays the same while the service lives; keys `AFFINITY`.
    pub affinity_id: u32,
    /// ClientIP session affinity in seconds; 0: none.
    pub affinity_seconds: u32,
}
abi!(Service { id: u32, count: u32, affinity_id: u32, affinity_seconds: u32 });

/// `BACKENDS`, a hash.
pub const BACKENDS: &str = "BACKENDS";
pub const BACKENDS_MAX: u32 = 262_144;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendKey {
    pub service: u32,
    pub slot: u32,
}
abi!(BackendKey { service: u32, slot: u32 });

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    pub addr: Addr,
    pub port: Port,
    pub reserved: [u8; 2],
}
abi!(Backend { addr: Addr, port: Port, reserved: [u8; 2] });

impl Backend {
    pub const fn new(addr: Addr, port: Port) -> Self {
        Self { addr, port, reserved: [0; 2] }
    }
}

/// `MEMBERS`, a hash from this key to `u32` 1: is this backend (still) in the set? Asked for session affinity only, so
/// only services with affinity have entries.
pub const MEMBERS: &str = "MEMBERS";
pub const MEMBERS_MAX: u32 = 65_536;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberKey {
    pub service: u32,
    pub backend: Backend,
}
abi!(MemberKey { service: u32, backend: Backend });

/// `AFFINITY`, an LRU hash: the last backend of a client. A local client is its network namespace.
pub const AFFINITY: &str = "AFFINITY";
pub const AFFINITY_MAX: u32 = 65_536;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    pub netns_cookie: u64,
    pub affinity_id: u32,
    pub reserved: u32,
}
abi!(AffinityKey { netns_cookie: u64, affinity_id: u32, reserved: u32 });

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// `bpf_ktime_get_ns` of the last use.
    pub last_ns: u64,
    pub backend: Backend,
    pub reserved: u32,
}
abi!(Affinity { last_ns: u64, backend: Backend, reserved: u32 });

/// `REVERSE`, an LRU hash: what the process believes its peer to be, for getpeername and recvmsg.
pub const REVERSE: &str = "REVERSE";
pub const REVERSE_MAX: u32 = 262_144;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReverseKey {
    /// `bpf_get_socket_cookie`
    pub socket: u64,
    pub backend: Backend,
    pub reserved: u32,
}
abi!(ReverseKey { socket: u64, backend: Backend, reserved: u32 });

/// Value of `REVERSE`: the frontend that the process named.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    pub addr: Addr,
    pub port: Port,
    pub reserved: [u8; 2],
}
abi!(Frontend { addr: Addr, port: Port, reserved: [u8; 2] });

/// `NODE_ADDRESSES`, a hash from `Addr` to `u32` 1: the addresses on which node ports answer.
pub const NODE_ADDRESSES: &str = "NODE_ADDRESSES";
pub const NODE_ADDRESSES_MAX: u32 = 16_384;

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn sizes_are_the_abi() {
        assert_eq!((size_of::<ServiceKey>(), size_of::<Service>()), (20, 16));
        assert_eq!((size_of::<BackendKey>(), size_of::<Backend>(), size_of::<MemberKey>()), (8, 20, 24));
        assert_eq!((size_of::<AffinityKey>(), size_of::<Affinity>()), (16, 32));
        assert_eq!((size_of::<ReverseKey>(), size_of::<Frontend>()), (32, 20));
    }
}
