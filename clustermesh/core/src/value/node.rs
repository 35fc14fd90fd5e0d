//! `cilium/state/nodes/v1/<cluster>/<node>`
use super::{ValueError, from_json, null_is_empty, routable, same, to_json};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};
use weft_model::types::{ClusterName, Labels, Node};

/// UDP port of a node that names none: Cilium's.
pub const WIREGUARD_PORT: u16 = 51871;
const PORT_ANNOTATION: &str = "weft.dev/wireguard-port";
const REGION_LABEL: &str = "topology.kubernetes.io/region";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeValue {
    pub name: String,
    pub cluster: String,
    #[serde(rename = "IPAddresses", deserialize_with = "null_is_empty")]
    pub addresses: Vec<NodeAddress>,
    #[serde(rename = "IPv4AllocCIDR")]
    pub v4_cidr: Option<GoNet>,
    #[serde(rename = "IPv4SecondaryAllocCIDRs", deserialize_with = "null_is_empty")]
    pub v4_more_cidrs: Vec<GoNet>,
    #[serde(rename = "IPv6AllocCIDR")]
    pub v6_cidr: Option<GoNet>,
    #[serde(rename = "IPv6SecondaryAllocCIDRs", deserialize_with = "null_is_empty")]
    pub v6_more_cidrs: Vec<GoNet>,
    #[serde(rename = "ClusterID")]
    pub cluster_id: u32,
    pub source: String,
    pub encryption_key: u8,
    #[serde(deserialize_with = "null_is_empty")]
    pub labels: Labels,
    #[serde(deserialize_with = "null_is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub wireguard_pub_key: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeAddress {
    pub r#type: String,
    #[serde(rename = "IP")]
    pub ip: String,
}

/// Go's `net.IPNet`: the mask is its bytes in base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct GoNet {
    #[serde(rename = "IP")]
    ip: IpAddr,
    mask: String,
}

impl NodeValue {
    pub fn read(value: &[u8], cluster: &ClusterName, name: &str) -> Result<Self, ValueError> {
        let value: Self = from_json(value)?;
        same("Name", &value.name, name)?;
        same("Cluster", &value.cluster, cluster.as_str())?;
        value.to_node(cluster)?;
        Ok(value)
    }

