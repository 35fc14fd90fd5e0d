//! Each feature of policies as a scenario: YAML in, verdicts out.
use crate::{
    identity::{HOST, REMOTE_NODE, WORLD},
    store::{Event, UnsupportedPolicy},
    testing::{Judge, file, pod, store, told, west},
    types::Protocol,
};

mod network_policy;

const FRONT: &str = "10.1.0.10";
const USERS: &str = "10.1.0.11";
const OTHER: &str = "10.2.0.12";

/// `frontend` and `users` on this node, `other` on another one, and a pod of another namespace.
fn pods() -> String {
    let mut text = pod("frontend", "node-1", FRONT) + &pod("users", "node-1", USERS) + &pod("other", "node-2", OTHER);
    text += "
---
apiVersion: v1
kind: Namespace
metadata: {name: bank, labels: {team: money}}
---
apiVersion: v1
kind: Pod
metadata: {name: teller, namespace: bank, labels: {app: frontend}}
spec: {nodeName: node-1, containers: []}
status: {phase: Running, podIPs: [{ip: 10.1.0.20}]}
";
    text
}

/// A CiliumNetworkPolicy for `users` with this body.
fn cnp(spec: &str) -> String {
    let spec = spec.replace('\n', "\n  ");
    format!(
        "
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: p, namespace: shop}}
spec:
  endpointSelector: {{matchLabels: {{app: users}}}}
  {spec}
"
    )
}

fn judge(spec: &str) -> Judge {
    let judge = Judge(told(&(pods() + &cnp(spec))).snapshot());
    assert_eq!(judge.state("shop/p"), "enforced", "{:?}", judge.0.object_errors);
    judge
}

fn rejected(spec: &str) -> String {
    let judge = Judge(told(&(pods() + &cnp(spec))).snapshot());
    judge.state("shop/p").to_owned()
}

#[test]
fn a_pod_that_no_policy_selects_is_open() {
    let judge = Judge(told(&pods()).snapshot());
    assert_eq!(judge.from("8.8.8.8", "users", 80), "allow");
    assert_eq!(judge.to("users", "8.8.8.8", 80), "allow");
}

#[test]
fn a_selected_direction_is_closed_but_for_what_its_rules_allow() {
    let judge = judge("ingress: [{fromEndpoints: [{matchLabels: {app: frontend}}]}]");
    assert_eq!(judge.from(FRONT, "users", 80), "allow");
    assert_eq!(judge.from(OTHER, "users", 80), "deny");
    assert_eq!(judge.from("10.1.0.20", "users", 80), "deny", "the same label in another namespace");
    assert_eq!(judge.from("8.8.8.8", "users", 80), "deny");
    assert_eq!(judge.to("users", "8.8.8.8", 80), "allow", "egress is not spoken of");
    assert_eq!(judge.from(OTHER, "frontend", 80), "allow", "frontend is not selected");
}

#[test]
fn the_node_of_a_pod_always_gets_in_to_probe_it() {
    let judge =
        judge("ingress: [{fromEndpoints: [{matchLabels: {app: frontend}}], toPorts: [{ports: [{port: '80'}]}]}]");
    assert_eq!(judge.verdict("users", true, HOST, Protocol::Tcp, 8080), "allow");
    assert_eq!(judge.verdict("users", true, REMOTE_NODE, Protocol::Tcp, 80), "deny");
}

#[test]
fn pods_with_the_same_labels_in_another_cluster_are_others() {
    let spec = "ingress: [{fromEndpoints: [{matchLabels: {app: frontend}}]}]";
    let mut store = told(&(pods() + &cnp(spec)));
    store.apply(Event::Remote(Box::new(west("frontend", "10.9.0.1"))));
    let judge = Judge(store.snapshot());
    assert_eq!(judge.from(FRONT, "users", 80), "allow");
    assert_eq!(judge.from("10.9.0.1", "users", 80), "deny");

    let named = "ingress: [{fromEndpoints: [{matchLabels: {app: frontend, io.cilium.k8s.policy.cluster: west}}]}]";
    store.apply(file("/cluster/all.yaml", &(pods() + &cnp(named))));
    let judge = Judge(store.snapshot());
    assert_eq!(judge.from(FRONT, "users", 80), "deny");
    assert_eq!(judge.from("10.9.0.1", "users", 80), "allow");
}

