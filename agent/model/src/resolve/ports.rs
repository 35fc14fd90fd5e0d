//! Ports of rules, by number or by the name that a pod's container gives them.
use crate::{parse::PodFact, policy::PortRange, types::Protocol};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortSpec {
    Range(PortRange),
    /// A port of the selected pod's containers. `None`: of any protocol.
    Name {
        name: String,
        protocol: Option<Protocol>,
    },
}

/// A range greater than this counts as all ports where each must be listed.
const MOST_LISTED: u16 = 128;

const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// The ports as numbers. A name that the pod does not have is nothing.
pub(super) fn resolve(ports: &[PortSpec], pod: Option<&PodFact>) -> Vec<PortRange> {
    let mut found: Vec<PortRange> = Vec::new();
    for port in ports {
        match port {
            PortSpec::Range(range) => found.push(*range),
            PortSpec::Name { name, protocol } => {
                let protocols = ALL.into_iter().filter(|p| protocol.is_none_or(|wanted| wanted == *p));
                found.extend(protocols.filter_map(|protocol| {
                    let number = pod?.named_port(name, protocol)?;
                    Some(PortRange { protocol: Some(protocol), first: number, last: number })
                }));
            }
        }
    }
    found
}

/// The TCP ports of a rule, for a list of single ports; 0: all.
pub(super) fn authenticated(ports: &[PortSpec], pod: Option<&PodFact>) -> Vec<u16> {
    if ports.is_empty() {
        return vec![0];
    }
    let tcp = resolve(ports, pod).into_iter().filter(|range| matches!(range.protocol, None | Some(Protocol::Tcp)));
    tcp.flat_map(|range| {
        let listed = if range.last - range.first < MOST_LISTED { range.first..=range.last } else { 0..=0 };
        listed.collect::<Vec<_>>()
    })
    .collect()
}
