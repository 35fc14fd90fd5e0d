//! What the lab starts on each node, with which settings.
use crate::{
    layout::{Layout, Source},
    place::Place,
    process::Program,
    spec::{ClusterSpec, NodeSpec, Spec},
};
use serde_json::{Value, json};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

const MESH_PORT: u16 = 32379;
const WIREGUARD_PORT: u16 = 51871;
/// Where the agent and the proxy of a node give their metrics; each node has a loopback of its own.
const AGENT_METRICS: &str = "127.0.0.1:9964";
const PROXY_METRICS: &str = "127.0.0.1:9965";

/// What has been built, and where it is.
#[derive(Clone, Debug)]
pub struct Built {
    pub binaries: PathBuf,
    target: PathBuf,
}

#[derive(Debug, thiserror::Error)]
#[error("{what} is not built: looked at {}; run `cargo xtask build`", path.display())]
pub struct NotBuilt {
    what: &'static str,
    path: PathBuf,
}

impl Built {
    /// Binaries are where `WEFT_BIN_DIR` says, else beside this program (tests run one folder below).
    pub fn find() -> io::Result<Self> {
        let binaries = match std::env::var_os("WEFT_BIN_DIR") {
            Some(folder) => PathBuf::from(folder).canonicalize()?,
            None => {
                let exe = std::env::current_exe()?;
                let beside = exe.parent().unwrap_or(Path::new("/"));
                if beside.ends_with("deps") { beside.parent().unwrap_or(beside) } else { beside }.to_owned()
            }
        };
        let target = match std::env::var_os("WEFT_TARGET_DIR") {
            Some(folder) => PathBuf::from(folder).canonicalize()?,
            None => binaries.parent().unwrap_or(&binaries).to_owned(),
        };
        Ok(Self { binaries, target })
    }

    pub fn binary(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    pub fn plugins(&self) -> PathBuf {
        self.target.join("plugins")
    }

    pub fn kubernetes(&self, server: &str) -> PathBuf {
        self.target.join("kubernetes").join(server)
    }

    fn bpf_object(&self) -> PathBuf {
        self.target.join("bpfel-unknown-none/release/weft")
    }

    /// Fails on the first thing that a lab needs and that is not there.
    pub fn check(&self, source: Source) -> Result<(), NotBuilt> {
        let mut needed = vec![
            ("weft-agent", self.binary("weft-agent")),
            ("weft-proxy", self.binary("weft-proxy")),
            ("weft-cni", self.binary("weft-cni")),
            ("the object with the kernel programs", self.bpf_object()),
            ("the plugin http-policy", self.plugins().join("http-policy.wasm")),
        ];
        if source == Source::Kubernetes {
            needed.push(("kube-apiserver (run `cargo xtask kubernetes`)", self.kubernetes("kube-apiserver")));
        }
        match needed.into_iter().find(|(_, path)| !path.exists()) {
            Some((what, path)) => Err(NotBuilt { what, path }),
            None => Ok(()),
        }
    }
}

/// The node's folders, and the agent's settings in them.
pub fn prepare_node(
    layout: &Layout,
    built: &Built,
    spec: &Spec,
    source: Source,
    folder: &Path,
    cluster: &ClusterSpec,
    node: &NodeSpec,
) -> io::Result<()> {
    let run = layout.node_run(&cluster.name, &node.name);
    let state = layout.node_state(&cluster.name, &node.name);
    let bpf = layout.node_bpf(&cluster.name, &node.name);
    for path in [&run, &state, &bpf] {
        fs::create_dir_all(path)?;
    }
    nix::mount::mount(Some("bpf"), &bpf, Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>)?;
    let source = match source {
        Source::Directory => {
            json!({"directory": {"paths": [folder.join(&cluster.name), layout.status(&cluster.name)]}})
        }
        Source::Kubernetes => json!({"kubernetes": {"kubeconfig": layout.node_kubeconfig(&cluster.name)}}),
    };
    let settings = json!({
        "node": node.name,
        "cluster": cluster.name,
        "trustDomain": format!("{}.weft.local", cluster.name),
        "runtimeDir": run,
        "stateDir": state,
        "bpfDir": bpf,
        "cgroup": layout.node_cgroup(&cluster.name, &node.name),
        "caDir": layout.ca(&cluster.name),
        "source": source,
        "devices": ["eth0"],
        "mesh": {"listen": format!("{}:{MESH_PORT}", node.address)},
        "encryption": {"mode": spec.encryption, "listenPort": WIREGUARD_PORT, "interface": "weft0"},
        "metrics": {"listen": AGENT_METRICS},
        "bpfObject": built.bpf_object(),
        "pluginDir": built.plugins(),
    });
    write_yaml(&agent_settings(layout, cluster, node), &settings)
}

pub fn agent(layout: &Layout, built: &Built, cluster: &ClusterSpec, node: &NodeSpec) -> Program {
    let arguments = vec!["--config".to_owned(), text(&agent_settings(layout, cluster, node))];
    daemon(layout, built, cluster, node, "agent", arguments)
}

pub fn proxy(layout: &Layout, built: &Built, cluster: &ClusterSpec, node: &NodeSpec) -> Program {
    let state = layout.node_state(&cluster.name, &node.name).join("proxy");
    let socket = layout.proxy_socket(&cluster.name, &node.name);
    let arguments =
        [("--socket", text(&socket)), ("--state-dir", text(&state)), ("--metrics", PROXY_METRICS.to_owned())];
    let mut arguments: Vec<String> = arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
    // Benchmarks compare proxies with the same number of threads.
    if let Ok(workers) = std::env::var("WEFT_PROXY_WORKERS") {
        arguments.extend(["--workers".to_owned(), workers]);
    }
    daemon(layout, built, cluster, node, "proxy", arguments)
}

/// For `weft --context CLUSTER`.
pub fn contexts(layout: &Layout, spec: &Spec, source: Source) -> Value {
    let agents = |cluster: &ClusterSpec| -> Vec<Value> {
        let agent =
            |node: &NodeSpec| json!({"node": node.name, "socket": layout.agent_socket(&cluster.name, &node.name)});
        cluster.nodes.iter().map(agent).collect()
    };
    let contexts = spec.clusters.iter().map(|cluster| {
        let mut context = json!({"name": cluster.name, "agents": agents(cluster)});
        if source == Source::Kubernetes {
            context["kubeconfig"] = json!(layout.kubeconfig(&cluster.name));
        }
        context
    });
    json!({"contexts": contexts.collect::<Vec<_>>()})
}

pub fn write_yaml(path: &Path, value: &Value) -> io::Result<()> {
    let text = serde_norway::to_string(value).map_err(io::Error::other)?;
    crate::layout::write_atomically(path, text.as_bytes())
}

fn agent_settings(layout: &Layout, cluster: &ClusterSpec, node: &NodeSpec) -> PathBuf {
    layout.node(&cluster.name, &node.name).join("agent.yaml")
}

fn daemon(
    layout: &Layout,
    built: &Built,
    cluster: &ClusterSpec,
    node: &NodeSpec,
    role: &str,
    arguments: Vec<String>,
) -> Program {
    let level = std::env::var("WEFT_LOG").unwrap_or_else(|_| "info".to_owned());
    Program {
        path: built.binary(&format!("weft-{role}")),
        arguments,
        environment: vec![("WEFT_LOG".to_owned(), level)],
        place: Some(Place::agent(layout, &cluster.name, &node.name)),
        log: layout.logs(&cluster.name).join(format!("{role}-{}.log", node.name)),
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
