use super::*;
use proptest::prelude::*;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};
use weft_bpf_abi::net::TCP;

const SECOND: u64 = 1_000_000_000;

/// Tables in memory. `replace_after` swaps the set of backends behind the reader's back.
#[derive(Default)]
struct Fake {
    services: RefCell<HashMap<ServiceKey, Service>>,
    backends: RefCell<HashMap<BackendKey, Backend>>,
    members: RefCell<HashSet<MemberKey>>,
    affinity: RefCell<HashMap<AffinityKey, Affinity>>,
    nodes: HashSet<Addr>,
    next_id: Cell<u32>,
    replace_after: Cell<Option<(ServiceKey, Backend)>>,
}

impl Fake {
    fn publish(&self, key: ServiceKey, backends: &[Backend], affinity_seconds: u32) {
        let id = self.next_id.replace(self.next_id.get() + 1) + 1;
        for (slot, backend) in (0..).zip(backends) {
            self.backends.borrow_mut().insert(BackendKey { service: id, slot }, *backend);
            self.members.borrow_mut().insert(MemberKey { service: id, backend: *backend });
        }
        let service = Service { id, count: backends.len() as u32, affinity_id: 9, affinity_seconds };
        let old = self.services.borrow_mut().insert(key, service);
        self.backends.borrow_mut().retain(|key, _| old.is_none_or(|old| key.service != old.id));
    }
}

impl Tables for Fake {
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        let found = self.services.borrow().get(key).copied();
        if let Some((key, backend)) = self.replace_after.take() {
            self.publish(key, &[backend], 0);
        }
        found
    }
    fn backend(&self, key: &BackendKey) -> Option<Backend> {
        self.backends.borrow().get(key).copied()
    }
    fn is_member(&self, key: &MemberKey) -> bool {
        self.members.borrow().contains(key)
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinity.borrow().get(key).copied()
    }
    fn remember(&self, key: &AffinityKey, value: &Affinity) {
        self.affinity.borrow_mut().insert(*key, *value);
    }
    fn is_node_address(&self, addr: &Addr) -> bool {
        self.nodes.contains(addr)
    }
}

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

fn backend(last: u8) -> Backend {
    Backend::new(addr(&format!("10.0.0.{last}")), Port::new(8080))
}

fn vip() -> ServiceKey {
    ServiceKey::new(addr("10.96.0.10"), Port::new(80), TCP)
}

fn client(random: u32) -> Client {
    Client { netns_cookie: 1, on_host: true, now_ns: 100 * SECOND, random }
}

fn ask(tables: &Fake, key: &ServiceKey, client: &Client) -> Choice {
    choose(tables, &key.addr, key.port, key.proto, client)
}

#[test]
fn a_service_whose_backends_are_replaced_meanwhile_is_asked_again() {
    let tables = Fake::default();
    tables.publish(vip(), &[backend(1)], 0);
    tables.replace_after.set(Some((vip(), backend(2))));
    assert_eq!(ask(&tables, &vip(), &client(0)), Choice::Backend(backend(2)));
}

#[test]
fn a_service_without_backends_is_known_as_one() {
    let tables = Fake::default();
    assert_eq!(ask(&tables, &vip(), &client(0)), Choice::NotAService);
    tables.publish(vip(), &[], 0);
    assert_eq!(ask(&tables, &vip(), &client(0)), Choice::NoBackend);
}

