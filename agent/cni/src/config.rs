//! The network configuration, checked.

use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::error::Error;

/// Versions of the spec that are understood, oldest first.
pub const VERSIONS: [&str; 2] = ["1.0.0", "1.1.0"];
/// The least that IPv6 allows.
const MIN_MTU: u32 = 1280;
const MAX_MTU: u32 = 65_535;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkConfig {
    pub cni_version: String,
    #[expect(dead_code, reason = "the runtime's")]
    name: String,
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "the runtime's")]
    kind: String,
    #[serde(default = "default_socket")]
    pub agent_socket: PathBuf,
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    /// At most one a family.
    #[serde(default)]
    pub pod_cidrs: Vec<IpNet>,
    /// Of the pod's interface, in bytes.
    #[serde(default = "default_mtu")]
    pub mtu: u32,
    /// Of the pod's routes, in bytes: what fits through every tunnel on the way.
    #[serde(default)]
    route_mtu: Option<u32>,
    /// GC: what the runtime still knows.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Option<Vec<ValidAttachment>>,

    // What a runtime may add, and what does not matter here.
    #[serde(default, rename = "prevResult")]
    _previous_result: Option<Value>,
    #[serde(default, rename = "runtimeConfig")]
    _runtime_config: Option<Value>,
    #[serde(default, rename = "capabilities")]
    _capabilities: Option<Value>,
    #[serde(default, rename = "args")]
    _arguments: Option<Value>,
    #[serde(default, rename = "dns")]
    _dns: Option<Value>,
}

#[derive(Debug, Deserialize)]
pub struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub container_id: String,
}

impl NetworkConfig {
    pub fn parse(text: &str) -> Result<Self, Error> {
        check_version(text)?;
        let config: Self = serde_json::from_str(text).map_err(Error::Decode)?;
        config.check()?;
        Ok(config)
    }

    /// MTU for the pod's routes, in bytes.
    pub fn route_mtu(&self) -> u32 {
        self.route_mtu.unwrap_or(self.mtu)
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |field, problem: String| Err(Error::Config { field, problem });
        if self.pod_cidrs.is_empty() {
            return wrong("podCidrs", "is empty: name the node's pod CIDRs, such as [\"10.1.0.0/24\"]".to_owned());
        }
        for v6 in [false, true] {
            let of_family: Vec<_> = self.pod_cidrs.iter().filter(|cidr| matches!(cidr, IpNet::V6(_)) == v6).collect();
            if let [first, second, ..] = of_family[..] {
                return wrong("podCidrs", format!("has {first} and {second}: keep one of each family"));
            }
        }
        for cidr in &self.pod_cidrs {
            if cidr.addr() != cidr.network() {
                return wrong(
                    "podCidrs",
                    format!("has {cidr}, which is an address in {}: write the latter", cidr.trunc()),
                );
            }
            if cidr.max_prefix_len() - cidr.prefix_len() < 2 {
                return wrong("podCidrs", format!("has {cidr}, which has no room for a pod: use a shorter prefix"));
            }
        }
        for (field, mtu) in [("mtu", self.mtu), ("routeMtu", self.route_mtu())] {
            if !(MIN_MTU..=MAX_MTU).contains(&mtu) {
                return wrong(field, format!("is {mtu}: use {MIN_MTU} to {MAX_MTU}"));
            }
        }
        if self.route_mtu() > self.mtu {
            return wrong("routeMtu", format!("is {}, more than mtu {}: lower it", self.route_mtu(), self.mtu));
        }
        for (field, path) in [("agentSocket", &self.agent_socket), ("dataDir", &self.data_dir)] {
            if !path.is_absolute() {
                return wrong(field, format!("is {}: use an absolute path", path.display()));
            }
        }
        Ok(())
    }
}

/// Before anything else: a newer version may have fields that this one does not know.
fn check_version(text: &str) -> Result<(), Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct OnlyVersion {
        cni_version: String,
    }
    let OnlyVersion { cni_version } = serde_json::from_str(text).map_err(Error::Decode)?;
    if VERSIONS.contains(&cni_version.as_str()) { Ok(()) } else { Err(Error::Version { version: cni_version }) }
}

fn default_socket() -> PathBuf {
    "/run/weft/agent.sock".into()
}

fn default_data_dir() -> PathBuf {
    "/run/weft/cni".into()
}

fn default_mtu() -> u32 {
    1500
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(change: &str) -> Result<NetworkConfig, Error> {
        let mut config = serde_json::json!({
            "cniVersion": "1.0.0", "name": "weft", "type": "weft-cni", "podCidrs": ["10.1.0.0/24", "fd00:10:1::/64"],
        });
        let change: serde_json::Map<_, _> = serde_json::from_str(change).expect("the test's own JSON");
        config.as_object_mut().expect("an object").extend(change);
        NetworkConfig::parse(&config.to_string())
    }

    fn message(change: &str) -> String {
        parse(change).expect_err("it is wrong").to_string()
    }

    #[test]
    fn what_is_left_out_has_defaults() {
        let config = parse("{}").expect("a good configuration");
        assert_eq!(config.agent_socket, PathBuf::from("/run/weft/agent.sock"));
        assert_eq!((config.mtu, config.route_mtu()), (1500, 1500));
    }

    #[test]
    fn what_a_runtime_adds_is_accepted() {
        parse(r#"{"prevResult": {}, "runtimeConfig": {}, "args": {}, "cni.dev/valid-attachments": []}"#)
            .expect("a good configuration");
    }

    #[test]
    fn bad_configuration_names_field_and_remedy() {
        for (change, expected) in [
            (r#"{"podCidr": "10.1.0.0/24"}"#, "unknown field `podCidr`"),
            (r#"{"podCidrs": ["10.1.0/24"]}"#, "invalid"),
            (r#"{"podCidrs": []}"#, "podCidrs in the network configuration is empty"),
            (r#"{"podCidrs": ["10.1.0.5/24"]}"#, "10.1.0.0/24"),
            (r#"{"podCidrs": ["10.1.0.0/31"]}"#, "shorter prefix"),
            (r#"{"podCidrs": ["10.1.0.0/24", "10.2.0.0/24"]}"#, "one of each family"),
            (r#"{"mtu": 500}"#, "mtu in the network configuration is 500"),
            (r#"{"mtu": 1400, "routeMtu": 1450}"#, "routeMtu in the network configuration is 1450"),
            (r#"{"dataDir": "run"}"#, "absolute path"),
            (r#"{"cniVersion": "0.2.0"}"#, "cniVersion 0.2.0 is not supported"),
        ] {
            let message = message(change);
            assert!(message.contains(expected), "{change}: {message}");
        }
    }
}
