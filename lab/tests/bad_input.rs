//! What bad input gets: a message that names file or object, field and remedy, while the rest goes on.
mod common;
use common::{dropped, object_errors, reaches, row, text, weft_json};
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};
use weft_lab::{Lab, binary};

const FOLDER: &str = "lab/tests/folders/one-node";
const SERVICE: &str = "http://10.99.0.10/api/users/42";

#[test]
fn bad_objects_are_named_and_everything_else_works_on() {
    let lab = Lab::up(FOLDER);
    http_policy_works(&lab);
    a_broken_file_is_named_with_its_line_and_keeps_what_it_said(&lab);
    an_unknown_field_of_a_service_is_named_and_the_service_serves(&lab);
    a_policy_with_a_field_that_is_not_supported_is_rejected_whole_and_fails_closed(&lab);
    a_context_that_does_not_exist_is_answered_with_those_that_do(&lab);
    ports_that_are_taken_are_named_with_their_setting(&lab);
    the_machine_is_checked_by_loading_every_program(&lab);
    http_policy_works(&lab);
    nothing_panicked(&lab);
}

#[test]
fn plugins_that_cannot_run_fail_closed_for_their_own_requests_alone() {
    let lab = Lab::up(FOLDER);
    let modules = tempfile::tempdir().unwrap();
    let module = |name: &str, bytes: &[u8]| {
        let path = modules.path().join(name);
        fs::write(&path, bytes).unwrap();
        format!("file://{}", path.display())
    };
    let trap = module("trap.wasm", &plugin("unreachable"));
    let wrong_hash = format!("{trap}\n  sha256: {}", "0".repeat(64));
    let plugins = [
        (
            8081,
            "missing",
            "file:///nowhere/plugin.wasm".to_owned(),
            "failed: plugin shop/missing: /nowhere/plugin.wasm",
        ),
        (8082, "wrong-hash", wrong_hash, "wrong module: its SHA-256 is"),
        (8083, "not-wasm", module("not.wasm", b"#!/bin/sh\n"), "not a WebAssembly module"),
        (8084, "trap", trap.clone(), "running"),
        (8085, "loop", module("loop.wasm", &plugin("(loop $l (br $l)) i32.const 0")), "running"),
        (8086, "greedy", module("greedy.wasm", &plugin(GREEDY)), "running"),
    ];
    let objects = plugins.iter().map(|(port, name, url, _)| wasm_plugin(name, *port, url, "FAIL_CLOSE"));
    lab.write("one/plugins.yaml", &objects.collect::<Vec<_>>().join("---\n"));

    for (port, name, _, state) in &plugins {
        lab.wait_for(&format!("the plugin {name} is in the list, {state}"), || {
            plugin_row(&lab, name).is_some_and(|row| row["state"].as_str().unwrap_or_default().contains(state))
        });
        lab.wait_for(&format!("requests that the plugin {name} should judge are refused"), || {
            answer(&lab, *port).ends_with(" 503")
        });
        // Again and again: a new instance does no better.
        for _ in 0..3 {
            assert!(answer(&lab, *port).ends_with(" 503"), "{name}");
        }
    }
    for name in ["trap", "loop", "greedy"] {
        lab.wait_for(&format!("faults of {name} are counted"), || {
            plugin_row(&lab, name).is_some_and(|row| row["faults"].as_u64() > Some(0))
        });
    }
    let status = text(&lab.try_weft("one", &["status"]).stdout);
    assert!(status.contains("plugins") && status.contains("FAILED"), "{status}");
    // Other ports of the same pod, and other pods, do not notice.
    assert!(answer(&lab, 8087).ends_with(" 200"));
    http_policy_works(&lab);

    let open = plugins.iter().map(|(port, name, url, _)| wasm_plugin(name, *port, url, "FAIL_OPEN"));
    lab.write("one/plugins.yaml", &open.collect::<Vec<_>>().join("---\n"));
    for (port, name, ..) in &plugins {
        let passes = || answer(&lab, *port).ends_with(" 200");
        lab.wait_for(&format!("with FAIL_OPEN requests pass {name}"), passes);
    }

    lab.write("one/plugins.yaml", &wasm_plugin("odd", 8081, &trap, "FAIL_SOMEHOW"));
    lab.wait_for("a strategy that does not exist is named with those that do", || {
        let errors = object_errors(&lab, "one");
        errors.iter().any(|error| error.contains("spec.failStrategy") && error.contains("FAIL_OPEN"))
    });
    lab.delete("one/plugins.yaml");
    lab.wait_for("without a plugin requests pass", || answer(&lab, 8081).ends_with(" 200"));
    nothing_panicked(&lab);
}

