//! What a cluster says of itself.
use super::{ValueError, from_json, to_json};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weft_identity::TrustDomain;

/// `cilium/cluster-config/<cluster>`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterConfigValue {
    /// 1 to 255
    #[serde(default)]
    pub id: u32,
    #[serde(default)]
    pub capabilities: Capabilities,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Capabilities {
    /// A part is not read before its `cilium/synced/…` key is there.
    pub synced_canaries: bool,
    /// Keys are under `cilium/cache/` (KVStoreMesh).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cached: bool,
    /// 255 or 511: how many bits of an identity are the cluster's.
    pub max_connected_clusters: u32,
}

impl ClusterConfigValue {
    pub fn read(value: &[u8]) -> Result<Self, ValueError> {
        from_json(value)
    }

    pub fn to_bytes(&self) -> Bytes {
        to_json(self)
    }
}

/// `weft/cluster/<cluster>`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WeftClusterValue {
    pub trust_domain: TrustDomain,
    /// Its pods take HBONE on port 15008.
    #[serde(default)]
    pub hbone: bool,
}

impl WeftClusterValue {
    pub fn read(value: &[u8]) -> Result<Self, ValueError> {
        from_json(value)
    }

    pub fn to_bytes(&self) -> Bytes {
        to_json(self)
    }
}
