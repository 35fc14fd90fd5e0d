//! Policy as the kernel looks it up: for each endpoint, direction, peer identity and protocol, ranges of ports that do
//! not overlap, split into prefixes.
//!
//! The kernel joins what four look-ups give ({this identity, any} x {this protocol, every one}), deny winning, so each
//! of those keys is flattened by itself.
use super::{LocalEndpoints, PolicyPrefix, RuleNames};
use std::collections::{BTreeMap, BTreeSet};
use weft_bpf_abi::{
    net::{Addr, Endpoint, ICMP, ICMPV6, Port, TCP, UDP, identity},
    policy::{EGRESS, INGRESS, PolicyEntry, PolicyKey},
};
use weft_model::{
    policy::{EndpointPolicy, Peers, PortRange, Rule},
    snapshot::Snapshot,
    types::{ObjectName, WasmPlugin, Workload},
};

const SCTP: u8 = 132;
const EVERY_PROTOCOL: u8 = 0;

#[derive(Default)]
pub(super) struct PodPlan {
    pub endpoints: BTreeMap<Addr, Endpoint>,
    pub policy: BTreeMap<PolicyPrefix, PolicyEntry>,
    pub rules: RuleNames,
    pub unknown: Vec<ObjectName>,
}

pub(super) fn plan(snapshot: &Snapshot, local: &LocalEndpoints) -> PodPlan {
    let workloads: BTreeMap<&ObjectName, &Workload> = snapshot.local_workloads().map(|pod| (&pod.pod, pod)).collect();
    let rules = snapshot.policies.values().flat_map(|policy| policy.ingress.iter().chain(&policy.egress));
    let mut plan = PodPlan { rules: RuleNames::new(rules.map(|r| r.policy.as_str()).collect()), ..Default::default() };
    let open = EndpointPolicy::default();
    for (pod, endpoint) in local {
        let Some(workload) = workloads.get(pod) else {
            plan.unknown.push(pod.clone());
            continue;
        };
        let captured = plugin_ports(&snapshot.plugins, workload);
        let policy = snapshot.policies.get(pod).unwrap_or(&open);
        let entries = flatten(endpoint.id, policy, &captured, &plan.rules);
        let value = Endpoint {
            id: endpoint.id,
            identity: workload.identity,
            ifindex: endpoint.ifindex,
            flags: flags(policy, &entries),
        };
        plan.endpoints.extend(endpoint.addresses.iter().map(|addr| (Addr::from(*addr), value)));
        plan.policy.extend(entries);
    }
    plan
}

/// Does the plugin see this pod's inbound connections?
pub fn plugin_selects(plugin: &WasmPlugin, workload: &Workload) -> bool {
    plugin.name.namespace == workload.pod.namespace
        && plugin.selector.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
}

/// TCP ports, first to last, whose inbound connections some plugin wants to see.
fn plugin_ports(plugins: &[WasmPlugin], workload: &Workload) -> Vec<(u16, u16)> {
    let selected: Vec<&WasmPlugin> = plugins.iter().filter(|plugin| plugin_selects(plugin, workload)).collect();
    if selected.iter().any(|plugin| plugin.ports.is_empty()) {
        return vec![(0, u16::MAX)];
    }
    let ports: BTreeSet<u16> = selected.iter().flat_map(|plugin| &plugin.ports).copied().collect();
    ports.into_iter().map(|port| (port, port)).collect()
}

fn flags(policy: &EndpointPolicy, entries: &BTreeMap<PolicyPrefix, PolicyEntry>) -> u32 {
    let proxied = entries.values().any(|entry| entry.flags & (PolicyEntry::L7 | PolicyEntry::AUTH) != 0);
    let set = |flag, on| if on { flag } else { 0 };
    set(Endpoint::ENFORCE_INGRESS, policy.enforce_ingress)
        | set(Endpoint::ENFORCE_EGRESS, policy.enforce_egress)
        | set(Endpoint::PROXIED, proxied)
}

/// A rule's say about a range of ports.
#[derive(Clone, Copy)]
struct Piece {
    first: u16,
    last: u16,
    flags: u32,
    rule: u32,
}

impl Piece {
    /// Deny first, then the flag that decides most: the rule that an event should name.
    fn weight(&self) -> u32 {
        match self.flags {
            flags if flags & PolicyEntry::DENY != 0 => 3,
            flags if flags & PolicyEntry::ALLOW != 0 => 2,
            _ => 1,
        }
    }
}

/// Pieces by peer identity and protocol.
type Pieces = BTreeMap<(u32, u8), Vec<Piece>>;