#[test]
fn settings_that_are_wrong_are_named_with_their_file_and_field() {
    let folder = tempfile::tempdir().unwrap();
    let manifests = folder.path().join("manifests");
    fs::create_dir_all(&manifests).unwrap();
    let good = |name: &str, extra: &str| settings(folder.path(), name, &manifests, extra);

    let said = refused(&agent(&good("unknown", "clustrId: 3")));
    assert_names(&said, &["unknown.yaml", "clustrId"]);
    let said = refused(&agent(&good("value", "denyStatus: 200")));
    assert_names(&said, &["value.yaml", "denyStatus", "400 to 599"]);
    let said = refused(&agent(&folder.path().join("absent.yaml")));
    assert_names(&said, &["absent.yaml", "does the file exist?"]);
    let said = refused(&agent(&good("programs", "bpfObject: /nowhere/weft.bpf.o")));
    assert_names(&said, &["/nowhere/weft.bpf.o", "bpfObject"]);

    let lab = folder.path().join("lab");
    fs::create_dir_all(&lab).unwrap();
    let spec =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/folders/one-node/lab.yaml")).unwrap();
    for (change, to, names) in [
        ("podCIDR:", "podCidr:", ["lab.yaml", "podCidr"]),
        ("172.22.1.1", "192.0.2.1", ["lab.yaml", "address 192.0.2.1 is not in network"]),
        ("\"off\"", "\"of\"", ["lab.yaml", "encryption"]),
    ] {
        fs::write(lab.join("lab.yaml"), spec.replace(change, to)).unwrap();
        let said = refused(&Command::new(program("weft-lab")).arg("up").arg(&lab).output().unwrap());
        assert_names(&said, &names);
    }

    for (change, names) in [
        (r#"{"podCidr": "10.1.0.0/24"}"#, ["podCidr", "configuration folder"]),
        (r#"{"podCidrs": []}"#, ["podCidrs", "name the node's pod CIDRs"]),
        (r#"{"cniVersion": "0.2.0"}"#, ["cniVersion 0.2.0", "use 1.0.0 or 1.1.0"]),
    ] {
        let error: serde_json::Value = serde_json::from_slice(&cni("ADD", change).stdout).unwrap();
        assert_names(error["msg"].as_str().unwrap(), &names);
        assert!(error["code"].as_u64() > Some(0), "{error}");
    }
    let error: serde_json::Value = serde_json::from_slice(&cni("STATUS", "{}").stdout).unwrap();
    assert_names(error["msg"].as_str().unwrap(), &["/nowhere/agent.sock", "start weft-agent"]);
}

fn a_broken_file_is_named_with_its_line_and_keeps_what_it_said(lab: &Lab) {
    lab.edit("one/services.yaml", |good| good.replace("selector: {app: api}", "selector: {app: [api}"));
    lab.wait_for("the file and its line are named", || {
        let errors = object_errors(lab, "one");
        errors.iter().any(|error| error.contains("one/services.yaml") && error.contains("line 6"))
    });
    assert!(client_get(lab, SERVICE).ends_with(" 200"), "what the file said before is in force");
    lab.edit("one/services.yaml", |bad| bad.replace("[api}", "api}").replace("10.99.0.10", "10.99.0.11"));
    lab.wait_for("the corrected file counts", || client_get(lab, "http://10.99.0.11/api/users/1").ends_with(" 200"));
    assert!(object_errors(lab, "one").is_empty(), "{:?}", object_errors(lab, "one"));
    lab.edit("one/services.yaml", |text| text.replace("10.99.0.11", "10.99.0.10"));
    lab.wait_for("the first address is back", || client_get(lab, SERVICE).ends_with(" 200"));
}

fn an_unknown_field_of_a_service_is_named_and_the_service_serves(lab: &Lab) {
    lab.edit("one/services.yaml", |good| format!("{good}  sesionAffinity: ClientIP\n"));
    lab.wait_for("the field is named", || {
        let errors = object_errors(lab, "one");
        let names = ["one/services.yaml", "Service shop/api", "spec.sesionAffinity"];
        errors.iter().any(|error| names.iter().all(|name| error.contains(name)))
    });
    assert!(client_get(lab, SERVICE).ends_with(" 200"));
    lab.edit("one/services.yaml", |bad| bad.replace("  sesionAffinity: ClientIP\n", ""));
    lab.wait_for("nothing is wrong any more", || object_errors(lab, "one").is_empty());
}

fn a_policy_with_a_field_that_is_not_supported_is_rejected_whole_and_fails_closed(lab: &Lab) {
    let (client, victim) = (lab.pod("one/client"), lab.pod("one/victim"));
    let victim = format!("{}:9000", victim.ip());
    assert!(reaches(client, "tcp", &victim));
    let denied = dropped(lab, "one", "policy-denied");
    lab.write(
        "one/rejected.yaml",
        "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: icmp, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: victim}}
  ingress:
  - fromEntities: [all]
    icmps: [{fields: [{type: 8}]}]
",
    );
    lab.wait_for("the field is named in the list", || {
        let policy = row(&weft_json(lab, "one", &["policy", "list"]), "name", "shop/icmp");
        policy.is_some_and(|policy| policy["state"] == "rejected: spec.ingress[0].icmps is not supported")
    });
    assert!(lab.weft("one", ["policy", "list"]).contains("rejected: spec.ingress[0].icmps is not supported"));
    lab.wait_for("the selected pod is closed, though a rule said all", || !reaches(client, "tcp", &victim));
    assert!(!reaches(client, "udp", &victim.replace("9000", "9001")));
    assert!(dropped(lab, "one", "policy-denied") > denied);
    http_policy_works(lab);
    lab.delete("one/rejected.yaml");
    lab.wait_for("without the policy the pod is open", || reaches(client, "tcp", &victim));
}

fn a_context_that_does_not_exist_is_answered_with_those_that_do(lab: &Lab) {
    let said = refused(&lab.try_weft("north", &["status"]));
    assert_names(&said, &["\"north\" does not exist", "one"]);
    let mut weft = Command::new(program("weft"));
    let output = weft.args(["--socket", "/nowhere/agent.sock", "status"]).output().unwrap();
    assert_names(&refused(&output), &["/nowhere/agent.sock", "is weft-agent running there?"]);
}

fn ports_that_are_taken_are_named_with_their_setting(lab: &Lab) {
    let folder = tempfile::tempdir().unwrap();
    let node = lab.node("one/one-1");
    let run =
        |program: PathBuf, arguments: &[&str]| node.try_exec(&[&[&*program.to_string_lossy()], arguments].concat());
    let config = settings(folder.path(), "second", folder.path(), "metrics: {listen: \"127.0.0.1:9964\"}");
    let said = refused(&run(program("weft-agent"), &["--config", &config.to_string_lossy()]));
    assert_names(&said, &["127.0.0.1:9964", "metrics.listen"]);

    let (socket, state) = (folder.path().join("proxy.sock"), folder.path().join("proxy"));
    let (socket, state) = (socket.to_string_lossy(), state.to_string_lossy());
    let arguments = ["--socket", &*socket, "--state-dir", &*state, "--metrics", "127.0.0.1:9965"];
    assert_names(&refused(&run(program("weft-proxy"), &arguments)), &["127.0.0.1:9965", "--metrics"]);

    // The socket of an agent that runs is as good as a port.
    let socket = lab.layout().agent_socket("one", "one-1");
    let runtime = format!("runtimeDir: {}", socket.parent().unwrap().display());
    let config = settings(folder.path(), "third", folder.path(), &runtime);
    let said = refused(&run(program("weft-agent"), &["--config", &config.to_string_lossy()]));
    assert_names(&said, &[&socket.to_string_lossy(), "runtimeDir"]);
    assert!(lab.node("one/one-1").status().ready, "the agent that was there first does not notice");
}

fn the_machine_is_checked_by_loading_every_program(lab: &Lab) {
    let object = program("weft-lab").parent().unwrap().join("../bpfel-unknown-none/release/weft");
    let bpf = lab.layout().node_bpf("one", "one-1");
    let check = |first: &[&str], object: &Path| {
        let weft = program("weft");
        let words = first.iter().map(|word| (*word).to_owned()).chain([weft.to_string_lossy().into_owned()]);
        let words: Vec<String> = words.collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("check").arg("--bpf-object").arg(object).arg("--bpf-dir").arg(&bpf);
        command.output().unwrap()
    };
    let output = check(&[], &object);
    assert!(output.status.success(), "{output:?}");
    assert_names(&text(&output.stdout), &["FEATURE", "kernel programs", "programs accepted"]);
    let said = refused(&check(&[], Path::new("/nowhere/weft.bpf.o")));
    assert_names(&said, &["/nowhere/weft.bpf.o", "--bpf-object"]);
    // Without any capability every feature is as good as missing.
    let output = check(&["setpriv", "--inh-caps=-all", "--bounding-set=-all"], &object);
    assert_names(&refused(&output), &["Weft cannot run here", "missing"]);
    assert_names(&text(&output.stdout), &["NO", "use kernel"]);
}

/// The policy of the folder: `GET /api/users/.*` and nothing else.
fn http_policy_works(lab: &Lab) {
    lab.wait_for("what the policy allows passes", || client_get(lab, SERVICE).ends_with(" 200"));
    let denied = client_get(lab, "-X POST http://10.99.0.10/admin/delete");
    assert!(denied.ends_with(" 403"), "{denied}");
}

fn nothing_panicked(lab: &Lab) {
    let logs = fs::read_dir(lab.layout().logs("one")).unwrap().flatten();
    for log in logs.map(|entry| entry.path()) {
        let text = fs::read_to_string(&log).unwrap_or_default();
        assert!(!text.contains("panicked at"), "{}:\n{text}", log.display());
    }
}

fn client_get(lab: &Lab, arguments: &str) -> String {
    lab.pod("one/client").curl(arguments)
}

fn answer(lab: &Lab, port: u16) -> String {
    client_get(lab, &format!("http://{}:{port}/", lab.pod("one/victim").ip()))
}

fn plugin_row(lab: &Lab, name: &str) -> Option<serde_json::Value> {
    row(&weft_json(lab, "one", &["plugin", "list"]), "name", &format!("shop/{name}"))
}

fn wasm_plugin(name: &str, port: u16, url: &str, strategy: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1
kind: WasmPlugin
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: victim}}}}
  url: {url}
  failStrategy: {strategy}
  match: [{{ports: [{{number: {port}}}]}}]
