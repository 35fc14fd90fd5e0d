//! Kubernetes' own NetworkPolicy.
use super::*;

fn network_policy(spec: &str) -> Judge {
    let text = format!(
        "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: p, namespace: shop}}
spec: {{podSelector: {{matchLabels: {{app: users}}}}, {spec}}}
"
    );
    Judge(told(&(pods() + &text)).snapshot())
}

#[test]
fn a_network_policy_has_kubernetes_own_meaning() {
    let judge =
        network_policy("ingress: [{from: [{podSelector: {matchLabels: {app: frontend}}}], ports: [{port: 80}]}]");
    assert_eq!(judge.state("shop/p"), "enforced");
    assert_eq!(judge.from(FRONT, "users", 80), "allow");
    assert_eq!(judge.from(FRONT, "users", 81), "deny");
    assert_eq!(judge.from("10.1.0.20", "users", 80), "deny");
    assert_eq!(judge.to("users", "8.8.8.8", 80), "allow");

    let judge =
        network_policy("ingress: [{from: [{namespaceSelector: {matchLabels: {team: money}}, podSelector: {}}]}]");
    assert_eq!(judge.from("10.1.0.20", "users", 80), "allow");
    assert_eq!(judge.from(FRONT, "users", 80), "deny");

    let judge = network_policy(
        "policyTypes: [Ingress, Egress], ingress: [{}], egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}]}]",
    );
    assert_eq!(judge.from("8.8.8.8", "users", 80), "allow", "an empty rule is for everybody");
    assert_eq!(judge.to("users", "192.0.2.1", 80), "allow");
    assert_eq!(judge.to("users", "192.0.2.200", 80), "deny");

    let judge = network_policy("policyTypes: [Egress]");
    assert_eq!(judge.to("users", FRONT, 80), "deny");
    assert_eq!(judge.from(FRONT, "users", 80), "allow");

    let judge = network_policy("ingress: [{ports: [{port: web}, {port: 90, endPort: 92, protocol: UDP}]}]");
    assert_eq!(judge.from(FRONT, "users", 8080), "allow");
    assert_eq!(judge.verdict("users", true, WORLD, Protocol::Udp, 91), "allow");
    assert_eq!(judge.verdict("users", true, WORLD, Protocol::Tcp, 91), "deny");
}

#[test]
fn a_network_policy_with_a_strange_field_fails_closed() {
    let judge = network_policy("ingress: [{form: [{podSelector: {}}]}]");
    assert_eq!(judge.state("shop/p"), "rejected: spec.ingress[0].form is not supported");
    assert_eq!(judge.from(FRONT, "users", 80), "deny");
    assert_eq!(judge.to("users", FRONT, 80), "allow");
}
