//! Policies resolved: from labels, entities and prefixes to the identities that each pod may talk with.
mod cidr;
mod ports;
mod selector;

#[cfg(test)]
mod tests;

pub use cidr::prefixes;
pub use ports::PortSpec;
pub use selector::{Selector, Test, label};

use crate::{
    identity::{HOST, REMOTE_NODE, WORLD},
    parse::{Kind, PodFact},
    policy::{EndpointPolicy, HttpRule, Peers, PolicyStatus, Rule},
    store::sort_status,
    types::{ClusterName, ObjectName, SecurityIdentity, Workload},
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// A policy as it was written, of any of the three kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFact {
    pub kind: Kind,
    pub name: ObjectName,
    pub specs: Vec<PolicySpec>,
    /// It cannot be honoured whole, and why. Then its specs say only whom it selects and which directions it speaks of.
    pub rejected: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySpec {
    /// The pods that it is about.
    pub subject: Selector,
    pub enforce_ingress: bool,
    pub enforce_egress: bool,
    pub ingress: Vec<RuleSpec>,
    pub egress: Vec<RuleSpec>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSpec {
    pub deny: bool,
    pub peers: Vec<PeerSpec>,
    /// Empty: every port.
    pub ports: Vec<PortSpec>,
    pub http: Option<Vec<HttpRule>>,
    pub auth_required: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerSpec {
    /// Everybody.
    All,
    /// Pods, and what is reserved where the selector says so.
    Labels(Selector),
    /// This cluster's pods and nodes.
    Cluster,
    /// All that is outside of every connected cluster, prefixes that policies name among it.
    World,
    Host,
    RemoteNode,
    /// Addresses outside of every connected cluster.
    Cidr {
        net: IpNet,
        except: Vec<IpNet>,
    },
}

pub(crate) struct Input<'a> {
    pub cluster: &'a ClusterName,
    pub node_name: &'a str,
    pub ignore_unsupported: bool,
    pub identities: &'a BTreeMap<u32, SecurityIdentity>,
    pub workloads: &'a [Workload],
    /// This cluster's, for the names of their ports.
    pub pods: &'a BTreeMap<ObjectName, Arc<PodFact>>,
    pub policies: &'a BTreeMap<(Kind, ObjectName), Arc<PolicyFact>>,
}

#[derive(Debug, Default)]
pub(crate) struct Resolved {
    pub policies: BTreeMap<ObjectName, EndpointPolicy>,
    pub status: Vec<PolicyStatus>,
    pub auth_destinations: BTreeSet<(IpAddr, u16)>,
}

/// Shown as the policy of the rule that lets a pod's own node in: the kubelet's probes come from there, and Kubernetes
/// promises that they arrive.
pub const HOST_RULE: &str = "(own node)";

/// The labels that policies' selectors name.
pub(crate) fn label_names(policies: &BTreeMap<(Kind, ObjectName), Arc<PolicyFact>>) -> impl Iterator<Item = &str> {
    let specs = policies.values().flat_map(|policy| &policy.specs);
    specs.flat_map(|spec| {
        let peers = spec.ingress.iter().chain(&spec.egress).flat_map(|rule| &rule.peers);
        let selectors =
            peers.filter_map(|peer| if let PeerSpec::Labels(selector) = peer { Some(selector) } else { None });
        std::iter::once(&spec.subject).chain(selectors).flat_map(Selector::label_names)
    })
}

pub(crate) fn resolve(input: &Input<'_>) -> Resolved {
    let identities = Identities::new(input);
    let mut local: BTreeMap<&ObjectName, (&Workload, EndpointPolicy)> = BTreeMap::new();
    let mut by_identity: HashMap<u32, Vec<&Workload>> = HashMap::new();
    for workload in input.workloads.iter().filter(|workload| workload.cluster == *input.cluster) {
        by_identity.entry(workload.identity).or_default().push(workload);
        if workload.node.as_deref() == Some(input.node_name) {
            local.insert(&workload.pod, (workload, EndpointPolicy::default()));
        }
    }
    let mut resolved = Resolved::default();
    for policy in input.policies.values() {
        let ignored = policy.rejected.is_some() && input.ignore_unsupported;
        let mut endpoints = BTreeSet::new();
        for spec in &policy.specs {
            let subjects = identities.own(&spec.subject);
            let subjects: Vec<&Workload> =
                subjects.iter().filter_map(|id| by_identity.get(id)).flatten().copied().collect();
            let rules = OnceRules::new(policy, spec, &identities);
            for workload in subjects {
                if !ignored && policy.rejected.is_none() {
                    auth_destinations(workload, spec, input.pods, &mut resolved.auth_destinations);
                }
                let Some((_, endpoint)) = local.get_mut(&workload.pod) else { continue };
                endpoints.extend(workload.addresses.iter().copied());
                if !ignored {
                    rules.add_to(endpoint, input.pods.get(&workload.pod).map(Arc::as_ref));
                }
            }
        }
        resolved.status.push(PolicyStatus {
            kind: policy.kind.name().to_owned(),
            name: policy.name.to_string(),
            state: match &policy.rejected {
                None => "enforced".to_owned(),
                Some(reason) if ignored => format!("ignored: {reason}"),
                Some(reason) => format!("rejected: {reason}"),
            },
            endpoints: endpoints.into_iter().collect(),
        });
    }
    sort_status(&mut resolved.status);
    for (name, (_, mut endpoint)) in local {
        if endpoint.enforce_ingress {
            endpoint.ingress.push(host_rule());
        }
        resolved.policies.insert(name.clone(), endpoint);
    }
    resolved
}

fn host_rule() -> Rule {
    Rule {
        policy: HOST_RULE.to_owned(),
        deny: false,
        peers: Peers::Identities(vec![HOST]),
        ports: Vec::new(),
        http: None,
        auth_required: false,
    }
}

/// The rules of one spec, made when the first pod needs them.
struct OnceRules<'a> {
    policy: &'a PolicyFact,
    spec: &'a PolicySpec,
    identities: &'a Identities<'a>,
    made: std::cell::OnceCell<(Vec<Rule>, Vec<Rule>)>,
}

impl<'a> OnceRules<'a> {
    fn new(policy: &'a PolicyFact, spec: &'a PolicySpec, identities: &'a Identities<'a>) -> Self {
        Self { policy, spec, identities, made: std::cell::OnceCell::new() }
    }

    fn add_to(&self, endpoint: &mut EndpointPolicy, pod: Option<&PodFact>) {
        let spec = self.spec;
        endpoint.enforce_ingress |= spec.enforce_ingress;
        endpoint.enforce_egress |= spec.enforce_egress;
        if self.policy.rejected.is_some() {
            let deny = |peers| Rule {
                policy: self.policy.name.to_string(),
                deny: true,
                peers,
                ports: Vec::new(),
                http: None,
                auth_required: false,
            };
            if spec.enforce_ingress {
                // The own node still gets in: a probe that fails would restart the pod, and hide why.
                endpoint.ingress.push(deny(Peers::Identities(self.identities.all_but_host())));
            }
            if spec.enforce_egress {
                endpoint.egress.push(deny(Peers::Any));
            }
            return;
        }
        let (ingress, egress) = self.made.get_or_init(|| {
            let make = |rules: &[RuleSpec]| rules.iter().map(|rule| self.rule(rule)).collect();
            (make(&spec.ingress), make(&spec.egress))
        });
        endpoint
            .ingress
            .extend(ingress.iter().zip(&spec.ingress).filter_map(|(rule, spec)| with_ports(rule, spec, pod)));
        endpoint.egress.extend(egress.iter().zip(&spec.egress).filter_map(|(rule, spec)| with_ports(rule, spec, pod)));
    }

    fn peers(&self, rule: &RuleSpec) -> Peers {
        match self.identities.peers(&rule.peers) {
            // The own node is let in to probe, and a kubelet has no identity to prove.
            Peers::Any if rule.auth_required => Peers::Identities(self.identities.all_but_host()),
            Peers::Identities(mut ids) if rule.auth_required => {
                ids.retain(|id| *id != HOST);
                Peers::Identities(ids)
            }
            peers => peers,
        }
    }

    fn rule(&self, rule: &RuleSpec) -> Rule {
        Rule {
            policy: self.policy.name.to_string(),
            deny: rule.deny,
            peers: self.peers(rule),
            ports: Vec::new(),
            http: rule.http.clone(),
            auth_required: rule.auth_required,
        }
    }
}

/// `None`: it names only ports that the pod does not have.
fn with_ports(rule: &Rule, spec: &RuleSpec, pod: Option<&PodFact>) -> Option<Rule> {
    let ports = ports::resolve(&spec.ports, pod);
    (!ports.is_empty() || spec.ports.is_empty()).then(|| Rule { ports, ..rule.clone() })
}

fn auth_destinations(
    workload: &Workload,
    spec: &PolicySpec,
    pods: &BTreeMap<ObjectName, Arc<PodFact>>,
    found: &mut BTreeSet<(IpAddr, u16)>,
) {
    for rule in spec.ingress.iter().filter(|rule| rule.auth_required && !rule.deny) {
        let pod = pods.get(&workload.pod).map(Arc::as_ref);
        for port in ports::authenticated(&rule.ports, pod) {
            found.extend(workload.addresses.iter().map(|ip| (*ip, port)));
        }
    }
}

/// Identities sorted for look-up by selectors.
struct Identities<'a> {
    cluster_key: String,
    cluster: &'a ClusterName,
    all: &'a BTreeMap<u32, SecurityIdentity>,
    by_namespace: HashMap<&'a str, Vec<&'a SecurityIdentity>>,
    cidrs: Vec<(IpNet, u32)>,
}

