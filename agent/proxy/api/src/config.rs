//! The configuration of weft-proxy: everything it needs to go on without the agent.
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};
use weft_identity::{SpiffeId, TrustDomain};
use weft_model::{
    policy::EndpointPolicy,
    types::{ClusterName, Labels, ObjectName, WasmPlugin},
};

/// Always whole; the proxy keeps the last one it accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyConfig {
    /// Grows with every change.
    pub version: u64,
    pub node: String,
    pub cluster: ClusterName,
    pub trust_domain: TrustDomain,
    /// Pinned maps of this node: `LISTENERS` is there.
    pub map_dir: PathBuf,
    /// Every pod of every connected cluster that has an address.
    pub workloads: Vec<WorkloadInfo>,
    /// Security identities of other addresses, longest prefix first served: CIDR identities, the node's own addresses
    /// (HOST), other nodes' (REMOTE_NODE). What none claims is WORLD.
    #[serde(default)]
    pub identities: Vec<(IpNet, u32)>,
    /// Resolved policy of this node's pods, by address.
    pub policies: BTreeMap<IpAddr, EndpointPolicy>,
    /// Pods of any node and their ports (0: all) that take mutual TLS only: connections of local pods go there by HBONE.
    pub auth_destinations: Vec<(IpAddr, u16)>,
    pub svids: Vec<Svid>,
    pub trust_bundles: BTreeMap<TrustDomain, String>,
    pub plugins: Vec<PluginConfig>,
    /// Status of a denied request; 403 by default.
    pub deny_status: u16,
    pub wireguard: Option<WireGuardConfig>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadInfo {
    pub addresses: Vec<IpAddr>,
    pub pod: ObjectName,
    pub cluster: ClusterName,
    pub spiffe_id: SpiffeId,
    /// Security identity, as in the kernel's maps.
    pub identity: u32,
    pub labels: Labels,
    /// Runs on this node.
    pub local: bool,
    /// Has a Weft proxy that takes HBONE on port 15008.
    pub hbone: bool,
}

/// An X.509-SVID with its key. Never logged, never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Svid {
    pub spiffe_id: SpiffeId,
    /// PEM, leaf first.
    pub certificates: String,
    /// PEM, PKCS#8.
    pub private_key: String,
    /// Seconds since the epoch.
    pub not_after: u64,
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("spiffe_id", &self.spiffe_id)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// A plugin with where its module is on this node. The built-in ones (`http-policy`, `spiffe-authz`) are members too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PluginConfig {
    pub plugin: WasmPlugin,
    pub module: PathBuf,
    /// Local pods whose inbound connections it sees. `None`: wherever the proxy needs its decision (built-in ones).
    pub targets: Option<Vec<IpAddr>>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireGuardConfig {
    pub interface: String,
    /// Base64
    pub private_key: String,
    pub listen_port: u16,
    /// Of the TUN device, in bytes.
    pub mtu: u32,
    /// Mark on the outer packets (`weft_bpf_abi::mark::WIREGUARD`).
    pub mark: u32,
    /// Addresses of the device: of the node's own pod CIDR, so that replies come back through the tunnel.
    pub addresses: Vec<IpAddr>,
    pub peers: Vec<WireGuardPeer>,
}

impl fmt::Debug for WireGuardConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireGuardConfig")
            .field("interface", &self.interface)
            .field("listen_port", &self.listen_port)
            .field("peers", &self.peers)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireGuardPeer {
    /// `cluster/node`, for status.
    pub name: String,
    /// Base64
    pub public_key: String,
    pub endpoint: SocketAddr,
    /// Also the routes through the device.
    pub allowed_ips: Vec<IpNet>,
}
