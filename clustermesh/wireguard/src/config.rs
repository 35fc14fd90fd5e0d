//! What a device is told, and what it tells of itself.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;

use crate::keys::{PrivateKey, PublicKey};

/// Bytes that WireGuard adds to a packet at most: 40 of IPv6, 8 of UDP, 32 of its own.
pub const OVERHEAD: u32 = 80;
/// The same where the outer packets are IPv4.
pub(crate) const OVERHEAD_V4: u32 = 60;
/// Owner of the routes through the device (`proto` in `ip route`).
pub const ROUTE_PROTOCOL: u8 = 78;

/// What stays the same while a device runs.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// Name of the TUN interface; it and its routes outlive the process.
    pub interface: String,
    pub private_key: PrivateKey,
    /// UDP port, IPv4 and IPv6. 0: any (see [`DeviceStatus::listen_port`]).
    pub listen_port: u16,
    /// Of the TUN interface, in bytes: the path's MTU less [`OVERHEAD`].
    pub mtu: u32,
    /// `SO_MARK` of the outer packets; 0: none.
    pub mark: u32,
    /// The interface's addresses, as host addresses: no route to a subnet comes with them.
    pub addresses: Vec<IpAddr>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// For status: `cluster/node`.
    pub name: String,
    pub public_key: PublicKey,
    /// `None`: the peer has to call first.
    pub endpoint: Option<SocketAddr>,
    /// What it may send from, and what goes to it.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds between keepalives, for peers behind a NAT; `None`: only when needed.
    pub persistent_keepalive: Option<u16>,
}

/// The device at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    pub interface: String,
    pub public_key: PublicKey,
    pub listen_port: u16,
    /// Which WireGuard this is.
    pub implementation: String,
    /// What the kernel offers and what fell back.
    pub offload: Offload,
    /// `None`: it runs.
    pub failure: Option<String>,
    pub peers: Vec<PeerStatus>,
    pub dropped: Dropped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Offload {
    /// TCP super-packets pass through the TUN device whole.
    pub tun_tcp: bool,
    /// UDP ones too (kernel 6.2).
    pub tun_udp: bool,
    /// Many outer packets in one system call.
    pub udp_send: bool,
    pub udp_receive: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    pub name: String,
    pub public_key: PublicKey,
    /// Where it was last heard from, or where it is said to be.
    pub endpoint: Option<SocketAddr>,
    /// Age of the session in use; `None`: there is no session.
    pub handshake_age: Option<Duration>,
    /// Inner bytes.
    pub sent_bytes: u64,
    /// Inner bytes.
    pub received_bytes: u64,
    /// Packets that wait for the handshake.
    pub queued: u64,
    /// Prefixes that an earlier peer has already.
    pub ignored_allowed_ips: Vec<IpNet>,
}

/// Packets lost since the start, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dropped {
    /// From here: no peer has the destination.
    pub no_peer: u64,
    /// From here: the handshake did not come about, or too many packets waited for it.
    pub no_session: u64,
    /// From here: longer than the path to the peer allows; their senders are told.
    pub too_big: u64,
    /// From here: the network would not take it.
    pub send_failed: u64,
    /// From the network: not WireGuard, not for us, damaged or replayed.
    pub bad_packet: u64,
    /// From the network: a key that no peer has.
    pub unknown_peer: u64,
    /// From a peer: an inner source that is not among its allowed IPs.
    pub source_not_allowed: u64,
    /// From a peer: the kernel would not take it.
    pub not_delivered: u64,
}

impl Dropped {
    /// What should have gone out encrypted and did not go.
    pub fn not_encrypted(&self) -> u64 {
        self.no_peer + self.no_session + self.too_big + self.send_failed
    }
}
