//! Services and their backends. A set of backends is never changed: the new one is written whole under a fresh id, the
//! service is pointed at it, and the old one goes when no program can still be reading it.
use super::{
    Report,
    table::{Refusal, Table},
};
use crate::plan::ServiceSet;
use std::collections::{BTreeMap, BTreeSet};
use weft_bpf_abi::lb::{Backend, BackendKey, MemberKey, Service, ServiceKey};

pub struct ServiceTables {
    pub services: Table<ServiceKey, Service>,
    pub backends: Table<BackendKey, Backend>,
    pub members: Table<MemberKey, u32>,
    /// Sets that no service points to any more, and that are not removed yet.
    stale: BTreeSet<u32>,
    next_id: u32,
    next_affinity_id: u32,
    /// Returns when every program that may have read an old entry has ended.
    wait_for_readers: Box<dyn FnMut() + Send>,
}

impl ServiceTables {
    pub fn new(
        services: Table<ServiceKey, Service>,
        backends: Table<BackendKey, Backend>,
        members: Table<MemberKey, u32>,
        wait_for_readers: Box<dyn FnMut() + Send>,
    ) -> Self {
        let mut tables = Self {
            services,
            backends,
            members,
            stale: BTreeSet::new(),
            next_id: 1,
            next_affinity_id: 1,
            wait_for_readers,
        };
        tables.adopt();
        tables
    }

    /// Reads the maps again; returns how many entries were not as this process left them.
    pub fn audit(&mut self) -> Result<usize, Refusal> {
        let strange = self.services.audit()? + self.backends.audit()? + self.members.audit()?;
        self.adopt();
        Ok(strange)
    }

    pub fn reconcile(&mut self, desired: &BTreeMap<ServiceKey, ServiceSet>, report: &mut Report) {
        let gone: Vec<ServiceKey> =
            self.services.known().keys().filter(|key| !desired.contains_key(key)).copied().collect();
        for key in gone {
            let id = self.services.known().get(&key).map(|service| service.id);
            if self.services.take(&key, report) {
                self.stale.extend(id);
            }
        }
        let changed: Vec<_> = desired.iter().filter(|(key, set)| !self.holds(key, set)).collect();
        // A full map may have room once old sets have gone, so what fails is tried once more after that.
        let mut first_try = Report::default();
        let failed: Vec<_> =
            changed.into_iter().filter(|(key, set)| !self.publish(**key, set, &mut first_try)).collect();
        let freed = self.remove_stale(report);
        if failed.is_empty() || freed == 0 {
            report.add(first_try);
            return;
        }
        report.written += first_try.written;
        report.removed += first_try.removed;
        for (key, set) in failed {
            self.publish(*key, set, report);
        }
        self.remove_stale(report);
    }

    /// What earlier processes left: ids in use, and sets without a service (they died between two writes).
    fn adopt(&mut self) {
        let used: BTreeSet<u32> = self.services.known().values().map(|service| service.id).collect();
        let backends = self.backends.known().keys().map(|key| key.service);
        let present: BTreeSet<u32> = backends.chain(self.members.known().keys().map(|key| key.service)).collect();
        self.next_id = used.iter().chain(&present).max().map_or(1, |id| id.wrapping_add(1)).max(self.next_id);
        let affinity = self.services.known().values().map(|service| service.affinity_id).max();
        self.next_affinity_id = affinity.map_or(1, |id| id.wrapping_add(1)).max(self.next_affinity_id);
        self.stale = present.difference(&used).copied().collect();
    }

    fn holds(&self, key: &ServiceKey, set: &ServiceSet) -> bool {
        let Some(service) = self.services.known().get(key) else { return false };
        let same = service.affinity_seconds == set.affinity_seconds && service.count as usize == set.backends.len();
        same && slots(service.id, &set.backends)
            .all(|(slot, backend)| self.backends.known().get(&slot) == Some(backend))
            && members(service.id, set).all(|member| self.members.known().contains_key(&member))
    }

    /// Writes the set, then the service. True if the service points at it now; else nothing has changed for readers.
    fn publish(&mut self, key: ServiceKey, set: &ServiceSet, report: &mut Report) -> bool {
        let before = self.services.known().get(&key).copied();
        let id = self.fresh_id();
        let affinity_id = before.map_or(self.next_affinity_id, |service| service.affinity_id);
        let Ok(count) = u32::try_from(set.backends.len()) else { return false };
        let service = Service { id, count, affinity_id, affinity_seconds: set.affinity_seconds };
        let complete = slots(id, &set.backends).all(|(slot, backend)| self.backends.put(slot, *backend, report))
            && members(id, set).all(|member| self.members.put(member, 1, report))
            && self.services.put(key, service, report);
        if !complete {
            // No reader knows this id.
            self.remove_set(id, report);
            return false;
        }
        match before {
            Some(old) => drop(self.stale.insert(old.id)),
            None => self.next_affinity_id = self.next_affinity_id.wrapping_add(1).max(1),
        }
        true
    }

    /// Returns how many sets went.
    fn remove_stale(&mut self, report: &mut Report) -> usize {
        if self.stale.is_empty() {
            return 0;
        }
        (self.wait_for_readers)();
        let stale = std::mem::take(&mut self.stale);
        let total = stale.len();
        self.stale = stale.into_iter().filter(|id| !self.remove_set(*id, report)).collect();
        total - self.stale.len()
    }

    /// True if nothing of the set is left. What cannot be removed is tried again at the next pass.
    fn remove_set(&mut self, id: u32, report: &mut Report) -> bool {
        let last = BackendKey { service: id, slot: u32::MAX };
        let slots = self.backends.known().range(BackendKey { service: id, slot: 0 }..=last);
        let slots: Vec<_> = slots.map(|(key, _)| *key).collect();
        let nothing = Backend {
            addr: weft_bpf_abi::net::Addr::UNSPECIFIED,
            port: weft_bpf_abi::net::Port::new(0),
            reserved: [0; 2],
        };
        let first = MemberKey { service: id, backend: nothing };
        let members: Vec<_> =
            self.members.known().range(first..).map(|(key, _)| *key).take_while(|key| key.service == id).collect();
        let kept_slots = slots.iter().filter(|key| !self.backends.take(key, report)).count();
        let kept_members = members.iter().filter(|key| !self.members.take(key, report)).count();
        if kept_slots + kept_members > 0 {
            self.stale.insert(id);
        }
        kept_slots + kept_members == 0
    }

    fn fresh_id(&mut self) -> u32 {
        let used = |tables: &Self, id| {
            let slots = BackendKey { service: id, slot: 0 }..=BackendKey { service: id, slot: u32::MAX };
            tables.stale.contains(&id) || tables.backends.known().range(slots).next().is_some()
        };
        while self.next_id == 0 || used(self, self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        id
    }
}

fn slots(id: u32, backends: &[Backend]) -> impl Iterator<Item = (BackendKey, &Backend)> {
    (0..).map(move |slot| BackendKey { service: id, slot }).zip(backends)
}

/// Asked for session affinity only, so services without it have none.
fn members(id: u32, set: &ServiceSet) -> impl Iterator<Item = MemberKey> {
    let asked = if set.affinity_seconds > 0 { set.backends.as_slice() } else { &[] };
    asked.iter().map(move |backend| MemberKey { service: id, backend: *backend })
}
