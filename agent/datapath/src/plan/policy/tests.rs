use super::super::{LocalEndpoint, fixtures::*};
use super::*;
use proptest::prelude::*;
use weft_model::{
    policy::{HttpRule, Verdict},
    types::{Labels, PluginPhase, Protocol},
};

/// What the kernel program decides from the four look-ups, written from the map's documentation.
#[derive(Debug, PartialEq)]
enum Decision {
    Deny,
    Allow { auth: bool },
    Http { auth: bool },
}

fn kernel(
    entries: &BTreeMap<PolicyPrefix, PolicyEntry>,
    enforced: bool,
    direction: u8,
    peer: u32,
    proto: u8,
    port: u16,
) -> Decision {
    let mut joined = 0;
    for identity in [peer, identity::ANY] {
        for proto in [proto, EVERY_PROTOCOL] {
            let matches = |prefix: &&PolicyPrefix| {
                let key = prefix.key;
                let ignored = 16 - (prefix.bits - PolicyKey::FIXED_BITS);
                (key.identity, key.direction, key.proto) == (identity, direction, proto)
                    && u32::from(key.port.get()) >> ignored == u32::from(port) >> ignored
            };
            let found: Vec<_> = entries.keys().filter(matches).collect();
            assert!(found.len() <= 1, "entries of one fixed part overlap: {found:?}");
            joined |= found.first().map_or(0, |prefix| entries[prefix].flags);
        }
    }
    let auth = joined & PolicyEntry::AUTH != 0;
    match joined {
        flags if flags & PolicyEntry::DENY != 0 => Decision::Deny,
        flags if flags & PolicyEntry::ALLOW != 0 => Decision::Allow { auth },
        flags if flags & PolicyEntry::L7 != 0 => Decision::Http { auth },
        _ if enforced => Decision::Deny,
        _ => Decision::Allow { auth: false },
    }
}

fn said(verdict: Verdict<'_>) -> Decision {
    match verdict {
        Verdict::Deny { .. } => Decision::Deny,
        Verdict::Allow { auth_required, .. } => Decision::Allow { auth: auth_required },
        Verdict::Http { auth_required, .. } => Decision::Http { auth: auth_required },
    }
}

const PROTOCOLS: [Protocol; 5] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp, Protocol::Icmpv6];

fn names(policy: &EndpointPolicy) -> RuleNames {
    RuleNames::new(policy.ingress.iter().chain(&policy.egress).map(|rule| rule.policy.as_str()).collect())
}

fn allow(peers: Peers, ports: Vec<PortRange>) -> Rule {
    Rule { policy: "shop/web".into(), deny: false, peers, ports, http: None, auth_required: false }
}

fn tcp(first: u16, last: u16) -> PortRange {
    PortRange { protocol: Some(Protocol::Tcp), first, last }
}

fn any_port() -> impl Strategy<Value = u16> {
    // Few ports, so that borders meet; the ends of the space among them.
    prop_oneof![
        Just(0),
        Just(1),
        Just(79),
        Just(80),
        Just(81),
        Just(255),
        Just(256),
        Just(65_534),
        Just(65_535),
        any::<u16>()
    ]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let protocol = prop::option::of(prop::sample::select(PROTOCOLS.to_vec()));
    let range = (protocol, any_port(), any_port()).prop_map(|(protocol, a, b)| PortRange {
        protocol,
        first: a.min(b),
        last: a.max(b),
    });
    let peers = prop_oneof![
        Just(Peers::Any),
        prop::collection::btree_set(prop::sample::select(vec![1_u32, 2, 256, 257]), 0..3)
            .prop_map(|ids| Peers::Identities(ids.into_iter().collect())),
    ];
    let http = prop::option::weighted(0.3, Just(vec![HttpRule::default()]));
    ("[a-c]/[x-z]", prop::bool::weighted(0.2), peers, prop::collection::vec(range, 0..3), http, any::<bool>()).prop_map(
        |(policy, deny, peers, ports, http, auth_required)| Rule { policy, deny, peers, ports, http, auth_required },
    )
}