    pub fn from_node(node: &Node, cluster_id: u32) -> Self {
        let (v4, v6): (Vec<IpNet>, Vec<IpNet>) = node.pod_cidrs.iter().partition(|net| net.addr().is_ipv4());
        let mut v4 = v4.into_iter().map(GoNet::from);
        let mut v6 = v6.into_iter().map(GoNet::from);
        let mut labels = node.labels.clone();
        if let Some(region) = &node.region {
            labels.insert(REGION_LABEL.to_owned(), region.clone());
        }
        let address = |ip: &IpAddr| NodeAddress { r#type: "InternalIP".to_owned(), ip: ip.to_string() };
        Self {
            name: node.name.clone(),
            cluster: node.cluster.to_string(),
            addresses: node.addresses.iter().map(address).collect(),
            v4_cidr: v4.next(),
            v4_more_cidrs: v4.collect(),
            v6_cidr: v6.next(),
            v6_more_cidrs: v6.collect(),
            cluster_id,
            source: "custom-resource".to_owned(),
            encryption_key: 0,
            labels,
            annotations: BTreeMap::from([(PORT_ANNOTATION.to_owned(), node.wireguard_port.to_string())]),
            wireguard_pub_key: node.wireguard_key.clone().unwrap_or_default(),
        }
    }

    pub fn to_bytes(&self) -> Bytes {
        to_json(self)
    }

    /// Internal addresses first; types that are not for traffic between nodes are left out.
    pub fn to_node(&self, cluster: &ClusterName) -> Result<Node, ValueError> {
        let of_type = |wanted: &'static str| {
            let parse = |a: &NodeAddress| a.ip.parse::<IpAddr>().ok().and_then(|ip| routable(ip).ok());
            self.addresses.iter().filter(move |a| a.r#type == wanted).filter_map(parse)
        };
        let nets = self.v4_cidr.iter().chain(&self.v4_more_cidrs).chain(&self.v6_cidr).chain(&self.v6_more_cidrs);
        let port = self.annotations.get(PORT_ANNOTATION).and_then(|port| port.parse().ok());
        Ok(Node {
            cluster: cluster.clone(),
            name: self.name.clone(),
            labels: self.labels.clone(),
            region: self.labels.get(REGION_LABEL).cloned(),
            addresses: of_type("InternalIP").chain(of_type("ExternalIP")).collect(),
            pod_cidrs: nets.map(GoNet::to_net).collect::<Result<_, _>>()?,
            wireguard_key: wireguard_key(&self.wireguard_pub_key)?,
            wireguard_port: port.filter(|&port| port != 0).unwrap_or(WIREGUARD_PORT),
        })
    }
}

/// A node is often announced before its agent has a key.
fn wireguard_key(text: &str) -> Result<Option<String>, ValueError> {
    if text.is_empty() {
        return Ok(None);
    }
    match STANDARD.decode(text) {
        Ok(bytes) if bytes.len() == 32 => Ok(Some(text.to_owned())),
        _ => Err(ValueError::WireguardKey(text.to_owned())),
    }
}

impl From<IpNet> for GoNet {
    fn from(net: IpNet) -> Self {
        let mask = match net.netmask() {
            IpAddr::V4(mask) => STANDARD.encode(mask.octets()),
            IpAddr::V6(mask) => STANDARD.encode(mask.octets()),
        };
        Self { ip: net.network(), mask }
    }
}

impl GoNet {
    /// A prefix of every address would draw all our traffic to that peer.
    fn to_net(&self) -> Result<IpNet, ValueError> {
        let wrong = || ValueError::Cidr(format!("{} {}", self.ip, self.mask));
        let bytes = STANDARD.decode(&self.mask).map_err(|_| wrong())?;
        let mask = match (self.ip, bytes.len()) {
            (IpAddr::V4(_), 4) => <[u8; 4]>::try_from(bytes).map(IpAddr::from).map_err(|_| wrong())?,
            (IpAddr::V6(_), 16) => <[u8; 16]>::try_from(bytes).map(IpAddr::from).map_err(|_| wrong())?,
            _ => return Err(wrong()),
        };
        let net = IpNet::with_netmask(self.ip, mask).map_err(|_| wrong())?.trunc();
        if net.prefix_len() == 0 { Err(wrong()) } else { Ok(net) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cluster(name: &str) -> ClusterName {
        ClusterName::try_from(name.to_owned()).unwrap()
    }

    #[test]
    fn a_node_as_cilium_writes_it() {
        let text = r#"{"Name":"node-1","Cluster":"cluster3","IPAddresses":[{"Type":"ExternalIP","IP":"203.0.113.9"},{"Type":"InternalIP","IP":"172.18.0.3"},{"Type":"CiliumInternalIP","IP":"10.244.1.2"},{"Type":"Hostname","IP":"node-1"}],"IPv4AllocCIDR":{"IP":"10.244.1.0","Mask":"////AA=="},"IPv4SecondaryAllocCIDRs":null,"IPv6AllocCIDR":null,"IPv6SecondaryAllocCIDRs":null,"IPv4HealthIP":"","IPv6HealthIP":"","IPv4IngressIP":"","IPv6IngressIP":"","ClusterID":3,"Source":"custom-resource","EncryptionKey":0,"Labels":{"topology.kubernetes.io/region":"north"},"Annotations":null,"NodeIdentity":0,"WireguardPubKey":"","BootID":"x"}"#;
        let value = NodeValue::read(text.as_bytes(), &cluster("cluster3"), "node-1").unwrap();
        let node = value.to_node(&cluster("cluster3")).unwrap();
        assert_eq!(node.addresses, ["172.18.0.3", "203.0.113.9"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        assert_eq!(node.pod_cidrs, ["10.244.1.0/24".parse::<IpNet>().unwrap()]);
        assert_eq!((node.region.as_deref(), node.wireguard_key, node.wireguard_port), (Some("north"), None, 51871));

        for (from, to) in [("////AA==", "AAAAAA=="), ("////AA==", "/wD/AA=="), (r#"PubKey":""#, r#"PubKey":"AAAA"#)] {
            let changed = text.replace(from, to);
            assert!(NodeValue::read(changed.as_bytes(), &cluster("cluster3"), "node-1").is_err(), "{to}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_node_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = NodeValue::read(&bytes, &cluster("east"), "node-1");
        }

        #[test]
        fn a_node_reads_back_as_written(
            octets: [u8; 2], length in 9u8..=32, region in "[a-z]{1,8}", key: [u8; 32], has_key: bool, port in 1u16..
        ) {
            let net = IpNet::new([10, octets[0], octets[1], 0].into(), length).unwrap().trunc();
            let node = Node {
                cluster: cluster("east"),
                name: "node-1".into(),
                labels: Labels::from([(REGION_LABEL.to_owned(), region.clone())]),
                region: Some(region),
                addresses: vec![IpAddr::from([172, 18, octets[0], octets[1]])],
                pod_cidrs: vec![net, "fd00:1::/64".parse().unwrap()],
                wireguard_key: has_key.then(|| STANDARD.encode(key)),
                wireguard_port: port,
            };
            let bytes = NodeValue::from_node(&node, 3).to_bytes();
            prop_assert_eq!(NodeValue::read(&bytes, &node.cluster, "node-1").unwrap().to_node(&node.cluster).unwrap(), node);
        }
    }
}
