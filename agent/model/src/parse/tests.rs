//! What bad input gets: a message that names the field, and the rest goes on.
use super::*;
use crate::testing::{cluster, snapshot, told, yaml};
use proptest::prelude::*;
use serde_json::json;

/// The messages about this YAML.
fn messages(text: &str) -> Vec<String> {
    snapshot(text).object_errors.iter().map(|error| format!("{}: {}", error.object, error.message)).collect()
}

#[test]
fn a_misspelt_field_is_named_and_the_object_is_used_all_the_same() {
    let text = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selectr: {app: web}, ports: [{port: 80, targetport: 8080}]}
";
    let mut store = told(text);
    let snapshot = store.snapshot();
    assert_eq!(snapshot.services.len(), 1);
    let found: Vec<&str> = snapshot.object_errors.iter().map(|error| error.message.as_str()).collect();
    assert_eq!(
        found,
        [
            "unknown field spec.ports[0].targetport: check its spelling, or remove it",
            "unknown field spec.selectr: check its spelling, or remove it",
        ]
    );
    assert_eq!(snapshot.object_errors[0].origin, "/cluster/all.yaml, document 1");
}

#[test]
fn a_server_has_checked_its_own_fields() {
    let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"newField": 1}});
    let mut store = told("");
    store.apply(crate::store::Event::Upsert { source: "kubernetes".into(), object });
    let snapshot = store.snapshot();
    assert_eq!((snapshot.services.len(), snapshot.object_errors.len()), (1, 0));
}

#[test]
fn what_is_wrong_names_object_and_field() {
    let cases = [
        ("{kind: Service, metadata: {name: a}}", "Service: apiVersion and kind: each object needs both"),
        ("{apiVersion: v1, kind: Service, metadata: {}}", "Service: metadata.name: each object needs a name"),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: x}]}}",
            "Service default/a: spec.ports[0].port: invalid type: string \"x\", expected i32",
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: None, ports: [{port: 70000}]}}",
            "Service default/a: spec.ports[0].port: 70000 is not a port; want 1 to 65535",
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}]}}",
            "Service default/a: spec.clusterIP: missing, and nothing here hands out addresses; write one, or None",
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: a, annotations: {weft.dev/global: yes please}}, spec: {clusterIP: None}}",
            "Service default/a: metadata.annotations.weft.dev/global: \"yes please\" is neither \"true\" nor \"false\"; false is used",
        ),
        (
            "{apiVersion: cilium.io/v1, kind: CiliumNetworkPolicy, metadata: {name: a}}",
            "CiliumNetworkPolicy: apiVersion: \"cilium.io/v1\" of a CiliumNetworkPolicy is not known; write \"cilium.io/v2\"",
        ),
        (
            "{apiVersion: v1, kind: NetworkPolicy, metadata: {name: a}}",
            "NetworkPolicy: apiVersion: \"v1\" of a NetworkPolicy is not known; write \"networking.k8s.io/v1\"",
        ),
        (
            "{apiVersion: weft.dev/v1alpha1, kind: WasmPlug, metadata: {name: a}}",
            "WasmPlug: kind: weft.dev has no \"WasmPlug\"; it has WasmPlugin and MeshPeer",
        ),
        (
            "{apiVersion: v1, kind: Node, metadata: {name: a}, spec: {podCIDRs: [10.0.0.0]}}",
            "Node a: spec.podCIDRs[0]: \"10.0.0.0\" is not a prefix such as 10.0.1.0/24",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(messages(text), [expected], "{text}");
    }
}

#[test]
fn kinds_of_others_are_left_alone_and_counted() {
    let mut store = told(
        "
{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}}
---
{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: a}}
---
{apiVersion: cilium.io/v2, kind: CiliumEndpoint, metadata: {name: a}}
---
{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: a}}
",
    );
    let snapshot = store.snapshot();
    assert_eq!((snapshot.services.len(), snapshot.object_errors.len(), store.ignored_documents()), (0, 0, 4));
}

#[test]
fn a_plugin_is_read_as_istio_writes_it() {
    let text = "
apiVersion: weft.dev/v1alpha1
kind: WasmPlugin
metadata: {name: tag, namespace: shop}
spec:
  selector: {matchLabels: {app: users}}
  url: plugins/tag.wasm
  sha256: 2CF24DBA5FB0A30E26E83B2AC5B9E29E1B161E5C1FA7425E73043362938B9824
  phase: AUTHZ
  priority: 10
  pluginConfig: {header: x-tag}
  failStrategy: FAIL_OPEN
  match: [{mode: SERVER, ports: [{number: 8080}, {number: 80}]}]
  vmConfig: {env: [{name: LEVEL, value: debug}]}
";
    let snapshot = snapshot(text);
    assert_eq!(snapshot.object_errors, []);
    let plugin = &snapshot.plugins[0];
    assert_eq!(plugin.url, "file:///cluster/plugins/tag.wasm");
    assert!(plugin.sha256.starts_with("2cf24dba") && plugin.fail_open);
    assert_eq!((plugin.ports.as_slice(), plugin.priority), (&[80, 8080][..], 10));
    assert_eq!(plugin.plugin_config, json!({"header": "x-tag"}));
    assert_eq!(plugin.env["LEVEL"], "debug");
}