fn any_policy() -> impl Strategy<Value = EndpointPolicy> {
    let rules = || prop::collection::vec(any_rule(), 0..6);
    (any::<bool>(), any::<bool>(), rules(), rules()).prop_map(|(enforce_ingress, enforce_egress, ingress, egress)| {
        EndpointPolicy { enforce_ingress, enforce_egress, ingress, egress }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn the_flat_entries_decide_as_the_policy_does(policy in any_policy(), port in any_port()) {
        let entries = flatten(7, &policy, &[], &names(&policy));
        for (direction, ingress, enforced) in
            [(INGRESS, true, policy.enforce_ingress), (EGRESS, false, policy.enforce_egress)]
        {
            for peer in [1, 2, 256, 257, 300] {
                for protocol in PROTOCOLS {
                    let flat = kernel(&entries, enforced, direction, peer, protocol.number(), port);
                    prop_assert_eq!(flat, said(policy.judge(ingress, peer, protocol, port)));
                }
            }
        }
    }

    #[test]
    fn capture_by_a_plugin_changes_nothing_but_whole_allows_on_its_tcp_ports(
        policy in any_policy(), port in any_port(), captured in prop::collection::btree_set(any_port(), 1..4),
    ) {
        let ports: Vec<_> = captured.iter().map(|port| (*port, *port)).collect();
        let entries = flatten(7, &policy, &ports, &names(&policy));
        for peer in [1, 2, 256, 300] {
            for protocol in PROTOCOLS {
                let flat = kernel(&entries, policy.enforce_ingress, INGRESS, peer, protocol.number(), port);
                let expected = match said(policy.judge(true, peer, protocol, port)) {
                    Decision::Allow { auth } if protocol == Protocol::Tcp && captured.contains(&port) => Decision::Http { auth },
                    other => other,
                };
                prop_assert_eq!(flat, expected);
            }
        }
    }

    #[test]
    fn prefixes_cover_their_range_exactly(a in any_port(), b in any_port(), probe in any_port()) {
        let (first, last) = (a.min(b), a.max(b));
        let covering = prefixes(first, last)
            .into_iter()
            .filter(|(port, bits)| u32::from(*port) >> (16 - bits) == u32::from(probe) >> (16 - bits))
            .count();
        prop_assert_eq!(covering, usize::from((first..=last).contains(&probe)));
        prop_assert!(prefixes(first, last).len() <= 30);
    }
}

#[test]
fn a_range_of_ports_is_the_fewest_prefixes() {
    assert_eq!(prefixes(0, 65_535), [(0, 0)]);
    assert_eq!(prefixes(80, 80), [(80, 16)]);
    assert_eq!(prefixes(8000, 8100), [(8000, 10), (8064, 11), (8096, 14), (8100, 16)]);
}

#[test]
fn entries_name_the_policy_that_decides() {
    let mut deny = allow(Peers::Any, vec![tcp(80, 80)]);
    (deny.deny, deny.policy) = (true, "shop/no".into());
    let policy = EndpointPolicy { ingress: vec![allow(Peers::Any, vec![tcp(79, 80)]), deny], ..Default::default() };
    let names = names(&policy);
    let named: Vec<_> = flatten(7, &policy, &[], &names)
        .into_iter()
        .map(|(prefix, entry)| (prefix.key.port.get(), entry.flags, names.name(entry.rule).unwrap().to_owned()))
        .collect();
    assert_eq!(named, [(79, PolicyEntry::ALLOW, "shop/web".to_owned()), (80, PolicyEntry::DENY, "shop/no".to_owned())]);
}

#[test]
fn a_plugin_without_ports_captures_every_tcp_port_of_the_pods_it_selects() {
    let mut snapshot = snapshot();
    let mut web = pod("east", "shop/web", "n1", "10.1.0.5", 256);
    web.labels = Labels::from([("app".into(), "web".into())]);
    snapshot.workloads = vec![web, pod("east", "shop/db", "n1", "10.1.0.6", 257)];
    snapshot.plugins = vec![WasmPlugin {
        name: name("shop/headers"),
        selector: Labels::from([("app".into(), "web".into())]),
        url: "file:///plugin.wasm".into(),
        sha256: String::new(),
        phase: PluginPhase::Authz,
        priority: 0,
        plugin_config: Default::default(),
        fail_open: false,
        ports: vec![],
        env: Default::default(),
    }];
    let endpoint = |id, addr| LocalEndpoint { id, ifindex: id + 10, addresses: vec![ip(addr)] };
    let local = [(name("shop/web"), endpoint(1, "10.1.0.5")), (name("shop/db"), endpoint(2, "10.1.0.6"))].into();
    let plan = plan(&snapshot, &local);
    let key = PolicyKey { endpoint: 1, identity: identity::ANY, direction: INGRESS, proto: TCP, port: Port::new(0) };
    let entry = PolicyEntry { flags: PolicyEntry::L7, rule: 0 };
    assert_eq!(plan.policy, [(PolicyPrefix { bits: PolicyKey::FIXED_BITS, key }, entry)].into());
    let flags = |addr| plan.endpoints[&Addr::from(ip(addr))].flags;
    assert_eq!((flags("10.1.0.5"), flags("10.1.0.6")), (Endpoint::PROXIED, 0));
}

#[test]
fn a_pod_that_no_source_has_named_gets_no_entry() {
    let endpoint = LocalEndpoint { id: 1, ifindex: 5, addresses: vec![ip("10.1.0.5")] };
    let plan = plan(&snapshot(), &[(name("shop/web"), endpoint)].into());
    assert_eq!((plan.endpoints.len(), plan.unknown), (0, vec![name("shop/web")]));
}
