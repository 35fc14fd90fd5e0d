//! The main scenario on two clusters: policy, identities, a plugin of the user's own, and what is seen of them.
use std::path::Path;
use weft_lab::{Lab, load::Summary};

const EXAMPLE: &str = "examples/two-clusters";
const USERS: &str = "http://10.96.0.10/api/users/42";
const PAYMENTS: &str = "http://10.96.0.30/";

#[test]
fn the_main_scenario_holds_on_two_clusters() {
    let lab = Lab::up(EXAMPLE);
    every_agent_is_ready_and_says_how_it_works(&lab);
    no_netfilter_rule_exists_on_any_node(&lab);
    http_policy_judges_every_request(&lab);
    http_2_is_judged_like_http_1(&lab);
    a_connection_shows_the_identities_of_both_ends(&lab);
    callers_without_a_valid_identity_are_refused(&lab);
    a_plugin_of_the_users_own_is_attached_and_changed_while_requests_run(&lab);
    every_list_is_there_for_programs(&lab);
    metrics_are_there_for_prometheus(&lab);
}

fn every_agent_is_ready_and_says_how_it_works(lab: &Lab) {
    let status = lab.weft("east", ["status"]);
    for part in ["sources", "datapath", "attach", "routing", "services", "policy", "proxy", "plugins", "encryption"] {
        assert!(status.contains(part), "{part} is missing in: {status}");
    }
    assert!(!status.contains("FAILED"), "{status}");
}

fn no_netfilter_rule_exists_on_any_node(lab: &Lab) {
    for node in ["east/east-1", "east/east-2", "west/west-1"] {
        let rules = lab.node(node).exec(["sh", "-c", "iptables-save; iptables-legacy-save; nft list ruleset"]);
        assert_eq!(rules.trim(), "", "{node}");
    }
}

fn http_policy_judges_every_request(lab: &Lab) {
    let frontend = lab.pod("east/frontend");
    let status = |arguments: &str| frontend.curl(&format!("-o /dev/null {arguments}"));
    assert_eq!(status(USERS), " 200");
    assert_eq!(status("-X POST http://10.96.0.10/api/login"), " 200");
    assert_eq!(status("-X POST http://10.96.0.10/admin/delete"), " 403");
    assert_eq!(status("-X DELETE http://10.96.0.10/api/users/42"), " 403");
    // Two requests on one connection: each is judged.
    assert_eq!(
        status(&format!("{USERS} --next -o /dev/null -s -w ' %{{http_code}}' http://10.96.0.10/admin")),
        " 200 403"
    );
    // The server sees the client's own address.
    let body = frontend.curl(USERS);
    assert!(body.contains(&format!("\"peer\":\"{}:", frontend.ip())), "{body}");
    // Who is not named by the policy does not get to the proxy's answer at all.
    assert!(lab.pod("east/legacy").curl(&format!("-m 1 {USERS}")).contains("curl exit 28"));

    lab.wait_for("both requests are observed", || {
        let flows = lab.weft("east", ["observe", "--http", "--from-pod", "frontend", "--last", "100"]);
        flows.contains("GET /api/users/42 -> 200")
            && flows.contains("POST /admin/delete -> 403")
            && flows.contains("policy=shop/api-l7")
            && flows.contains("plugin=http-policy")
    });
}

fn http_2_is_judged_like_http_1(lab: &Lab) {
    let frontend = lab.pod("east/frontend");
    let h2 = |url: &str| frontend.curl(&format!("--http2-prior-knowledge -o /dev/null {url}"));
    assert_eq!(h2("http://10.96.0.10/admin"), " 403");
    assert_eq!(h2("http://10.96.0.10/api/../admin"), " 403");
}

fn a_connection_shows_the_identities_of_both_ends(lab: &Lab) {
    assert!(lab.pod("east/frontend").curl(PAYMENTS).ends_with(" 200"));
    lab.wait_for("the peer's SPIFFE ID is observed", || {
        let flows = lab.weft("east", ["observe", "--to-pod", "payments", "-o", "json", "--last", "100"]);
        flows.lines().any(|line| {
            line.contains("\"peerSpiffeId\":\"spiffe://east.weft.local/ns/shop/sa/frontend\"")
                && line.contains("FORWARDED")
        })
    });
}

