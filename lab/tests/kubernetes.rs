//! The main scenario on real API servers, by the commands that a user of Kubernetes types.
use serde_json::Value;
use std::{
    process::{Child, Output, Stdio},
    time::{Duration, Instant},
};
use weft_lab::{Lab, layout::Source, load::Summary};

const USERS: &str = "http://10.96.0.10/api/users/42";
const CATALOG: &str = "http://10.96.0.20/";
const PAYMENTS: &str = "http://10.96.0.30/";
/// A watch that broke is taken up again after at most half a minute.
const RESUMED: Duration = Duration::from_secs(90);

type Step = (&'static str, fn(&Lab));

const STEPS: [Step; 12] = [
    ("nodes tell their WireGuard keys", nodes_tell_their_wireguard_keys),
    ("agents work with their own role and no more", agents_work_with_their_own_role_and_no_more),
    ("HTTP policy allows one request and denies another", http_policy_allows_one_request_and_denies_another),
    ("mutual TLS proves frontend and refuses legacy", mutual_tls_proves_frontend_and_refuses_legacy),
    (
        "a policy with an unknown field is rejected in its status",
        a_policy_with_an_unknown_field_is_rejected_in_its_status,
    ),
    ("a plugin is attached and bad ones say why not", a_plugin_is_attached_and_bad_ones_say_why_not),
    ("a deployment is served and its pods are replaced", a_deployment_is_served_and_its_pods_are_replaced),
    ("connected clusters serve a global service", connected_clusters_serve_a_global_service),
    ("when the local pod is deleted the other cluster serves", when_the_local_pod_is_deleted_the_other_cluster_serves),
    ("agents are killed and nothing fails", agents_are_killed_and_nothing_fails),
    ("an API server is away and nothing fails", an_api_server_is_away_and_nothing_fails),
    ("disconnecting leaves each cluster to itself", disconnecting_leaves_each_cluster_to_itself),
];

#[test]
fn the_main_scenario_runs_on_kubernetes() {
    let lab = Lab::up_from("examples/two-clusters", Source::Kubernetes);
    for (what, step) in STEPS {
        let begun = Instant::now();
        step(&lab);
        println!("{what}: {:.1} s", begun.elapsed().as_secs_f64());
    }
}

fn nodes_tell_their_wireguard_keys(lab: &Lab) {
    for (cluster, node) in [("east", "east-1"), ("east", "east-2"), ("west", "west-1")] {
        lab.wait_for("the node's key is published", || {
            let object = get(lab, cluster, &["node", node]);
            let key = object["metadata"]["annotations"]["weft.dev/wireguard-public-key"].as_str();
            key.is_some_and(|key| key.len() == 44 && key.ends_with('='))
        });
    }
}

fn agents_work_with_their_own_role_and_no_more(lab: &Lab) {
    let may = |verb: &str, resource: &str| {
        let agent = "--as=system:serviceaccount:weft-system:weft-agent";
        lab.try_kubectl("east", &["auth", "can-i", verb, resource, "-A", agent]).status.success()
    };
    assert!(may("watch", "pods") && may("patch", "nodes") && may("create", "meshpeers.weft.dev"));
    assert!(!may("get", "secrets") && !may("create", "pods") && !may("update", "services"));
    let status = lab.weft("east", ["status"]);
    assert!(status.contains("kubernetes: in sync"), "{status}");
}

fn http_policy_allows_one_request_and_denies_another(lab: &Lab) {
    let frontend = lab.pod("east/frontend");
    answers(lab, "frontend reads a user", || frontend.curl(USERS), " 200");
    answers(lab, "frontend may not delete", || frontend.curl("-X POST http://10.96.0.10/admin/delete"), " 403");
    lab.wait_for("observe shows both requests", || {
        let flows = lab.weft("east", ["observe", "--http", "--from-pod", "frontend"]);
        flows.contains("GET /api/users/42 -> 200") && flows.contains("POST /admin/delete -> 403")
    });
}

fn mutual_tls_proves_frontend_and_refuses_legacy(lab: &Lab) {
    answers(lab, "payments serves frontend", || lab.pod("east/frontend").curl(PAYMENTS), " 200");
    lab.wait_for("observe shows the proven identity", || {
        let flows = lab.weft("east", ["observe", "--to-pod", "payments", "--from-pod", "frontend"]);
        flows.contains("peer=spiffe://east.weft.local/ns/shop/sa/frontend")
    });
    let refused = lab.pod("east/legacy").curl(PAYMENTS);
    assert!(refused.contains("curl exit"), "legacy is served: {refused}");
}

fn a_policy_with_an_unknown_field_is_rejected_in_its_status(lab: &Lab) {
    let policy = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: odd, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: legacy}}
  ingress:
  - fromEntities: [cluster]
    fromRainbows: [{colour: red}]
