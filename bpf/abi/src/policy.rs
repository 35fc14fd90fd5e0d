//! L3/L4 policy and connection tracking.
use crate::{
    abi,
    net::{Addr, Port},
};

pub const EGRESS: u8 = 0;
pub const INGRESS: u8 = 1;

/// `POLICY`, an LPM trie over `PolicyKey` without its `prefix_len`: fixed part first, the port last, so that a range of
/// ports is a few prefixes. Entries of one fixed part never overlap: the planner flattens them, deny winning.
///
/// A new connection is judged by four look-ups: {this identity, ANY} x {this protocol, 0 = every protocol}. DENY in any
/// of them drops; else their flags are joined; none found: allowed only if the direction is not enforced.
pub const POLICY: &str = "POLICY";
pub const POLICY_MAX: u32 = 262_144;

/// aya's `lpm_trie::Key<PolicyKey>` puts its own prefix length before this.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    pub endpoint: u32,
    /// The other side; `identity::ANY` for all.
    pub identity: u32,
    /// `INGRESS` or `EGRESS`
    pub direction: u8,
    /// 0: every protocol
    pub proto: u8,
    pub port: Port,
}
abi!(PolicyKey { endpoint: u32, identity: u32, direction: u8, proto: u8, port: Port });

impl PolicyKey {
    /// Bits before the port; a key for one port has 16 more.
    pub const FIXED_BITS: u32 = 80;
    pub const ALL_BITS: u32 = 96;
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyEntry {
    /// `PolicyEntry::*` flags
    pub flags: u32,
    /// Names the policy in events; the agent knows what it stands for. 0: none.
    pub rule: u32,
}
abi!(PolicyEntry { flags: u32, rule: u32 });

impl PolicyEntry {
    /// Allowed whole: no L7 rule applies.
    pub const ALLOW: u32 = 1;
    pub const DENY: u32 = 2;
    /// Allowed as far as the L7 rules say: to the proxy, unless `ALLOW` is there too.
    pub const L7: u32 = 4;
    /// Only over mutual TLS: plain connections go to the proxy, which refuses them and says so.
    pub const AUTH: u32 = 8;
}

/// `CONNTRACK`, an LRU hash: connections that policy let pass. The key is the tuple as its opener sent it, once for
/// each endpoint that judged it; replies find it with the ends swapped. TCP and UDP by ports, ICMP echo by its id.
pub const CONNTRACK: &str = "CONNTRACK";
pub const CONNTRACK_MAX: u32 = 262_144;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnKey {
    pub from: Addr,
    pub to: Addr,
    pub from_port: Port,
    pub to_port: Port,
    pub proto: u8,
    /// Whose decision: `EGRESS` of the opener's endpoint or `INGRESS` of the other's.
    pub direction: u8,
    pub reserved: [u8; 2],
}
abi!(ConnKey { from: Addr, to: Addr, from_port: Port, to_port: Port, proto: u8, direction: u8, reserved: [u8; 2] });

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conn {
    /// `bpf_ktime_get_ns` of the last packet.
    pub last_ns: u64,
    /// `NodeConfig`-independent: bumped by the agent in `POLICY_EPOCH` when rules change, so that an entry made under
    /// older rules is judged again.
    pub epoch: u32,
    /// `Conn::*` flags
    pub flags: u32,
}
abi!(Conn { last_ns: u64, epoch: u32, flags: u32 });

impl Conn {
    pub const CLOSING: u32 = 1;
}

/// Idle life of entries, in seconds.
pub mod lifetime {
    pub const TCP: u64 = 21_600;
    pub const TCP_CLOSING: u64 = 60;
    pub const OTHER: u64 = 60;
}

/// `POLICY_EPOCH`, an array of one `u32`.
pub const POLICY_EPOCH: &str = "POLICY_EPOCH";

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn sizes_are_the_abi() {
        assert_eq!((size_of::<PolicyKey>(), size_of::<PolicyEntry>()), (12, 8));
        assert_eq!((size_of::<ConnKey>(), size_of::<Conn>()), (40, 16));
        assert_eq!(PolicyKey::ALL_BITS as usize, size_of::<PolicyKey>() * 8);
    }
}