#[test]
fn an_empty_peer_selector_means_the_own_namespace_and_an_empty_rule_nobody() {
    let judge_all = judge("ingress: [{fromEndpoints: [{}]}]");
    assert_eq!(judge_all.from(FRONT, "users", 80), "allow");
    assert_eq!(judge_all.from("10.1.0.20", "users", 80), "deny");
    assert_eq!(judge_all.from("8.8.8.8", "users", 80), "deny");
    for nobody in ["ingress: [{}]", "ingress: [{fromEndpoints: []}]"] {
        assert_eq!(judge(nobody).from(FRONT, "users", 80), "deny", "{nobody}");
    }
}

#[test]
fn a_rule_with_ports_alone_is_for_everybody() {
    let judge = judge("ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}, {port: '90', endPort: 99}]}]}]");
    for (port, expected) in [(80, "allow"), (81, "deny"), (90, "allow"), (95, "allow"), (99, "allow"), (100, "deny")] {
        assert_eq!(judge.from("8.8.8.8", "users", port), expected, "{port}");
    }
    assert_eq!(judge.verdict("users", true, WORLD, Protocol::Udp, 80), "deny");
    assert_eq!(judge.verdict("users", true, WORLD, Protocol::Udp, 95), "allow", "no protocol: any");
    assert_eq!(judge.verdict("users", true, WORLD, Protocol::Icmp, 0), "deny", "ICMP has no port");
}

#[test]
fn other_namespaces_are_named_by_name_or_by_label() {
    for key in ["k8s:io.kubernetes.pod.namespace: bank", "k8s:io.cilium.k8s.namespace.labels.team: money"] {
        let judge = judge(&format!("ingress: [{{fromEndpoints: [{{matchLabels: {{{key}}}}}]}}]"));
        assert_eq!(judge.from("10.1.0.20", "users", 80), "allow", "{key}");
        assert_eq!(judge.from(FRONT, "users", 80), "deny", "{key}");
    }
    let account = "egress: [{toEndpoints: [{matchLabels: {io.cilium.k8s.policy.serviceaccount: other}}]}]";
    assert_eq!(judge(account).to("users", OTHER, 80), "allow");
    assert_eq!(judge(account).to("users", FRONT, 80), "deny");
}

#[test]
fn match_expressions_work_in_both_selectors() {
    let judge =
        judge("ingress: [{fromEndpoints: [{matchExpressions: [{key: app, operator: NotIn, values: [other]}]}]}]");
    assert_eq!(judge.from(FRONT, "users", 80), "allow");
    assert_eq!(judge.from(OTHER, "users", 80), "deny");
}

#[test]
fn entities_mean_what_cilium_means() {
    let cases = [
        // entity, frontend, another cluster's pod, the internet, a named prefix, host, remote node
        ("all", ["allow"; 6]),
        ("cluster", ["allow", "deny", "deny", "deny", "allow", "allow"]),
        ("world", ["deny", "deny", "allow", "allow", "deny", "deny"]),
        ("host", ["deny", "deny", "deny", "deny", "allow", "deny"]),
        ("remote-node", ["deny", "deny", "deny", "deny", "deny", "allow"]),
    ];
    for (entity, expected) in cases {
        let spec = format!("egress: [{{toEntities: [{entity}]}}]");
        // A prefix that some other policy names has an identity of its own and is still the world.
        let prefix = cnp("ingress: [{fromCIDR: [203.0.113.0/24]}]").replace("name: p,", "name: q,");
        let mut store = told(&(pods() + &cnp(&spec) + &prefix));
        store.apply(Event::Remote(Box::new(west("frontend", "10.9.0.1"))));
        let judge = Judge(store.snapshot());
        let verdict = |peer| judge.verdict("users", false, peer, Protocol::Tcp, 80);
        let seen = [
            verdict(judge.identity(FRONT)),
            verdict(judge.identity("10.9.0.1")),
            verdict(judge.identity("8.8.8.8")),
            verdict(judge.identity("203.0.113.9")),
            verdict(HOST),
            verdict(REMOTE_NODE),
        ];
        assert_eq!(seen, expected, "{entity}");
    }
}