#[test]
fn node_ports_answer_on_the_nodes_addresses_and_on_the_nodes_loopback_only() {
    let tables = Fake { nodes: HashSet::from([addr("192.0.2.1"), addr("fd00::1")]), ..Fake::default() };
    tables.publish(ServiceKey::new(Addr::UNSPECIFIED_V4, Port::new(30080), TCP), &[backend(1)], 0);
    tables.publish(ServiceKey::new(Addr::UNSPECIFIED, Port::new(30080), TCP), &[backend(6)], 0);
    let at =
        |text: &str, on_host| choose(&tables, &addr(text), Port::new(30080), TCP, &Client { on_host, ..client(0) });
    for (text, host, pod) in [
        ("192.0.2.1", true, true),
        ("fd00::1", true, true),
        ("127.0.0.1", true, false),
        ("127.255.0.9", true, false),
        ("0.0.0.0", true, false),
        ("::1", true, false),
        ("::", true, false),
        ("192.0.2.2", false, false),
        ("fd00::2", false, false),
    ] {
        for (on_host, answers) in [(true, host), (false, pod)] {
            let of_family = backend(if addr(text).is_v4() { 1 } else { 6 });
            let expected = if answers { Choice::Backend(of_family) } else { Choice::NotAService };
            assert_eq!(at(text, on_host), expected, "{text}, on the host: {on_host}");
        }
    }
}

#[test]
fn a_service_of_its_own_comes_before_the_node_port() {
    let tables = Fake { nodes: HashSet::from([vip().addr]), ..Fake::default() };
    tables.publish(ServiceKey { addr: Addr::UNSPECIFIED_V4, ..vip() }, &[backend(1)], 0);
    tables.publish(vip(), &[backend(2)], 0);
    assert_eq!(ask(&tables, &vip(), &client(0)), Choice::Backend(backend(2)));
}

#[test]
fn node_ports_are_reserved_where_they_answer() {
    let tables = Fake { nodes: HashSet::from([addr("192.0.2.1")]), ..Fake::default() };
    tables.publish(ServiceKey::new(Addr::UNSPECIFIED_V4, Port::new(30080), TCP), &[], 0);
    tables.publish(ServiceKey::new(Addr::UNSPECIFIED, Port::new(30086), TCP), &[], 0);
    let reserved = |text: &str, port| is_reserved(&tables, &addr(text), Port::new(port), TCP);
    for (text, of_v4, of_v6) in [
        ("0.0.0.0", true, false),
        ("127.0.0.1", true, false),
        ("192.0.2.1", true, false),
        ("::1", false, true),
        // Takes connections of both families.
        ("::", true, true),
    ] {
        assert_eq!((reserved(text, 30080), reserved(text, 30086)), (of_v4, of_v6), "{text}");
        assert!(!reserved(text, 30081) && !reserved(text, 0), "{text}");
    }
    assert!(!reserved("10.0.0.1", 30080), "the proxy binds to clients' addresses");
}

proptest! {
    #[test]
    fn every_backend_gets_its_share(count in 1_u8..32, seed: u32) {
        let tables = Fake::default();
        let backends: Vec<_> = (0..count).map(backend).collect();
        tables.publish(vip(), &backends, 0);
        let chosen: BTreeSet<_> = (0..u32::from(count))
            .map(|step| ask(&tables, &vip(), &client((seed % (u32::MAX - 32)) + step)))
            .map(|choice| match choice {
                Choice::Backend(backend) => backend,
                other => panic!("{other:?}"),
            })
            .collect();
        prop_assert_eq!(chosen.len(), usize::from(count));
    }

    /// A client moves only when its backend left or its time is over.
    #[test]
    fn affinity_holds_until_it_may_not(
        steps in prop::collection::vec((0_u64..8, any::<u32>(), prop::collection::btree_set(1_u8..6, 1..5)), 1..40),
    ) {
        const TIMEOUT: u32 = 4;
        let tables = Fake::default();
        let mut now_ns = 0;
        let mut last: Option<(Backend, u64)> = None;
        for (wait, random, set) in steps {
            now_ns += wait * SECOND;
            let backends: Vec<_> = set.into_iter().map(backend).collect();
            tables.publish(vip(), &backends, TIMEOUT);
            let Choice::Backend(chosen) = ask(&tables, &vip(), &Client { now_ns, ..client(random) }) else {
                panic!("there are backends");
            };
            prop_assert!(backends.contains(&chosen));
            if let Some((previous, then)) = last
                && now_ns - then < u64::from(TIMEOUT) * SECOND
                && backends.contains(&previous)
            {
                prop_assert_eq!(chosen, previous);
            }
            last = Some((chosen, now_ns));
        }
    }
}
