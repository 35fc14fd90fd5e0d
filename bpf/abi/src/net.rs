//! Addresses, identities and the node's own endpoints.
use crate::abi;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv6, or IPv4 as `::ffff:a.b.c.d`.
///
/// Four words of the bytes in network order: the programs copy and compare addresses all the time, and would do so
/// byte by byte without the alignment.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr([u32; 4]);
abi!(Addr { words: [u32; 4] });

impl Addr {
    pub const UNSPECIFIED: Self = Self([0; 4]);
    /// 0.0.0.0, mapped.
    pub const UNSPECIFIED_V4: Self = Self::from_v4_be(0);
    const MAPPED: u32 = 0xffff_u32.to_be();

    pub const fn v4(addr: Ipv4Addr) -> Self {
        Self::from_v4_be(u32::from_ne_bytes(addr.octets()))
    }

    /// From the four bytes of an IPv4 address in network order, as the kernel keeps them.
    #[inline(always)]
    pub const fn from_v4_be(be: u32) -> Self {
        Self([0, 0, Self::MAPPED, be])
    }

    /// The IPv4 part in network order, as the kernel keeps it. Meaningless for IPv6.
    #[inline(always)]
    pub const fn v4_be(&self) -> u32 {
        self.0[3]
    }

    /// From words in network order, as the kernel keeps IPv6 addresses.
    #[inline(always)]
    pub const fn from_words_be(words: [u32; 4]) -> Self {
        Self(words)
    }

    #[inline(always)]
    pub const fn words_be(&self) -> [u32; 4] {
        self.0
    }

    pub const fn v6(addr: Ipv6Addr) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = addr.octets();
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == Self::MAPPED
    }

    /// The 16 bytes in network order.
    pub fn octets(&self) -> [u8; 16] {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(self.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        octets
    }

    /// As user space speaks of it: mapped IPv4 comes back as IPv4.
    pub fn ip(&self) -> IpAddr {
        Ipv6Addr::from(self.octets()).to_canonical()
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::v4(v4),
            IpAddr::V6(v6) => Self::v6(v6),
        }
    }
}

/// A port, kept in network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(u16);
abi!(Port { be: u16 });

impl Port {
    pub const fn new(port: u16) -> Self {
        Self(port.to_be())
    }
    #[inline(always)]
    pub const fn from_be(be: u16) -> Self {
        Self(be)
    }
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
    #[inline(always)]
    pub const fn be(self) -> u16 {
        self.0
    }
}

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;
/// HBONE (HTTP/2 CONNECT over mutual TLS), as Istio's ztunnel uses it.
pub const HBONE_PORT: u16 = 15008;

/// Security identities are numbers local to this node. These are fixed; the others start at `FIRST_LOCAL`.
pub mod identity {
    /// In policy keys: every identity.
    pub const ANY: u32 = 0;
    /// This node's own addresses.
    pub const HOST: u32 = 1;
    /// What no other identity claims.
    pub const WORLD: u32 = 2;
    /// A node of this or another connected cluster.
    pub const REMOTE_NODE: u32 = 3;
    pub const FIRST_LOCAL: u32 = 256;
}

/// `IPCACHE`, an LPM trie: who has an address. Look-ups use `prefix_len` 128.
/// aya's `lpm_trie::Key<Addr>` is the key; `prefix_len` counts from the first of the 128 bits (IPv4 /24 is 120).
pub const IPCACHE: &str = "IPCACHE";
pub const IPCACHE_MAX: u32 = 131_072;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpInfo {
    pub identity: u32,
    /// `IpInfo::ENCRYPT`
    pub flags: u32,
}
abi!(IpInfo { identity: u32, flags: u32 });

impl IpInfo {
    /// Reached through the WireGuard device only; on a native device such a packet is dropped.
    pub const ENCRYPT: u32 = 1;
}