#[test]
fn prefixes_are_judged_by_the_longest_and_never_mean_pods() {
    let judge =
        judge("egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.5.0.0/16]}]}, {toCIDR: [10.5.1.0/24, 192.0.2.7]}]");
    let cases = [
        ("10.0.0.1", "allow"),
        ("10.5.0.1", "deny"),
        ("10.5.1.1", "allow"),
        ("192.0.2.7", "allow"),
        ("192.0.2.8", "deny"),
        (OTHER, "deny"),
    ];
    for (address, expected) in cases {
        assert_eq!(judge.to("users", address, 443), expected, "{address}");
    }
}

#[test]
fn everything_v4_covers_every_named_prefix() {
    let judge = judge("egress: [{toCIDR: [0.0.0.0/0]}, {toCIDR: [10.5.0.0/16], toPorts: [{ports: [{port: '1'}]}]}]");
    assert_eq!(judge.to("users", "10.5.0.1", 443), "allow");
    assert_eq!(judge.to("users", "8.8.8.8", 443), "allow");
    assert_eq!(judge.to("users", "2001:db8::1", 443), "deny");
}

#[test]
fn deny_wins_over_every_allow() {
    let judge = judge(
        "ingress: [{fromEntities: [all]}]\ningressDeny: [{fromEndpoints: [{matchLabels: {app: frontend}}], toPorts: [{ports: [{port: '80'}]}]}]",
    );
    assert_eq!(judge.from(FRONT, "users", 80), "deny");
    assert_eq!(judge.from(FRONT, "users", 81), "allow");
    assert_eq!(judge.from(OTHER, "users", 80), "allow");
}

#[test]
fn default_deny_can_be_switched_off() {
    let judge =
        judge("enableDefaultDeny: {ingress: false}\ningressDeny: [{fromEndpoints: [{matchLabels: {app: other}}]}]");
    assert_eq!(judge.from(FRONT, "users", 80), "allow");
    assert_eq!(judge.from(OTHER, "users", 80), "deny");
}

#[test]
fn http_rules_are_handed_on_and_a_plain_allow_beats_them() {
    let http = "ingress: [{fromEndpoints: [{matchLabels: {app: frontend}}], toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{method: GET, path: /api/users/.*, headers: ['X-A: b']}, {method: POST, path: /api/login, host: shop}]}}]}]";
    let first = judge(http);
    assert_eq!(first.from(FRONT, "users", 80), "http");
    assert_eq!(first.from(OTHER, "users", 80), "deny");
    let rules = first.policy("users").ingress[0].http.clone().unwrap();
    assert_eq!(rules.len(), 2);
    assert_eq!(rules[0].path.as_deref(), Some("/api/users/.*"));
    assert_eq!(rules[0].headers, ["X-A: b"]);
    let both = http.replace("ingress: [", "ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '80'}]}]}, ");
    assert_eq!(judge(&both).from(FRONT, "users", 80), "allow");
}

#[test]
fn required_authentication_marks_rule_and_destination() {
    let judge_port = judge(
        "ingress: [{fromEndpoints: [{}], authentication: {mode: required}, toPorts: [{ports: [{port: '80', protocol: TCP}, {port: '53', protocol: UDP}]}]}]",
    );
    assert_eq!(judge_port.from(FRONT, "users", 80), "allow+auth");
    assert_eq!(judge_port.0.auth_destinations, [(USERS.parse().unwrap(), 80)]);
    let whole = judge("ingress: [{fromEndpoints: [{}], authentication: {mode: required}}]");
    assert_eq!(whole.0.auth_destinations, [(USERS.parse().unwrap(), 0)]);
    let disabled = judge("ingress: [{fromEndpoints: [{}], authentication: {mode: disabled}}]");
    assert_eq!(disabled.from(FRONT, "users", 80), "allow");
    assert!(disabled.0.auth_destinations.is_empty());
    let everybody = judge("ingress: [{authentication: {mode: required}, toPorts: [{ports: [{port: '80'}]}]}]");
    assert_eq!(everybody.from("8.8.8.8", "users", 80), "allow+auth");
    assert_eq!(everybody.verdict("users", true, HOST, Protocol::Tcp, 80), "allow", "a probe has nothing to prove");
}

