//! What the proxy reports: flows, and the state of plugins and tunnels.
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    Forwarded,
    Dropped,
    Redirected,
    Error,
}

/// One judged connection or request, by the kernel programs or the proxy. Names as in Hubble's flow where it has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// Milliseconds since the epoch.
    pub time_ms: u64,
    pub verdict: Verdict,
    /// In words, for drops and refusals: `policy-denied`, `no valid SPIFFE identity`, …
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub drop_reason: String,
    pub source: Peer,
    pub destination: Peer,
    /// `TCP`, `UDP`, …
    pub protocol: String,
    /// `ingress` or `egress`
    pub direction: String,
    /// The deciding policy (`namespace/name`) or plugin; empty: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// The plugin that decided.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub plugin: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpFlow>,
    /// SPIFFE ID that the peer proved on this very connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_spiffe_id: Option<String>,
    /// Node that saw it.
    #[serde(default)]
    pub node: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    pub address: SocketAddr,
    #[serde(default)]
    pub identity: u32,
    /// `namespace/pod`, or `host`, `world`, `remote-node`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cluster: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpFlow {
    pub method: String,
    pub path: String,
    #[serde(default)]
    pub host: String,
    /// 0: no answer yet (connection lost).
    pub status: u16,
    /// `HTTP/1.1`, `HTTP/2`
    pub protocol: String,
    pub duration_us: u64,
}

/// State of the proxy, on request and on change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyStatus {
    pub pid: u32,
    /// Version of the configuration in force.
    pub config_version: u64,
    /// Why the last configuration was refused, in part or whole; the parts that failed closed.
    pub config_errors: Vec<String>,
    pub plugins: Vec<PluginStatus>,
    pub wireguard: Option<WireGuardStatus>,
    pub connections: u64,
    /// Seconds until the first SVID in use ends.
    pub svid_seconds_left: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PluginStatus {
    pub name: String,
    pub sha256: String,
    /// `running`, `failed: …` (then its fail strategy answers), `loading`
    pub state: String,
    pub phase: String,
    pub priority: i32,
    pub requests: u64,
    pub denied: u64,
    pub faults: u64,
    pub memory_bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireGuardStatus {
    pub interface: String,
    pub public_key: String,
    /// `running`, or `failed: …`
    pub state: String,
    pub peers: Vec<WireGuardPeerStatus>,
    /// Packets that could not be encrypted (no session, no peer).
    pub dropped: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireGuardPeerStatus {
    pub name: String,
    pub public_key: String,
    pub endpoint: SocketAddr,
    pub handshake_age_s: Option<u64>,
    pub sent_bytes: u64,
    pub received_bytes: u64,
}
