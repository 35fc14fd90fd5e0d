//! What the programs tell: counters by reason, and sampled events for `weft observe`.
use crate::{
    abi,
    net::{Addr, Port},
};

/// `DROPS`, a per-CPU array of `u64`, indexed by `Reason`.
pub const DROPS: &str = "DROPS";

/// Why a packet was dropped, or a connection refused.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Not dropped.
    Forwarded = 0,
    PolicyDenied = 1,
    /// The pod sent from an address that is not its own.
    SpoofedSource = 2,
    /// The connection must go through the proxy, and the proxy is not there.
    NoListener = 3,
    /// A captured endpoint answers a connection that the proxy does not have (any more).
    OrphanReply = 4,
    /// TCP in IP fragments to or from a captured endpoint: nothing can be decided.
    Fragment = 5,
    /// The packet ends inside its headers.
    TooShort = 6,
    /// The kernel refused `bpf_sk_assign`.
    AssignFailed = 7,
    /// Due for encryption, on a device that does not encrypt.
    Unencrypted = 8,
    /// The agent has not yet said what is allowed.
    NotReady = 9,
    /// A service without endpoints.
    NoBackend = 10,
    /// The port is a node port.
    PortReserved = 11,
    /// A map is full or refused the entry.
    MapFull = 12,
}

impl Reason {
    pub const ALL: [Self; 13] = [
        Self::Forwarded,
        Self::PolicyDenied,
        Self::SpoofedSource,
        Self::NoListener,
        Self::OrphanReply,
        Self::Fragment,
        Self::TooShort,
        Self::AssignFailed,
        Self::Unencrypted,
        Self::NotReady,
        Self::NoBackend,
        Self::PortReserved,
        Self::MapFull,
    ];
    /// In the words of status and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::PolicyDenied => "policy-denied",
            Self::SpoofedSource => "spoofed-source",
            Self::NoListener => "proxy-not-listening",
            Self::OrphanReply => "orphan-reply",
            Self::Fragment => "tcp-fragment",
            Self::TooShort => "packet-too-short",
            Self::AssignFailed => "socket-assign-failed",
            Self::Unencrypted => "unencrypted",
            Self::NotReady => "agent-not-ready",
            Self::NoBackend => "no-backend",
            Self::PortReserved => "port-reserved",
            Self::MapFull => "map-full",
        }
    }
    pub fn from_u32(value: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u32 == value)
    }
}

/// `EVENTS`, a ring buffer of `Event`: one for each judged new connection (dropped ones always; allowed ones when
/// `NodeConfig::TRACE_ALLOWED` is set). A full buffer loses events, counted in `LOST_EVENTS` (per-CPU array of one).
pub const EVENTS: &str = "EVENTS";
pub const EVENTS_BYTES: u32 = 1 << 20;
pub const LOST_EVENTS: &str = "LOST_EVENTS";

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// `bpf_ktime_get_ns`
    pub at_ns: u64,
    pub from: Addr,
    pub to: Addr,
    pub from_port: Port,
    pub to_port: Port,
    pub proto: u8,
    /// `policy::EGRESS` or `policy::INGRESS`
    pub direction: u8,
    /// `Event::*` verdict
    pub verdict: u8,
    pub reserved: u8,
    pub reason: u32,
    pub from_identity: u32,
    pub to_identity: u32,
    /// `PolicyEntry::rule` of the deciding entry; 0: none.
    pub rule: u32,
}
abi!(Event {
    at_ns: u64,
    from: Addr,
    to: Addr,
    from_port: Port,
    to_port: Port,
    proto: u8,
    direction: u8,
    verdict: u8,
    reserved: u8,
    reason: u32,
    from_identity: u32,
    to_identity: u32,
    rule: u32
});

impl Event {
    pub const DROPPED: u8 = 0;
    pub const FORWARDED: u8 = 1;
    /// Handed to the proxy.
    pub const REDIRECTED: u8 = 2;
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn size_is_the_abi_and_reasons_are_their_index() {
        assert_eq!(size_of::<Event>(), 64);
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
