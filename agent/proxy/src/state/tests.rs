use super::*;
use std::path::PathBuf;
use weft_model::{
    policy::{EndpointPolicy, HttpRule, Peers},
    types::{ObjectName, PluginPhase, WasmPlugin},
};
use weft_proxy_api::config::WorkloadInfo;

const POD: &str = "10.1.2.2";

fn workload(address: &str, identity: u32, local: bool) -> WorkloadInfo {
    WorkloadInfo {
        addresses: vec![address.parse().unwrap()],
        pod: ObjectName::new("shop", format!("pod-{identity}")),
        cluster: "east".to_owned().try_into().unwrap(),
        spiffe_id: "spiffe://east.example/ns/shop/sa/frontend".parse().unwrap(),
        identity,
        labels: [].into(),
        local,
        hbone: true,
    }
}

fn config() -> ProxyConfig {
    ProxyConfig {
        version: 1,
        node: "n1".into(),
        cluster: "east".to_owned().try_into().unwrap(),
        trust_domain: "east.example".parse().unwrap(),
        map_dir: PathBuf::new(),
        workloads: vec![workload(POD, 300, true), workload("10.1.1.2", 301, false)],
        identities: vec![],
        policies: [].into(),
        auth_destinations: vec![],
        svids: vec![],
        trust_bundles: [].into(),
        plugins: vec![],
        deny_status: 403,
        wireguard: None,
    }
}

fn rule(auth_required: bool, http: Option<Vec<HttpRule>>) -> EndpointPolicy {
    EndpointPolicy {
        enforce_ingress: true,
        ingress: vec![Rule {
            policy: "shop/api".into(),
            deny: false,
            peers: Peers::Identities(vec![301]),
            ports: vec![],
            http,
            auth_required,
        }],
        ..EndpointPolicy::default()
    }
}

fn plugin(name: &str, phase: PluginPhase, priority: i32, targets: Option<&str>) -> PluginConfig {
    PluginConfig {
        plugin: WasmPlugin {
            name: ObjectName::new("shop", name),
            selector: [].into(),
            url: String::new(),
            sha256: String::new(),
            phase,
            priority,
            plugin_config: serde_json::Value::Null,
            fail_open: false,
            ports: vec![8080],
            env: [].into(),
        },
        module: PathBuf::new(),
        targets: targets.map(|t| vec![t.parse().unwrap()]),
    }
}

fn judge(compiled: &Compiled, peer: u32, authenticated: bool) -> Decision {
    compiled.judge(true, POD.parse().unwrap(), peer, 8080, authenticated)
}

fn deny(reason: &'static str, policy: &str) -> Decision {
    Decision::Deny { reason, policy: policy.into() }
}

#[test]
fn without_a_policy_a_local_pod_is_open_and_anything_else_is_refused() {
    let compiled = Compiled::new(config()).unwrap();
    assert_eq!(judge(&compiled, 2, false), Decision::Allow { policy: String::new() });
    let elsewhere = compiled.judge(true, "10.1.1.2".parse().unwrap(), 2, 80, false);
    assert_eq!(elsewhere, deny(reason::NOT_OURS, ""));
    assert_eq!(judge(&Compiled::empty(), 2, false), deny(reason::NOT_OURS, ""));
}

#[test]
fn where_authentication_is_required_plain_text_is_refused() {
    let mut config = config();
    config.policies.insert(POD.parse().unwrap(), rule(true, None));
    let compiled = Compiled::new(config).unwrap();
    assert_eq!(judge(&compiled, 301, false), deny(reason::PLAIN_TEXT, "shop/api"));
    assert_eq!(judge(&compiled, 301, true), Decision::Allow { policy: "shop/api".into() });
    assert_eq!(judge(&compiled, 302, true), deny(reason::POLICY, ""));
}

#[test]
fn l7_rules_name_their_set() {
    let mut config = config();
    config.policies.insert(POD.parse().unwrap(), rule(false, Some(vec![HttpRule::default()])));
    let compiled = Compiled::new(config).unwrap();
    let Decision::Http { set } = judge(&compiled, 301, false) else { panic!("not by rules") };
    assert!(compiled.sets.plugin_configuration(403)["sets"][set.as_str()].is_array());
}

#[test]
fn plugins_run_by_phase_then_priority_and_only_for_their_pods_and_ports() {
    let mut config = config();
    config.plugins = vec![
        plugin("late", PluginPhase::Unspecified, 0, Some(POD)),
        plugin("low", PluginPhase::Authz, 1, Some(POD)),
        plugin("high", PluginPhase::Authz, 9, Some(POD)),
        plugin(HTTP_POLICY, PluginPhase::Authz, 0, None),
        plugin("elsewhere", PluginPhase::Authn, 0, Some("10.9.9.9")),
        plugin("first", PluginPhase::Authn, 0, Some(POD)),
    ];
    let compiled = Compiled::new(config).unwrap();
    let names = |port| -> Vec<&str> {
        compiled
            .plugins_for(SocketAddr::new(POD.parse().unwrap(), port))
            .map(|index| compiled.plugins[index].plugin.name.name.as_str())
            .collect()
    };
    assert_eq!((names(8080), names(80)), (vec!["first", "high", "low", "late"], vec![]));
    let authz = compiled.http_policy.unwrap();
    assert_eq!(compiled.plugins[authz + 1].plugin.name.name, "high");
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_whole() {
    let mut status = config();
    status.deny_status = 200;
    assert!(Compiled::new(status).unwrap_err().to_string().contains("denyStatus 200"));
    let mut twice = config();
    twice.workloads.push(workload(POD, 305, true));
    assert!(Compiled::new(twice).unwrap_err().to_string().contains(POD));
}