#[test]
fn a_plugin_or_peer_with_a_bad_field_is_refused() {
    let plugin = |spec: &str| {
        let text =
            format!("{{apiVersion: weft.dev/v1alpha1, kind: WasmPlugin, metadata: {{name: a}}, spec: {{{spec}}}}}");
        let snapshot = snapshot(&text);
        assert!(snapshot.plugins.is_empty(), "{spec}");
        snapshot.object_errors[0].message.clone()
    };
    assert_eq!(plugin("url: oci://a/b"), "spec.url: oci:// is not supported");
    assert_eq!(
        plugin("url: /a.wasm, sha256: abc"),
        "spec.sha256: want 64 hexadecimal digits, as sha256sum prints them"
    );
    assert_eq!(plugin("url: /a.wasm, pluginConf: {}"), "spec.pluginConf is not supported");
    assert_eq!(plugin("phase: AUTHN"), "spec.url: missing; want file:///PATH/PLUGIN.wasm");
    assert_eq!(
        plugin("url: /a.wasm, vmConfig: {env: [{name: A, valueFrom: HOST}]}"),
        "spec.vmConfig.env[0].valueFrom: HOST is not supported"
    );

    let peer = "{apiVersion: weft.dev/v1alpha1, kind: MeshPeer, metadata: {name: west}, spec: {cluster: west, clusterId: 2, trustDomain: west.test, trustBundle: PEM, endpoints: ['172.16.1.1:2379']}}";
    assert_eq!(snapshot(peer).mesh_peers[0].cluster, cluster("west"));
    assert_eq!(
        messages(&peer.replace("clusterId: 2", "clusterId: 300")),
        ["MeshPeer west: spec.clusterId: want 1 to 255"]
    );
    let bad = messages(&peer.replace(":2379", ""));
    assert_eq!(bad, ["MeshPeer west: spec.endpoints[0]: \"172.16.1.1\" is not HOST:PORT"]);
}

/// Any JSON, with the names that readers look for among its keys.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop_oneof![Just("80"), Just("10.0.0.0/8"), Just("all"), Just("In"), Just("(")].prop_map(Value::from),
    ];
    let key = prop_oneof![
        Just("endpointSelector"),
        Just("matchLabels"),
        Just("matchExpressions"),
        Just("ingress"),
        Just("egress"),
        Just("fromEndpoints"),
        Just("toCIDRSet"),
        Just("toPorts"),
        Just("ports"),
        Just("port"),
        Just("endPort"),
        Just("rules"),
        Just("http"),
        Just("path"),
        Just("podSelector"),
        Just("from"),
        Just("ipBlock"),
        Just("cidr"),
        Just("url"),
        Just("clusterIP"),
        Just("addresses"),
        Just("endpoints"),
        Just("podIPs"),
        Just("labels"),
    ];
    leaf.prop_recursive(5, 48, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(key.clone(), inner, 0..6)
                .prop_map(|map| map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn no_object_makes_the_reader_panic_or_a_policy_vanish(
        kind in proptest::sample::select(Kind::ALL.to_vec()),
        spec in any_value(),
        status in any_value(),
    ) {
        let object = json!({
            "apiVersion": kind.api_version(), "kind": kind.name(), "metadata": {"name": "a"}, "spec": spec, "status": status,
        });
        let (cluster, trust_domain, origin) = (cluster("east"), "a.b".parse().unwrap(), Origin::default());
        let context = Context { cluster: &cluster, trust_domain: &trust_domain, origin: &origin, strict: true };
        let Parsed::Object { fact, problems, .. } = parse(&object, &context) else { panic!("it has a name and a kind") };
        prop_assert!(fact.is_some() || !problems.is_empty(), "what is refused says why");
        if let Some(Fact::Policy(policy)) = &fact {
            prop_assert!(policy.rejected.is_none() || policy.specs.iter().all(|s| s.ingress.is_empty() && s.egress.is_empty()));
        }
        prop_assert!(fact.is_some() || !kind.name().ends_with("Policy"));
    }
}

#[test]
fn the_key_of_an_object_is_the_readers() {
    let object = &yaml("{apiVersion: v1, kind: Pod, metadata: {name: a}}")[0];
    assert_eq!(key_of(object).unwrap().to_string(), "Pod default/a");
}
