//! What can be asked of a running lab, over the unix socket of its supervisor: one JSON line each way.
use crate::{layout::Layout, pods::PodReport, process::State};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

/// Longer than any request takes.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Agent,
    Proxy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// SIGKILL; it is started again.
    Kill,
    /// SIGTERM; it is started again.
    Terminate,
    /// SIGKILL; it stays down until `Start`.
    KillAndKeepDown,
    Start,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    Status,
    Daemon {
        cluster: String,
        node: String,
        role: Role,
        action: Action,
    },
    /// Only where the source is Kubernetes.
    ApiServer {
        cluster: String,
        action: Action,
    },
    /// Off: every process of the cluster dies at once and its cables are pulled. On: it boots.
    Power {
        cluster: String,
        on: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    Status(LabStatus),
    Done,
    Refused(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabStatus {
    /// Every agent and every pod is ready.
    pub ready: bool,
    /// Why the lab cannot come up.
    pub failed: Option<String>,
    pub clusters: Vec<ClusterStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    pub name: String,
    pub power: bool,
    pub nodes: Vec<NodeStatus>,
    /// How many pods the source wants.
    pub wanted: usize,
    pub pods: Vec<PodReport>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub name: String,
    pub agent: DaemonStatus,
    pub proxy: DaemonStatus,
    /// The agent says that it is ready.
    pub ready: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    pub pid: Option<i32>,
    pub restarts: u32,
    pub trouble: Option<String>,
}

impl From<State> for DaemonStatus {
    fn from(State { pid, restarts, trouble }: State) -> Self {
        Self { pid, restarts, trouble }
    }
}

/// Asks the lab's supervisor.
pub fn ask(layout: &Layout, request: &Request) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(layout.socket())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

impl LabStatus {
    /// What is not ready yet, one line each.
    pub fn waiting_for(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for cluster in &self.clusters {
            for node in cluster.nodes.iter().filter(|node| !node.ready) {
                let trouble = [("agent", &node.agent), ("proxy", &node.proxy)]
                    .into_iter()
                    .find_map(|(name, daemon)| Some(format!("{name} ended: {}", daemon.trouble.as_ref()?)));
                let why = trouble.unwrap_or_else(|| "its agent is not ready".to_owned());
                lines.push(format!("node {}/{}: {why}", cluster.name, node.name));
            }
            for pod in cluster.pods.iter().filter(|pod| !pod.settled()) {
                let why = pod.message.as_deref().unwrap_or("not ready");
                lines.push(format!("pod {}/{}: {why}", cluster.name, pod.key));
            }
            let reported = cluster.pods.len();
            if reported < cluster.wanted {
                lines.push(format!("cluster {}: {} pods are not placed", cluster.name, cluster.wanted - reported));
            }
        }
        lines
    }
}
