//! Failures as CNI reports them: a code, a message with the remedy, and the causes as details.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

use serde_json::json;

/// The spec version of error objects; it has not changed since 0.4.
pub const ERROR_VERSION: &str = "1.0.0";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cniVersion {version} is not supported: use 1.0.0 or 1.1.0 in the network configuration")]
    Version { version: String },
    #[error("{variable} is {problem}: the container runtime must set it")]
    Environment { variable: &'static str, problem: String },
    #[error("CNI_COMMAND {command} is not supported: ADD, DEL, CHECK, GC, STATUS and VERSION are")]
    Command { command: String },
    #[error("cannot read the network configuration from standard input")]
    ReadConfig {
        #[source]
        cause: io::Error,
    },
    #[error("the network configuration cannot be read: {0}; correct the file in the CNI configuration folder")]
    Decode(serde_json::Error),
    #[error("{field} in the network configuration {problem}")]
    Config { field: &'static str, problem: String },
    #[error("cannot open the network namespace {path} (CNI_NETNS): is the pod's sandbox still running?")]
    Namespace {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("cannot {action} {path}: check dataDir's permissions and free space")]
    State {
        action: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{path} is damaged: drain the node, remove the file and recreate its pods")]
    Leases {
        path: PathBuf,
        #[source]
        cause: serde_json::Error,
    },
    #[error("every address of {cidr} is taken: remove pods from this node or give it a larger pod CIDR (podCidrs)")]
    Exhausted { cidr: ipnet::IpNet },
    #[error("{name} exists already in the pod's network namespace: DEL first, or choose another CNI_IFNAME")]
    InterfaceExists { name: String },
    #[error("the agent does not answer at {socket}: start weft-agent on this node, the runtime tries again by itself")]
    AgentDown {
        socket: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("no pod can be added: the agent does not answer at {socket}; start weft-agent on this node")]
    NotReady {
        socket: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error(
        "the agent refused with status {status}: {reason}; see weft-agent's log, the runtime tries again by itself"
    )]
    AgentRefused { status: u16, reason: String },
    #[error("cannot set {path} to {value}: is /proc/sys writable here?")]
    Sysctl {
        path: PathBuf,
        value: &'static str,
        #[source]
        cause: io::Error,
    },
    #[error("cannot configure the pod's network")]
    Network(#[from] weft_netlink::Error),
    #[error("the pod's network is not as ADD left it: {problem}; recreate the pod")]
    Check { problem: String },
}

impl Error {
    /// 1 to 99 are the spec's, the others ours.
    pub fn code(&self) -> u32 {
        match self {
            Self::Version { .. } => 1,
            Self::Environment { .. } | Self::Command { .. } => 4,
            Self::ReadConfig { .. } | Self::State { .. } | Self::Sysctl { .. } => 5,
            Self::Decode(_) | Self::Leases { .. } => 6,
            Self::Config { .. } => 7,
            Self::AgentDown { .. } | Self::AgentRefused { .. } => 11,
            Self::NotReady { .. } => 50,
            Self::Namespace { .. } => 100,
            Self::InterfaceExists { .. } => 101,
            Self::Exhausted { .. } => 102,
            Self::Network(_) => 103,
            Self::Check { .. } => 104,
        }
    }

    /// The error object.
    pub fn to_json(&self) -> String {
        let mut details = Vec::new();
        let mut cause = self.source();
        while let Some(error) = cause {
            details.push(error.to_string());
            cause = error.source();
        }
        json!({
            "cniVersion": ERROR_VERSION,
            "code": self.code(),
            "msg": self.to_string(),
            "details": details.join(": "),
        })
        .to_string()
    }
}