/// `ENDPOINTS`, a hash: the pods of this node by address (each of its addresses has an entry).
pub const ENDPOINTS: &str = "ENDPOINTS";
pub const ENDPOINTS_MAX: u32 = 4_096;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Names the endpoint in policy keys and events; stable for the endpoint's life.
    pub id: u32,
    pub identity: u32,
    /// Host side of the veth.
    pub ifindex: u32,
    pub flags: u32,
}
abi!(Endpoint { id: u32, identity: u32, ifindex: u32, flags: u32 });

impl Endpoint {
    /// Ingress is default-deny: some policy selects it.
    pub const ENFORCE_INGRESS: u32 = 1;
    /// Egress is default-deny.
    pub const ENFORCE_EGRESS: u32 = 2;
    /// Some policy entry of this endpoint hands connections to the proxy: look for the proxy's sockets.
    pub const PROXIED: u32 = 4;
}

/// `AUTH_DESTINATIONS`, a hash: pods of any node whose port takes mutual TLS only. A local pod that connects there is
/// handed to the proxy's `Listener::OUTBOUND`, which opens HBONE. Port 0 stands for every port.
pub const AUTH_DESTINATIONS: &str = "AUTH_DESTINATIONS";
pub const AUTH_DESTINATIONS_MAX: u32 = 65_536;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AuthDestination {
    pub addr: Addr,
    pub port: Port,
    pub reserved: [u8; 2],
}
abi!(AuthDestination { addr: Addr, port: Port, reserved: [u8; 2] });

impl AuthDestination {
    pub const fn new(addr: Addr, port: u16) -> Self {
        Self { addr, port: Port::new(port), reserved: [0; 2] }
    }
}

/// `LISTENERS`, a SOCKMAP: the proxy's listening sockets, put there by the proxy itself (one slot a family and role).
pub const LISTENERS: &str = "LISTENERS";

/// Slots of `LISTENERS`.
pub mod listener {
    /// Connections to a local pod's port with L7 or authentication rules (IPv4, then IPv6).
    pub const INGRESS4: u32 = 0;
    pub const INGRESS6: u32 = 1;
    /// Connections of a local pod that leave through the proxy: HBONE, or L7 rules on egress.
    pub const OUTBOUND4: u32 = 2;
    pub const OUTBOUND6: u32 = 3;
    /// HBONE of others, to a local pod's port 15008.
    pub const HBONE4: u32 = 4;
    pub const HBONE6: u32 = 5;
    pub const COUNT: u32 = 6;
}

/// `NODE_CONFIG`, an array of one: what the programs must know of this node.
pub const NODE_CONFIG: &str = "NODE_CONFIG";

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// `bpf_get_netns_cookie` of the node's own namespace.
    pub netns_cookie: u64,
    pub flags: u32,
    /// UDP port of the WireGuard device, host order; 0: none.
    pub wireguard_port: u32,
}
abi!(NodeConfig { netns_cookie: u64, flags: u32, wireguard_port: u32 });

impl NodeConfig {
    /// Set once policy and addresses are complete. Until then pods may neither send nor receive (fail closed).
    pub const READY: u32 = 1;
    /// Events for allowed connections too, not only for drops.
    pub const TRACE_ALLOWED: u32 = 2;
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn sizes_are_the_abi() {
        assert_eq!((size_of::<Addr>(), size_of::<Port>(), size_of::<IpInfo>()), (16, 2, 8));
        assert_eq!((size_of::<Endpoint>(), size_of::<AuthDestination>(), size_of::<NodeConfig>()), (16, 20, 16));
    }
    #[test]
    fn ipv4_is_mapped_and_comes_back() {
        let ip: IpAddr = "10.1.2.3".parse().unwrap();
        let addr = Addr::from(ip);
        assert!(addr.is_v4());
        assert_eq!((addr.ip(), Addr::from_v4_be(addr.v4_be())), (ip, addr));
        assert!(!Addr::from("fd00::1".parse::<IpAddr>().unwrap()).is_v4());
    }
}
