//! What goes on while parts of a node die: the agent, and the proxy.
use std::{
    process::{Child, Stdio},
    time::Duration,
};
use weft_lab::{Lab, load::Summary};

const EXAMPLE: &str = "examples/two-clusters";
const LAYER_7: &str = "http://10.96.0.10/api/users/42";
const LAYER_4: &str = "http://10.96.0.20/";
const MUTUAL_TLS: &str = "http://10.96.0.30/";

#[test]
fn a_node_goes_on_while_its_agent_dies_and_comes_back() {
    let lab = Lab::up(EXAMPLE);
    killing_agents_fails_no_connection_old_or_new(&lab);
    agents_that_die_while_pods_come_fail_no_connection(&lab);
    policy_and_services_stand_while_no_agent_runs(&lab);
    a_restarted_agent_takes_over_what_is_in_the_kernel(&lab);
    while_the_proxy_is_gone_what_needs_it_is_refused_and_the_rest_goes_on(&lab);
}

fn killing_agents_fails_no_connection_old_or_new(lab: &Lab) {
    let loads: Vec<Child> = [LAYER_7, LAYER_4, MUTUAL_TLS].map(|url| load(lab, url, 8)).into();
    for node in ["east/east-1", "east/east-2", "east/east-1"] {
        let before = lab.node(node).agent_pid();
        lab.kill_agent(node);
        lab.wait_for("the agent is back", || {
            let status = lab.node(node).status();
            status.agent.pid != before && status.ready
        });
    }
    for load in loads {
        no_failure(load);
    }
}

fn agents_that_die_while_pods_come_fail_no_connection(lab: &Lab) {
    let loads: Vec<Child> = [LAYER_7, LAYER_4].map(|url| load(lab, url, 12)).into();
    kill_both(lab);
    let pod = "apiVersion: v1
kind: Pod
metadata: {name: api-3, namespace: shop, labels: {app: api}}
spec:
  serviceAccountName: api
  nodeName: east-2
  containers:
  - name: api
    command: [weft-lab, serve, --http, \"8080\", --tcp, \"9000\", --udp, \"9001\"]
    readinessProbe: {httpGet: {port: 8080, path: /healthz}, periodSeconds: 1, failureThreshold: 1}
";
    lab.write("east/api-3.yaml", pod);
    kill_both(lab);
    lab.settle();
    kill_both(lab);
    lab.wait_for("the new pod serves", || lab.pod("east/frontend").curl(LAYER_7).contains("api-3"));
    for load in loads {
        no_failure(load);
    }
}

fn kill_both(lab: &Lab) {
    for node in ["east/east-1", "east/east-2"] {
        let before = lab.node(node).agent_pid();
        lab.kill_agent(node);
        lab.wait_for("the agent is back", || lab.node(node).agent_pid() != before);
    }
}

fn policy_and_services_stand_while_no_agent_runs(lab: &Lab) {
    for node in ["east/east-1", "east/east-2"] {
        lab.stop_agent(node);
    }
    let frontend = lab.pod("east/frontend");
    assert!(frontend.curl(LAYER_7).ends_with(" 200"));
    assert!(frontend.curl("-o /dev/null http://10.96.0.10/admin").ends_with(" 403"));
    assert!(frontend.curl(LAYER_4).ends_with(" 200"));
    assert!(frontend.curl(MUTUAL_TLS).ends_with(" 200"));
    assert!(lab.pod("east/legacy").curl(&format!("-m 1 {MUTUAL_TLS}")).contains("curl exit"));
    // A restarted proxy needs no agent either.
    let before = lab.node("east/east-2").proxy_pid();
    lab.kill_proxy("east/east-2");
    lab.wait_for("the proxy is back", || lab.node("east/east-2").proxy_pid() != before);
    lab.wait_for("the proxy serves from its last configuration", || frontend.curl(LAYER_7).ends_with(" 200"));
    assert!(frontend.curl("-o /dev/null http://10.96.0.10/admin").ends_with(" 403"));
    let answer = lab.try_weft("east", &["status"]);
    assert!(!answer.status.success());
    assert!(String::from_utf8_lossy(&answer.stderr).contains("is weft-agent running"), "{answer:?}");
    for node in ["east/east-1", "east/east-2"] {
        lab.resume_agent(node);
    }
    lab.settle();
}

fn a_restarted_agent_takes_over_what_is_in_the_kernel(lab: &Lab) {
    let identities = || {
        let text = lab.weft("east", ["endpoint", "list", "-o", "json"]);
        let rows: Vec<serde_json::Value> = serde_json::from_str(&text).expect("rows");
        let mut known: Vec<String> =
            rows.iter().map(|row| format!("{} {} {}", row["pod"], row["id"], row["identity"])).collect();
        known.sort();
        known
    };
    let before = identities();
    let pid = lab.node("east/east-2").agent_pid();
    lab.kill_agent("east/east-2");
    lab.wait_for("the agent is back", || lab.node("east/east-2").agent_pid() != pid);
    // Both agents answer again, and every pod has the numbers that it had.
    lab.wait_for("the same numbers", || identities() == before);
}

fn while_the_proxy_is_gone_what_needs_it_is_refused_and_the_rest_goes_on(lab: &Lab) {
    let frontend = lab.pod("east/frontend");
    let plain = load(lab, LAYER_4, 3);
    for node in ["east/east-1", "east/east-2"] {
        lab.stop_proxy(node);
    }
    assert!(frontend.curl(&format!("-m 1 {LAYER_7}")).contains("curl exit"));
    assert!(frontend.curl(&format!("-m 1 {MUTUAL_TLS}")).contains("curl exit"));
    no_failure(plain);
    lab.wait_for("status names it", || {
        let said = lab.try_weft("east", &["status"]);
        String::from_utf8_lossy(&said.stdout).contains("proxy-not-listening")
    });
    for node in ["east/east-1", "east/east-2"] {
        lab.resume_proxy(node);
    }
    lab.wait_within(Duration::from_secs(30), "the proxy serves again", || frontend.curl(LAYER_7).ends_with(" 200"));
}

fn load(lab: &Lab, url: &str, seconds: u32) -> Child {
    let mut command = lab.pod("east/frontend").command(env!("CARGO_BIN_EXE_weft-lab"));
    command.args(["load", "--rate", "20", "--url", url, "--seconds", &seconds.to_string()]);
    command.stdout(Stdio::piped()).spawn().expect("load starts")
}

fn no_failure(load: Child) {
    let output = load.wait_with_output().expect("load ends");
    let summary: Summary = serde_json::from_slice(&output.stdout).expect("a summary");
    assert_eq!((summary.new_connections.failed, summary.kept_connections.failed), (0, 0), "{summary:?}");
    assert!(summary.new_connections.ok > 0 && summary.kept_connections.ok > 0, "{summary:?}");
}
