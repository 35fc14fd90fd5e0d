use super::{
    services::ServiceTables,
    table::{KernelMap, Key},
    *,
};
use crate::plan::ServiceSet;
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use weft_bpf_abi::{
    lb::{Backend, BackendKey, MemberKey, Service, ServiceKey},
    net::Port,
    policy::PolicyKey,
};

/// The three service maps as the kernel would hold them. Every write checks what a program could see at that moment.
#[derive(Default)]
struct Kernel {
    services: BTreeMap<ServiceKey, Service>,
    backends: BTreeMap<BackendKey, Backend>,
    members: BTreeMap<MemberKey, u32>,
    /// Counts writes; every `fail_every`th is refused (0: none).
    writes: u32,
    fail_every: u32,
    /// The writer is killed after so many writes: none of its later ones happens.
    left_to_live: Option<u32>,
    max_backends: usize,
    /// A program may still hold any service value that was visible since readers were last waited for.
    held: Vec<Service>,
}

impl Kernel {
    fn write(&mut self) -> Result<(), Refusal> {
        self.writes += 1;
        match &mut self.left_to_live {
            Some(0) => return Err(Refusal::Full),
            Some(left) => *left -= 1,
            None => {}
        }
        if self.fail_every > 0 && self.writes.is_multiple_of(self.fail_every) { Err(Refusal::Full) } else { Ok(()) }
    }

    fn check(&mut self) {
        let visible: Vec<Service> = self.services.values().copied().collect();
        for service in visible.iter().chain(&self.held) {
            for slot in 0..service.count {
                let key = BackendKey { service: service.id, slot };
                assert!(self.backends.contains_key(&key), "half a set is visible: {service:?} lacks {slot}");
            }
        }
        self.held.extend(visible);
    }
}

type Shared = Arc<Mutex<Kernel>>;

/// One of the maps of the shared kernel.
struct Part<K: 'static, V: 'static>(Shared, fn(&mut Kernel) -> &mut BTreeMap<K, V>);

impl<K: Key + Send, V: Copy + Send> KernelMap<K, V> for Part<K, V> {
    fn dump(&self) -> Result<Vec<(K, V)>, Refusal> {
        Ok((self.1)(&mut self.0.lock().unwrap()).iter().map(|(key, value)| (*key, *value)).collect())
    }
    fn insert(&mut self, key: &K, value: &V) -> Result<(), Refusal> {
        let mut kernel = self.0.lock().unwrap();
        kernel.write()?;
        (self.1)(&mut kernel).insert(*key, *value);
        if kernel.max_backends > 0 && kernel.backends.len() > kernel.max_backends {
            (self.1)(&mut kernel).remove(key);
            return Err(Refusal::Full);
        }
        kernel.check();
        Ok(())
    }
    fn remove(&mut self, key: &K) -> Result<(), Refusal> {
        let mut kernel = self.0.lock().unwrap();
        kernel.write()?;
        (self.1)(&mut kernel).remove(key);
        kernel.check();
        Ok(())
    }
}

/// As a process that has just started: whatever the kernel holds is read first.
fn start(kernel: &Shared) -> ServiceTables {
    let readers = kernel.clone();
    ServiceTables::new(
        Table::open("SERVICES", Box::new(Part(kernel.clone(), |kernel| &mut kernel.services))).unwrap(),
        Table::open("BACKENDS", Box::new(Part(kernel.clone(), |kernel| &mut kernel.backends))).unwrap(),
        Table::open("MEMBERS", Box::new(Part(kernel.clone(), |kernel| &mut kernel.members))).unwrap(),
        Box::new(move || readers.lock().unwrap().held.clear()),
    )
}

fn addr(n: u8) -> Addr {
    Addr::v4([10, 0, 0, n].into())
}

fn service(n: u8) -> ServiceKey {
    ServiceKey::new(addr(n), Port::new(80), 6)
}

fn set(backends: &[u8], affinity_seconds: u32) -> ServiceSet {
    ServiceSet {
        backends: backends.iter().map(|n| Backend::new(addr(*n), Port::new(8080))).collect(),
        affinity_seconds,
    }
}

/// What connections would be given, read as the program reads it.
fn seen(kernel: &Shared) -> BTreeMap<ServiceKey, ServiceSet> {
    let kernel = kernel.lock().unwrap();
    let read = |service: &Service| ServiceSet {
        backends: (0..service.count).map(|slot| kernel.backends[&BackendKey { service: service.id, slot }]).collect(),
        affinity_seconds: service.affinity_seconds,
    };
    kernel.services.iter().map(|(key, service)| (*key, read(service))).collect()
}

