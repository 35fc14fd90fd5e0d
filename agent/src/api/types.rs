//! What the agent's API says: shared by the server and the `weft` command, and the shape of `-o json`.
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};
use weft_model::{
    policy::PolicyStatus,
    snapshot::ObjectError,
    types::{Frontend, Labels, ObjectName},
};
use weft_proxy_api::flow::{PluginStatus, ProxyStatus};

/// One line of `weft status`: a part of the system, how it works here, and why if that is not the best way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    pub name: String,
    pub state: State,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    Ok,
    /// Works in another way than the best one: a fallback.
    Degraded,
    Failed,
    /// Switched off.
    Off,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub node: String,
    pub cluster: String,
    pub cluster_id: u32,
    pub trust_domain: String,
    pub version: String,
    /// The kernel holds everything that the sources say.
    pub ready: bool,
    pub conditions: Vec<Condition>,
    pub maps: Vec<MapFill>,
    /// Packets dropped and connections refused by the kernel programs, by reason.
    pub drops: BTreeMap<String, u64>,
    pub objects: BTreeMap<String, u64>,
    pub object_errors: Vec<ObjectError>,
    pub proxy: Option<ProxyStatus>,
    pub mesh: Vec<MeshPeerStatus>,
    pub flows_seen: u64,
    pub flows_lost: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MapFill {
    pub name: String,
    pub entries: u64,
    pub max: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    pub name: ObjectName,
    pub kind: String,
    pub frontends: Vec<FrontendRow>,
    /// `-`, or `shared`, `not shared`, with the affinity.
    pub global: String,
    pub session_affinity_s: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendRow {
    pub frontend: Frontend,
    /// Where new connections go.
    pub backends: Vec<BackendRow>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRow {
    pub address: IpAddr,
    pub port: u16,
    pub cluster: String,
    pub pod: Option<ObjectName>,
    pub node: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointRow {
    pub id: u32,
    pub node: String,
    pub pod: ObjectName,
    pub addresses: Vec<IpAddr>,
    pub identity: u32,
    pub interface: String,
    /// `none`, `ingress`, `egress`, `both`
    pub policy: String,
    pub spiffe_id: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityRow {
    pub id: u32,
    /// The number is local to this node.
    pub node: String,
    pub labels: Labels,
    pub cidr: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRow {
    pub node: String,
    #[serde(flatten)]
    pub status: PolicyStatus,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PluginRow {
    pub node: String,
    #[serde(flatten)]
    pub status: PluginStatus,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshPeerStatus {
    pub cluster: String,
    pub cluster_id: u32,
    pub trust_domain: String,
    /// `connected`, `dead`, `connecting`
    pub state: String,
    pub endpoint: String,
    /// Seconds since its last heartbeat.
    pub heartbeat_age_s: Option<f64>,
    pub synced: bool,
    pub services: u64,
    pub nodes: u64,
    pub endpoints: u64,
    pub error: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshStatus {
    pub node: String,
    pub cluster: String,
    pub cluster_id: u32,
    pub trust_domain: String,
    /// Where others read this cluster; absent: `mesh.listen` is not set.
    pub listen: Option<String>,
    pub peers: Vec<MeshPeerStatus>,
}

/// From the CNI plugin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewEndpoint {
    pub container_id: String,
    pub namespace: String,
    pub pod: String,
    /// Host side of the veth.
    pub interface: String,
    pub addresses: Vec<IpAddr>,
    #[serde(default)]
    pub netns: String,
    #[serde(default)]
    pub mac: String,
}

/// What every refused request gets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApiError {
    pub error: String,
}
