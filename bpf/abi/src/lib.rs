//! What the kernel programs and the node's processes agree on: map names, keys, values, marks and reasons.
//!
//! Only integers and byte arrays cross the boundary, none of them padded. Addresses are 16 bytes: IPv6, or IPv4 as
//! `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2). Addresses and ports are in network order. The layout has a version, [`VERSION`], which is
//! part of the pin path: a change of any type or map here raises it.
#![cfg_attr(not(test), no_std)]

pub mod event;
pub mod lb;
pub mod net;
pub mod policy;

/// Part of the pin path (`<bpffs>/v<VERSION>/`): maps of another layout are never reused.
pub const VERSION: u32 = 1;

/// Marks a type whose bytes may cross the kernel boundary; refuses hidden padding at compile time.
#[macro_export]
macro_rules! abi {
    ($ty:ident { $($field:ident: $fty:ty),+ $(,)? }) => {
        const _: () = assert!(
            core::mem::size_of::<$ty>() == 0 $(+ core::mem::size_of::<$fty>())+,
            concat!(stringify!($ty), " has padding: add an explicit field"),
        );
        #[cfg(feature = "user")]
        // SAFETY: `repr(C)`, `Copy`, no padding (asserted above), every bit pattern is valid.
        unsafe impl aya::Pod for $ty {}
    };
}

/// Names of programs in the object, as the loader finds them.
pub mod program {
    pub const CONNECT4: &str = "connect4";
    pub const CONNECT6: &str = "connect6";
    pub const SENDMSG4: &str = "sendmsg4";
    pub const SENDMSG6: &str = "sendmsg6";
    pub const RECVMSG4: &str = "recvmsg4";
    pub const RECVMSG6: &str = "recvmsg6";
    pub const GETPEERNAME4: &str = "getpeername4";
    pub const GETPEERNAME6: &str = "getpeername6";
    pub const BIND4: &str = "bind4";
    pub const BIND6: &str = "bind6";
    /// tcx ingress of a pod's host-side veth: what the pod sends.
    pub const FROM_POD: &str = "from_pod";
    /// tcx egress of a pod's host-side veth: what the pod is about to receive.
    pub const TO_POD: &str = "to_pod";
    /// tcx ingress of native devices: what enters the node in plain text.
    pub const FROM_NETWORK: &str = "from_network";
    /// tcx ingress of the WireGuard device: what enters the node through the tunnel.
    pub const FROM_TUNNEL: &str = "from_tunnel";
    /// tcx egress of native devices: the guard that drops plain text which should be encrypted.
    pub const TO_NETWORK: &str = "to_network";
    /// sk_lookup on the node's namespace: reopens connections whose proxy socket is in TIME_WAIT.
    pub const REOPEN_TIME_WAIT: &str = "reopen_time_wait";
}

/// Packet and socket marks, in the bits `MASK`.
pub mod mark {
    pub const MASK: u32 = 0xf00;
    /// Set by the programs: this packet belongs to a socket of the proxy, so an `ip rule` delivers it locally.
    pub const CAPTURED: u32 = 0x200;
    /// Set by the proxy on its sockets: what they send was judged by it and is never captured again.
    pub const PROXY: u32 = 0x300;
    /// Set on the WireGuard device's UDP socket: the guard lets it out.
    pub const WIREGUARD: u32 = 0x400;
    /// Between `to_pod` and `from_pod` of one veth: a packet on its way back to the proxy. No pod can set it, since
    /// marks do not cross namespaces.
    pub const TURNED: u32 = 0x500;
    /// The routing table that the CAPTURED rule names.
    pub const CAPTURED_TABLE: u32 = 200;
    /// Priority of that rule.
    pub const CAPTURED_RULE_PRIORITY: u32 = 100;
}