#[test]
fn pods_of_other_nodes_and_clusters_are_authenticated_destinations_too() {
    let spec = cnp("ingress: [{fromEndpoints: [{}], authentication: {mode: required}}]");
    let mut store = told(&(pods() + &spec.replace("app: users", "app: other")));
    let mut remote = west("frontend", "10.9.0.1");
    // The second is not its own to speak for.
    remote.auth_destinations = vec![("10.9.0.1".parse().unwrap(), 443), (FRONT.parse().unwrap(), 0)];
    store.apply(Event::Remote(Box::new(remote)));
    let found = store.snapshot().auth_destinations.clone();
    assert_eq!(found, [(OTHER.parse().unwrap(), 0), ("10.9.0.1".parse().unwrap(), 443)]);
}

#[test]
fn a_named_port_is_the_selected_pods_own() {
    let judge_named = judge("ingress: [{toPorts: [{ports: [{port: web, protocol: TCP}]}]}]");
    assert_eq!(judge_named.from(FRONT, "users", 8080), "allow");
    assert_eq!(judge_named.from(FRONT, "users", 80), "deny");
    let unknown = judge("ingress: [{toPorts: [{ports: [{port: none, protocol: TCP}]}]}]");
    assert_eq!(unknown.from(FRONT, "users", 8080), "deny", "a port that nobody has is not every port");
}

#[test]
fn what_is_not_supported_is_named() {
    let cases = [
        ("egress: [{toFQDNs: [{matchName: a.b}]}]", "spec.egress[0].toFQDNs is not supported"),
        ("egress: [{toServices: [{}]}]", "spec.egress[0].toServices is not supported"),
        ("egress: [{toGroups: [{}]}]", "spec.egress[0].toGroups is not supported"),
        ("egress: [{icmps: [{}]}]", "spec.egress[0].icmps is not supported"),
        ("ingress: [{fromRequires: [{}]}]", "spec.ingress[0].fromRequires is not supported"),
        (
            "ingress: [{fromEntities: [kube-apiserver]}]",
            "spec.ingress[0].fromEntities[0]: entity kube-apiserver is not supported",
        ),
        (
            "ingress: [{fromCIDRSet: [{cidrGroupRef: a}]}]",
            "spec.ingress[0].fromCIDRSet[0].cidrGroupRef is not supported",
        ),
        (
            "ingress: [{toPorts: [{ports: [{port: '80'}], rules: {dns: [{}]}}]}]",
            "spec.ingress[0].toPorts[0].rules.dns is not supported",
        ),
        (
            "ingress: [{toPorts: [{ports: [{port: '80'}], terminatingTLS: {}}]}]",
            "spec.ingress[0].toPorts[0].terminatingTLS is not supported",
        ),
        (
            "ingressDeny: [{toPorts: [{ports: [{port: '80'}], rules: {http: [{}]}}]}]",
            "spec.ingressDeny[0].toPorts[0].rules is not supported",
        ),
        ("ingressDeny: [{authentication: {mode: required}}]", "spec.ingressDeny[0].authentication is not supported"),
        (
            "egress: [{authentication: {mode: required}}]",
            "spec.egress[0].authentication.mode: required is not supported",
        ),
        (
            "egress: [{toPorts: [{ports: [{port: web}]}]}]",
            "spec.egress[0].toPorts[0].ports[0].port: name web is not supported",
        ),
        (
            "ingress: [{fromEndpoints: [{matchLabels: {'cidr:10.0.0.0/8': ''}}]}]",
            "spec.ingress[0].fromEndpoints[0].matchLabels.cidr:10.0.0.0/8 is not supported",
        ),
        (
            "ingress: [{toPorts: [{ports: [{port: '80'}], rules: {http: [{headerMatches: []}]}}]}]",
            "spec.ingress[0].toPorts[0].rules.http[0].headerMatches is not supported",
        ),
        ("ingres: [{}]", "spec.ingres is not supported"),
        ("log: {value: a}\ningress: [{}]", "spec.log is not supported"),
    ];
    for (spec, reason) in cases {
        assert_eq!(rejected(spec), format!("rejected: {reason}"), "{spec}");
    }
}

