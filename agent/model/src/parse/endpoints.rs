//! EndpointSlices.
use super::{Context, ParseError, service::protocol_of, typed};
use crate::types::{Backend, ObjectName};
use k8s_openapi::api::discovery::v1;
use serde_json::Value;

/// The endpoints that one EndpointSlice gives to its service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceFact {
    /// From the label `kubernetes.io/service-name`; `None`: nobody's.
    pub service: Option<ObjectName>,
    pub backends: Vec<Backend>,
}

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Made by Cilium's ClusterMesh out of remote endpoints: taken from the mesh itself, and must not count as local.
const CILIUM_MESH: &str = "endpointslice-mesh-controller.cilium.io";

pub(super) fn slice(
    name: &ObjectName,
    object: &Value,
    context: &Context<'_>,
    problems: &mut Vec<String>,
) -> Result<SliceFact, ParseError> {
    let slice: v1::EndpointSlice = typed(object, context, problems)?;
    let labels = slice.metadata.labels.unwrap_or_default();
    let foreign = labels.get(MANAGED_BY).is_some_and(|by| by == CILIUM_MESH);
    let service = labels.get(SERVICE_NAME).filter(|_| !foreign);
    let service = service.map(|service| ObjectName::new(&name.namespace, service));
    if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
        // FQDN slices have no meaning for service addresses.
        return Ok(SliceFact { service, backends: Vec::new() });
    }
    let mut ports = Vec::new();
    for (i, port) in slice.ports.iter().flatten().enumerate() {
        let number = port.port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        match (number, protocol_of(port.protocol.as_deref())) {
            (Some(number), Some(protocol)) => ports.push((number, protocol, port.name.clone().unwrap_or_default())),
            (None, _) => problems.push(format!("ports[{i}].port: want 1 to 65535")),
            (_, None) => problems.push(format!("ports[{i}].protocol: want TCP, UDP or SCTP")),
        }
    }
    let mut backends = Vec::new();
    for (i, endpoint) in slice.endpoints.into_iter().enumerate() {
        let conditions = endpoint.conditions.unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        let pod = endpoint.target_ref.filter(|target| target.kind.as_deref() == Some("Pod")).and_then(|target| {
            Some(ObjectName::new(target.namespace.unwrap_or_else(|| name.namespace.clone()), target.name?))
        });
        // Addresses of one endpoint are the same endpoint: consumers are told to use the first.
        let Some(Ok(addr)) = endpoint.addresses.first().map(|address| address.parse()) else {
            problems.push(format!("endpoints[{i}].addresses[0]: want an IP address"));
            continue;
        };
        backends.extend(ports.iter().map(|(port, protocol, port_name)| Backend {
            addr,
            port: *port,
            protocol: *protocol,
            port_name: port_name.clone(),
            cluster: context.cluster.clone(),
            node: endpoint.node_name.clone(),
            pod: pod.clone(),
            ready,
            serving: conditions.serving.unwrap_or(ready),
            terminating: conditions.terminating.unwrap_or(false),
        }));
    }
    Ok(SliceFact { service, backends })
}
