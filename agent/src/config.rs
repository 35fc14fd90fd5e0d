//! The agent's settings: one YAML file, each field with a default that suits a single plain Linux host.
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};
use weft_datapath::plan::Encryption;
use weft_identity::TrustDomain;
use weft_model::{store::UnsupportedPolicy, types::ClusterName};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: does the file exist?", path.display())]
    Read {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("{}: {message}", path.display())]
    Invalid { path: PathBuf, message: String },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Name of this node, as in its Node object.
    pub node: String,
    pub cluster: ClusterName,
    /// 1 to 255, different in each connected cluster. Proposed from the cluster's name when absent.
    #[serde(default)]
    pub cluster_id: Option<u32>,
    /// `<cluster>.weft.local` when absent.
    #[serde(default)]
    pub trust_domain: Option<TrustDomain>,
    /// Sockets and what may be lost at a reboot.
    #[serde(default = "default_runtime_dir")]
    pub runtime_dir: PathBuf,
    /// What must survive a reboot: the WireGuard key.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// A bpffs is mounted here if none is. Not under /sys: `ip netns exec` mounts that anew.
    #[serde(default = "default_bpf_dir")]
    pub bpf_dir: PathBuf,
    /// The cgroup (v2) whose processes get service addresses translated. The root of the hierarchy when absent.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// The cluster's own CA; shared by the agents of the cluster.
    #[serde(default = "default_ca_dir")]
    pub ca_dir: PathBuf,
    #[serde(with = "serde_norway::with::singleton_map")]
    pub source: SourceConfig,
    /// Native devices. Those that carry this node's addresses when empty.
    #[serde(default)]
    pub devices: Vec<String>,
    #[serde(default)]
    pub mesh: MeshConfig,
    #[serde(default)]
    pub encryption: EncryptionConfig,
    #[serde(default)]
    pub metrics: MetricsConfig,
    /// The object with the kernel programs.
    #[serde(default = "default_bpf_object")]
    pub bpf_object: PathBuf,
    /// Where `http-policy.wasm` and `spiffe-authz.wasm` are.
    #[serde(default = "default_plugin_dir")]
    pub plugin_dir: PathBuf,
    /// What to do with a policy that has a field which is not supported.
    #[serde(default)]
    pub unsupported_policy: UnsupportedPolicy,
    /// Status of a request that HTTP policy denies.
    #[serde(default = "default_deny_status")]
    pub deny_status: u16,
    /// Report allowed connections as flows, too.
    #[serde(default = "yes")]
    pub observe_allowed: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum SourceConfig {
    /// Kubernetes YAML in folders; an object in a later folder replaces the same one of an earlier folder.
    Directory { paths: Vec<PathBuf> },
    /// An API server. Without a kubeconfig: the service account of the pod that the agent runs in.
    Kubernetes {
        #[serde(default)]
        kubeconfig: Option<PathBuf>,
        #[serde(default)]
        context: Option<String>,
    },
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshConfig {
    /// Where other clusters and, with the directory source, the cluster's other nodes read this node's export.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct EncryptionConfig {
    pub mode: Encryption,
    pub listen_port: u16,
    pub interface: String,
}

impl Default for EncryptionConfig {
    fn default() -> Self {
        Self { mode: Encryption::default(), listen_port: 51871, interface: "weft0".to_owned() }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MetricsConfig {
    pub listen: SocketAddr,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9964)) }
    }
}

impl Config {
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|cause| ConfigError::Read { path: path.into(), cause })?;
        let invalid = |message| ConfigError::Invalid { path: path.into(), message };
        let config: Self = serde_norway::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        config.check().map_err(invalid)?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.node.is_empty() {
            return Err("node is empty: give the name of this node, as in its Node object".to_owned());
        }
        if self.cluster_id.is_some_and(|id| !(1..=255).contains(&id)) {
            return Err("clusterId must be 1 to 255: leave it out to have one proposed".to_owned());
        }
        if !(400..=599).contains(&self.deny_status) {
            return Err("denyStatus must be an error status, 400 to 599".to_owned());
        }
        if self.bpf_dir.starts_with("/sys") {
            return Err(
                "bpfDir must not be under /sys, which 'ip netns exec' mounts anew: try /run/weft/bpf".to_owned()
            );
        }
        match &self.source {
            SourceConfig::Directory { paths } if paths.is_empty() => {
                Err("source.directory.paths is empty: name at least one folder".to_owned())
            }
            _ => Ok(()),
        }
    }

    pub fn trust_domain(&self) -> TrustDomain {
        match &self.trust_domain {
            Some(domain) => domain.clone(),
            // A cluster name is made of characters that a trust domain may have, and is short enough.
            None => format!("{}.weft.local", self.cluster).parse().expect("cluster names are valid in trust domains"),
        }
    }

    pub fn api_socket(&self) -> PathBuf {
        self.runtime_dir.join("agent.sock")
    }

    pub fn proxy_socket(&self) -> PathBuf {
        self.runtime_dir.join("proxy.sock")
    }
}

/// The first usable address of a pod CIDR is the node's own, on the WireGuard device.
pub fn gateway(cidr: &IpNet) -> Option<IpAddr> {
    match cidr {
        IpNet::V4(net) => net.hosts().next().map(IpAddr::V4),
        // The first address of an IPv6 network is the routers' anycast address (RFC 4291, 2.6.1).
        IpNet::V6(net) => net.hosts().nth(1).map(IpAddr::V6),
    }
}

fn default_runtime_dir() -> PathBuf {
    "/run/weft".into()
}
fn default_state_dir() -> PathBuf {
    "/var/lib/weft".into()
}
fn default_bpf_dir() -> PathBuf {
    "/run/weft/bpf".into()
}
fn default_ca_dir() -> PathBuf {
    "/var/lib/weft/ca".into()
}
fn default_bpf_object() -> PathBuf {
    "/usr/lib/weft/weft.bpf.o".into()
}
fn default_plugin_dir() -> PathBuf {
    "/usr/lib/weft/plugins".into()
}
fn default_deny_status() -> u16 {
    403
}
fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_short_file_is_enough() {
        let config = load("node: a\ncluster: east\nsource: {directory: {paths: [/etc/weft/manifests]}}\n").unwrap();
        assert_eq!(config.trust_domain().as_str(), "east.weft.local");
        assert_eq!((config.encryption.mode, config.deny_status), (Encryption::CrossRegion, 403));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, names) in [
            ("node: a\ncluster: East\nsource: {directory: {paths: [/m]}}", "cluster name"),
            ("node: a\ncluster: east\nsource: {directory: {paths: []}}", "source.directory.paths"),
            ("node: a\ncluster: east\nsource: {directory: {paths: [/m]}}\nclustrId: 3", "clustrId"),
            ("node: a\ncluster: east\nsource: {directory: {paths: [/m]}}\nbpfDir: /sys/fs/bpf", "bpfDir"),
            ("node: a\ncluster: east\nsource: {directory: {paths: [/m]}}\ndenyStatus: 200", "denyStatus"),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.contains(names), "{error}");
        }
    }
}
