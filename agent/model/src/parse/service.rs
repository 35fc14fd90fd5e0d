//! Services: addresses that answer for them, and the annotations that make them global.
use super::{Context, ParseError, typed};
use crate::types::{Affinity, Frontend, FrontendKind, GlobalService, Labels, ObjectName, Protocol, Service};
use k8s_openapi::{api::core::v1, apimachinery::pkg::util::intstr::IntOrString};
use serde_json::Value;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

/// A service with how its ports are found on pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFact {
    pub service: Service,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub target: TargetPort,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    Number(u16),
    /// A port of the pod's containers.
    Name(String),
}

const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

/// TCP where not given; `None`: not a protocol of services.
pub(crate) fn protocol_of(name: Option<&str>) -> Option<Protocol> {
    match name {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

pub(super) fn service(
    name: &ObjectName,
    object: &Value,
    context: &Context<'_>,
    problems: &mut Vec<String>,
) -> Result<ServiceFact, ParseError> {
    let given: v1::Service = typed(object, context, problems)?;
    let spec = given.spec.unwrap_or_default();
    let kind = spec.type_.clone().unwrap_or_else(|| "ClusterIP".to_owned());
    if !matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName") {
        let problem = format!("{kind:?} is not a type; want ClusterIP, NodePort, LoadBalancer or ExternalName");
        return Err(ParseError::invalid("spec.type", problem));
    }
    let external_name = kind == "ExternalName";
    let headless =
        spec.cluster_ip.as_deref() == Some("None") || spec.cluster_ips.iter().flatten().any(|ip| ip == "None");
    let ports = ports(&spec)?;
    let balancer: Vec<String> = given
        .status
        .and_then(|status| status.load_balancer)
        .and_then(|balancer| balancer.ingress)
        .unwrap_or_default()
        .into_iter()
        // `Proxy`: the load balancer wants to see the traffic itself.
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip)
        .collect();
    let frontends = if external_name || headless {
        Vec::new()
    } else {
        frontends(&spec, &kind, &balancer, &ports, context, problems)
    };
    Ok(ServiceFact {
        service: Service {
            name: name.clone(),
            selector: spec.selector.clone().filter(|selector| !selector.is_empty() && !external_name),
            frontends,
            headless,
            session_affinity: session_affinity(&spec)?,
            internal_traffic_local: local_policy(
                "spec.internalTrafficPolicy",
                spec.internal_traffic_policy.as_deref(),
            )?,
            external_traffic_local: local_policy(
                "spec.externalTrafficPolicy",
                spec.external_traffic_policy.as_deref(),
            )?,
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            global: global(&given.metadata.annotations.unwrap_or_default(), problems),
            labels: given.metadata.labels.unwrap_or_default(),
            kind,
        },
        ports: ports.into_iter().map(|(port, _)| port).collect(),
    })
}

/// Each port with its node port.
fn ports(spec: &v1::ServiceSpec) -> Result<Vec<(ServicePort, Option<u16>)>, ParseError> {
    let number = |path: String, port: i32| {
        u16::try_from(port)
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| ParseError::invalid(path, format!("{port} is not a port; want 1 to 65535")))
    };
    let mut ports = Vec::new();
    for (i, given) in spec.ports.iter().flatten().enumerate() {
        let path = |field: &str| format!("spec.ports[{i}].{field}");
        let protocol = protocol_of(given.protocol.as_deref())
            .ok_or_else(|| ParseError::invalid(path("protocol"), "want TCP, UDP or SCTP"))?;
        let port = number(path("port"), given.port)?;
        let target = match &given.target_port {
            None | Some(IntOrString::Int(0)) => TargetPort::Number(port),
            Some(IntOrString::Int(target)) => TargetPort::Number(number(path("targetPort"), *target)?),
            Some(IntOrString::String(name)) => match name.parse() {
                Ok(target) => TargetPort::Number(number(path("targetPort"), target)?),
                Err(_) => TargetPort::Name(name.clone()),
            },
        };
        let node_port = match given.node_port {
            None | Some(0) => None,
            Some(node_port) => Some(number(path("nodePort"), node_port)?),
        };
        ports.push((ServicePort { name: given.name.clone().unwrap_or_default(), protocol, port, target }, node_port));
    }
    Ok(ports)
}