fn callers_without_a_valid_identity_are_refused(lab: &Lab) {
    let payments = lab.pod("east/payments").ip();
    // A workload that the policy does not name.
    assert!(lab.pod("east/legacy").curl(&format!("-m 2 {PAYMENTS}")).contains("curl exit"));
    // A process of another node, in plain text, and under the address of a pod that may.
    let node = lab.node("east/east-1");
    let plain = format!("curl -s -m 1 http://{payments}:8080/");
    assert!(!node.try_exec(&["sh", "-c", &plain]).status.success());
    // The proxy's HBONE port, without a certificate.
    let tls = format!("curl -sk -m 2 https://{payments}:15008/");
    assert!(!node.try_exec(&["sh", "-c", &tls]).status.success());
    lab.wait_for("the refusals are observed", || {
        let flows = lab.weft("east", ["observe", "--to-pod", "payments", "--verdict", "dropped", "--last", "100"]);
        flows.contains("shop/legacy") && flows.contains("remote-node")
    });
}

fn a_plugin_of_the_users_own_is_attached_and_changed_while_requests_run(lab: &Lab) {
    let frontend = lab.pod("east/frontend");
    let mut load = frontend.command(env!("CARGO_BIN_EXE_weft-lab"));
    load.args(["load", "--url", USERS, "--rate", "30", "--seconds", "6"]).stdout(std::process::Stdio::piped());
    let load = load.spawn().expect("load starts");
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/plugins/canary-header.wasm");
    let module = module.canonicalize().expect("the example plugin is built: run `cargo xtask build`");
    let object = |value: &str| {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: WasmPlugin\nmetadata: {{name: canary, namespace: shop}}\nspec:\n  selector: {{matchLabels: {{app: api}}}}\n  url: file://{}\n  phase: AUTHN\n  match: [{{ports: [{{number: 8080}}]}}]\n  pluginConfig: {{deny_header: x-canary, request_header: {{name: x-weft-example, value: {value}}}}}\n",
            module.display()
        )
    };
    for value in ["first", "second"] {
        lab.write("east/canary.yaml", &object(value));
        lab.wait_for("the plugin sets its header", || {
            frontend.curl(USERS).contains(&format!("\"x-weft-example\":\"{value}\""))
        });
    }
    assert!(frontend.curl(&format!("-o /dev/null -H 'x-canary: 1' {USERS}")).ends_with(" 403"));
    let list = lab.weft("east", ["plugin", "list"]);
    assert!(list.contains("shop/canary") && list.contains("running"), "{list}");
    let output = load.wait_with_output().expect("load ends");
    let summary: Summary = serde_json::from_slice(&output.stdout).expect("a summary");
    assert_eq!((summary.new_connections.failed, summary.kept_connections.failed), (0, 0), "{summary:?}");
    lab.delete("east/canary.yaml");
    lab.wait_for("the plugin is gone", || !frontend.curl(USERS).contains("x-weft-example"));
}

fn every_list_is_there_for_programs(lab: &Lab) {
    for list in ["service", "endpoint", "identity", "policy", "plugin"] {
        let json = lab.weft("east", [list, "list", "-o", "json"]);
        let rows: serde_json::Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{list}: {error}"));
        assert!(rows.as_array().is_some_and(|rows| !rows.is_empty()), "{list}: {json}");
    }
    let yaml = lab.weft("east", ["status", "-o", "yaml"]);
    assert!(yaml.contains("trustDomain: east.weft.local"), "{yaml}");
    assert!(lab.weft("east", ["version"]).contains("weft-agent"));
    assert!(lab.weft("east", ["completion", "bash"]).contains("_weft"));
}

fn metrics_are_there_for_prometheus(lab: &Lab) {
    let node = lab.node("east/east-1");
    let agent = node.exec(["curl", "-s", "http://127.0.0.1:9964/metrics"]);
    assert!(agent.contains("weft_agent_ready 1"), "{agent}");
    let proxy = node.exec(["curl", "-s", "http://127.0.0.1:9965/metrics"]);
    assert!(proxy.contains("# TYPE"), "{proxy}");
}