fn any_services() -> impl Strategy<Value = BTreeMap<ServiceKey, ServiceSet>> {
    let set = (prop::collection::btree_set(1_u8..6, 0..5), prop::sample::select(vec![0, 30]))
        .prop_map(|(backends, affinity)| set(&backends.into_iter().collect::<Vec<_>>(), affinity));
    prop::collection::btree_map((1_u8..5).prop_map(service), set, 0..4)
}

proptest! {
    #[test]
    fn no_program_ever_sees_half_a_set_and_the_maps_end_as_planned(
        steps in prop::collection::vec((any_services(), any::<bool>(), 0_u32..9, prop::option::of(0_u32..20)), 1..8),
    ) {
        let kernel = Shared::default();
        let mut tables = start(&kernel);
        for (desired, restart, fail_every, killed_after) in steps {
            if restart {
                tables = start(&kernel);
            }
            // One operation in so many fails on purpose; `check` judges every write all the same.
            kernel.lock().unwrap().fail_every = if fail_every > 2 { fail_every } else { 0 };
            tables.reconcile(&desired, &mut Report::default());
            kernel.lock().unwrap().fail_every = 0;
            if let Some(writes) = killed_after {
                kernel.lock().unwrap().left_to_live = Some(writes);
                tables.reconcile(&BTreeMap::new(), &mut Report::default());
                kernel.lock().unwrap().left_to_live = None;
                tables = start(&kernel);
            }
            let mut report = Report::default();
            tables.reconcile(&desired, &mut report);
            prop_assert_eq!(report.failed, 0);
            prop_assert_eq!(&seen(&kernel), &desired);
            let slots: usize = desired.values().map(|set| set.backends.len()).sum();
            let members: usize = desired.values().filter(|s| s.affinity_seconds > 0).map(|s| s.backends.len()).sum();
            let left = { let kernel = kernel.lock().unwrap(); (kernel.backends.len(), kernel.members.len()) };
            prop_assert_eq!(left, (slots, members), "old sets are gone");
            let mut again = Report::default();
            tables.reconcile(&desired, &mut again);
            prop_assert_eq!(again.changes(), 0, "nothing changed, so nothing is written");
        }
    }
}

#[test]
fn the_affinity_id_stays_while_the_service_lives_also_over_a_restart() {
    let kernel = Shared::default();
    let id = |kernel: &Shared| kernel.lock().unwrap().services[&service(1)].affinity_id;
    start(&kernel).reconcile(&[(service(1), set(&[1, 2], 30))].into(), &mut Report::default());
    let first = id(&kernel);
    start(&kernel).reconcile(&[(service(1), set(&[2, 3], 30))].into(), &mut Report::default());
    assert_eq!(id(&kernel), first);
}

#[test]
fn what_a_killed_process_had_written_but_not_published_is_removed() {
    let kernel = Shared::default();
    start(&kernel).reconcile(&[(service(1), set(&[1], 0))].into(), &mut Report::default());
    let orphan = BackendKey { service: 77, slot: 0 };
    kernel.lock().unwrap().backends.insert(orphan, Backend::new(addr(9), Port::new(1)));
    let mut report = Report::default();
    start(&kernel).reconcile(&[(service(1), set(&[1], 0))].into(), &mut report);
    assert_eq!((report.written, report.removed), (0, 1));
    assert!(!kernel.lock().unwrap().backends.contains_key(&orphan));
}

#[test]
fn a_full_map_keeps_the_old_set_and_names_what_did_not_fit() {
    let kernel = Shared::default();
    kernel.lock().unwrap().max_backends = 3;
    let mut tables = start(&kernel);
    let old = [(service(1), set(&[1, 2], 0))].into();
    tables.reconcile(&old, &mut Report::default());
    let mut report = Report::default();
    tables.reconcile(&[(service(1), set(&[3, 4], 0))].into(), &mut report);
    assert_eq!(seen(&kernel), old);
    assert_eq!(
        (report.failed, report.failures[0].map, report.failures[0].reason.as_str()),
        (1, "BACKENDS", "the map is full")
    );
}

#[test]
fn sets_of_deleted_services_make_room_within_the_same_pass() {
    let kernel = Shared::default();
    kernel.lock().unwrap().max_backends = 3;
    let mut tables = start(&kernel);
    tables.reconcile(&[(service(1), set(&[1, 2], 0))].into(), &mut Report::default());
    let desired = [(service(2), set(&[3, 4, 5], 0))].into();
    let mut report = Report::default();
    tables.reconcile(&desired, &mut report);
    assert_eq!((seen(&kernel), report.failed), (desired, 0));
}

// ---- policy and readiness -----------------------------------------------------------------------------------------

