//! Where a lab keeps what: the one place that knows its paths and names.
use crate::spec::Spec;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub const DEFAULT_RUNTIME_DIR: &str = "/run/weft-lab";
const NETNS_DIR: &str = "/run/netns";

/// A lab's name and its folder below the runtime directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    name: String,
    runtime: PathBuf,
    cgroup: PathBuf,
}

/// What is written once a lab begins to come up, for every later command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub supervisor: ProcessId,
    pub folder: PathBuf,
    pub source: Source,
    pub spec: Spec,
}

/// A process id that is not mistaken for a later process with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: i32,
    /// Clock ticks since boot, as in /proc/PID/stat.
    pub started: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The agents read the manifests from the lab's folder.
    #[default]
    Directory,
    /// Each cluster has an API server.
    Kubernetes,
}

impl Layout {
    /// Fails where no cgroup v2 hierarchy is mounted.
    pub fn new(runtime_dir: &Path, name: &str) -> io::Result<Self> {
        let cgroup = cgroup_mount()?.join(format!("weft-lab-{name}"));
        Ok(Self { name: name.to_owned(), runtime: runtime_dir.join(name), cgroup })
    }

    pub fn name(&self) -> &str {
        &self.name
    }
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }
    pub fn record(&self) -> PathBuf {
        self.runtime.join("lab.json")
    }
    pub fn socket(&self) -> PathBuf {
        self.runtime.join("lab.sock")
    }
    pub fn log(&self) -> PathBuf {
        self.runtime.join("supervisor.log")
    }
    pub fn contexts(&self) -> PathBuf {
        self.runtime.join("contexts.yaml")
    }
    /// One empty file for each network namespace of the lab, made before the namespace.
    pub fn namespaces(&self) -> PathBuf {
        self.runtime.join("netns")
    }
    pub fn cluster(&self, cluster: &str) -> PathBuf {
        self.runtime.join("clusters").join(cluster)
    }
    /// What a kubelet would report, as manifests.
    pub fn status(&self, cluster: &str) -> PathBuf {
        self.cluster(cluster).join("status")
    }
    pub fn ca(&self, cluster: &str) -> PathBuf {
        self.cluster(cluster).join("ca")
    }
    pub fn logs(&self, cluster: &str) -> PathBuf {
        self.cluster(cluster).join("logs")
    }
    pub fn control_plane(&self, cluster: &str) -> PathBuf {
        self.cluster(cluster).join("control-plane")
    }
    /// The API server as this machine reaches it.
    pub fn kubeconfig(&self, cluster: &str) -> PathBuf {
        self.control_plane(cluster).join("kubeconfig")
    }
    /// The API server as the cluster's nodes reach it.
    pub fn node_kubeconfig(&self, cluster: &str) -> PathBuf {
        self.control_plane(cluster).join("node-kubeconfig")
    }
    pub fn node(&self, cluster: &str, node: &str) -> PathBuf {
        self.cluster(cluster).join(node)
    }
    pub fn node_run(&self, cluster: &str, node: &str) -> PathBuf {
        self.node(cluster, node).join("run")
    }
    pub fn node_state(&self, cluster: &str, node: &str) -> PathBuf {
        self.node(cluster, node).join("state")
    }
    pub fn node_bpf(&self, cluster: &str, node: &str) -> PathBuf {
        self.node(cluster, node).join("bpf")
    }
    pub fn agent_socket(&self, cluster: &str, node: &str) -> PathBuf {
        self.node_run(cluster, node).join("agent.sock")
    }
    pub fn proxy_socket(&self, cluster: &str, node: &str) -> PathBuf {
        self.node_run(cluster, node).join("proxy.sock")
    }

    /// The lab's subtree of the cgroup hierarchy.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }
    pub fn node_cgroup(&self, cluster: &str, node: &str) -> PathBuf {
        self.cgroup.join(format!("{cluster}-{node}"))
    }
    pub fn agent_cgroup(&self, cluster: &str, node: &str) -> PathBuf {
        self.node_cgroup(cluster, node).join("agent")
    }
    /// For commands that are run on a node.
    pub fn host_cgroup(&self, cluster: &str, node: &str) -> PathBuf {
        self.node_cgroup(cluster, node).join("host")
    }
    pub fn pod_cgroup(&self, cluster: &str, node: &str, namespace: &str, pod: &str) -> PathBuf {
        self.node_cgroup(cluster, node).join("pods").join(format!("{namespace}_{pod}"))
    }

    pub fn control_plane_cgroup(&self, cluster: &str) -> PathBuf {
        self.cgroup.join(format!("{cluster}-control-plane"))
    }

    pub fn fabric_netns(&self) -> String {
        format!("weft-{}-fabric", self.name)
    }
    pub fn node_netns(&self, cluster: &str, node: &str) -> String {
        format!("weft-{}-{cluster}-{node}", self.name)
    }
    pub fn control_plane_netns(&self, cluster: &str) -> String {
        format!("weft-{}-{cluster}-control-plane", self.name)
    }
    pub fn pod_netns(&self, cluster: &str, namespace: &str, pod: &str) -> String {
        format!("weft-{}-{cluster}-{namespace}-{pod}", self.name)
    }

    pub fn write_record(&self, record: &Record) -> io::Result<()> {
        write_atomically(&self.record(), &serde_json::to_vec_pretty(record)?)
    }

    /// `None`: no such lab.
    pub fn read_record(&self) -> io::Result<Option<Record>> {
        match fs::read(self.record()) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl ProcessId {
    /// `None`: no such process.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name is in parentheses and may hold anything; the start is the 20th field after it.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        if fields.next()? == "Z" {
            return None;
        }
        Some(Self { pid, started: fields.nth(18)?.parse().ok()? })
    }

    pub fn current() -> io::Result<Self> {
        let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        Self::of(pid).ok_or_else(|| io::Error::other("cannot read /proc/self/stat"))
    }

    pub fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Does nothing to a process that only has the same number.
    pub fn signal(self, signal: nix::sys::signal::Signal) {
        if self.alive() {
            // It may end between the look and the signal: nothing is left to do then.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), signal);
        }
    }
}

pub fn netns_path(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

/// Names of the labs below the runtime directory, running or left behind.
pub fn labs(runtime_dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(runtime_dir) else { return Vec::new() };
    let mut names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into()).collect();
    names.sort();
    names
}

/// A reader sees the old content or the new, never a part.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = path.with_file_name(format!(".{name}.partial"));
    fs::write(&partial, content)?;
    fs::rename(&partial, path)
}

fn cgroup_mount() -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mut cgroups = fields.filter(|fields| fields.get(2) == Some(&"cgroup2"));
    cgroups.next().map(|fields| PathBuf::from(fields[1])).ok_or_else(|| {
        io::Error::other("no cgroup v2 hierarchy is mounted: mount one with `mount -t cgroup2 none /sys/fs/cgroup`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_number_and_its_start() {
        let me = ProcessId::current().unwrap();
        assert!(me.alive());
        assert!(!ProcessId { started: me.started + 1, ..me }.alive());
        assert_eq!(ProcessId::of(i32::MAX), None);
    }
}
