//! A WireGuard device in user space: boringtun's protocol between a TUN interface and UDP sockets, with segmentation
//! offload in both directions.
//!
//! [`Device::start`] makes or takes over the interface; [`Device::set_peers`] says who the peers are and keeps the
//! routes to them. The interface and its routes outlive the process: while no device serves it, what is sent into it is
//! lost, never sent in the clear. The kernel's own WireGuard is not used.

mod allowed;
mod checksum;
mod config;
mod device;
mod icmp;
mod interface;
mod join;
mod keys;
#[cfg(test)]
mod offload_tests;
mod packet;
mod peers;
mod poll;
mod receive;
mod split;
mod transmit;
mod tun;
mod udp;
mod vnet;

use std::io;

pub use config::{DeviceConfig, DeviceStatus, Dropped, OVERHEAD, Offload, PeerConfig, PeerStatus, ROUTE_PROTOCOL};
pub use device::Device;
pub use interface::remove_interface;
pub use keys::{KeyError, PrivateKey, PublicKey};

/// Why a device does not start, or does not take its peers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open /dev/net/tun: load the kernel module tun, and run with CAP_NET_ADMIN")]
    NoTun(#[source] io::Error),
    #[error("'{name}' cannot name an interface: use 1 to 15 characters without '/', '%' and spaces")]
    InterfaceName { name: String },
    #[error("another process serves the interface {name}: stop it first")]
    InterfaceBusy { name: String },
    #[error("the interface {name} exists and is not a TUN device: remove it or configure another name")]
    InterfaceKind { name: String },
    #[error("the interface {name} was removed while it was set up")]
    InterfaceGone { name: String },
    #[error("cannot attach to the interface {name}")]
    Attach {
        name: String,
        #[source]
        cause: io::Error,
    },
    #[error("cannot open UDP port {port} for WireGuard: if another program has it, configure another port")]
    Bind {
        port: u16,
        #[source]
        cause: io::Error,
    },
    #[error("MTU {mtu} is outside {min} to {max}")]
    Mtu { mtu: u32, min: u32, max: u32 },
    #[error("peer {peer} has this device's own key: each node needs a key of its own")]
    OwnKey { peer: String },
    #[error("{count} peers are more than the {max} that a device takes")]
    TooManyPeers { count: usize, max: usize },
    #[error("cannot start a thread for the device")]
    Thread(#[source] io::Error),
    #[error("cannot configure the interface")]
    Network(#[from] weft_netlink::Error),
}