impl<'a> Identities<'a> {
    fn new(input: &Input<'a>) -> Self {
        let key = format!("{}{}", label::K8S, label::NAMESPACE);
        let mut by_namespace: HashMap<&str, Vec<&SecurityIdentity>> = HashMap::new();
        for identity in input.identities.values() {
            if let Some(namespace) = identity.labels.get(&key) {
                by_namespace.entry(namespace).or_default().push(identity);
            }
        }
        Self {
            cluster_key: format!("{}{}", label::K8S, label::CLUSTER),
            cluster: input.cluster,
            all: input.identities,
            by_namespace,
            cidrs: input.identities.values().filter_map(|identity| Some((identity.cidr?, identity.id))).collect(),
        }
    }

    fn is_own(&self, identity: &SecurityIdentity) -> bool {
        identity.labels.get(&self.cluster_key).is_some_and(|cluster| cluster == self.cluster.as_str())
    }

    fn matching(&self, selector: &Selector) -> Vec<&'a SecurityIdentity> {
        // A prefix has no labels to select by.
        let fits = |identity: &&SecurityIdentity| identity.cidr.is_none() && selector.matches(&identity.labels);
        match selector.single_namespace() {
            Some(namespace) => self.by_namespace.get(namespace).into_iter().flatten().copied().filter(fits).collect(),
            None => self.all.values().filter(fits).collect(),
        }
    }

    /// This cluster's pods.
    fn own(&self, selector: &Selector) -> Vec<u32> {
        self.matching(selector)
            .into_iter()
            .filter(|identity| self.is_own(identity))
            .map(|identity| identity.id)
            .collect()
    }

    fn all_but_host(&self) -> Vec<u32> {
        self.all.keys().copied().filter(|id| *id != HOST).collect()
    }

    fn peers(&self, specs: &[PeerSpec]) -> Peers {
        let mut ids = BTreeSet::new();
        for spec in specs {
            match spec {
                PeerSpec::All => return Peers::Any,
                PeerSpec::Labels(selector) => {
                    ids.extend(self.matching(selector).into_iter().map(|identity| identity.id))
                }
                PeerSpec::Cluster => {
                    ids.extend([HOST, REMOTE_NODE]);
                    ids.extend(self.all.values().filter(|identity| self.is_own(identity)).map(|identity| identity.id));
                }
                PeerSpec::World => {
                    ids.insert(WORLD);
                    ids.extend(self.cidrs.iter().map(|(_, id)| *id));
                }
                PeerSpec::Host => drop(ids.insert(HOST)),
                PeerSpec::RemoteNode => drop(ids.insert(REMOTE_NODE)),
                PeerSpec::Cidr { net, except } => ids.extend(cidr::inside(*net, except, &self.cidrs)),
            }
        }
        Peers::Identities(ids.into_iter().collect())
    }
}
