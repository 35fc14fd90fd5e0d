//! Makes the maps hold what the plan says: at start, at every change and after a restart by the same path. Writes only
//! differences, in an order in which no program ever sees less protection than the old or the new state gives.
pub(crate) mod kernel;
pub mod services;
pub mod table;

use crate::plan::{AddrPrefix, Desired, PolicyPrefix};
use serde::Serialize;
use services::ServiceTables;
use std::collections::{BTreeMap, BTreeSet};
use table::{Refusal, Table};
use weft_bpf_abi::{
    net::{Addr, AuthDestination, Endpoint, IpInfo, NodeConfig},
    policy::PolicyEntry,
};

/// Failures beyond these are counted, not kept.
const MAX_FAILURES: usize = 64;

/// What one pass did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub written: u64,
    pub removed: u64,
    /// The first of them; `failed` counts all.
    pub failures: Vec<Failure>,
    pub failed: u64,
    /// Endpoints whose denying or authenticating entries did not fit: nothing passes to or from them.
    pub isolated: Vec<u32>,
    /// The programs let traffic pass.
    pub ready: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    pub map: &'static str,
    pub entry: String,
    pub reason: String,
}

impl Report {
    /// Everything is as the plan says.
    pub fn complete(&self) -> bool {
        self.failed == 0
    }

    pub fn changes(&self) -> u64 {
        self.written + self.removed
    }

    fn fail(&mut self, map: &'static str, entry: String, refusal: &Refusal) {
        self.failed += 1;
        if self.failures.len() < MAX_FAILURES {
            self.failures.push(Failure { map, entry, reason: refusal.to_string() });
        }
    }

    fn add(&mut self, other: Self) {
        self.written += other.written;
        self.removed += other.removed;
        self.failed += other.failed;
        let room = MAX_FAILURES.saturating_sub(self.failures.len());
        self.failures.extend(other.failures.into_iter().take(room));
    }
}

/// Every map that the agent writes.
pub struct Tables {
    pub services: ServiceTables,
    pub node_addresses: Table<Addr, u32>,
    pub ipcache: Table<AddrPrefix, IpInfo>,
    pub endpoints: Table<Addr, Endpoint>,
    pub policy: Table<PolicyPrefix, PolicyEntry>,
    pub auth_destinations: Table<AuthDestination, u32>,
    pub epoch: Table<u32, u32>,
    pub node_config: Table<u32, NodeConfig>,
    /// `bpf_get_netns_cookie` of the node's namespace.
    pub netns_cookie: u64,
}

impl Tables {
    /// One pass. Call it again with the same plan to retry what failed.
    pub fn reconcile(&mut self, desired: &Desired) -> Report {
        let mut report = Report::default();
        self.reconcile_node_addresses(&desired.node_addresses, &mut report);
        self.services.reconcile(&desired.services, &mut report);
        for destination in &desired.auth_destinations {
            self.auth_destinations.put(*destination, 1, &mut report);
        }
        let before = report.changes();
        let isolated = self.put_policy(&desired.policy, &mut report);
        let mut covered = true;
        for (prefix, info) in &desired.ipcache {
            let put = self.ipcache.put(*prefix, *info, &mut report);
            covered &= put || info.flags & IpInfo::ENCRYPT == 0;
        }
        let closed = self.put_endpoints(&desired.endpoints, &isolated, &mut report);
        self.endpoints.retain(|addr| desired.endpoints.contains_key(addr), &mut report);
        let keep =
            |prefix: &PolicyPrefix| desired.policy.contains_key(prefix) && !isolated.contains(&prefix.key.endpoint);
        self.policy.retain(keep, &mut report);
        self.ipcache.retain(|prefix| desired.ipcache.contains_key(prefix), &mut report);
        if report.changes() > before {
            // Connections that were let pass under the old entries are judged again.
            let epoch = self.epoch.known().get(&0).copied().unwrap_or(0);
            self.epoch.put(0, epoch.wrapping_add(1), &mut report);
        }
        self.auth_destinations.retain(|destination| desired.auth_destinations.contains(destination), &mut report);
        report.isolated = isolated.into_iter().collect();
        self.put_node_config(desired, covered && closed, &mut report);
        report.ready = self.ready();
        report
    }

    /// Compares the maps with what this process believes; returns how many entries differ. The next pass mends them.
    pub fn audit(&mut self) -> Result<usize, Refusal> {
        Ok(self.services.audit()?
            + self.node_addresses.audit()?
            + self.ipcache.audit()?
            + self.endpoints.audit()?
            + self.policy.audit()?
            + self.auth_destinations.audit()?
            + self.epoch.audit()?
            + self.node_config.audit()?)
    }

    pub fn ready(&self) -> bool {
        self.node_config.known().get(&0).is_some_and(|config| config.flags & NodeConfig::READY != 0)
    }

    fn reconcile_node_addresses(&mut self, desired: &BTreeSet<Addr>, report: &mut Report) {
        for addr in desired {
            self.node_addresses.put(*addr, 1, report);
        }
        self.node_addresses.retain(|addr| desired.contains(addr), report);
    }

    /// What denies first, what demands authentication next, the rest last. Returns the endpoints that lack an entry of
    /// the first two kinds: what they still would allow must not hold.
    fn put_policy(&mut self, desired: &BTreeMap<PolicyPrefix, PolicyEntry>, report: &mut Report) -> BTreeSet<u32> {
        let strict = |flags: u32| match flags {
            flags if flags & PolicyEntry::DENY != 0 => 0,
            flags if flags & PolicyEntry::AUTH != 0 => 1,
            _ => 2,
        };
        let mut isolated = BTreeSet::new();
        for wave in 0..3 {
            for (prefix, entry) in desired.iter().filter(|(_, entry)| strict(entry.flags) == wave) {
                let endpoint = prefix.key.endpoint;
                if !isolated.contains(&endpoint) && !self.policy.put(*prefix, *entry, report) && wave < 2 {
                    isolated.insert(endpoint);
                }
            }
        }
        isolated
    }

    /// False if an endpoint that should be isolated could not be.
    fn put_endpoints(
        &mut self,
        desired: &BTreeMap<Addr, Endpoint>,
        isolated: &BTreeSet<u32>,
        report: &mut Report,
    ) -> bool {
        let mut closed = true;
        for (addr, endpoint) in desired {
            let isolate = isolated.contains(&endpoint.id);
            let enforced = Endpoint::ENFORCE_INGRESS | Endpoint::ENFORCE_EGRESS;
            let flags = if isolate { enforced } else { endpoint.flags };
            let put = self.endpoints.put(*addr, Endpoint { flags, ..*endpoint }, report);
            closed &= put || !isolate;
        }
        closed
    }

    /// `complete`: what protects is in place. Once ready, a node stays ready; later failures close single endpoints.
    fn put_node_config(&mut self, desired: &Desired, complete: bool, report: &mut Report) {
        let ready = if complete || self.ready() { NodeConfig::READY } else { 0 };
        let trace = if desired.trace_allowed { NodeConfig::TRACE_ALLOWED } else { 0 };
        let wireguard_port = u32::from(desired.wireguard_port);
        self.node_config.put(
            0,
            NodeConfig { netns_cookie: self.netns_cookie, flags: ready | trace, wireguard_port },
            report,
        );
    }
}

#[cfg(test)]
mod tests;
