//! Calls the CNI plugin as a container runtime does: settings on its input, the rest in its environment.
use crate::{
    place::Place,
    pods::PodKey,
    spec::{NodeSpec, Spec},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

const VERSION: &str = "1.0.0";
/// What WireGuard leaves of the wires' 1500 bytes, with IPv6 outside.
const MTU_ENCRYPTED: u32 = 1420;

#[derive(Debug, thiserror::Error)]
pub enum CniError {
    #[error("cannot run {}: is it built?", path.display())]
    Start {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("weft-cni {command}: {message}")]
    Refused { command: &'static str, message: String },
    #[error("weft-cni ADD gave no result that can be read: {output:?}")]
    Result { output: String },
}

/// The plugin of one node.
#[derive(Clone, Debug)]
pub struct Cni {
    pub plugin: PathBuf,
    pub node: Place,
    pub settings: Value,
}

/// What identifies a pod's sandbox to the plugin.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub id: String,
    pub netns: PathBuf,
    pub pod: PodKey,
}

/// The network configuration of a node, as it stands in /etc/cni/net.d elsewhere.
pub fn settings(spec: &Spec, node: &NodeSpec, state: &Path, agent: &Path) -> Value {
    let mut settings = json!({
        "cniVersion": VERSION,
        "name": "weft",
        "type": "weft-cni",
        "podCidrs": node.pod_cidrs(),
        "agentSocket": agent,
        "dataDir": state.join("cni"),
    });
    if spec.encryption != "off" {
        settings["routeMtu"] = json!(MTU_ENCRYPTED);
    }
    settings
}

impl Cni {
    /// The pod's addresses, IPv4 first.
    pub fn add(&self, sandbox: &Sandbox) -> Result<Vec<IpAddr>, CniError> {
        #[derive(Deserialize)]
        struct Added {
            ips: Vec<Address>,
        }
        #[derive(Deserialize)]
        struct Address {
            address: String,
        }
        let output = self.call("ADD", sandbox)?;
        let unreadable = || CniError::Result { output: output.clone() };
        let added: Added = serde_json::from_str(&output).map_err(|_| unreadable())?;
        let addresses = added.ips.iter().map(|ip| ip.address.split('/').next().unwrap_or_default().parse());
        let mut addresses: Vec<IpAddr> = addresses.collect::<Result<_, _>>().map_err(|_| unreadable())?;
        addresses.sort_by_key(IpAddr::is_ipv6);
        if addresses.is_empty() { Err(unreadable()) } else { Ok(addresses) }
    }

    pub fn del(&self, sandbox: &Sandbox) -> Result<(), CniError> {
        self.call("DEL", sandbox).map(drop)
    }

    fn call(&self, command: &'static str, sandbox: &Sandbox) -> Result<String, CniError> {
        let start = |cause| CniError::Start { path: self.plugin.clone(), cause };
        let PodKey { namespace, name } = &sandbox.pod;
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={}",
            sandbox.id
        );
        let mut plugin = self.node.command(&self.plugin.to_string_lossy()).map_err(start)?;
        plugin
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &sandbox.id)
            .env("CNI_NETNS", &sandbox.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", self.plugin.parent().unwrap_or(Path::new(".")))
            .env("CNI_ARGS", arguments);
        plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = plugin.spawn().map_err(start)?;
        if let Some(mut input) = child.stdin.take() {
            // One that ends before it has read says why on its output.
            let _ = input.write_all(self.settings.to_string().as_bytes());
        }
        let output = child.wait_with_output().map_err(start)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        let message = match serde_json::from_str::<Value>(&text) {
            Ok(error) => format!(
                "{} {}",
                error["msg"].as_str().unwrap_or_default(),
                error["details"].as_str().unwrap_or_default()
            ),
            Err(_) => format!("{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr)),
        };
        Err(CniError::Refused { command, message: message.trim().to_owned() })
    }
}
