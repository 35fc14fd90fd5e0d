//! From a snapshot to the entries that the kernel's maps should hold. Pure: the same input gives the same entries, and
//! nothing here knows what the maps hold now.
pub mod addresses;
pub mod policy;
pub mod services;

use serde::{Deserialize, Serialize};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use weft_bpf_abi::{
    lb::{Backend, ServiceKey},
    net::{Addr, AuthDestination, Endpoint, IpInfo},
    policy::{PolicyEntry, PolicyKey},
};
use weft_model::{snapshot::Snapshot, types::ObjectName};

pub use addresses::Route;

/// Which traffic between pods must go through WireGuard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encryption {
    Off,
    /// To nodes whose region is not this node's, in whatever cluster.
    #[default]
    CrossRegion,
    /// To nodes of other clusters.
    CrossCluster,
    /// To every other node.
    All,
}

/// What the agent's own settings and its host say, beside the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSettings {
    pub encryption: Encryption,
    /// Addresses of this host's interfaces that its Node object may not name (the pods' gateway among them).
    pub host_addresses: Vec<IpAddr>,
    /// Events for allowed connections too.
    pub trace_allowed: bool,
}

/// The pods that the CNI plugin has connected on this node, by name.
pub type LocalEndpoints = BTreeMap<ObjectName, LocalEndpoint>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalEndpoint {
    /// Never 0; stable while the pod lives.
    pub id: u32,
    /// Host side of the veth.
    pub ifindex: u32,
    pub addresses: Vec<IpAddr>,
}

/// Everything that one node's maps and routes should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pub services: BTreeMap<ServiceKey, ServiceSet>,
    pub ipcache: BTreeMap<AddrPrefix, IpInfo>,
    pub endpoints: BTreeMap<Addr, Endpoint>,
    pub policy: BTreeMap<PolicyPrefix, PolicyEntry>,
    /// What the rule numbers in `policy` and in events stand for.
    pub rules: RuleNames,
    pub auth_destinations: BTreeSet<AuthDestination>,
    pub node_addresses: BTreeSet<Addr>,
    pub routes: BTreeSet<Route>,
    /// UDP port of the WireGuard device; 0: none.
    pub wireguard_port: u16,
    pub trace_allowed: bool,
    /// Connected pods that no source has named yet: they may neither send nor receive.
    pub unknown_endpoints: Vec<ObjectName>,
    /// Frontends that two services claim; the first by name has them.
    pub conflicts: Vec<Conflict>,
}

/// The backends behind one frontend: sorted, none twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSet {
    pub backends: Vec<Backend>,
    /// ClientIP session affinity in seconds; 0: none.
    pub affinity_seconds: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Conflict {
    pub frontend: String,
    pub kept: ObjectName,
    pub ignored: ObjectName,
}

/// A prefix of the 128-bit address space of `IPCACHE`. Wide ones sort first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddrPrefix {
    pub bits: u32,
    pub addr: Addr,
}

/// A key of `POLICY` with how many of its bits count: `FIXED_BITS` and up to 16 of the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyPrefix {
    pub bits: u32,
    pub key: PolicyKey,
}

impl PolicyPrefix {
    fn order(&self) -> (u32, u8, u32, u8, u16, u32) {
        let PolicyKey { endpoint, identity, direction, proto, port } = self.key;
        (endpoint, direction, identity, proto, port.get(), self.bits)
    }
}
impl Ord for PolicyPrefix {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}
impl PartialOrd for PolicyPrefix {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Rule numbers to policy names. 0 is no rule. A number is made from the name, so that it stays the same when other
/// policies come and go, and over restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleNames(BTreeMap<u32, String>);

impl RuleNames {
    fn new(names: BTreeSet<&str>) -> Self {
        let mut numbered = BTreeMap::new();
        for name in names {
            let free = candidates(name).find(|number| !numbered.contains_key(number));
            numbered.extend(free.map(|number| (number, name.to_owned())));
        }
        Self(numbered)
    }

    /// The name of the policy that an event's or entry's `rule` stands for.
    pub fn name(&self, rule: u32) -> Option<&str> {
        self.0.get(&rule).map(String::as_str)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        self.0.iter().map(|(number, name)| (*number, name.as_str()))
    }

    fn number(&self, policy: &str) -> u32 {
        let mut taken = candidates(policy).take_while(|number| self.0.contains_key(number));
        taken.find(|number| self.0[number] == policy).unwrap_or(0)
    }
}

/// FNV-1a of the name, and what follows it for names that would share a number.
fn candidates(name: &str) -> impl Iterator<Item = u32> + use<> {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (0..=u32::MAX).map(move |step| hash.wrapping_add(step)).filter(|number| *number != 0)
}

/// The plan. `local` comes from the CNI plugin, the rest from the sources.
pub fn entries(snapshot: &Snapshot, local: &LocalEndpoints, settings: &NodeSettings) -> Desired {
    let (services, conflicts) = services::plan(snapshot);
    let pods = policy::plan(snapshot, local);
    let node_addresses = snapshot
        .nodes
        .iter()
        .filter(|node| node.cluster == snapshot.cluster)
        .flat_map(|node| &node.addresses)
        .chain(&settings.host_addresses)
        .filter(|addr| !addr.is_loopback())
        .map(|addr| Addr::from(*addr))
        .collect();
    let wireguard_port = match (settings.encryption, snapshot.this_node()) {
        (Encryption::Off, _) | (_, None) => 0,
        (_, Some(node)) => node.wireguard_port,
    };
    Desired {
        services,
        ipcache: addresses::ipcache(snapshot, settings),
        endpoints: pods.endpoints,
        policy: pods.policy,
        rules: pods.rules,
        auth_destinations: snapshot
            .auth_destinations
            .iter()
            .map(|(addr, port)| AuthDestination::new(Addr::from(*addr), *port))
            .collect(),
        node_addresses,
        routes: addresses::routes(snapshot, settings.encryption),
        wireguard_port,
        trace_allowed: settings.trace_allowed,
        unknown_endpoints: pods.unknown,
        conflicts,
    }
}

#[cfg(test)]
pub(crate) mod fixtures;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_numbers_stay_when_other_policies_come() {
        let few = RuleNames::new(["shop/web"].into());
        let more = RuleNames::new(["a/first", "shop/web", "z/last"].into());
        assert_eq!(few.number("shop/web"), more.number("shop/web"));
        assert_eq!(more.name(more.number("a/first")), Some("a/first"));
        assert_eq!((more.number("unknown/policy"), more.name(0)), (0, None));
    }

    #[test]
    fn names_of_the_same_hash_get_different_numbers() {
        // Two names that FNV-1a takes to one number.
        let (a, b) = ("costarring", "liquid");
        assert_eq!(candidates(a).next(), candidates(b).next());
        let names = RuleNames::new([a, b].into());
        assert_eq!([a, b].map(|name| names.name(names.number(name))), [Some(a), Some(b)]);
    }
}
