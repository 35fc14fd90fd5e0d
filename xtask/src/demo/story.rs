//! The steps of the demo.
use super::scene::{Scene, bold, saw, text, tick};
use crate::target;
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

/// The step that did not hold.
pub struct Failed {
    pub number: usize,
    pub title: &'static str,
    pub error: anyhow::Error,
}

type Step = (&'static str, fn(&Scene) -> Result<()>);

const STEPS: [Step; 10] = [
    ("Two clusters in two regions come up", up),
    ("A service is reached by its ClusterIP, and no iptables rule exists", service),
    ("HTTP policy: a Wasm plugin allows one request and denies another", http_policy),
    ("Mutual TLS by SPIFFE identities; a caller without one is refused", mtls),
    ("Your own plugin is attached and changed while requests run", plugin),
    ("The clusters are connected, and a service becomes global", connect),
    ("The local pods go away: the other cluster serves, and no request fails", failover),
    ("The other cluster dies, and comes back", cluster_death),
    ("Between the regions there is only WireGuard", wireguard),
    ("The agent is killed under load, and nothing fails", agent_death),
];

const USERS: &str = "http://10.96.0.10/api/users/42";
const CATALOG: &str = "http://10.96.0.20/";
const CURL: &str = "curl -s -m 3 -w '\\n%{http_code}'";
const SHORTLY: Duration = Duration::from_secs(10);

/// How many steps were told.
pub fn tell(scene: &Scene) -> Result<usize, Failed> {
    for (number, (title, step)) in (1..).zip(STEPS) {
        println!("\n{}", bold(&format!("{number}. {title}")));
        let started = Instant::now();
        step(scene).map_err(|error| Failed { number, title, error })?;
        println!("  {} {:.1} s", tick(), started.elapsed().as_secs_f64());
    }
    Ok(STEPS.len())
}

fn up(scene: &Scene) -> Result<()> {
    scene.run(&format!("weft-lab up {}", scene.folder().display()))?;
    saw(scene.run("weft --context east endpoint list")?);
    Ok(())
}

fn service(scene: &Scene) -> Result<()> {
    saw(scene.run("weft --context east service list")?);
    let answer = scene.run(&format!("weft-lab exec east/frontend -- {CURL} {CATALOG}"))?;
    ensure!(answer.ends_with("200"), "the service does not answer: {answer}");
    saw(&answer);
    for node in ["east/east-1", "east/east-2", "west/west-1"] {
        let rules = scene.run(&format!("weft-lab node {node} -- sh -c 'iptables-save; nft list ruleset'"))?;
        ensure!(rules.trim().is_empty(), "there are rules: {rules}");
    }
    saw("no rule on any node");
    Ok(())
}

fn http_policy(scene: &Scene) -> Result<()> {
    let allowed = scene.run(&format!("weft-lab exec east/frontend -- {CURL} {USERS}"))?;
    ensure!(allowed.ends_with("200"), "GET /api/users/42 is not allowed: {allowed}");
    saw(&allowed);
    let denied = scene.run(&format!("weft-lab exec east/frontend -- {CURL} -X POST http://10.96.0.10/admin/delete"))?;
    ensure!(denied.ends_with("403"), "POST /admin/delete is not denied: {denied}");
    saw(&denied);
    let seen = "weft --context east observe --http --from-pod frontend";
    let (flows, _) = scene.until(seen, SHORTLY, |flows| {
        flows.contains("GET /api/users/42 -> 200") && flows.contains("POST /admin/delete -> 403")
    })?;
    saw(flows);
    Ok(())
}

fn mtls(scene: &Scene) -> Result<()> {
    let answer = scene.run(&format!("weft-lab exec east/frontend -- {CURL} http://10.96.0.30/"))?;
    ensure!(answer.ends_with("200"), "payments does not answer frontend: {answer}");
    let proven = "spiffe://east.weft.local/ns/shop/sa/frontend";
    let (flows, _) =
        scene.until("weft --context east observe --to-pod payments --from-pod frontend", SHORTLY, |flows| {
            flows.contains(&format!("peer={proven}"))
        })?;
    saw(flows);
    let payments = address(scene, "east", "shop/payments")?;
    let other_node = format!("weft-lab node east/east-1 -- {CURL} http://{payments}:8080/");
    let legacy = format!("weft-lab exec east/legacy -- {CURL} http://10.96.0.30/");
    for refused in [other_node, legacy] {
        let output = scene.attempt(&refused)?;
        ensure!(!output.status.success(), "a caller without a valid identity was served: {}", text(&output.stdout));
        saw("refused");
    }
    let (flows, _) =
        scene.until("weft --context east observe --to-pod payments --verdict dropped", SHORTLY, |flows| {
            flows.contains("shop/legacy") && flows.contains("remote-node")
        })?;
    saw(flows);
    Ok(())
}

fn plugin(scene: &Scene) -> Result<()> {
    let load = scene.load("east/frontend", USERS, 5)?;
    let module = target().join("plugins/canary-header.wasm");
    let object = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: WasmPlugin\nmetadata: {{name: canary, namespace: shop}}\nspec:\n  selector: {{matchLabels: {{app: api}}}}\n  url: file://{}\n  phase: AUTHN\n  match:\n  - ports: [{{number: 8080}}]\n  pluginConfig:\n    deny_header: x-canary\n    request_header: {{name: x-weft-example, value: first}}\n",
        module.display()
    );
    println!("    $ cat > {}", scene.folder().join("east/canary.yaml").display());
    saw(&object);
    scene.write("east/canary.yaml", &object)?;
    let request = format!("weft-lab exec east/frontend -- {CURL} {USERS}");
    scene.until(&request, SHORTLY, |answer| answer.contains("\"x-weft-example\":\"first\""))?;
    let denied = scene.run(&format!("weft-lab exec east/frontend -- {CURL} -H 'x-canary: 1' {USERS}"))?;
    ensure!(denied.ends_with("403"), "the plugin does not deny: {denied}");
    println!("    $ sed -i s/first/second/ {}", scene.folder().join("east/canary.yaml").display());
    scene.edit("east/canary.yaml", "first", "second")?;
    let (answer, took) = scene.until(&request, SHORTLY, |answer| answer.contains("\"x-weft-example\":\"second\""))?;
    saw(answer);
    saw(format!("the new configuration was in force after {:.1} s", took.as_secs_f64()));
    saw(scene.run("weft --context east plugin list")?);
    let requests = load.finish()?.without_failure()?;
    saw(format!("{requests} requests meanwhile, none failed"));
    Ok(())
}