";
    succeeded(&lab.apply("east", policy));
    let rejected = "rejected: spec.ingress[0].fromRainbows is not supported";
    lab.wait_for("`weft policy list` says that it is rejected", || {
        let list = lab.weft("east", ["policy", "list"]);
        list.lines().any(|line| line.contains("shop/odd") && line.contains(rejected))
    });
    lab.wait_for("its status says that it is rejected", || {
        let valid = condition(&get(lab, "east", &["cnp", "odd", "-n", "shop"]), "Valid");
        valid["status"] == "False" && valid["message"] == rejected && valid["lastTransitionTime"].is_string()
    });
    let valid = condition(&get(lab, "east", &["cnp", "api-l7", "-n", "shop"]), "Valid");
    assert_eq!(valid["message"], "enforced", "{valid}");

    let better = policy.replace("    fromRainbows: [{colour: red}]\n", "");
    succeeded(&lab.apply("east", &better));
    lab.wait_for("the corrected policy is enforced", || {
        let valid = condition(&get(lab, "east", &["cnp", "odd", "-n", "shop"]), "Valid");
        valid["status"] == "True" && valid["message"] == "enforced"
    });
    lab.kubectl("east", ["delete", "cnp", "odd", "-n", "shop"]);
    lab.wait_for("the policy is gone", || !lab.weft("east", ["policy", "list"]).contains("shop/odd"));
}

fn a_plugin_is_attached_and_bad_ones_say_why_not(lab: &Lab) {
    // What the schema knows to be wrong never gets in.
    for (wrong, word) in [
        ("{phase: NEVER, url: 'file:///a.wasm'}", "Unsupported value"),
        ("{phase: AUTHN}", "spec.url"),
        ("{url: 'file:///a.wasm', colour: red}", "spec.colour"),
        ("{url: 'file:///a.wasm', sha256: abc}", "spec.sha256"),
        ("{url: 'file:///a.wasm', match: [{ports: [{number: 70000}]}]}", "spec.match"),
    ] {
        let output = lab.apply("east", &plugin("wrong", wrong));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(word), "{wrong}: {error}");
    }
    // What only an agent can know is in the object's status.
    succeeded(&lab.apply("east", &plugin("remote", "{url: 'https://example.com/a.wasm'}")));
    lab.wait_for("the status says that the URL is not supported", || {
        let accepted = condition(&get(lab, "east", &["wasmplugin", "remote", "-n", "shop"]), "Accepted");
        accepted["status"] == "False" && accepted["message"].as_str().is_some_and(|text| text.contains("spec.url"))
    });
    let missing = "{selector: {matchLabels: {app: nobody}}, url: 'file:///nowhere/a.wasm'}";
    succeeded(&lab.apply("east", &plugin("missing", missing)));
    lab.wait_for("the status says where the file is missing", || {
        let object = get(lab, "east", &["wasmplugin", "missing", "-n", "shop"]);
        let failures = object["status"]["failures"].as_array().cloned().unwrap_or_default();
        let message =
            |failure: &Value| failure["message"].as_str().is_some_and(|text| text.contains("/nowhere/a.wasm"));
        failures.len() == 2 && failures.iter().all(message)
    });
    lab.kubectl("east", ["delete", "wasmplugin", "remote", "missing", "-n", "shop"]);

    let module = weft_lab::binary("weft").expect("weft is built").parent().unwrap().join("../plugins");
    let module = module.canonicalize().unwrap().join("canary-header.wasm");
    let spec = format!(
        "{{selector: {{matchLabels: {{app: api}}}}, url: 'file://{}', phase: AUTHN, match: [{{ports: [{{number: 8080}}]}}], \
         pluginConfig: {{deny_header: x-canary}}}}",
        module.display()
    );
    succeeded(&lab.apply("east", &plugin("canary", &spec)));
    let frontend = lab.pod("east/frontend");
    answers(lab, "the plugin denies", || frontend.curl(&format!("-H 'x-canary: 1' {USERS}")), " 403");
    answers(lab, "the plugin allows", || frontend.curl(USERS), " 200");
    lab.wait_for("the plugin is accepted and fails nowhere", || {
        let object = get(lab, "east", &["wasmplugin", "canary", "-n", "shop"]);
        let failures = object["status"]["failures"].as_array().is_none_or(Vec::is_empty);
        condition(&object, "Accepted")["status"] == "True" && failures
    });
    lab.kubectl("east", ["delete", "wasmplugin", "canary", "-n", "shop"]);
    answers(lab, "no plugin denies", || frontend.curl(&format!("-H 'x-canary: 1' {USERS}")), " 200");
    let described = lab.kubectl("east", ["explain", "wasmplugin.spec.failStrategy"]);
    assert!(described.contains("FAIL_OPEN"), "{described}");
}

