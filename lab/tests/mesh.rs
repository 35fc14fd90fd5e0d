//! Two clusters as one mesh: global services, death and return of a cluster, and the wire between the regions.
use std::{
    process::{Child, Stdio},
    time::Duration,
};
use weft_lab::{Lab, load::Summary};

const EXAMPLE: &str = "examples/two-clusters";
const CATALOG: &str = "http://10.96.0.20/";
/// All that two regions may say to each other beside WireGuard: the agents' mutual TLS, how neighbours are found, and
/// that a WireGuard port is closed (a proxy restarts), which quotes what was sent to it.
const NOT_WIREGUARD: &str = "not udp port 51871 and not tcp port 32379 and not arp and not icmp6 and not ip6 multicast \
    and not (icmp[0] = 3 and icmp[1] = 3 and icmp[17] = 17 and icmp[30:2] = 51871)";
/// A dead cluster's backends must be out within this.
const DEATH: Duration = Duration::from_secs(10);

#[test]
fn two_clusters_are_one_mesh() {
    let lab = Lab::up(EXAMPLE);
    // From before the first connection to after the last: nothing may ever be seen in plain text.
    let wire = lab.capture("east-west", "");
    connecting_brings_both_sides_in_sync(&lab);
    connecting_again_changes_nothing(&lab);
    a_global_service_is_served_by_both_clusters(&lab);
    affinity_and_sharing_are_honoured(&lab);
    a_full_size_transfer_crosses_the_regions_without_fragments(&lab);
    pods_with_the_same_labels_in_both_clusters_are_not_confused_by_policy(&lab);
    when_the_local_pods_go_no_new_connection_fails(&lab);
    a_dead_cluster_is_out_within_ten_seconds_and_comes_back_by_itself(&lab);
    nothing_leaks_while_agents_and_proxies_restart(&lab);
    disconnecting_works_while_the_other_side_is_dead(&lab);
    let wire = wire.finish();
    assert!(wire.count("udp port 51871") > 0);
    assert_eq!(wire.count(NOT_WIREGUARD), 0, "{:?}", wire.lines(NOT_WIREGUARD));
    assert_eq!(wire.count("ip[6:2] & 0x3fff != 0"), 0, "fragments");
}

fn connecting_brings_both_sides_in_sync(lab: &Lab) {
    let enabled = lab.weft("east", ["mesh", "enable"]);
    assert!(enabled.contains("172.20.1.1:32379"), "{enabled}");
    lab.weft("east", ["mesh", "connect", "--destination-context", "west"]);
    for (cluster, other) in [("east", "west"), ("west", "east")] {
        let status = lab.weft(cluster, ["mesh", "status"]);
        assert!(status.contains(other) && status.contains("connected") && status.contains("yes"), "{status}");
    }
    let unknown = lab.try_weft("east", &["mesh", "connect", "--destination-context", "north"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("\"north\" does not exist"), "{unknown:?}");
}

fn connecting_again_changes_nothing(lab: &Lab) {
    lab.weft("west", ["mesh", "connect", "--destination-context", "east"]);
    let status = lab.weft("west", ["mesh", "status", "-o", "json"]);
    assert_eq!(status.matches("\"cluster\": \"east\"").count(), 1, "{status}");
}

fn a_global_service_is_served_by_both_clusters(lab: &Lab) {
    annotate(lab, "east", "{weft.dev/global: \"true\"}");
    annotate(lab, "west", "{service.cilium.io/global: \"true\"}");
    backends(lab, &["(east)", "(west)"], &[]);
    let summary = finish(load(lab, 2));
    assert_eq!(summary.new_connections.failed, 0, "{summary:?}");
}

fn affinity_and_sharing_are_honoured(lab: &Lab) {
    annotate(lab, "east", "{weft.dev/global: \"true\", weft.dev/affinity: local}");
    backends(lab, &["(east)"], &["(west)"]);
    annotate(lab, "east", "{weft.dev/global: \"true\", weft.dev/affinity: remote}");
    backends(lab, &["(west)"], &["(east)"]);
    annotate(lab, "west", "{weft.dev/global: \"true\", weft.dev/shared: \"false\"}");
    backends(lab, &["(east)"], &["(west)"]);
    annotate(lab, "west", "{weft.dev/global: \"true\"}");
    annotate(lab, "east", "{weft.dev/global: \"true\"}");
    backends(lab, &["(east)", "(west)"], &[]);
}

fn a_full_size_transfer_crosses_the_regions_without_fragments(lab: &Lab) {
    let there = lab.pod("west/catalog").ip();
    let url = format!("-o /dev/null -w '%{{size_download}}' http://{there}:8080/bytes/20000000");
    let said = lab.pod("east/frontend").curl(&format!("-m 30 {url}"));
    assert!(said.starts_with("20000000"), "{said}");
}

fn pods_with_the_same_labels_in_both_clusters_are_not_confused_by_policy(lab: &Lab) {
    let policy = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: catalog, namespace: shop}\nspec:\n  endpointSelector: {matchLabels: {app: catalog}}\n  ingress:\n  - fromEndpoints: [{matchLabels: {app: frontend}}]\n  - fromEntities: [host]\n";
    lab.write("west/catalog-policy.yaml", policy);
    let there = lab.pod("west/catalog").ip();
    let url = format!("-m 1 -o /dev/null http://{there}:8080/");
    lab.wait_for("the east's frontend is refused", || lab.pod("east/frontend").curl(&url).contains("curl exit 28"));
    assert!(lab.pod("west/frontend").curl(&url).ends_with(" 200"), "the west's own frontend is meant");
    let both = policy.replace("{app: frontend}", "{app: frontend, io.cilium.k8s.policy.cluster: east}");
    lab.write("west/catalog-policy.yaml", &both);
    lab.wait_for("the east's frontend is named", || lab.pod("east/frontend").curl(&url).ends_with(" 200"));
    lab.wait_for("the west's is not", || lab.pod("west/frontend").curl(&url).contains("curl exit 28"));
    lab.delete("west/catalog-policy.yaml");
    lab.wait_for("without the policy all may", || lab.pod("west/frontend").curl(&url).ends_with(" 200"));
}

