//! The HTTP rules that the `http-policy` plugin judges by, as the sets that its configuration names. A connection is
//! judged by one set: the union of all L7 rules that match its peer and port.
use regex::Regex;
use serde::Serialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use weft_model::{
    policy::{EndpointPolicy, HttpRule, Peers, Rule, Verdict},
    types::Protocol,
};

/// Names a set in the plugin's configuration and in the property `weft.policy_set`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct SetId(String);

impl SetId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
struct Entry {
    policy: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<String>,
}

#[derive(Debug, Default)]
pub struct PolicySets {
    ids: HashMap<Vec<Entry>, SetId>,
    /// Rules that can never match because they are broken.
    pub problems: BTreeSet<String>,
}

impl PolicySets {
    /// Every set that some connection may need, found by judging one connection of each kind.
    pub fn new<'a>(policies: impl Iterator<Item = &'a EndpointPolicy>) -> Self {
        let mut sets = BTreeSet::new();
        let mut problems = BTreeSet::new();
        for policy in policies {
            for ingress in [true, false] {
                let rules = if ingress { &policy.ingress } else { &policy.egress };
                if rules.iter().all(|rule| rule.http.is_none()) {
                    continue;
                }
                for (peer, port) in kinds(rules) {
                    if let Verdict::Http { rules, .. } = policy.judge(ingress, peer, Protocol::Tcp, port) {
                        sets.insert(entries(&rules, &mut problems));
                    }
                }
            }
        }
        let ids = sets.into_iter().enumerate().map(|(index, set)| (set, SetId(format!("s{index}")))).collect();
        Self { ids, problems }
    }

    /// `None` cannot be for rules of a policy given to `new`.
    pub fn id(&self, rules: &[&Rule]) -> Option<&SetId> {
        self.ids.get(&entries(rules, &mut BTreeSet::new()))
    }

    /// The configuration of `http-policy`. The same policies give the same bytes.
    pub fn plugin_configuration(&self, deny_status: u16) -> serde_json::Value {
        let sets: BTreeMap<&str, &Vec<Entry>> = self.ids.iter().map(|(set, id)| (id.as_str(), set)).collect();
        json!({ "deny_status": deny_status, "sets": sets })
    }
}

/// Peers and ports such that every other connection is judged like one of them: identities that the same rules name are
/// alike, and so are the ports between two bounds of ranges.
fn kinds(rules: &[Rule]) -> impl Iterator<Item = (u32, u16)> {
    let mut named_by: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (index, rule) in rules.iter().enumerate() {
        if let Peers::Identities(ids) = &rule.peers {
            for id in ids {
                named_by.entry(*id).or_default().push(index);
            }
        }
    }
    let mut peers: BTreeMap<Vec<usize>, u32> = named_by.into_iter().map(|(id, rules)| (rules, id)).collect();
    // Identity 0 is nobody's: it stands for all that no rule names.
    peers.insert(Vec::new(), 0);
    let mut ports = BTreeSet::from([0]);
    for range in rules.iter().flat_map(|rule| &rule.ports) {
        ports.insert(range.first);
        ports.extend(range.last.checked_add(1));
    }
    peers.into_values().flat_map(move |peer| ports.clone().into_iter().map(move |port| (peer, port)))
}

fn entries(rules: &[&Rule], problems: &mut BTreeSet<String>) -> Vec<Entry> {
    let mut set = Vec::new();
    for rule in rules {
        for http in rule.http.iter().flatten() {
            match broken(http) {
                None => set.push(Entry {
                    policy: rule.policy.clone(),
                    method: http.method.clone(),
                    path: http.path.clone(),
                    host: http.host.clone(),
                    headers: http.headers.clone(),
                }),
                Some(why) => {
                    problems.insert(format!("policy {}: {why}: this HTTP rule allows nothing", rule.policy));
                }
            }
        }
    }
    set
}

/// A regular expression that does not compile would make the plugin refuse the rules of every pod.
fn broken(rule: &HttpRule) -> Option<String> {
    let fields = [("method", &rule.method), ("path", &rule.path), ("host", &rule.host)];
    fields.into_iter().find_map(|(field, pattern)| {
        let pattern = pattern.as_ref()?;
        Regex::new(&format!("^(?:{pattern})$"))
            .err()
            .map(|_| format!("{field} {pattern:?} is not a valid regular expression"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_model::policy::PortRange;

    fn rule(policy: &str, peers: Peers, first: u16, last: u16, path: &str) -> Rule {
        Rule {
            policy: policy.into(),
            deny: false,
            peers,
            ports: vec![PortRange { protocol: Some(Protocol::Tcp), first, last }],
            http: Some(vec![HttpRule { path: Some(path.into()), ..HttpRule::default() }]),
            auth_required: false,
        }
    }

    #[test]
    fn every_connection_that_needs_rules_finds_its_set() {
        let policy = EndpointPolicy {
            enforce_ingress: true,
            ingress: vec![
                rule("a/any", Peers::Any, 80, 90, "/any"),
                rule("a/some", Peers::Identities(vec![300, 301]), 85, 65535, "/some"),
                rule("a/one", Peers::Identities(vec![301]), 80, 80, "/one"),
            ],
            ..EndpointPolicy::default()
        };
        let sets = PolicySets::new([&policy].into_iter());
        for peer in [2, 300, 301, 999] {
            for port in [79, 80, 84, 85, 90, 91, 65535] {
                if let Verdict::Http { rules, .. } = policy.judge(true, peer, Protocol::Tcp, port) {
                    assert!(sets.id(&rules).is_some(), "{peer} {port}");
                }
            }
        }
        let configuration = sets.plugin_configuration(403);
        assert_eq!(configuration["deny_status"], 403);
        assert_eq!(configuration["sets"].as_object().unwrap().len(), 4);
    }

    #[test]
    fn a_broken_regular_expression_allows_nothing_and_is_named() {
        let policy = EndpointPolicy {
            enforce_ingress: true,
            ingress: vec![rule("a/bad", Peers::Any, 80, 80, "/(")],
            ..EndpointPolicy::default()
        };
        let sets = PolicySets::new([&policy].into_iter());
        assert_eq!(sets.plugin_configuration(403)["sets"], json!({"s0": []}));
        assert!(sets.problems.iter().next().unwrap().contains("policy a/bad: path \"/(\""));
    }
}