fn frontends(
    spec: &v1::ServiceSpec,
    kind: &str,
    balancer: &[String],
    ports: &[(ServicePort, Option<u16>)],
    context: &Context<'_>,
    problems: &mut Vec<String>,
) -> Vec<Frontend> {
    let mut read = |path: &str, list: Vec<&String>| -> Vec<IpAddr> {
        let mut ips = Vec::new();
        for text in list.into_iter().filter(|text| !text.is_empty()) {
            match text.parse() {
                Ok(ip) if !ips.contains(&ip) => ips.push(ip),
                Ok(_) => {}
                Err(_) => problems.push(format!("{path}: {text:?} is not an IP address")),
            }
        }
        ips
    };
    let cluster_ips = match &spec.cluster_ips {
        Some(list) if !list.is_empty() => read("spec.clusterIPs", list.iter().collect()),
        _ => read("spec.clusterIP", spec.cluster_ip.iter().collect()),
    };
    let external_ips = read("spec.externalIPs", spec.external_ips.iter().flatten().collect());
    let balancer_ips = match kind {
        "LoadBalancer" => read("status.loadBalancer.ingress", balancer.iter().collect()),
        _ => Vec::new(),
    };
    let families = spec.ip_families.clone().unwrap_or_default();
    let has_v6 = families.iter().any(|f| f == "IPv6") || cluster_ips.iter().any(IpAddr::is_ipv6);
    let has_v4 = families.iter().any(|f| f == "IPv4") || cluster_ips.iter().any(IpAddr::is_ipv4) || !has_v6;
    if context.strict && cluster_ips.is_empty() {
        problems.push("spec.clusterIP: missing, and nothing here hands out addresses; write one, or None".to_owned());
    }
    let mut found = Vec::new();
    for (port, node_port) in ports {
        let mut add = |addr: IpAddr, number: u16, kind: FrontendKind| {
            found.push(Frontend { addr, port: number, protocol: port.protocol, port_name: port.name.clone(), kind });
        };
        cluster_ips.iter().for_each(|ip| add(*ip, port.port, FrontendKind::ClusterIP));
        external_ips.iter().for_each(|ip| add(*ip, port.port, FrontendKind::ExternalIP));
        balancer_ips.iter().for_each(|ip| add(*ip, port.port, FrontendKind::LoadBalancer));
        let Some(node_port) = node_port.filter(|_| kind != "ClusterIP") else { continue };
        if has_v4 {
            add(Ipv4Addr::UNSPECIFIED.into(), node_port, FrontendKind::NodePort);
        }
        if has_v6 {
            add(Ipv6Addr::UNSPECIFIED.into(), node_port, FrontendKind::NodePort);
        }
    }
    found
}

fn session_affinity(spec: &v1::ServiceSpec) -> Result<Option<Duration>, ParseError> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => Ok(None),
        Some("ClientIP") => {
            let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            let seconds = client_ip.and_then(|config| config.timeout_seconds).unwrap_or(DEFAULT_AFFINITY_SECONDS);
            match u64::try_from(seconds) {
                Ok(seconds @ 1..=86_400) => Ok(Some(Duration::from_secs(seconds))),
                _ => {
                    let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
                    Err(ParseError::invalid(path, format!("{seconds} is out of range; want 1 to 86400")))
                }
            }
        }
        Some(other) => {
            Err(ParseError::invalid("spec.sessionAffinity", format!("{other:?} is not known; want None or ClientIP")))
        }
    }
}

fn local_policy(path: &str, value: Option<&str>) -> Result<bool, ParseError> {
    match value {
        None | Some("" | "Cluster") => Ok(false),
        Some("Local") => Ok(true),
        Some(other) => Err(ParseError::invalid(path, format!("{other:?} is not known; want Cluster or Local"))),
    }
}

/// `weft.dev/*` wins over `service.cilium.io/*`.
fn global(annotations: &Labels, problems: &mut Vec<String>) -> Option<GlobalService> {
    let find = |name: &str| {
        ["weft.dev", "service.cilium.io"]
            .into_iter()
            .map(|prefix| format!("{prefix}/{name}"))
            .find_map(|key| annotations.get(&key).map(|value| (key, value.trim().to_ascii_lowercase())))
    };
    let mut yes = |name: &str, default: bool| match find(name) {
        None => default,
        Some((_, value)) if value == "true" => true,
        Some((_, value)) if value == "false" => false,
        Some((key, value)) => {
            problems.push(format!(
                "metadata.annotations.{key}: {value:?} is neither \"true\" nor \"false\"; false is used"
            ));
            false
        }
    };
    let (is_global, shared) = (yes("global", false), yes("shared", true));
    let affinity = match find("affinity") {
        None => Affinity::None,
        Some((key, value)) => match value.as_str() {
            "none" | "" => Affinity::None,
            "local" => Affinity::Local,
            "remote" => Affinity::Remote,
            _ => {
                let problem = format!("{value:?} is not known; want local, remote or none; none is used");
                problems.push(format!("metadata.annotations.{key}: {problem}"));
                Affinity::None
            }
        },
    };
    is_global.then_some(GlobalService { shared, affinity })
}