"
    )
}

const GREEDY: &str = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable";

/// A module that does this with every request.
fn plugin(on_request: &str) -> Vec<u8> {
    let module = format!(
        r#"(module
            (memory (export "memory") 2)
            (global $heap (mut i32) (i32.const 65536))
            (func (export "proxy_abi_version_0_2_1"))
            (func (export "malloc") (param i32) (result i32)
                global.get $heap
                (global.set $heap (i32.add (global.get $heap) (local.get 0))))
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) {on_request}))"#
    );
    wat::parse_str(module).unwrap()
}

/// Settings of an agent with folders of its own; lines of `extra` replace those of the same field.
fn settings(folder: &Path, name: &str, manifests: &Path, extra: &str) -> PathBuf {
    let own = folder.join(name);
    let mut fields = vec![
        "node: one-1".to_owned(),
        "cluster: one".to_owned(),
        format!("source: {{directory: {{paths: [{}]}}}}", manifests.display()),
        format!("runtimeDir: {}", own.display()),
        format!("stateDir: {}", own.join("state").display()),
        format!("caDir: {}", own.join("ca").display()),
        "metrics: {listen: \"127.0.0.1:0\"}".to_owned(),
    ];
    for line in extra.lines() {
        let field = line.split(':').next().unwrap();
        fields.retain(|kept| !kept.starts_with(&format!("{field}:")));
        fields.push(line.to_owned());
    }
    let path = folder.join(format!("{name}.yaml"));
    fs::write(&path, fields.join("\n")).unwrap();
    path
}

