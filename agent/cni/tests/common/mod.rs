//! A node and its pods in network namespaces, an agent that records what it is told, and the plugin run as a container
//! runtime runs it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio, id};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_netlink::namespace;

/// A network namespace that is removed with its guard.
pub struct Namespace {
    pub name: String,
    pub path: PathBuf,
}

impl Namespace {
    pub fn new(label: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("weft-cni-{}-{}-{label}", id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run("ip", &["netns", "add", &name]);
        let path = Path::new("/run/netns").join(&name);
        Self { name, path }
    }

    pub fn ip(&self, arguments: &[&str]) -> String {
        run("ip", &[&["-n", &self.name], arguments].concat())
    }

    pub fn exec(&self, arguments: &[&str]) -> Output {
        let all = [&["netns", "exec", &self.name], arguments].concat();
        Command::new("ip").args(all).output().expect("ip can be started")
    }

    /// Runs `work` inside; sockets it opens stay inside.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(&self.path).expect("the namespace");
        namespace::within(&file, work).expect("the namespace can be entered")
    }

    /// Names of the interfaces, `lo` aside.
    pub fn links(&self) -> Vec<String> {
        let text = self.ip(&["-o", "link"]);
        let names = text.lines().filter_map(|line| line.split(": ").nth(1)?.split('@').next());
        names.filter(|name| *name != "lo").map(str::to_owned).collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program can be started");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the agent was asked, and how it was then.
#[derive(Clone, Debug)]
pub struct Seen {
    pub request: String,
    pub body: Value,
    /// `ip link` of the endpoint's interface at that moment.
    pub link: String,
}

/// Speaks the agent's endpoint API.
pub struct FakeAgent {
    pub seen: Arc<Mutex<Vec<Seen>>>,
    /// Of the answers to POST.
    pub post_status: Arc<AtomicU16>,
}

/// A node with its data folder, and perhaps an agent.
pub struct Node {
    pub namespace: Namespace,
    pub folder: TempDir,
    pub cidrs: Vec<&'static str>,
}

impl Node {
    pub fn new(cidrs: &[&'static str]) -> Self {
        let node = Self {
            namespace: Namespace::new("node"),
            folder: tempfile::tempdir().expect("a folder"),
            cidrs: cidrs.to_vec(),
        };
        node.namespace.ip(&["link", "set", "lo", "up"]);
        // The agent's work on a real node.
        assert!(node.namespace.exec(&["sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"]).status.success());
        node
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    pub fn start_agent(&self) -> FakeAgent {
        let _ = std::fs::remove_file(self.socket());
        let listener = UnixListener::bind(self.socket()).expect("a socket");
        let agent = FakeAgent { seen: Arc::default(), post_status: Arc::new(AtomicU16::new(201)) };
        let (seen, post_status, node) = (agent.seen.clone(), agent.post_status.clone(), self.namespace.name.clone());
        // It ends with the test's process: nobody else knows the socket.
        thread::spawn(move || {
            let known = Mutex::new(HashMap::new());
            for stream in listener.incoming() {
                let _ = stream.and_then(|stream| answer(stream, &seen, &post_status, &known, &node));
            }
        });
        agent
    }

    pub fn config(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "weft", "type": "weft-cni",
            "agentSocket": self.socket(), "dataDir": self.folder.path().join("cni"),
            "podCidrs": self.cidrs, "mtu": 1500, "routeMtu": 1420,
        })
    }

    /// Runs the plugin as a runtime does: in the node's namespace, with these variables alone.
    pub fn call_with(&self, config: &Value, variables: &[(&str, &str)]) -> Result<Value, Value> {
        let spawn = || {
            Command::new(env!("CARGO_BIN_EXE_weft-cni"))
                .env_clear()
                .envs(variables.iter().copied())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
        };
        let mut child = self.namespace.within(spawn).expect("the plugin starts");
        child.stdin.take().expect("piped").write_all(config.to_string().as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let value = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect("JSON") };
        if output.status.success() { Ok(value) } else { Err(value) }
    }

    pub fn call(&self, command: &str, container: &str, pod: Option<&Namespace>) -> Result<Value, Value> {
        let arguments = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={container}");
        let mut variables = vec![
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", container),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", &arguments),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        let path = pod.map(|pod| pod.path.to_string_lossy().into_owned());
        variables.extend(path.as_deref().map(|path| ("CNI_NETNS", path)));
        self.call_with(&self.config(), &variables)
    }

    pub fn data(&self, path: &str) -> PathBuf {
        self.folder.path().join("cni").join(path)
    }
}

/// Addresses in a result, without their prefix lengths.
pub fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().expect("ips");
    ips.iter()
        .map(|ip| ip["address"].as_str().expect("text").split('/').next().expect("an address").to_owned())
        .collect()
}

fn answer(
    mut stream: UnixStream,
    seen: &Mutex<Vec<Seen>>,
    post_status: &AtomicU16,
    known: &Mutex<HashMap<String, Value>>,
    node: &str,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    if request.is_empty() {
        return Ok(());
    }
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().expect("a length");
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let mut words = request.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut known = known.lock().expect("no panic under the lock");
    let mut link = String::new();
    let status = match method {
        "POST" => {
            let interface = body["interface"].as_str().expect("an interface");
            link = run("ip", &["-n", node, "-o", "link", "show", interface]);
            let status = post_status.load(Ordering::Relaxed);
            if status < 300 {
                let container = body["containerId"].as_str().expect("an id");
                known.insert(format!("/v1/endpoints/{container}"), body.clone());
            }
            status
        }
        "DELETE" => known.remove(path).map_or(404, |_| 204),
        _ => known.get(path).map_or(404, |_| 200),
    };
    seen.lock().expect("no panic under the lock").push(Seen { request: format!("{method} {path}"), body, link });
    let reason = if status >= 400 { "as the test wants" } else { "" };
    write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{reason}", reason.len())
}
