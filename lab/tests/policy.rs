//! L3 and L4 policy on real sockets, one change after the other.
mod common;
use common::{dial_within, reaches, row, weft_json};
use weft_lab::{Lab, lab::Pod};

const FOLDER: &str = "lab/tests/folders/one-node";

struct Scene<'a> {
    lab: &'a Lab,
    client: Pod<'a>,
    tcp: String,
    udp: String,
    http: String,
}

#[test]
fn policies_decide_from_the_moment_they_are_written_until_they_are_gone() {
    let lab = Lab::up(FOLDER);
    let victim = lab.pod("one/victim").ip();
    let at = |port: u16| format!("{victim}:{port}");
    let scene = Scene { lab: &lab, client: lab.pod("one/client"), tcp: at(9000), udp: at(9001), http: at(8085) };
    scene.is_open();

    scene.under("ingress: [{}]", &ingress("- {}"), |scene| scene.sees([false, false, false]));
    scene.under("entity cluster", &ingress("- fromEntities: [cluster]"), |scene| scene.sees([true, true, true]));
    scene.under("entity world", &ingress("- fromEntities: [world]"), |scene| scene.sees([false, false, false]));
    // The node's own processes always reach its pods.
    scene.under("entity host", &ingress("- fromEntities: [host]"), |scene| {
        scene.sees([false, false, false]);
        assert!(reaches(scene.lab.node("one/one-1"), "tcp", &scene.tcp));
    });
    // CIDRs mean what is outside of the cluster.
    scene.under("a CIDR", &ingress("- fromCIDR: [10.0.0.0/8]"), |scene| scene.sees([false, false, false]));
    let range = "- fromEndpoints: [{matchLabels: {app: client}}]\n    toPorts: [{ports: [{port: \"8080\", endPort: 9000, protocol: TCP}]}]";
    scene.under("a range of ports", &ingress(range), |scene| scene.sees([true, false, true]));
    let deny = "- fromEntities: [all]\n  ingressDeny:\n  - fromEndpoints: [{matchLabels: {app: client}}]\n    toPorts: [{ports: [{port: \"9000\", protocol: TCP}]}]";
    scene.under("deny beats allow", &ingress(deny), |scene| scene.sees([false, true, true]));
    let egress = "endpointSelector: {matchLabels: {app: client}}\n  egress:\n  - toEndpoints: [{matchLabels: {app: victim}}]\n    toPorts: [{ports: [{port: \"9001\", protocol: UDP}]}]";
    // The echo comes back: replies need no rule, though nothing lets the victim call the client.
    scene.under("egress is closed but for one port", egress, |scene| scene.sees([false, true, false]));
}

fn ingress(rules: &str) -> String {
    format!("endpointSelector: {{matchLabels: {{app: victim}}}}\n  ingress:\n  {rules}")
}

impl Scene<'_> {
    /// Writes a policy, looks, takes it away again, and everything is open as before.
    fn under(&self, what: &str, spec: &str, look: impl FnOnce(&Self)) {
        let head =
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: trial, namespace: shop}\nspec:";
        self.lab.write("one/trial.yaml", &format!("{head}\n  {spec}\n"));
        self.lab.wait_for(&format!("{what}: the policy is enforced"), || {
            row(&weft_json(self.lab, "one", &["policy", "list"]), "name", "shop/trial")
                .is_some_and(|policy| policy["state"] == "enforced")
        });
        look(self);
        self.lab.delete("one/trial.yaml");
        self.is_open();
    }

    /// Whether calls to the TCP, the UDP and the HTTP port are answered.
    fn sees(&self, expected: [bool; 3]) {
        // Dropped packets are not answered: each look at a closed port takes the whole patience.
        let answers = |how, to: &str| dial_within(self.client, how, to, 1, "1")[0].server.is_some();
        let http = || self.client.curl(&format!("--max-time 1 http://{}/", self.http)).ends_with(" 200");
        let now = || [answers("tcp", &self.tcp), answers("udp", &self.udp), http()];
        self.lab.wait_for(&format!("TCP, UDP and HTTP are answered: {expected:?}"), || now() == expected);
    }

    fn is_open(&self) {
        self.sees([true, true, true]);
    }
}