/// A map in memory; `refuse` names the values that it does not take.
struct Memory<K, V> {
    entries: Arc<Mutex<BTreeMap<K, V>>>,
    refuse: fn(&V) -> bool,
}

impl<K: Key + Send, V: Copy + Send> KernelMap<K, V> for Memory<K, V> {
    fn dump(&self) -> Result<Vec<(K, V)>, Refusal> {
        Ok(self.entries.lock().unwrap().iter().map(|(key, value)| (*key, *value)).collect())
    }
    fn insert(&mut self, key: &K, value: &V) -> Result<(), Refusal> {
        if (self.refuse)(value) {
            return Err(Refusal::Full);
        }
        self.entries.lock().unwrap().insert(*key, *value);
        Ok(())
    }
    fn remove(&mut self, key: &K) -> Result<(), Refusal> {
        self.entries.lock().unwrap().remove(key);
        Ok(())
    }
}

fn memory<K: Key + Send + 'static, V: Copy + PartialEq + Send + 'static>(refuse: fn(&V) -> bool) -> Table<K, V> {
    Table::open("TEST", Box::new(Memory { entries: Default::default(), refuse })).unwrap()
}

fn tables(refuse_policy: fn(&PolicyEntry) -> bool, refuse_addresses: fn(&IpInfo) -> bool) -> Tables {
    let mut node_config = memory(|_| false);
    node_config.put(0, NodeConfig { netns_cookie: 0, flags: 0, wireguard_port: 0 }, &mut Report::default());
    Tables {
        services: start(&Shared::default()),
        node_addresses: memory(|_| false),
        ipcache: memory(refuse_addresses),
        endpoints: memory(|_| false),
        policy: memory(refuse_policy),
        auth_destinations: memory(|_| false),
        epoch: memory(|_| false),
        node_config,
        netns_cookie: 42,
    }
}

/// Endpoint 1 allows port 80 and denies port 81; endpoint 2 allows port 80.
fn desired() -> Desired {
    let entry = |endpoint, port, flags| {
        let key = PolicyKey { endpoint, identity: 0, direction: 1, proto: 6, port: Port::new(port) };
        (PolicyPrefix { bits: PolicyKey::ALL_BITS, key }, PolicyEntry { flags, rule: 1 })
    };
    let endpoint = |id| Endpoint { id, identity: 256 + id, ifindex: id, flags: 0 };
    let encrypted = IpInfo { identity: 300, flags: IpInfo::ENCRYPT };
    Desired {
        endpoints: [(addr(1), endpoint(1)), (addr(2), endpoint(2))].into(),
        policy: [entry(1, 80, PolicyEntry::ALLOW), entry(1, 81, PolicyEntry::DENY), entry(2, 80, PolicyEntry::ALLOW)]
            .into(),
        ipcache: [(AddrPrefix { bits: 120, addr: addr(0) }, encrypted)].into(),
        wireguard_port: 51820,
        ..Default::default()
    }
}

#[test]
fn the_epoch_moves_with_policy_and_stays_when_nothing_changes() {
    let mut tables = tables(|_| false, |_| false);
    let epochs: Vec<u32> = [desired(), desired(), Desired { policy: BTreeMap::new(), ..desired() }]
        .iter()
        .map(|plan| {
            assert!(tables.reconcile(plan).complete());
            tables.epoch.known()[&0]
        })
        .collect();
    assert_eq!(epochs, [1, 1, 2]);
    assert_eq!(tables.reconcile(&Desired { policy: BTreeMap::new(), ..desired() }).changes(), 0);
}

#[test]
fn an_endpoint_whose_deny_does_not_fit_is_closed_and_the_others_are_served() {
    let mut tables = tables(|entry| entry.flags & PolicyEntry::DENY != 0, |_| false);
    let report = tables.reconcile(&desired());
    assert_eq!((report.isolated, report.ready), (vec![1], true));
    let enforced = Endpoint::ENFORCE_INGRESS | Endpoint::ENFORCE_EGRESS;
    assert_eq!(tables.endpoints.known()[&addr(1)].flags, enforced);
    let left: Vec<u32> = tables.policy.known().keys().map(|prefix| prefix.key.endpoint).collect();
    assert_eq!(left, [2]);
}

#[test]
fn the_node_is_not_ready_before_what_must_be_encrypted_is_known() {
    let mut refusing = tables(|_| false, |_| true);
    assert!(!refusing.reconcile(&desired()).ready);
    let mut taking = tables(|_| false, |_| false);
    assert!(taking.reconcile(&desired()).ready);
    let expected = NodeConfig { netns_cookie: 42, flags: NodeConfig::READY, wireguard_port: 51820 };
    assert_eq!(taking.node_config.known()[&0], expected);
}
