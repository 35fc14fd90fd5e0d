//! The lab of the benchmarks: one node, a client, and servers for each question.
use anyhow::Result;
use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
};
use weft_lab::Lab;

pub const CLUSTER: &str = "bench";
pub const NODE: &str = "bench/node";
/// Takes connections and drops them.
pub const BACKEND_PORT: u16 = 9000;
pub const HTTP_PORT: u16 = 8080;
const SERVICE_PORT: u16 = 80;
/// Services in one file.
const FILE: u16 = 1000;

const LAB: &str = "network: 172.20.0.0/16
encryption: off
clusters:
- name: bench
  serviceCIDR: 10.96.0.0/16
  nodes:
  - {name: node, region: here, address: 172.20.1.1, podCIDR: 10.1.1.0/24}
";

const POLICY: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: api-l7, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: api}}
  ingress:
  - fromEndpoints:
    - matchLabels: {app: client}
    toPorts:
    - ports:
      - {port: \"8080\", protocol: TCP}
      rules:
        http:
        - {method: GET, path: /api/users/.*}
        - {method: POST, path: /api/login}
";

/// A plugin that looks at nothing: what remains is the proxy's own work.
const IDLE: &str = "(module (memory (export \"memory\") 1)
    (func (export \"proxy_abi_version_0_2_1\"))
    (func (export \"malloc\") (param i32) (result i32) i32.const 1024))";

/// A lab from a new folder, which the lab copies; the plugin in it must stay while the lab does.
pub struct Scene {
    pub lab: Lab,
    _folder: tempfile::TempDir,
}

impl Scene {
    /// Panics, after clean-up, if the lab cannot be brought up.
    pub fn up() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        write(folder.path())?;
        Ok(Self { lab: Lab::up(folder.path()), _folder: folder })
    }

    /// Services that all lead to the pod `backend`.
    pub fn add_services(&self, services: u16) {
        for first in (0..services).step_by(usize::from(FILE)) {
            let last = services.min(first.saturating_add(FILE));
            let text: String = (first..last).map(service).collect();
            self.lab.write(&format!("{CLUSTER}/services-{first:05}.yaml"), &text);
        }
    }
}

pub fn service_name(index: u16) -> String {
    format!("service-{index:05}")
}

pub fn service_address(index: u16) -> SocketAddrV4 {
    // The first addresses of the range stay free.
    let base = u32::from(Ipv4Addr::new(10, 96, 1, 0));
    SocketAddrV4::new(Ipv4Addr::from(base + u32::from(index)), SERVICE_PORT)
}

fn write(folder: &Path) -> Result<()> {
    let cluster = folder.join(CLUSTER);
    fs::create_dir(&cluster)?;
    fs::write(folder.join(weft_lab::spec::FILE), LAB)?;
    fs::write(cluster.join("policies.yaml"), POLICY)?;
    let serve = format!("[weft-bench, serve, \"{HTTP_PORT}\"]");
    let listen = format!("[weft-bench, listen, \"{BACKEND_PORT}\"]");
    let pods: String = [
        ("client", "[sleep, infinity]"),
        ("backend", listen.as_str()),
        ("api", &serve),
        ("plugged", &serve),
        ("plain", &serve),
    ]
    .into_iter()
    .map(|(name, command)| pod(name, command))
    .collect();
    fs::write(cluster.join("pods.yaml"), pods)?;
    let module = folder.join("idle.wasm");
    fs::write(&module, wat::parse_str(IDLE)?)?;
    fs::write(cluster.join("plugin.yaml"), plugin(&module))?;
    Ok(())
}

fn pod(name: &str, command: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, labels: {{app: {name}}}}}
spec:
  nodeName: node
  terminationGracePeriodSeconds: 1
  containers:
  - name: {name}
    command: {command}
"
    )
}

fn plugin(module: &Path) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1
kind: WasmPlugin
metadata: {{name: idle, namespace: default}}
spec:
  selector: {{matchLabels: {{app: plugged}}}}
  url: file://{}
  match: [{{ports: [{{number: {HTTP_PORT}}}]}}]
",
        module.display()
    )
}

fn service(index: u16) -> String {
    let (name, address) = (service_name(index), service_address(index));
    let mut text = String::new();
    // A String takes everything.
    let _ = write!(
        text,
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  clusterIP: {}
  selector: {{app: backend}}
  ports: [{{name: tcp, port: {}, targetPort: {BACKEND_PORT}}}]
",
        address.ip(),
        address.port()
    );
    text
}
