//! Values: each kind in a file of its own, with the form that Cilium 1.20 gives it. Reading checks what can be checked
//! without other keys; whether cluster and ids agree is the importer's to say.
mod address;
mod cluster;
mod identity;
mod node;
mod service;

pub use address::AddressValue;
pub use cluster::{Capabilities, ClusterConfigValue, WeftClusterValue};
pub use identity::{
    CLUSTER_LABEL, NAMESPACE_LABEL, SERVICE_ACCOUNT_LABEL, format_labels, identity_range, parse_labels,
};
pub use node::{NodeValue, WIREGUARD_PORT};
pub use service::{AuthValue, PortValue, ServiceValue, WeftBackend, WeftServiceValue};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use std::net::IpAddr;

/// Values beyond this are refused unread: the largest service of Cilium's own scale tests is far below.
pub const MAX_VALUE_BYTES: usize = 4 << 20;

/// Why a peer's value is not used. It counts as absent, and is named in the peer's status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("the value is larger than {MAX_VALUE_BYTES} bytes")]
    TooLarge,
    #[error("not the JSON that is expected: {0}")]
    Json(String),
    #[error("not UTF-8 text")]
    Text,
    #[error("{field} is {found:?}, but the key says {expected:?}")]
    KeyMismatch { field: &'static str, found: String, expected: String },
    #[error("{field} is {found}, but the cluster is {expected}")]
    ClusterMismatch { field: &'static str, found: String, expected: String },
    #[error("{0} is not an address that another cluster's pods or nodes can have")]
    Address(IpAddr),
    #[error("port {0} is not a TCP, UDP or SCTP port")]
    Port(String),
    #[error("CIDR {0:?} is not usable")]
    Cidr(String),
    #[error("WireGuard key {0:?} is not 32 bytes in base64")]
    WireguardKey(String),
    #[error("label {0:?} is not of the form source:key=value;")]
    Label(String),
    #[error("identity {id} is outside of {cluster}'s range {first} to {last}")]
    IdentityRange { id: u32, cluster: String, first: u32, last: u32 },
    #[error("more keys than the {0} that are kept of one cluster")]
    TooManyKeys(usize),
}

pub(crate) fn from_json<T: DeserializeOwned>(value: &[u8]) -> Result<T, ValueError> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(ValueError::TooLarge);
    }
    serde_json::from_slice(value).map_err(|e| ValueError::Json(e.to_string()))
}

/// The types given are maps with string keys and plain fields, so that serde_json has nothing to refuse.
pub(crate) fn to_json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// An address that can lead into another cluster: a peer must not be able to point us at ourselves.
pub(crate) fn routable(addr: IpAddr) -> Result<IpAddr, ValueError> {
    let link_local = match addr {
        IpAddr::V4(addr) => addr.is_link_local() || addr.is_broadcast(),
        IpAddr::V6(addr) => addr.is_unicast_link_local() || addr.to_ipv4_mapped().is_some(),
    };
    let wrong = addr.is_loopback() || addr.is_unspecified() || addr.is_multicast() || link_local;
    if wrong { Err(ValueError::Address(addr)) } else { Ok(addr) }
}

/// Equality of a value's field with what its key says.
pub(crate) fn same(field: &'static str, found: &str, expected: &str) -> Result<(), ValueError> {
    if found == expected {
        return Ok(());
    }
    Err(ValueError::KeyMismatch { field, found: found.to_owned(), expected: expected.to_owned() })
}

/// Go writes a nil map or slice as `null`.
pub(crate) fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::Deserialize<'de> + Default,
{
    Ok(<Option<T> as serde::Deserialize>::deserialize(deserializer)?.unwrap_or_default())
}