fn when_the_local_pods_go_no_new_connection_fails(lab: &Lab) {
    let load = load(lab, 5);
    lab.edit("east/catalog.yaml", |yaml| {
        let rest: Vec<&str> = yaml.split("---\n").filter(|document| !document.contains("kind: Pod")).collect();
        rest.join("---\n")
    });
    backends(lab, &["(west)"], &["(east)"]);
    let summary = finish(load);
    assert_eq!(summary.new_connections.failed, 0, "{summary:?}");
}

fn a_dead_cluster_is_out_within_ten_seconds_and_comes_back_by_itself(lab: &Lab) {
    lab.kill_cluster("west");
    lab.wait_within(DEATH, "the dead cluster's backends are out", || catalog(lab).contains("none: refuses"));
    assert!(lab.pod("east/frontend").curl(CATALOG).contains("curl exit 7"), "refused at once");
    let status = lab.weft("east", ["mesh", "status"]);
    assert!(status.contains("dead"), "{status}");
    lab.revive_cluster("west");
    lab.wait_for("they are back", || catalog(lab).contains("(west)"));
    lab.wait_for("it serves", || lab.pod("east/frontend").curl(CATALOG).ends_with(" 200"));
}

fn nothing_leaks_while_agents_and_proxies_restart(lab: &Lab) {
    let load = load(lab, 8);
    for node in ["east/east-1", "west/west-1"] {
        let before = lab.node(node).agent_pid();
        lab.kill_agent(node);
        lab.wait_for("the agent is back", || lab.node(node).agent_pid() != before);
        let before = lab.node(node).proxy_pid();
        lab.kill_proxy(node);
        lab.wait_for("the proxy is back", || lab.node(node).proxy_pid() != before);
    }
    // Requests may fail while there is no tunnel: what counts is that none leaves in plain text.
    finish(load);
    lab.wait_for("the tunnel is back", || lab.pod("east/frontend").curl(&format!("-m 2 {CATALOG}")).ends_with(" 200"));
}

fn disconnecting_works_while_the_other_side_is_dead(lab: &Lab) {
    lab.kill_cluster("west");
    let said = lab.weft("east", ["mesh", "disconnect", "--destination-context", "west"]);
    assert!(said.contains("east has parted from west") && said.contains("west was not told"), "{said}");
    lab.wait_for("nothing of it is left", || {
        !catalog(lab).contains("(west)") && !lab.weft("east", ["mesh", "status"]).contains("west")
    });
    lab.revive_cluster("west");
}

fn annotate(lab: &Lab, cluster: &str, annotations: &str) {
    lab.edit(&format!("{cluster}/catalog.yaml"), |yaml| {
        let plain: Vec<&str> = yaml.lines().filter(|line| !line.starts_with("  annotations: ")).collect();
        plain.join("\n").replace(
            "kind: Service\nmetadata:\n  name: catalog\n",
            &format!("kind: Service\nmetadata:\n  name: catalog\n  annotations: {annotations}\n"),
        ) + "\n"
    });
}

fn catalog(lab: &Lab) -> String {
    let list = lab.weft("east", ["service", "list"]);
    list.lines().filter(|line| line.contains("shop/catalog")).collect()
}

fn backends(lab: &Lab, with: &[&str], without: &[&str]) {
    lab.wait_for(&format!("backends of {with:?} and not of {without:?}"), || {
        let line = catalog(lab);
        with.iter().all(|cluster| line.contains(cluster)) && !without.iter().any(|cluster| line.contains(cluster))
    });
}

fn load(lab: &Lab, seconds: u32) -> Child {
    let mut command = lab.pod("east/frontend").command(env!("CARGO_BIN_EXE_weft-lab"));
    command.args(["load", "--rate", "30", "--url", CATALOG, "--seconds", &seconds.to_string()]);
    command.stdout(Stdio::piped()).spawn().expect("load starts")
}

fn finish(load: Child) -> Summary {
    let output = load.wait_with_output().expect("load ends");
    serde_json::from_slice(&output.stdout).expect("a summary")
}