#[test]
fn what_is_wrong_is_named_with_the_reason() {
    let cases = [
        ("ingress: [{fromCIDR: [10.0.0.0/99]}]", "spec.ingress[0].fromCIDR[0]: \"10.0.0.0/99\" is not a prefix"),
        (
            "ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}]}]",
            "spec.ingress[0].fromCIDRSet[0].except[0]: 11.0.0.0/16 is not inside",
        ),
        (
            "ingress: [{toPorts: [{ports: [{port: '80'}], rules: {http: [{path: '/(a'}]}}]}]",
            "spec.ingress[0].toPorts[0].rules.http[0].path: \"/(a\" is not a regular expression: unclosed group",
        ),
        (
            "ingress: [{toPorts: [{ports: [{port: '80'}], rules: {http: [{headers: ['a b: c']}]}}]}]",
            "spec.ingress[0].toPorts[0].rules.http[0].headers[0]: \"a b: c\": want",
        ),
        (
            "ingress: [{toPorts: [{ports: [{port: '99999'}]}]}]",
            "spec.ingress[0].toPorts[0].ports[0].port: \"99999\" is not a port",
        ),
        (
            "ingress: [{toPorts: [{ports: [{port: '80', endPort: 70}]}]}]",
            "spec.ingress[0].toPorts[0].ports[0].endPort: 70 is not a port from 80",
        ),
        ("ingress: [{toPorts: [{rules: {http: [{}]}}]}]", "spec.ingress[0].toPorts[0].ports: missing"),
        (
            "ingress: [{toPorts: [{ports: [{port: '80', protocol: UDP}], rules: {http: [{}]}}]}]",
            "spec.ingress[0].toPorts[0].ports[0].protocol: HTTP rules are for TCP only",
        ),
        ("ingress: {}", "spec.ingress: want a list, not an object"),
        ("ingress: []", "spec: has no rule"),
    ];
    for (spec, reason) in cases {
        let state = rejected(spec);
        assert!(state.starts_with(&format!("rejected: {reason}")), "{spec}: {state}");
    }
}

#[test]
fn a_rejected_policy_fails_closed_over_every_allow_in_its_directions_only() {
    let open = cnp("ingress: [{fromEntities: [all]}]").replace("name: p,", "name: q,");
    let bad = cnp("ingress: [{fromEndpoints: [{}], fromGroups: [{}]}]");
    let judge = Judge(told(&(pods() + &open + &bad)).snapshot());
    assert_eq!(judge.from(FRONT, "users", 80), "deny");
    assert_eq!(judge.from("8.8.8.8", "users", 80), "deny");
    assert_eq!(judge.verdict("users", true, HOST, Protocol::Tcp, 80), "allow", "probes still arrive");
    assert_eq!(judge.to("users", "8.8.8.8", 80), "allow");
    assert_eq!(judge.from(FRONT, "frontend", 80), "allow", "not selected");
    assert_eq!(judge.state("shop/q"), "enforced");
    assert!(judge.0.object_errors.iter().any(|error| error.message.contains("fromGroups")));
}

#[test]
fn a_rejected_policy_whose_selector_cannot_be_read_closes_its_namespace() {
    let bad = cnp("ingress: [{}]").replace("{matchLabels: {app: users}}", "{matchNames: [users]}");
    let judge = Judge(told(&(pods() + &bad)).snapshot());
    assert_eq!(judge.state("shop/p"), "rejected: spec.endpointSelector.matchNames is not supported");
    assert_eq!(judge.from(OTHER, "frontend", 80), "deny");
    assert_eq!(judge.from(OTHER, "users", 80), "deny");
    let teller = &judge.0.policies[&crate::testing::name("bank/teller")];
    assert!(!teller.enforce_ingress && !teller.enforce_egress);
}

