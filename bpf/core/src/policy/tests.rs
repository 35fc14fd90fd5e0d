use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use weft_bpf_abi::{
    net::{TCP, UDP},
    policy::INGRESS,
};

const PEER: u32 = 300;

struct Fake(HashMap<PolicyKey, PolicyEntry>);

impl Rules for Fake {
    fn entry(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        self.0.get(key).copied()
    }
}

fn endpoint(flags: u32) -> Endpoint {
    Endpoint { id: 7, identity: 256, ifindex: 2, flags }
}

fn question(direction: u8) -> Question {
    Question { direction, peer: PEER, proto: TCP, port: Port::new(80) }
}

fn key(direction: u8, identity: u32, proto: u8) -> PolicyKey {
    PolicyKey { endpoint: 7, identity, direction, proto, port: Port::new(80) }
}

fn four(direction: u8) -> [PolicyKey; 4] {
    [(PEER, TCP), (PEER, 0), (identity::ANY, 0), (identity::ANY, TCP)].map(|(peer, proto)| key(direction, peer, proto))
}

#[test]
fn without_a_rule_the_direction_decides() {
    let none = Fake(HashMap::new());
    let verdict = |flags, direction| judge(&none, &endpoint(flags), &question(direction));
    let (allowed, denied) =
        (Judgement { verdict: Verdict::Allow, rule: 0 }, Judgement { verdict: Verdict::Deny, rule: 0 });
    assert_eq!(verdict(0, INGRESS), allowed);
    assert_eq!(verdict(Endpoint::ENFORCE_EGRESS, INGRESS), allowed);
    assert_eq!(verdict(Endpoint::ENFORCE_INGRESS, INGRESS), denied);
    assert_eq!(verdict(Endpoint::ENFORCE_INGRESS, EGRESS), allowed);
    assert_eq!(verdict(Endpoint::ENFORCE_EGRESS, EGRESS), denied);
}

#[test]
fn rules_of_others_do_not_apply() {
    let deny = PolicyEntry { flags: PolicyEntry::DENY, rule: 1 };
    let others = [key(EGRESS, PEER, TCP), key(INGRESS, PEER + 1, TCP), key(INGRESS, PEER, UDP)];
    let rules = Fake(others.into_iter().map(|key| (key, deny)).collect());
    assert_eq!(judge(&rules, &endpoint(0), &question(INGRESS)).verdict, Verdict::Allow);
}

#[test]
fn the_node_may_always_enter_but_its_pods_may_not_always_reach_it() {
    let rules = Fake(
        [EGRESS, INGRESS]
            .map(|direction| (key(direction, identity::ANY, 0), PolicyEntry { flags: PolicyEntry::DENY, rule: 1 }))
            .into(),
    );
    let verdict =
        |direction| judge(&rules, &endpoint(0), &Question { peer: identity::HOST, ..question(direction) }).verdict;
    assert_eq!((verdict(INGRESS), verdict(EGRESS)), (Verdict::Allow, Verdict::Deny));
}

proptest! {
    /// The whole table: what any four entries come to, and that the rule named is one that says so.
    #[test]
    fn four_entries_are_joined_by_precedence(
        flags in prop::array::uniform4(prop::option::of(0_u32..16)),
        enforced: bool,
    ) {
        let entries: Vec<_> = four(INGRESS)
            .into_iter()
            .zip(flags)
            .zip(1..)
            .filter_map(|((key, flags), rule)| Some((key, PolicyEntry { flags: flags?, rule })))
            .collect();
        let all = entries.iter().fold(0, |all, (_, entry)| all | entry.flags);
        let has = |flag| all & flag != 0;
        let (verdict, by) = if has(PolicyEntry::DENY) {
            (Verdict::Deny, PolicyEntry::DENY)
        } else if has(PolicyEntry::AUTH) {
            (Verdict::Proxy, PolicyEntry::AUTH)
        } else if has(PolicyEntry::ALLOW) {
            (Verdict::Allow, PolicyEntry::ALLOW)
        } else if has(PolicyEntry::L7) {
            (Verdict::Proxy, PolicyEntry::L7)
        } else {
            (if enforced { Verdict::Deny } else { Verdict::Allow }, 0)
        };
        let rules = Fake(entries.iter().copied().collect());
        let got = judge(&rules, &endpoint(if enforced { Endpoint::ENFORCE_INGRESS } else { 0 }), &question(INGRESS));
        prop_assert_eq!(got.verdict, verdict);
        let named = entries.iter().find(|(_, entry)| entry.rule == got.rule);
        prop_assert_eq!(named.is_some_and(|(_, entry)| entry.flags & by != 0), by != 0);
    }
}
