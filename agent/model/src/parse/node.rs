//! Nodes and namespaces.
use super::{Context, ParseError, typed};
use crate::types::{Labels, Node, ObjectName};
use ipnet::IpNet;
use k8s_openapi::api::core::v1;
use serde_json::Value;

/// On a Node object: the Curve25519 key of its WireGuard device, base64, and the device's UDP port.
pub const WIREGUARD_KEY: &str = "weft.dev/wireguard-public-key";
pub const WIREGUARD_PORT: &str = "weft.dev/wireguard-port";
const DEFAULT_WIREGUARD_PORT: u16 = 51871;
const REGION: &str = "topology.kubernetes.io/region";

pub(super) fn node(
    name: &ObjectName,
    object: &Value,
    context: &Context<'_>,
    problems: &mut Vec<String>,
) -> Result<Node, ParseError> {
    let node: v1::Node = typed(object, context, problems)?;
    let labels = node.metadata.labels.unwrap_or_default();
    let annotations = node.metadata.annotations.unwrap_or_default();
    let spec = node.spec.unwrap_or_default();
    let cidrs = spec.pod_cidrs.filter(|list| !list.is_empty()).unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
    let mut pod_cidrs = Vec::new();
    for (i, cidr) in cidrs.iter().enumerate() {
        match cidr.parse::<IpNet>() {
            Ok(net) => pod_cidrs.push(net.trunc()),
            Err(_) => problems.push(format!("spec.podCIDRs[{i}]: {cidr:?} is not a prefix such as 10.0.1.0/24")),
        }
    }
    let mut addresses = Vec::new();
    let given = node.status.and_then(|status| status.addresses).unwrap_or_default();
    for kind in ["InternalIP", "ExternalIP"] {
        for (i, address) in given.iter().enumerate().filter(|(_, address)| address.type_ == kind) {
            match address.address.parse() {
                Ok(ip) if !addresses.contains(&ip) => addresses.push(ip),
                Ok(_) => {}
                Err(_) => {
                    problems.push(format!("status.addresses[{i}].address: {:?} is not an IP address", address.address));
                }
            }
        }
    }
    let wireguard_port = match annotations.get(WIREGUARD_PORT).map(|port| (port, port.parse::<u16>())) {
        None => DEFAULT_WIREGUARD_PORT,
        Some((_, Ok(port))) if port != 0 => port,
        Some((port, _)) => {
            problems.push(format!(
                "metadata.annotations.{WIREGUARD_PORT}: {port:?} is not a port; {DEFAULT_WIREGUARD_PORT} is used"
            ));
            DEFAULT_WIREGUARD_PORT
        }
    };
    Ok(Node {
        cluster: context.cluster.clone(),
        name: name.name.clone(),
        region: labels.get(REGION).cloned(),
        labels,
        addresses,
        pod_cidrs,
        wireguard_key: annotations.get(WIREGUARD_KEY).filter(|key| !key.is_empty()).cloned(),
        wireguard_port,
    })
}

pub(super) fn namespace(
    name: &ObjectName,
    object: &Value,
    context: &Context<'_>,
    problems: &mut Vec<String>,
) -> Result<Labels, ParseError> {
    let namespace: v1::Namespace = typed(object, context, problems)?;
    let mut labels = namespace.metadata.labels.unwrap_or_default();
    // The API server sets it on every namespace; files seldom have it.
    labels.insert("kubernetes.io/metadata.name".to_owned(), name.name.clone());
    Ok(labels)
}