fn a_deployment_is_served_and_its_pods_are_replaced(lab: &Lab) {
    let manifests = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: none
        command: [weft-lab, serve, --http, \"8080\", --drain, \"0\"]
        readinessProbe: {httpGet: {port: 8080, path: /healthz}, periodSeconds: 1, failureThreshold: 1}
";
    succeeded(&lab.apply("east", manifests));
    lab.kubectl("east", ["expose", "deployment", "web", "-n", "shop", "--port=80", "--target-port=8080"]);
    let service = get(lab, "east", &["service", "web", "-n", "shop"]);
    let address = service["spec"]["clusterIP"].as_str().expect("the API server gives an address").to_owned();
    let ready = || get(lab, "east", &["deployment", "web", "-n", "shop"])["status"]["readyReplicas"] == 2;
    lab.wait_within(RESUMED, "the deployment is ready", ready);
    let url = format!("http://{address}/");
    answers(lab, "the deployment is served", || lab.pod("east/frontend").curl(&url), " 200");
    let old = lab.kubectl("east", ["get", "pod", "-n", "shop", "-l", "app=web", "-o", "name"]);
    lab.kubectl("east", ["delete", "-n", "shop", old.lines().next().expect("a pod")]);
    lab.wait_within(RESUMED, "the deleted pod is replaced", || {
        let now = lab.kubectl("east", ["get", "pod", "-n", "shop", "-l", "app=web", "-o", "name"]);
        now != old && now.lines().count() == 2 && ready()
    });
    answers(lab, "the deployment is served", || lab.pod("east/frontend").curl(&url), " 200");
    lab.kubectl("east", ["delete", "deployment,service", "web", "-n", "shop"]);
    lab.wait_for("its service is gone", || !lab.weft("east", ["service", "list"]).contains("shop/web"));
}

fn connected_clusters_serve_a_global_service(lab: &Lab) {
    lab.weft("east", ["mesh", "connect", "--destination-context", "west"]);
    for (cluster, other) in [("east", "west"), ("west", "east")] {
        let peer = get(lab, cluster, &["meshpeer", other]);
        assert_eq!(peer["spec"]["trustDomain"], format!("{other}.weft.local"), "{peer}");
        assert!(!peer.to_string().contains("PRIVATE"), "{peer}");
    }
    for cluster in ["east", "west"] {
        lab.kubectl(cluster, ["annotate", "service", "catalog", "-n", "shop", "weft.dev/global=true"]);
    }
    for cluster in ["east", "west"] {
        lab.wait_for("both clusters serve the service", || catalog_has(lab, cluster, &["(east)", "(west)"], &[]));
    }
}

fn when_the_local_pod_is_deleted_the_other_cluster_serves(lab: &Lab) {
    let load = load(lab, CATALOG, 8);
    lab.kubectl("east", ["delete", "pod", "catalog", "-n", "shop"]);
    lab.wait_for("only the other cluster serves", || catalog_has(lab, "east", &["(west)"], &["(east)"]));
    let summary = finish(load);
    // Connections to the pod that was stopped end with it; new ones must not fail.
    assert_eq!(summary.new_connections.failed, 0, "{summary:?}");
    assert!(summary.new_connections.ok > 50, "{summary:?}");
}

fn agents_are_killed_and_nothing_fails(lab: &Lab) {
    let load = load(lab, USERS, 6);
    lab.kill_agent("east/east-1");
    lab.kill_agent("east/east-2");
    no_failure(&finish(load));
    lab.settle();
}

fn an_api_server_is_away_and_nothing_fails(lab: &Lab) {
    lab.stop_api_server("east");
    let calls = load(lab, USERS, 6);
    lab.wait_within(RESUMED, "`weft status` says that the watches are broken", || {
        let status = lab.try_weft("east", &["status"]);
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        status.contains("DEGRADED  kubernetes: ") && status.contains("watches are broken")
    });
    no_failure(&finish(calls));
    // An agent that starts without its API server leaves in the kernel what is there.
    let old = lab.node("east/east-1").agent_pid();
    let calls = load(lab, USERS, 6);
    lab.kill_agent("east/east-1");
    no_failure(&finish(calls));
    lab.wait_for("another agent runs", || lab.node("east/east-1").agent_pid().is_some_and(|pid| Some(pid) != old));
    answers(lab, "policy holds", || lab.pod("east/frontend").curl("-X POST http://10.96.0.10/admin/delete"), " 403");
    assert!(lab.pod("east/legacy").curl(PAYMENTS).contains("curl exit"));

    let calls = load(lab, USERS, 6);
    lab.resume_api_server("east");
    lab.wait_within(RESUMED, "the API server is back", || {
        lab.try_kubectl("east", &["get", "--raw", "/readyz"]).status.success()
    });
    no_failure(&finish(calls));
    lab.wait_within(RESUMED, "the agents are in sync again", || {
        let status = lab.try_weft("east", &["status"]);
        String::from_utf8_lossy(&status.stdout).matches("kubernetes: in sync").count() == 2
    });
    let folder = lab.folder().join("east/catalog.yaml");
    lab.kubectl("east", ["apply", "-f", &folder.to_string_lossy()]);
    lab.wait_within(RESUMED, "what is new is heard", || catalog_has(lab, "east", &["(east)", "(west)"], &[]));
    answers(lab, "the service answers", || lab.pod("east/frontend").curl(CATALOG), " 200");
}

fn disconnecting_leaves_each_cluster_to_itself(lab: &Lab) {
    lab.weft("east", ["mesh", "disconnect", "--destination-context", "west"]);
    for cluster in ["east", "west"] {
        let own = format!("({cluster})");
        let other = if cluster == "east" { "(west)" } else { "(east)" };
        lab.wait_for("each cluster serves alone", || catalog_has(lab, cluster, &[&own], &[other]));
        let left = get(lab, cluster, &["meshpeers"]);
        assert_eq!(left["items"].as_array().map(Vec::len), Some(0), "{left}");
    }
    answers(lab, "the service answers", || lab.pod("east/frontend").curl(CATALOG), " 200");
}

fn plugin(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: WasmPlugin\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

/// Waits until the answer ends so.
fn answers(lab: &Lab, what: &str, mut call: impl FnMut() -> String, end: &str) {
    let mut last = String::new();
    lab.wait_for(what, || {
        last = call();
        last.ends_with(end)
    });
}

fn get(lab: &Lab, cluster: &str, what: &[&str]) -> Value {
    let output = lab.try_kubectl(cluster, &[&["get", "-o", "json"], what].concat());
    succeeded(&output);
    serde_json::from_slice(&output.stdout).expect("kubectl prints JSON")
}

/// The condition of this type; null if it is not there.
fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|condition| condition["type"] == kind).cloned().unwrap_or_default()
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn catalog_has(lab: &Lab, cluster: &str, with: &[&str], without: &[&str]) -> bool {
    let list = lab.weft(cluster, ["service", "list"]);
    list.lines()
        .filter(|line| line.contains("shop/catalog"))
        .any(|line| with.iter().all(|word| line.contains(word)) && !without.iter().any(|word| line.contains(word)))
}

fn load(lab: &Lab, url: &str, seconds: u32) -> Child {
    let mut command = lab.pod("east/frontend").command(env!("CARGO_BIN_EXE_weft-lab"));
    command.args(["load", "--rate", "30", "--url", url, "--seconds", &seconds.to_string()]);
    command.stdout(Stdio::piped()).spawn().expect("load starts")
}

fn finish(load: Child) -> Summary {
    let output = load.wait_with_output().expect("load ends");
    serde_json::from_slice(&output.stdout).expect("a summary")
}

fn no_failure(summary: &Summary) {
    let failed = summary.new_connections.failed + summary.kept_connections.failed;
    assert!(failed == 0 && summary.new_connections.ok > 0, "{summary:?}");
}
