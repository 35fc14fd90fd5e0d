//! Pods.
use super::{Context, ParseError, service::protocol_of, typed};
use crate::types::{ObjectName, Protocol, Workload};
use k8s_openapi::api::core::v1;
use serde_json::Value;
use std::net::IpAddr;

/// A pod with what only its own cluster must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFact {
    /// Its identity is 0: the store fills it in.
    pub workload: Workload,
    /// Succeeded or Failed: its address may be another pod's by now.
    pub finished: bool,
    /// It has a `deletionTimestamp`.
    pub terminating: bool,
    pub ports: Vec<ContainerPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

impl PodFact {
    /// A container's port by its name.
    pub fn named_port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.ports.iter().find(|port| port.name == name && port.protocol == protocol).map(|port| port.port)
    }
}

pub(super) fn pod(
    name: &ObjectName,
    object: &Value,
    context: &Context<'_>,
    problems: &mut Vec<String>,
) -> Result<PodFact, ParseError> {
    let pod: v1::Pod = typed(object, context, problems)?;
    let spec = pod.spec.unwrap_or_default();
    let status = pod.status.unwrap_or_default();
    let mut addresses: Vec<IpAddr> = Vec::new();
    let listed = status.pod_ips.unwrap_or_default().into_iter().map(|ip| ip.ip);
    for ip in listed.chain(status.pod_ip).filter(|ip| !ip.is_empty()) {
        match ip.parse() {
            Ok(ip) if !addresses.contains(&ip) => addresses.push(ip),
            Ok(_) => {}
            Err(_) => problems.push(format!("status.podIPs: {ip:?} is not an IP address")),
        }
    }
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten()).filter_map(|port| {
        Some(ContainerPort {
            name: port.name.clone().unwrap_or_default(),
            protocol: protocol_of(port.protocol.as_deref())?,
            port: u16::try_from(port.container_port).ok().filter(|port| *port != 0)?,
        })
    });
    let workload = Workload {
        cluster: context.cluster.clone(),
        pod: name.clone(),
        service_account: spec.service_account_name.filter(|sa| !sa.is_empty()).unwrap_or_else(|| "default".to_owned()),
        trust_domain: context.trust_domain.clone(),
        labels: pod.metadata.labels.unwrap_or_default(),
        addresses,
        node: spec.node_name.clone().filter(|node| !node.is_empty()),
        node_ip: status.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
        host_network: spec.host_network.unwrap_or(false),
        ready,
        identity: 0,
    };
    Ok(PodFact {
        ports: ports.collect(),
        workload,
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        terminating: pod.metadata.deletion_timestamp.is_some(),
    })
}
