//! Frontends and the backends that new connections to them may go to.
use super::{Conflict, ServiceSet};
use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};
use weft_bpf_abi::{
    lb::{Backend, ServiceKey},
    net::{Addr, Port},
};
use weft_model::{
    snapshot::Snapshot,
    types::{Backend as ModelBackend, Frontend, ObjectName, Protocol, Service},
};

pub(super) fn plan(snapshot: &Snapshot) -> (BTreeMap<ServiceKey, ServiceSet>, Vec<Conflict>) {
    let mut claimed: BTreeMap<ServiceKey, (&ObjectName, ServiceSet)> = BTreeMap::new();
    let mut conflicts = Vec::new();
    for (name, view) in &snapshot.services {
        for frontend in &view.service.frontends {
            let Some(key) = key(frontend) else { continue };
            match claimed.entry(key) {
                Entry::Vacant(free) => {
                    let usable = view.usable_for(frontend, &snapshot.cluster, &snapshot.node_name);
                    free.insert((name, set(&view.service, &usable)));
                }
                Entry::Occupied(taken) if taken.get().0 == name => {}
                Entry::Occupied(taken) => conflicts.push(Conflict {
                    frontend: format!("{}:{}", frontend.addr, frontend.port),
                    kept: taken.get().0.clone(),
                    ignored: name.clone(),
                }),
            }
        }
    }
    (claimed.into_iter().map(|(key, (_, set))| (key, set)).collect(), conflicts)
}

/// `None`: a protocol that is not balanced at sockets.
fn key(frontend: &Frontend) -> Option<ServiceKey> {
    let proto = match frontend.protocol {
        Protocol::Tcp | Protocol::Udp => frontend.protocol.number(),
        Protocol::Sctp | Protocol::Icmp | Protocol::Icmpv6 => return None,
    };
    Some(ServiceKey::new(Addr::from(frontend.addr), Port::new(frontend.port), proto))
}

fn set(service: &Service, usable: &[&ModelBackend]) -> ServiceSet {
    let address = |backend: &&ModelBackend| Backend::new(Addr::from(backend.addr), Port::new(backend.port));
    let backends: BTreeSet<Backend> = usable.iter().map(address).collect();
    let affinity_seconds = service.session_affinity.map_or(0, |timeout| {
        // Rounded up: a time-out under a second still is affinity.
        u32::try_from(timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0)).unwrap_or(u32::MAX).max(1)
    });
    ServiceSet { backends: backends.into_iter().collect(), affinity_seconds }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::*;
    use std::time::Duration;
    use weft_model::types::FrontendKind;

    fn planned(snapshot: &Snapshot) -> BTreeMap<ServiceKey, ServiceSet> {
        plan(snapshot).0
    }
    fn tcp(addr: &str, port: u16) -> ServiceKey {
        ServiceKey::new(Addr::from(ip(addr)), Port::new(port), 6)
    }
    fn to(addr: &str, port: u16) -> Backend {
        Backend::new(Addr::from(ip(addr)), Port::new(port))
    }

    #[test]
    fn a_frontend_has_the_usable_backends_of_its_port_and_family_once_each_in_order() {
        let mut snapshot = snapshot();
        let mut view = service("shop/web", "10.96.0.10", 80, &["10.1.0.9", "10.1.0.8", "10.1.0.9"]);
        let mut other_port = view.backends[0].clone();
        other_port.port_name = "metrics".into();
        other_port.port = 9090;
        let mut other_family = view.backends[0].clone();
        other_family.addr = ip("fd00::9");
        view.backends.extend([other_port, other_family]);
        add(&mut snapshot, view);
        let expected = ServiceSet { backends: vec![to("10.1.0.8", 8080), to("10.1.0.9", 8080)], affinity_seconds: 0 };
        assert_eq!(planned(&snapshot), [(tcp("10.96.0.10", 80), expected)].into());
    }

    #[test]
    fn a_service_without_backends_keeps_its_entry_so_that_connections_are_refused() {
        let mut snapshot = snapshot();
        add(&mut snapshot, service("shop/web", "10.96.0.10", 80, &[]));
        assert_eq!(planned(&snapshot), [(tcp("10.96.0.10", 80), ServiceSet::default())].into());
    }

    #[test]
    fn a_dual_stack_node_port_has_an_entry_and_backends_for_each_family() {
        let mut snapshot = snapshot();
        let mut view = service("shop/web", "10.96.0.10", 80, &["10.1.0.8", "fd00::8"]);
        let mut node_port = view.service.frontends[0].clone();
        node_port.kind = FrontendKind::NodePort;
        node_port.port = 30080;
        let v6 = Frontend { addr: ip("::"), ..node_port.clone() };
        let v4 = Frontend { addr: ip("0.0.0.0"), ..node_port };
        view.service.frontends = vec![v6, v4];
        add(&mut snapshot, view);
        let entry = |any, backend| {
            let set = ServiceSet { backends: vec![to(backend, 8080)], affinity_seconds: 0 };
            (ServiceKey::new(any, Port::new(30080), 6), set)
        };
        let expected = [entry(Addr::UNSPECIFIED, "fd00::8"), entry(Addr::UNSPECIFIED_V4, "10.1.0.8")];
        assert_eq!(plan(&snapshot), (expected.into(), vec![]));
    }

    #[test]
    fn the_first_service_by_name_keeps_a_frontend_that_two_claim() {
        let mut snapshot = snapshot();
        add(&mut snapshot, service("shop/web", "10.96.0.10", 80, &["10.1.0.8"]));
        add(&mut snapshot, service("shop/api", "10.96.0.10", 80, &["10.1.0.7"]));
        let (services, conflicts) = plan(&snapshot);
        assert_eq!(services[&tcp("10.96.0.10", 80)].backends, [to("10.1.0.7", 8080)]);
        let conflict = Conflict { frontend: "10.96.0.10:80".into(), kept: name("shop/api"), ignored: name("shop/web") };
        assert_eq!(conflicts, [conflict]);
    }

    #[test]
    fn session_affinity_is_in_whole_seconds_and_never_rounds_to_none() {
        for (given, seconds) in [(Duration::from_secs(10_800), 10_800), (Duration::from_millis(1), 1)] {
            let mut snapshot = snapshot();
            let mut view = service("shop/web", "10.96.0.10", 80, &["10.1.0.8"]);
            view.service.session_affinity = Some(given);
            add(&mut snapshot, view);
            assert_eq!(planned(&snapshot)[&tcp("10.96.0.10", 80)].affinity_seconds, seconds);
        }
    }
}