#[test]
fn one_bad_spec_rejects_all_specs() {
    let text = "
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: shop}
specs:
- {endpointSelector: {matchLabels: {app: users}}, ingress: [{fromEntities: [all]}]}
- {endpointSelector: {matchLabels: {app: frontend}}, egress: [{toFQDNs: []}]}
";
    let judge = Judge(told(&(pods() + text)).snapshot());
    assert_eq!(judge.state("shop/p"), "rejected: specs[1].egress[0].toFQDNs is not supported");
    assert_eq!(judge.from(FRONT, "users", 80), "deny");
    assert_eq!(judge.to("frontend", "8.8.8.8", 80), "deny");
    assert_eq!(judge.from(OTHER, "frontend", 80), "allow");
}

#[test]
fn the_agent_can_be_set_to_ignore_what_it_cannot_honour() {
    let mut store = store(UnsupportedPolicy::Ignore);
    store.apply(file("/a.yaml", &(pods() + &cnp("egress: [{toFQDNs: []}]"))));
    let judge = Judge(store.snapshot());
    assert_eq!(judge.state("shop/p"), "ignored: spec.egress[0].toFQDNs is not supported");
    assert_eq!(judge.to("users", "8.8.8.8", 80), "allow");
}

#[test]
fn a_cluster_wide_policy_selects_in_every_namespace() {
    let text = "
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: wide}
spec: {endpointSelector: {matchLabels: {app: frontend}}, ingress: [{fromEndpoints: [{}]}]}
";
    let judge = Judge(told(&(pods() + text)).snapshot());
    assert_eq!(judge.state("wide"), "enforced");
    assert_eq!(judge.0.policy_status[0].endpoints.len(), 2);
    assert_eq!(judge.from("10.1.0.20", "frontend", 80), "allow");
    assert_eq!(judge.from("8.8.8.8", "frontend", 80), "deny");
    let host = text.replace("endpointSelector: {matchLabels: {app: frontend}}", "nodeSelector: {}");
    let judge = Judge(told(&(pods() + &host)).snapshot());
    assert_eq!(judge.state("wide"), "rejected: spec.nodeSelector is not supported");
    assert_eq!(judge.from("8.8.8.8", "frontend", 80), "allow", "it is about nodes, not pods");
}

#[test]
fn a_label_that_is_usually_noise_counts_where_a_policy_names_it() {
    let noisy = pod("frontend", "node-1", FRONT).replace("{app: frontend}", "{app: frontend, pod-template-hash: abc}");
    let plain = Judge(told(&noisy).snapshot());
    let labels = |judge: &Judge| judge.0.identities[&judge.identity(FRONT)].labels.clone();
    assert!(!labels(&plain).contains_key("k8s:pod-template-hash"));
    let spec = cnp("ingress: [{fromEndpoints: [{matchLabels: {pod-template-hash: abc}}]}]");
    let judge = Judge(told(&(noisy + &pod("users", "node-1", USERS) + &spec)).snapshot());
    assert_eq!(judge.from(FRONT, "users", 80), "allow");
}

#[test]
fn a_pod_cannot_pass_for_another_namespace_or_cluster_by_its_labels() {
    let liar = pod("other", "node-2", OTHER).replace(
        "{app: other}",
        "{app: other, io.kubernetes.pod.namespace: bank, io.cilium.k8s.policy.cluster: west, io.cilium.k8s.namespace.labels.team: money}",
    );
    for label in ["io.kubernetes.pod.namespace: bank", "io.cilium.k8s.namespace.labels.team: money"] {
        let spec = cnp(&format!("ingress: [{{fromEndpoints: [{{matchLabels: {{{label}}}}}]}}]"));
        let judge = Judge(told(&(pod("users", "node-1", USERS) + &liar + &spec)).snapshot());
        assert_eq!(judge.from(OTHER, "users", 80), "deny", "{label}");
    }
}

#[test]
fn an_empty_label_value_is_a_value() {
    let judge = judge("ingress: [{fromEndpoints: [{matchLabels: {app: }}]}]");
    assert_eq!(judge.from(FRONT, "users", 80), "deny");
}
