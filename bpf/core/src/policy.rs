//! What the rules say of a new connection.
use weft_bpf_abi::{
    net::{Endpoint, Port, identity},
    policy::{EGRESS, INGRESS, PolicyEntry, PolicyKey},
};

/// The rules, wherever they are kept. The look-up is for the longest prefix.
pub trait Rules {
    fn entry(&self, key: &PolicyKey) -> Option<PolicyEntry>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    Deny,
    /// The proxy decides: L7 rules, or mutual TLS is required.
    Proxy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    /// `PolicyEntry::rule` of the entry that decided; 0: none.
    pub rule: u32,
}

/// A connection as one endpoint's rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub direction: u8,
    /// Identity of the other side.
    pub peer: u32,
    pub proto: u8,
    /// The port that the opener named; 0 where the protocol has none.
    pub port: Port,
}

/// Joins the four entries that may apply: {this identity, any} x {this protocol, any}.
///
/// The node itself may always reach its pods, as the kubelet's probes must; whoever is root there can enter them anyway.
#[inline(always)]
pub fn judge(rules: &impl Rules, endpoint: &Endpoint, ask: &Question) -> Judgement {
    if ask.direction == INGRESS && ask.peer == identity::HOST {
        return Judgement { verdict: Verdict::Allow, rule: 0 };
    }
    let mut joined = Joined::default();
    let mut key = PolicyKey {
        endpoint: endpoint.id,
        identity: ask.peer,
        direction: ask.direction,
        proto: ask.proto,
        port: ask.port,
    };
    joined.add(rules.entry(&key));
    key.proto = 0;
    joined.add(rules.entry(&key));
    key.identity = identity::ANY;
    joined.add(rules.entry(&key));
    key.proto = ask.proto;
    joined.add(rules.entry(&key));
    joined.judgement(is_enforced(endpoint, ask.direction))
}

/// Whether a direction is default-deny.
#[inline(always)]
pub fn is_enforced(endpoint: &Endpoint, direction: u8) -> bool {
    let flag = if direction == EGRESS { Endpoint::ENFORCE_EGRESS } else { Endpoint::ENFORCE_INGRESS };
    endpoint.flags & flag != 0
}

/// The flags of all entries, and the rule that speaks for each outcome.
#[derive(Default)]
struct Joined {
    flags: u32,
    deny: u32,
    auth: u32,
    l7: u32,
    allow: u32,
}

impl Joined {
    #[inline(always)]
    fn add(&mut self, entry: Option<PolicyEntry>) {
        let Some(entry) = entry else { return };
        self.flags |= entry.flags;
        for (flag, rule) in [
            (PolicyEntry::DENY, &mut self.deny),
            (PolicyEntry::AUTH, &mut self.auth),
            (PolicyEntry::L7, &mut self.l7),
            (PolicyEntry::ALLOW, &mut self.allow),
        ] {
            if entry.flags & flag != 0 && *rule == 0 {
                *rule = entry.rule;
            }
        }
    }

    #[inline(always)]
    fn judgement(&self, enforced: bool) -> Judgement {
        let has = |flag| self.flags & flag != 0;
        let (verdict, rule) = if has(PolicyEntry::DENY) {
            (Verdict::Deny, self.deny)
        } else if has(PolicyEntry::AUTH) {
            (Verdict::Proxy, self.auth)
        } else if has(PolicyEntry::ALLOW) {
            (Verdict::Allow, self.allow)
        } else if has(PolicyEntry::L7) {
            (Verdict::Proxy, self.l7)
        } else if enforced {
            (Verdict::Deny, 0)
        } else {
            (Verdict::Allow, 0)
        };
        Judgement { verdict, rule }
    }
}

#[cfg(test)]
mod tests;
