//! The configuration in force, compiled for look-ups: who is who, what is allowed, which plugins see what. Immutable;
//! a new configuration is a new value.
use crate::{
    identities::{Identities, Party},
    policy_sets::{PolicySets, SetId},
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};
use weft_model::{
    policy::{EndpointPolicy, Rule, Verdict},
    types::Protocol,
};
use weft_proxy_api::config::{PluginConfig, ProxyConfig};

/// Names of the built-in plugins; only entries without targets count as such.
pub const HTTP_POLICY: &str = "http-policy";
pub const SPIFFE_AUTHZ: &str = "spiffe-authz";

/// A configuration that is refused as a whole; the one before stays in force.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("configuration {version}: denyStatus {status} is no error status: want 400 to 599")]
    DenyStatus { version: u64, status: u16 },
    #[error("configuration {version}: two local pods have the address {address}")]
    TwoPods { version: u64, address: IpAddr },
}

/// What policy says of a connection; the policy's name is for flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Deny {
        reason: &'static str,
        policy: String,
    },
    Allow {
        policy: String,
    },
    /// Each request must be allowed by this set of `http-policy`.
    Http {
        set: SetId,
    },
}

pub mod reason {
    //! Why the proxy refuses, in the words of flows.
    pub const POLICY: &str = "policy-denied";
    pub const PLAIN_TEXT: &str = "authentication required: plain text connection refused";
    pub const NOT_OURS: &str = "the destination is not a pod of this node";
    pub const STALE_RULES: &str = "http-policy has no rules for this connection";
}

#[derive(Debug)]
pub struct Compiled {
    pub node: String,
    pub deny_status: u16,
    pub identities: Identities,
    pub sets: PolicySets,
    /// In the order of execution. Chains name plugins by their index here.
    pub plugins: Vec<PluginConfig>,
    pub http_policy: Option<usize>,
    pub spiffe_authz: Option<usize>,
    /// Parts that failed closed.
    pub problems: Vec<String>,
    policies: BTreeMap<IpAddr, EndpointPolicy>,
    by_target: HashMap<IpAddr, Vec<usize>>,
    auth_destinations: HashSet<(IpAddr, u16)>,
}

impl Compiled {
    pub fn new(config: ProxyConfig) -> Result<Self, ConfigError> {
        let version = config.version;
        if !(400..=599).contains(&config.deny_status) {
            return Err(ConfigError::DenyStatus { version, status: config.deny_status });
        }
        let mut local = HashSet::new();
        for address in config.workloads.iter().filter(|w| w.local).flat_map(|w| &w.addresses) {
            if !local.insert(*address) {
                return Err(ConfigError::TwoPods { version, address: *address });
            }
        }
        let sets = PolicySets::new(config.policies.values());
        let mut plugins = config.plugins;
        plugins.sort_by_key(|p| (p.plugin.phase, p.targets.is_some(), Reverse(p.plugin.priority)));
        let built_in = |name: &str| plugins.iter().position(|p| p.targets.is_none() && p.plugin.name.name == name);
        let mut by_target: HashMap<IpAddr, Vec<usize>> = HashMap::new();
        for (index, plugin) in plugins.iter().enumerate() {
            for address in plugin.targets.iter().flatten() {
                by_target.entry(*address).or_default().push(index);
            }
        }
        Ok(Self {
            identities: Identities::new(&config.workloads, &config.identities),
            problems: sets.problems.iter().cloned().collect(),
            http_policy: built_in(HTTP_POLICY),
            spiffe_authz: built_in(SPIFFE_AUTHZ),
            auth_destinations: config.auth_destinations.iter().copied().collect(),
            node: config.node,
            deny_status: config.deny_status,
            policies: config.policies,
            sets,
            plugins,
            by_target,
        })
    }

    /// Before the first configuration: no pod is ours, so every connection is refused.
    pub fn empty() -> Self {
        Self {
            node: String::new(),
            deny_status: 403,
            identities: Identities::default(),
            sets: PolicySets::default(),
            plugins: Vec::new(),
            http_policy: None,
            spiffe_authz: None,
            problems: Vec::new(),
            policies: BTreeMap::new(),
            by_target: HashMap::new(),
            auth_destinations: HashSet::new(),
        }
    }

    pub fn party(&self, address: SocketAddr) -> Party {
        self.identities.party(address)
    }

    /// Some policy lets this destination be reached by mutual TLS only.
    pub fn takes_mtls_only(&self, to: SocketAddr) -> bool {
        [to.port(), 0].into_iter().any(|port| self.auth_destinations.contains(&(to.ip(), port)))
    }

    /// Plugins of users for inbound connections to a local pod, in order.
    pub fn plugins_for(&self, to: SocketAddr) -> impl Iterator<Item = usize> {
        let ports = |index: &usize| &self.plugins[*index].plugin.ports;
        self.by_target
            .get(&to.ip())
            .into_iter()
            .flatten()
            .filter(move |index| ports(index).is_empty() || ports(index).contains(&to.port()))
            .copied()
    }

    /// Judges a connection to (`ingress`) or from a local pod. `authenticated`: the peer proved its SPIFFE ID on it, or,
    /// outbound, will have to.
    pub fn judge(&self, ingress: bool, pod: IpAddr, peer: u32, port: u16, authenticated: bool) -> Decision {
        let Some(policy) = self.policies.get(&pod) else {
            return match self.identities.workload(pod) {
                Some(workload) if workload.local => Decision::Allow { policy: String::new() },
                _ => Decision::Deny { reason: reason::NOT_OURS, policy: String::new() },
            };
        };
        let name = |rule: Option<&Rule>| rule.map(|rule| rule.policy.clone()).unwrap_or_default();
        match policy.judge(ingress, peer, Protocol::Tcp, port) {
            Verdict::Deny { rule } => Decision::Deny { reason: reason::POLICY, policy: name(rule) },
            Verdict::Allow { rule, auth_required: true } if !authenticated => {
                Decision::Deny { reason: reason::PLAIN_TEXT, policy: name(rule) }
            }
            Verdict::Http { rules, auth_required: true } if !authenticated => {
                Decision::Deny { reason: reason::PLAIN_TEXT, policy: name(rules.first().copied()) }
            }
            Verdict::Allow { rule, .. } => Decision::Allow { policy: name(rule) },
            Verdict::Http { rules, .. } => match self.sets.id(&rules) {
                Some(set) => Decision::Http { set: set.clone() },
                None => Decision::Deny { reason: reason::STALE_RULES, policy: name(rules.first().copied()) },
            },
        }
    }
}

#[cfg(test)]
mod tests;
