//! `lab.yaml`: the clusters, their nodes, and the links between regions.
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

pub const FILE: &str = "lab.yaml";
/// Interface names have at most 15 characters, and the far end of a link gets two more than its name.
const LINK_NAME: usize = 13;
/// Folders that a cluster has besides those of its nodes.
const RESERVED: [&str; 4] = ["ca", "control-plane", "logs", "status"];

#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("cannot read {}: a lab's folder has a {FILE} and a folder of manifests for each cluster", path.display())]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{}: {message}", path.display())]
    Invalid { path: PathBuf, message: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// All node addresses are in it: the nodes share one network, cut into regions.
    pub network: Ipv4Net,
    #[serde(default)]
    pub network6: Option<Ipv6Net>,
    /// Which traffic between nodes the agents encrypt: `off`, `cross-region`, `cross-cluster` or `all`.
    #[serde(default = "cross_region")]
    pub encryption: String,
    pub clusters: Vec<ClusterSpec>,
    /// Left out: the regions are joined in a row.
    #[serde(default)]
    pub links: Vec<LinkSpec>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSpec {
    pub name: String,
    #[serde(rename = "serviceCIDR")]
    pub service_cidr: Ipv4Net,
    pub nodes: Vec<NodeSpec>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeSpec {
    pub name: String,
    pub region: String,
    pub address: Ipv4Addr,
    #[serde(default)]
    pub address6: Option<Ipv6Addr>,
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Ipv4Net,
    #[serde(rename = "podCIDR6", default)]
    pub pod_cidr6: Option<Ipv6Net>,
}

/// A wire between two regions, on which captures can be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSpec {
    pub name: String,
    pub between: [String; 2],
    /// As tc(8) writes rates: `100mbit`, `1gbit`. Left out: unlimited.
    #[serde(default)]
    pub rate: Option<String>,
}

impl Spec {
    pub fn load(folder: &Path) -> Result<Self, SpecError> {
        let path = folder.join(FILE);
        let text = fs::read_to_string(&path).map_err(|cause| SpecError::Read { path: path.clone(), cause })?;
        let invalid = |message| SpecError::Invalid { path: path.clone(), message };
        let mut spec: Self = serde_norway::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        spec.check().map_err(invalid)?;
        if spec.links.is_empty() {
            spec.links = spec.row_of_links();
        }
        Ok(spec)
    }

    pub fn cluster(&self, name: &str) -> Option<&ClusterSpec> {
        self.clusters.iter().find(|cluster| cluster.name == name)
    }

    /// The address of a cluster's API server: the network's last ones are kept for them.
    pub fn control_plane(&self, cluster: &str) -> Option<Ipv4Addr> {
        let index = self.clusters.iter().position(|one| one.name == cluster)?;
        let last = u32::from(self.network.broadcast()).checked_sub(1)?;
        let address = Ipv4Addr::from(last.checked_sub(u32::try_from(index).ok()?)?);
        self.network.contains(&address).then_some(address)
    }

    /// In the order in which they are first named.
    pub fn regions(&self) -> Vec<&str> {
        let mut regions = Vec::new();
        for node in self.clusters.iter().flat_map(|cluster| &cluster.nodes) {
            if !regions.contains(&node.region.as_str()) {
                regions.push(node.region.as_str());
            }
        }
        regions
    }

    fn row_of_links(&self) -> Vec<LinkSpec> {
        let regions = self.regions();
        let pairs = regions.windows(2).enumerate();
        let link = |(index, pair): (usize, &[&str])| LinkSpec {
            name: format!("link{index}"),
            between: [pair[0].to_owned(), pair[1].to_owned()],
            rate: None,
        };
        pairs.map(link).collect()
    }

    fn check(&self) -> Result<(), String> {
        const MODES: [&str; 4] = ["off", "cross-region", "cross-cluster", "all"];
        if !MODES.contains(&self.encryption.as_str()) {
            return Err(format!("encryption: {:?}: want one of {}", self.encryption, MODES.join(", ")));
        }
        if self.clusters.is_empty() {
            return Err("clusters is empty: name at least one".to_owned());
        }
        let mut addresses = BTreeSet::new();
        let mut networks: Vec<(String, IpNet)> = Vec::new();
        let mut clusters = BTreeSet::new();
        addresses.extend(self.clusters.iter().filter_map(|one| self.control_plane(&one.name)).map(IpAddr::V4));
        for cluster in &self.clusters {
            check_name("clusters", &cluster.name)?;
            if !clusters.insert(&cluster.name) {
                return Err(format!("cluster {}: the name is taken by another cluster", cluster.name));
            }
            if cluster.nodes.is_empty() {
                return Err(format!("cluster {}: nodes is empty: name at least one", cluster.name));
            }
            let mut nodes = BTreeSet::new();
            for node in &cluster.nodes {
                let place = format!("cluster {}, node {}", cluster.name, node.name);
                check_name(&place, &node.name)?;
                if !nodes.insert(&node.name) {
                    return Err(format!("{place}: the name is taken by another node"));
                }
                self.check_addresses(&place, node, &mut addresses)?;
                networks.push((format!("{place}: podCIDR"), node.pod_cidr.into()));
                networks.extend(node.pod_cidr6.map(|cidr| (format!("{place}: podCIDR6"), cidr.into())));
            }
        }
        networks.push(("network".to_owned(), self.network.into()));
        for (index, (place, one)) in networks.iter().enumerate() {
            for (other_place, other) in &networks[index + 1..] {
                if one.contains(other) || other.contains(one) {
                    return Err(format!("{place} {one} overlaps with {other_place} {other}"));
                }
            }
        }
        self.check_links()
    }

    fn check_addresses(&self, place: &str, node: &NodeSpec, taken: &mut BTreeSet<IpAddr>) -> Result<(), String> {
        if !self.network.contains(&node.address) {
            return Err(format!("{place}: address {} is not in network {}", node.address, self.network));
        }
        if let Some(address) = node.address6
            && !self.network6.is_some_and(|network| network.contains(&address))
        {
            return Err(format!("{place}: address6 {address} is not in network6"));
        }
        for address in [Some(IpAddr::V4(node.address)), node.address6.map(IpAddr::V6)].into_iter().flatten() {
            if !taken.insert(address) {
                return Err(format!("{place}: address {address} is taken"));
            }
        }
        Ok(())
    }

    /// The regions are joined at the Ethernet level, so the links must make a tree: a loop would flood it.
    fn check_links(&self) -> Result<(), String> {
        if self.links.is_empty() {
            return Ok(());
        }
        let mut group: BTreeMap<&str, usize> =
            self.regions().into_iter().enumerate().map(|(number, region)| (region, number)).collect();
        for link in &self.links {
            if link.name.is_empty() || link.name.len() > LINK_NAME {
                return Err(format!("link {:?}: a name has 1 to {LINK_NAME} characters", link.name));
            }
            let mut ends = [0; 2];
            for (end, region) in ends.iter_mut().zip(&link.between) {
                let known = group.get(region.as_str());
                *end = *known.ok_or_else(|| format!("link {}: no node is in region {region}", link.name))?;
            }
            if ends[0] == ends[1] {
                return Err(format!("link {}: its regions are already joined", link.name));
            }
            group.values_mut().filter(|number| **number == ends[1]).for_each(|number| *number = ends[0]);
        }
        if group.values().collect::<BTreeSet<_>>().len() > 1 {
            return Err("links: some region has no way to the others".to_owned());
        }
        Ok(())
    }
}

impl NodeSpec {
    /// IPv4 first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        [Some(IpAddr::V4(self.address)), self.address6.map(IpAddr::V6)].into_iter().flatten().collect()
    }

    /// IPv4 first.
    pub fn pod_cidrs(&self) -> Vec<IpNet> {
        [Some(IpNet::V4(self.pod_cidr)), self.pod_cidr6.map(IpNet::V6)].into_iter().flatten().collect()
    }

    pub fn labels(&self) -> BTreeMap<String, String> {
        [
            ("kubernetes.io/hostname", &self.name),
            ("topology.kubernetes.io/region", &self.region),
            ("kubernetes.io/os", &"linux".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .into()
    }
}

fn check_name(place: &str, name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fits = (1..=32).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('-');
    if !fits || name.ends_with('-') {
        return Err(format!("{place}: name {name:?}: want 1 to 32 of a-z, 0-9 and inner '-'"));
    }
    if RESERVED.contains(&name) {
        return Err(format!("{place}: name {name:?} is one of the lab's own: {}", RESERVED.join(", ")));
    }
    Ok(())
}

fn cross_region() -> String {
    "cross-region".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "
network: 172.20.0.0/16
clusters:
- name: east
  serviceCIDR: 10.96.0.0/16
  nodes:
  - {name: east-1, region: us-east, address: 172.20.1.1, podCIDR: 10.1.1.0/24}
- name: west
  serviceCIDR: 10.97.0.0/16
  nodes:
  - {name: west-1, region: eu-west, address: 172.20.2.1, podCIDR: 10.2.1.0/24}
";

    fn load(text: &str) -> Result<Spec, String> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), text).unwrap();
        Spec::load(folder.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn regions_without_links_are_joined_in_a_row() {
        let spec = load(TWO).unwrap();
        assert_eq!(spec.regions(), ["us-east", "eu-west"]);
        let between = ["us-east".to_owned(), "eu-west".to_owned()];
        assert_eq!(spec.links, [LinkSpec { name: "link0".into(), between, rate: None }]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let double = format!(
            "{TWO}links:\n- {{name: a, between: [us-east, eu-west]}}\n- {{name: b, between: [eu-west, us-east]}}\n"
        );
        for (text, names) in [
            (TWO.replace("172.20.2.1", "172.21.2.1"), "node west-1: address 172.21.2.1 is not in network"),
            (TWO.replace("172.20.2.1", "172.20.1.1"), "node west-1: address 172.20.1.1 is taken"),
            (TWO.replace("10.2.1.0/24", "10.1.0.0/16"), "overlaps"),
            (TWO.replace("name: west\n", "name: logs\n"), "one of the lab's own"),
            (TWO.replace("name: west\n", "name: West\n"), "\"West\""),
            (format!("{TWO}links:\n- {{name: a, between: [us-east, mars]}}\n"), "no node is in region mars"),
            (double, "link b: its regions are already joined"),
            (format!("{TWO}encryption: some\n"), "encryption"),
            (format!("{TWO}colour: red\n"), "colour"),
        ] {
            let error = load(&text).unwrap_err();
            assert!(error.contains(names), "{error}");
        }
    }
}