fn agent(config: &Path) -> Output {
    Command::new(program("weft-agent")).arg("--config").arg(config).output().unwrap()
}

fn cni(command: &str, change: &str) -> Output {
    let mut config = serde_json::json!({
        "cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "podCidrs": ["10.4.1.0/24"],
        "agentSocket": "/nowhere/agent.sock",
    });
    let change: serde_json::Map<_, _> = serde_json::from_str(change).unwrap();
    config.as_object_mut().unwrap().extend(change);
    let mut plugin = Command::new(program("weft-cni"));
    plugin.env("CNI_COMMAND", command).env("CNI_CONTAINERID", "weft-test").env("CNI_NETNS", "/nowhere/netns");
    plugin.env("CNI_IFNAME", "eth0").env("CNI_PATH", "/");
    let mut child = plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// What the command says; it must have failed in order.
fn refused(output: &Output) -> String {
    let said = text(&output.stderr);
    assert!(output.status.code().is_some_and(|code| code != 0), "{:?}: {said}", output.status);
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn assert_names(said: &str, names: &[&str]) {
    for name in names {
        assert!(said.contains(name), "{name:?} is not in: {said}");
    }
}

fn program(name: &str) -> PathBuf {
    let path = binary(name).unwrap();
    assert!(path.exists(), "{} is not built: run `cargo xtask build`", path.display());
    path
}
