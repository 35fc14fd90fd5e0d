//! Keys as values: parsed once at the border, written in one place.
use bytes::Bytes;
use ipnet::IpNet;
use std::{fmt, net::IpAddr};
use weft_model::types::{ClusterName, ObjectName};

pub const HEARTBEAT: &str = "cilium/.heartbeat";
pub const STATE_PREFIX: &str = "cilium/state/";
pub const WEFT_PREFIX: &str = "weft/";

/// The parts of a cluster's state that are announced as complete one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Nodes,
    Services,
    Addresses,
    Identities,
    /// Everything under `weft/`.
    Weft,
}

impl Part {
    /// Those that every peer announces.
    pub const CILIUM: [Self; 4] = [Self::Nodes, Self::Services, Self::Addresses, Self::Identities];

    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Nodes => "cilium/state/nodes/v1",
            Self::Services => "cilium/state/services/v1",
            Self::Addresses => "cilium/state/ip/v1",
            Self::Identities => "cilium/state/identities/v1",
            Self::Weft => "weft",
        }
    }
}

/// A key of the schema. Keys that are none of these are left alone: peers may be newer than we are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    ClusterConfig(ClusterName),
    Synced(ClusterName, Part),
    Heartbeat,
    Service(ClusterName, ObjectName),
    Node(ClusterName, String),
    /// One address, or a CIDR where the host part is not whole.
    Address(IpNet),
    Identity(u32),
    WeftCluster(ClusterName),
    WeftHeartbeat(ClusterName),
    WeftService(ClusterName, ObjectName),
    WeftAuth(ClusterName, IpAddr),
}

impl Key {
    /// `None`: not a key that we know.
    pub fn parse(key: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(key).ok()?;
        let cluster = |name: &str| ClusterName::try_from(name.to_owned()).ok();
        if let Some(rest) = text.strip_prefix("cilium/synced/") {
            let (name, prefix) = rest.split_once('/')?;
            let part = Part::CILIUM.into_iter().find(|part| part.prefix() == prefix)?;
            return Some(Self::Synced(cluster(name)?, part));
        }
        if let Some(address) = text.strip_prefix("cilium/state/ip/v1/default/") {
            return Some(Self::Address(parse_net(address)?));
        }
        let filled = |part: &str| (!part.is_empty()).then(|| part.to_owned());
        let object = |namespace: &str, name: &str| Some(ObjectName::new(filled(namespace)?, filled(name)?));
        Some(match text.split('/').collect::<Vec<_>>()[..] {
            ["cilium", ".heartbeat"] => Self::Heartbeat,
            ["cilium", "cluster-config", name] => Self::ClusterConfig(cluster(name)?),
            ["cilium", "state", "services", "v1", name, namespace, service] => {
                Self::Service(cluster(name)?, object(namespace, service)?)
            }
            ["cilium", "state", "nodes", "v1", name, node] => Self::Node(cluster(name)?, filled(node)?),
            ["cilium", "state", "identities", "v1", "id", number] => Self::Identity(parse_number(number)?),
            ["weft", "cluster", name] => Self::WeftCluster(cluster(name)?),
            ["weft", "heartbeat", name] => Self::WeftHeartbeat(cluster(name)?),
            ["weft", "synced", name] => Self::Synced(cluster(name)?, Part::Weft),
            ["weft", "state", "services", "v1", name, namespace, service] => {
                Self::WeftService(cluster(name)?, object(namespace, service)?)
            }
            ["weft", "state", "auth", "v1", name, address] => Self::WeftAuth(cluster(name)?, address.parse().ok()?),
            _ => return None,
        })
    }

    pub fn to_bytes(&self) -> Bytes {
        self.to_string().into()
    }