fn connect(scene: &Scene) -> Result<()> {
    saw(scene.run("weft mesh connect --context east --destination-context west")?);
    for cluster in ["east", "west"] {
        let file = format!("{cluster}/catalog.yaml");
        println!(
            "    $ sed -i 's/^  name: catalog$/&\\n  annotations: {{weft.dev\\/global: \"true\"}}/' {}",
            scene.folder().join(&file).display()
        );
        scene.edit(&file, "\n  name: catalog\n", "\n  name: catalog\n  annotations: {weft.dev/global: \"true\"}\n")?;
    }
    let (list, took) = scene.until("weft --context east service list", SHORTLY, |list| {
        list.lines().any(|line| line.contains("shop/catalog") && line.contains("(east)") && line.contains("(west)"))
    })?;
    saw(list.lines().filter(|line| line.contains("NAME") || line.contains("catalog")).collect::<Vec<_>>().join("\n"));
    saw(format!("both clusters serve it after {:.1} s", took.as_secs_f64()));
    saw(scene.run("weft --context east mesh status")?);
    Ok(())
}

fn failover(scene: &Scene) -> Result<()> {
    let load = scene.load("east/frontend", CATALOG, 5)?;
    let file = scene.folder().join("east/catalog.yaml");
    println!("    $ $EDITOR {}    # the pod is removed, the service stays", file.display());
    let yaml = fs::read_to_string(&file)?;
    let rest: Vec<&str> = yaml.split("---\n").filter(|document| !document.contains("kind: Pod")).collect();
    scene.write("east/catalog.yaml", &rest.join("---\n"))?;
    scene.until("weft --context east service list", SHORTLY, |list| {
        list.lines().any(|line| line.contains("shop/catalog") && !line.contains("(east)") && line.contains("(west)"))
    })?;
    let result = load.finish()?;
    saw(format!("answers by server: {}", result.detail.get("servers").unwrap_or(&serde_json::Value::Null)));
    // Connections to the pod that was stopped end with it; new ones must not fail.
    let failed_new = result.detail.pointer("/new_connections/failed").and_then(serde_json::Value::as_u64);
    ensure!(failed_new == Some(0), "new connections failed: {}", result.detail);
    saw(format!("{} requests, no new connection failed", result.ok));
    Ok(())
}