/// All entries of one endpoint. `captured`: TCP ports whose inbound connections go through the proxy even where policy
/// would let them pass whole.
fn flatten(
    endpoint: u32,
    policy: &EndpointPolicy,
    captured: &[(u16, u16)],
    names: &RuleNames,
) -> BTreeMap<PolicyPrefix, PolicyEntry> {
    let mut entries = BTreeMap::new();
    for (direction, rules, enforced, captured) in [
        (INGRESS, &policy.ingress, policy.enforce_ingress, captured),
        (EGRESS, &policy.egress, policy.enforce_egress, &[][..]),
    ] {
        let mut pieces = Pieces::new();
        for rule in rules {
            add_rule(&mut pieces, rule, captured, names.number(&rule.policy));
        }
        if !enforced {
            let capture = |&(first, last)| Piece { first, last, flags: PolicyEntry::L7, rule: 0 };
            pieces.entry((identity::ANY, TCP)).or_default().extend(captured.iter().map(capture));
        }
        for ((identity, proto), pieces) in pieces {
            for range in disjoint(&pieces) {
                for (port, bits) in prefixes(range.first, range.last) {
                    let key = PolicyKey { endpoint, identity, direction, proto, port: Port::new(port) };
                    let value = PolicyEntry { flags: range.flags, rule: range.rule };
                    entries.insert(PolicyPrefix { bits: PolicyKey::FIXED_BITS + bits, key }, value);
                }
            }
        }
    }
    entries
}

fn add_rule(pieces: &mut Pieces, rule: &Rule, captured: &[(u16, u16)], number: u32) {
    let auth = if rule.auth_required { PolicyEntry::AUTH } else { 0 };
    let flags = match (rule.deny, &rule.http) {
        (true, _) => PolicyEntry::DENY,
        (false, None) => PolicyEntry::ALLOW | auth,
        (false, Some(_)) => PolicyEntry::L7 | auth,
    };
    let peers = match &rule.peers {
        Peers::Any => &[identity::ANY][..],
        Peers::Identities(identities) => identities,
    };
    let everything = [(EVERY_PROTOCOL, 0, u16::MAX)];
    let ranges: Vec<(u8, u16, u16)> = match rule.ports.as_slice() {
        [] => everything.into(),
        ports => ports.iter().flat_map(protocols).collect(),
    };
    for (proto, first, last) in ranges {
        for (proto, first, last, flags) in capture(proto, first, last, flags, captured) {
            for peer in peers {
                pieces.entry((*peer, proto)).or_default().push(Piece { first, last, flags, rule: number });
            }
        }
    }
}

fn protocols(range: &PortRange) -> Vec<(u8, u16, u16)> {
    let numbers = match range.protocol {
        Some(protocol) => vec![protocol.number()],
        None => vec![TCP, UDP, SCTP],
    };
    numbers.into_iter().map(|number| (number, range.first, range.last)).collect()
}

/// Turns `ALLOW` into `L7` on the captured TCP ports. An allow of every protocol is spelled out, because the kernel
/// would join it with the TCP entry.
fn capture(proto: u8, first: u16, last: u16, flags: u32, captured: &[(u16, u16)]) -> Vec<(u8, u16, u16, u32)> {
    if captured.is_empty() || flags & PolicyEntry::ALLOW == 0 || !matches!(proto, TCP | EVERY_PROTOCOL) {
        return vec![(proto, first, last, flags)];
    }
    let mut out = Vec::new();
    if proto == EVERY_PROTOCOL {
        out.extend([UDP, SCTP, ICMP, ICMPV6].map(|proto| (proto, first, last, flags)));
    }
    let mut next = u32::from(first);
    for &(from, to) in captured {
        let (from, to) = (from.max(first), to.min(last));
        if from > to || u32::from(from) < next {
            continue;
        }
        if next < u32::from(from) {
            out.push((TCP, next as u16, from - 1, flags));
        }
        out.push((TCP, from, to, flags & !PolicyEntry::ALLOW | PolicyEntry::L7));
        next = u32::from(to) + 1;
    }
    if next <= u32::from(last) {
        out.push((TCP, next as u16, last, flags));
    }
    out
}

/// Cuts at every border and joins what lies over each part: deny wins, else all flags hold together.
fn disjoint(pieces: &[Piece]) -> Vec<Piece> {
    let borders: BTreeSet<u32> =
        pieces.iter().flat_map(|piece| [u32::from(piece.first), u32::from(piece.last) + 1]).collect();
    let borders: Vec<u32> = borders.into_iter().collect();
    let mut out: Vec<Piece> = Vec::new();
    for part in borders.windows(2) {
        let (first, last) = (part[0] as u16, (part[1] - 1) as u16);
        let over = || pieces.iter().filter(|piece| piece.first <= first && last <= piece.last);
        let Some(decisive) = over().max_by_key(|piece| (piece.weight(), std::cmp::Reverse(piece.rule))) else {
            continue;
        };
        let joined = over().fold(0, |flags, piece| flags | piece.flags);
        let flags = if joined & PolicyEntry::DENY != 0 { PolicyEntry::DENY } else { joined };
        match out.last_mut() {
            Some(before)
                if before.last.checked_add(1) == Some(first)
                    && (before.flags, before.rule) == (flags, decisive.rule) =>
            {
                before.last = last;
            }
            _ => out.push(Piece { first, last, flags, rule: decisive.rule }),
        }
    }
    out
}

/// The fewest prefixes (first port, bits) that make up `first..=last`.
fn prefixes(first: u16, last: u16) -> Vec<(u16, u32)> {
    let (mut next, last) = (u32::from(first), u32::from(last));
    let mut out = Vec::new();
    while next <= last {
        let aligned = if next == 0 { 16 } else { next.trailing_zeros() };
        let fits = (last - next + 1).ilog2();
        let size = aligned.min(fits);
        out.push((next as u16, 16 - size));
        next += 1 << size;
    }
    out
}

#[cfg(test)]
mod tests;
