//! Network policy, resolved: what each local endpoint allows, by identity, port and HTTP rule.
use crate::types::Protocol;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The resolved policy of one local pod. Rules come from every policy that selects it; deny wins over allow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPolicy {
    /// Default-deny holds: some policy selects the pod in this direction.
    pub enforce_ingress: bool,
    pub enforce_egress: bool,
    pub ingress: Vec<Rule>,
    pub egress: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// `namespace/name` of the policy, or `name` where cluster-wide.
    pub policy: String,
    pub deny: bool,
    pub peers: Peers,
    /// Empty: every port of every protocol.
    pub ports: Vec<PortRange>,
    /// `Some`: TCP only, and only what these allow.
    pub http: Option<Vec<HttpRule>>,
    /// `authentication.mode: required`
    pub auth_required: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Peers {
    Any,
    /// Sorted security identities, CIDR identities and reserved ones among them. May be empty: nobody (yet).
    Identities(Vec<u32>),
}

impl Peers {
    pub fn contains(&self, identity: u32) -> bool {
        match self {
            Self::Any => true,
            Self::Identities(ids) => ids.binary_search(&identity).is_ok(),
        }
    }
}

/// `None` as protocol: TCP, UDP and SCTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    pub protocol: Option<Protocol>,
    pub first: u16,
    pub last: u16,
}

/// All that is given must match. Regular expressions are anchored at both ends, as Cilium does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// `Name: value`, or `Name` alone: present. Exact.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
}

/// What L3/L4 says of a new connection, as the kernel's `POLICY` map would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// The rule that allows it; `None`: the direction is not enforced.
    Allow {
        rule: Option<&'a Rule>,
        auth_required: bool,
    },
    /// Every matching L7 rule: the request must match one of their HTTP rules.
    Http {
        rules: Vec<&'a Rule>,
        auth_required: bool,
    },
    Deny {
        rule: Option<&'a Rule>,
    },
}

impl EndpointPolicy {
    /// Judges a connection from (`ingress`) or to a peer. Deny wins; a plain allow beats L7 rules; authentication is
    /// required if any matching rule requires it.
    pub fn judge(&self, ingress: bool, peer: u32, protocol: Protocol, port: u16) -> Verdict<'_> {
        let (rules, enforced) =
            if ingress { (&self.ingress, self.enforce_ingress) } else { (&self.egress, self.enforce_egress) };
        let matching: Vec<&Rule> = rules.iter().filter(|rule| rule.matches(peer, protocol, port)).collect();
        if let Some(rule) = matching.iter().find(|rule| rule.deny) {
            return Verdict::Deny { rule: Some(rule) };
        }
        let auth_required = matching.iter().any(|rule| rule.auth_required);
        if let Some(rule) = matching.iter().find(|rule| rule.http.is_none()) {
            return Verdict::Allow { rule: Some(rule), auth_required };
        }
        if !matching.is_empty() {
            return Verdict::Http { rules: matching, auth_required };
        }
        if enforced { Verdict::Deny { rule: None } } else { Verdict::Allow { rule: None, auth_required: false } }
    }
}

impl Rule {
    pub fn matches(&self, peer: u32, protocol: Protocol, port: u16) -> bool {
        self.peers.contains(peer)
            && (self.ports.is_empty() || self.ports.iter().any(|range| range.contains(protocol, port)))
    }
}

impl PortRange {
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        let speaks = match self.protocol {
            Some(p) => p == protocol,
            None => matches!(protocol, Protocol::Tcp | Protocol::Udp | Protocol::Sctp),
        };
        speaks && (self.first..=self.last).contains(&port)
    }
}

/// What became of a policy object, for `weft policy list` and the object's status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    pub kind: String,
    pub name: String,
    /// `enforced`, `rejected: FIELD is not supported`, or `ignored: …` where the agent is set to ignore such policies.
    pub state: String,
    /// Local pods that it selects.
    pub endpoints: Vec<IpAddr>,
}