fn cluster_death(scene: &Scene) -> Result<()> {
    scene.run("weft-lab power west off")?;
    let list = "weft --context east service list";
    let (_, took) = scene.until(list, SHORTLY, |list| {
        list.lines().any(|line| line.contains("shop/catalog") && line.contains("none: refuses"))
    })?;
    saw(format!("its backends were out after {:.1} s", took.as_secs_f64()));
    saw(scene.run("weft --context east mesh status")?);
    scene.run("weft-lab power west on")?;
    let (_, took) = scene.until(list, SHORTLY * 4, |list| {
        list.lines().any(|line| line.contains("shop/catalog") && line.contains("(west)"))
    })?;
    saw(format!("and back after {:.1} s", took.as_secs_f64()));
    let request = format!("weft-lab exec east/frontend -- {CURL} {CATALOG}");
    let (answer, _) = scene.until(&request, SHORTLY, |answer| answer.ends_with("200"))?;
    saw(answer);
    Ok(())
}

fn wireguard(scene: &Scene) -> Result<()> {
    let file = target().join("demo-link.pcap");
    let mut capture = scene.capture(&file)?;
    let requests = scene.load("east/frontend", CATALOG, 2)?.finish()?;
    // SAFETY: our own child, which has not been waited for.
    unsafe { libc::kill(capture.id() as libc::pid_t, libc::SIGINT) };
    capture.wait()?;
    let requests = requests.without_failure()?;
    let count = |filter: &str| -> Result<usize> {
        let output = Command::new("tcpdump").args(["-nn", "-r"]).arg(&file).arg(filter).output()?;
        Ok(text(&output.stdout).lines().count())
    };
    let encrypted = count("udp port 51871")?;
    // The agents' own mesh connection is mutual TLS between the nodes; everything else must be WireGuard.
    let mesh = count("tcp port 32379")?;
    let plain = count("not udp port 51871 and not tcp port 32379 and not arp and not icmp6 and not ip6 multicast")?;
    fs::remove_file(&file).context("cannot remove the capture")?;
    if encrypted == 0 || plain > 0 {
        bail!("{encrypted} packets of WireGuard, {plain} others");
    }
    saw(format!(
        "{requests} requests: {encrypted} packets of WireGuard, {mesh} of the agents' mutual TLS, {plain} others"
    ));
    Ok(())
}

fn agent_death(scene: &Scene) -> Result<()> {
    let load = scene.load("east/frontend", USERS, 5)?;
    scene.run("weft-lab kill agent east/east-1")?;
    scene.run("weft-lab kill agent east/east-2")?;
    let requests = load.finish()?.without_failure()?;
    saw(format!("{requests} requests on old and new connections, none failed"));
    let (status, _) = scene.until("weft --context east status", SHORTLY, |status| !status.contains("not ready"))?;
    saw(status.lines().take(10).collect::<Vec<_>>().join("\n"));
    Ok(())
}

fn address(scene: &Scene, cluster: &str, pod: &str) -> Result<String> {
    let output = scene.quiet(&format!("weft --context {cluster} endpoint list -o json"))?;
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).context("endpoints as JSON")?;
    let name = |row: &serde_json::Value| {
        Some(format!("{}/{}", row.pointer("/pod/namespace")?.as_str()?, row.pointer("/pod/name")?.as_str()?))
    };
    rows.as_array()
        .into_iter()
        .flatten()
        .find(|row| name(row).as_deref() == Some(pod))
        .and_then(|row| row.pointer("/addresses/0")?.as_str().map(str::to_owned))
        .with_context(|| format!("no pod {pod} in {cluster}"))
}