    /// The cluster that the key itself names.
    pub fn cluster(&self) -> Option<&ClusterName> {
        match self {
            Self::ClusterConfig(cluster)
            | Self::Synced(cluster, _)
            | Self::Service(cluster, _)
            | Self::Node(cluster, _)
            | Self::WeftCluster(cluster)
            | Self::WeftHeartbeat(cluster)
            | Self::WeftService(cluster, _)
            | Self::WeftAuth(cluster, _) => Some(cluster),
            Self::Heartbeat | Self::Address(_) | Self::Identity(_) => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClusterConfig(cluster) => write!(f, "cilium/cluster-config/{cluster}"),
            Self::Synced(cluster, Part::Weft) => write!(f, "weft/synced/{cluster}"),
            Self::Synced(cluster, part) => write!(f, "cilium/synced/{cluster}/{}", part.prefix()),
            Self::Heartbeat => f.write_str(HEARTBEAT),
            Self::Service(cluster, name) => {
                write!(f, "cilium/state/services/v1/{cluster}/{}/{}", name.namespace, name.name)
            }
            Self::Node(cluster, node) => write!(f, "cilium/state/nodes/v1/{cluster}/{node}"),
            Self::Address(net) if net.prefix_len() == net.max_prefix_len() => {
                write!(f, "cilium/state/ip/v1/default/{}", net.addr())
            }
            Self::Address(net) => write!(f, "cilium/state/ip/v1/default/{net}"),
            Self::Identity(number) => write!(f, "cilium/state/identities/v1/id/{number}"),
            Self::WeftCluster(cluster) => write!(f, "weft/cluster/{cluster}"),
            Self::WeftHeartbeat(cluster) => write!(f, "weft/heartbeat/{cluster}"),
            Self::WeftService(cluster, name) => {
                write!(f, "weft/state/services/v1/{cluster}/{}/{}", name.namespace, name.name)
            }
            Self::WeftAuth(cluster, address) => write!(f, "weft/state/auth/v1/{cluster}/{address}"),
        }
    }
}

fn parse_net(text: &str) -> Option<IpNet> {
    match text.contains('/') {
        true => text.parse().ok(),
        false => text.parse::<IpAddr>().ok().map(IpNet::from),
    }
}

/// As numbers are written: no sign, no leading zero, so that one number has one key.
fn parse_number(text: &str) -> Option<u32> {
    let number: u32 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_those_of_cilium_1_20() {
        let east = ClusterName::try_from("east".to_owned()).unwrap();
        let service = ObjectName::new("shop", "backend");
        for (text, key) in [
            ("cilium/cluster-config/east", Key::ClusterConfig(east.clone())),
            ("cilium/synced/east/cilium/state/nodes/v1", Key::Synced(east.clone(), Part::Nodes)),
            ("cilium/synced/east/cilium/state/services/v1", Key::Synced(east.clone(), Part::Services)),
            ("cilium/synced/east/cilium/state/ip/v1", Key::Synced(east.clone(), Part::Addresses)),
            ("cilium/synced/east/cilium/state/identities/v1", Key::Synced(east.clone(), Part::Identities)),
            ("cilium/.heartbeat", Key::Heartbeat),
            ("cilium/state/services/v1/east/shop/backend", Key::Service(east.clone(), service.clone())),
            ("cilium/state/nodes/v1/east/node-1", Key::Node(east.clone(), "node-1".into())),
            ("cilium/state/ip/v1/default/10.1.0.5", Key::Address("10.1.0.5/32".parse().unwrap())),
            ("cilium/state/ip/v1/default/fd00::5", Key::Address("fd00::5/128".parse().unwrap())),
            ("cilium/state/ip/v1/default/10.1.0.0/24", Key::Address("10.1.0.0/24".parse().unwrap())),
            ("cilium/state/identities/v1/id/65792", Key::Identity(65792)),
            ("weft/cluster/east", Key::WeftCluster(east.clone())),
            ("weft/heartbeat/east", Key::WeftHeartbeat(east.clone())),
            ("weft/synced/east", Key::Synced(east.clone(), Part::Weft)),
            ("weft/state/services/v1/east/shop/backend", Key::WeftService(east.clone(), service)),
            ("weft/state/auth/v1/east/10.1.0.5", Key::WeftAuth(east, "10.1.0.5".parse().unwrap())),
        ] {
            assert_eq!(Key::parse(text.as_bytes()), Some(key.clone()), "{text}");
            assert_eq!(key.to_string(), text);
        }
    }

    #[test]
    fn keys_of_other_versions_and_broken_ones_are_not_ours() {
        for text in [
            "",
            "cilium/state/services/v1/east/shop",
            "cilium/state/services/v1/east//x",
            "cilium/state/services/v1/EAST/shop/x",
            "cilium/state/endpointslices/v1/east/shop/x",
            "cilium/state/ip/v1/default/10.1.0.5%eth0",
            "cilium/state/identities/v1/id/007",
            "cilium/state/identities/v1/id/-1",
            "cilium/synced/east/cilium/state/serviceexports/v1",
        ] {
            assert_eq!(Key::parse(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_key_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            Key::parse(&bytes);
        }

        #[test]
        fn what_parses_is_written_back(
            tail in "(cilium/state/(services|nodes|ip|identities)/v1|weft/[a-z]{1,8})/[a-z0-9./:-]{0,30}"
        ) {
            if let Some(key) = Key::parse(tail.as_bytes()) {
                prop_assert_eq!(Key::parse(&key.to_bytes()), Some(key));
            }
        }
    }
}
