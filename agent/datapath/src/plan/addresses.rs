//! Who has which address, which of them are reached through WireGuard only, and the routes of the others.
use super::{AddrPrefix, Encryption, NodeSettings};
use ipnet::IpNet;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use weft_bpf_abi::net::{Addr, IpInfo, identity};
use weft_model::{
    snapshot::Snapshot,
    types::{ClusterName, Node, Workload},
};

/// A pod CIDR of another node, routed natively. Those due for encryption have none here: the owner of the WireGuard
/// device routes them through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Route {
    pub destination: IpNet,
    /// The node's own address.
    pub via: IpAddr,
}

impl From<IpNet> for AddrPrefix {
    fn from(net: IpNet) -> Self {
        let mapped = if net.addr().is_ipv4() { 96 } else { 0 };
        Self { bits: u32::from(net.prefix_len()) + mapped, addr: Addr::from(net.network()) }
    }
}

impl From<IpAddr> for AddrPrefix {
    fn from(addr: IpAddr) -> Self {
        Self { bits: 128, addr: Addr::from(addr) }
    }
}

/// Is traffic from this node's pods to that node's pods due for encryption? A region that is not known is no region of
/// ours, unless neither node has one.
pub fn encrypted(mode: Encryption, this: Option<&Node>, own: &ClusterName, node: &Node) -> bool {
    let this_node = this.is_some_and(|this| this.cluster == node.cluster && this.name == node.name);
    if this_node {
        return false;
    }
    match mode {
        Encryption::Off => false,
        Encryption::All => true,
        Encryption::CrossCluster => node.cluster != *own,
        Encryption::CrossRegion => this.and_then(|this| this.region.as_deref()) != node.region.as_deref(),
    }
}

pub(super) fn routes(snapshot: &Snapshot, mode: Encryption) -> BTreeSet<Route> {
    let this = snapshot.this_node();
    let is_this = |node: &Node| node.cluster == snapshot.cluster && node.name == snapshot.node_name;
    snapshot
        .nodes
        .iter()
        .filter(|node| !is_this(node) && !encrypted(mode, this, &snapshot.cluster, node))
        .flat_map(|node| node.pod_cidrs.iter().map(move |cidr| (node, cidr)))
        .filter_map(|(node, cidr)| {
            let via = node.addresses.iter().find(|addr| addr.is_ipv4() == cidr.addr().is_ipv4())?;
            Some(Route { destination: cidr.trunc(), via: *via })
        })
        .collect()
}

pub(super) fn ipcache(snapshot: &Snapshot, settings: &NodeSettings) -> BTreeMap<AddrPrefix, IpInfo> {
    let tunnelled = Tunnelled::of(snapshot, settings.encryption);
    let cidrs: Vec<(IpNet, u32)> =
        snapshot.identities.values().filter_map(|identity| Some((identity.cidr?.trunc(), identity.id))).collect();
    let mut entries = BTreeMap::new();
    for (cidr, identity) in &cidrs {
        let flags = flags(tunnelled.cidrs.iter().any(|pods| pods.contains(cidr)));
        entries.insert(AddrPrefix::from(*cidr), IpInfo { identity: *identity, flags });
    }
    // Pods that nobody has named yet are covered by their node's whole range. It hides wider CIDR identities, so it
    // takes theirs over.
    for pods in &tunnelled.cidrs {
        let widest_match =
            cidrs.iter().filter(|(cidr, _)| cidr.contains(pods)).max_by_key(|(cidr, _)| cidr.prefix_len());
        let identity = widest_match.map_or(identity::WORLD, |(_, identity)| *identity);
        entries.insert(AddrPrefix::from(*pods), IpInfo { identity, flags: IpInfo::ENCRYPT });
    }
    for workload in &snapshot.workloads {
        let due = |addr: &IpAddr| flags(tunnelled.covers(snapshot, workload, *addr));
        let pods = workload.addresses.iter();
        entries.extend(
            pods.map(|addr| (AddrPrefix::from(*addr), IpInfo { identity: workload.identity, flags: due(addr) })),
        );
    }
    let plain = |identity| IpInfo { identity, flags: 0 };
    let is_this = |node: &&Node| node.cluster == snapshot.cluster && node.name == snapshot.node_name;
    for node in snapshot.nodes.iter().filter(|node| !is_this(node)) {
        entries.extend(node.addresses.iter().map(|addr| (AddrPrefix::from(*addr), plain(identity::REMOTE_NODE))));
    }
    let this = snapshot.this_node().into_iter().flat_map(|node| &node.addresses);
    entries.extend(this.chain(&settings.host_addresses).map(|addr| (AddrPrefix::from(*addr), plain(identity::HOST))));
    entries
}

fn flags(encrypt: bool) -> u32 {
    if encrypt { IpInfo::ENCRYPT } else { 0 }
}

/// What is due for encryption, by pod range and by node.
struct Tunnelled<'a> {
    cidrs: BTreeSet<IpNet>,
    nodes: BTreeMap<(&'a ClusterName, &'a str), bool>,
    mode: Encryption,
}

impl<'a> Tunnelled<'a> {
    fn of(snapshot: &'a Snapshot, mode: Encryption) -> Self {
        let this = snapshot.this_node();
        let due = |node: &Node| encrypted(mode, this, &snapshot.cluster, node);
        let cidrs =
            snapshot.nodes.iter().filter(|node| due(node)).flat_map(|node| &node.pod_cidrs).map(IpNet::trunc).collect();
        let nodes = snapshot.nodes.iter().map(|node| ((&node.cluster, node.name.as_str()), due(node))).collect();
        Self { cidrs, nodes, mode }
    }

    fn covers(&self, snapshot: &Snapshot, workload: &Workload, addr: IpAddr) -> bool {
        let by_name = workload.node.as_deref().and_then(|node| self.nodes.get(&(&workload.cluster, node)));
        if let Some(due) = by_name {
            return *due;
        }
        let by_address = snapshot.nodes.iter().find(|node| {
            workload.node_ip.is_some_and(|ip| node.addresses.contains(&ip))
                || node.pod_cidrs.iter().any(|pods| pods.contains(&addr))
        });
        if let Some(node) = by_address {
            return self.nodes.get(&(&node.cluster, node.name.as_str())).copied().unwrap_or(false);
        }
        // The node is not known. Plain is right only if every known node of its cluster is reached plainly.
        let mut known = self.nodes.iter().filter(|((cluster, _), _)| **cluster == workload.cluster).peekable();
        self.mode != Encryption::Off
            && workload.cluster != snapshot.cluster
            && (known.peek().is_none() || known.any(|(_, due)| *due))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::*;
    use super::*;
    use weft_model::types::{Labels, SecurityIdentity};

    fn two_clusters() -> Snapshot {
        let mut snapshot = snapshot();
        snapshot.nodes.extend([
            node("east", "n2", "eu", "192.168.0.2", "10.1.1.0/24"),
            node("west", "w1", "us", "192.168.9.1", "10.2.0.0/24"),
            node("north", "o1", "eu", "192.168.8.1", "10.3.0.0/24"),
        ]);
        snapshot.workloads.extend([
            pod("east", "shop/web", "n1", "10.1.0.5", 256),
            pod("east", "shop/api", "n2", "10.1.1.5", 257),
            pod("west", "shop/web", "w1", "10.2.0.5", 258),
            pod("north", "shop/web", "o1", "10.3.0.5", 259),
        ]);
        snapshot
    }

    fn mode(encryption: Encryption) -> NodeSettings {
        NodeSettings { encryption, ..Default::default() }
    }

    /// As the kernel would: the longest prefix.
    fn lookup(entries: &BTreeMap<AddrPrefix, IpInfo>, addr: &str) -> Option<(u32, bool)> {
        let addr = u128::from_be_bytes(Addr::from(ip(addr)).octets());
        let covers = |prefix: &AddrPrefix| {
            let mask = u128::MAX.checked_shl(128 - prefix.bits).unwrap_or(0);
            addr & mask == u128::from_be_bytes(prefix.addr.octets())
        };
        let (_, info) = entries.iter().rfind(|(prefix, _)| covers(prefix))?;
        Some((info.identity, info.flags & IpInfo::ENCRYPT != 0))
    }

    fn cidr_identity(snapshot: &mut Snapshot, id: u32, cidr: &str) {
        let cidr = Some(cidr.parse().unwrap());
        snapshot.identities.insert(id, SecurityIdentity { id, labels: Labels::new(), cidr });
    }

    #[test]
    fn the_mode_says_which_pods_are_reached_through_the_tunnel() {
        let snapshot = two_clusters();
        let encrypted = |encryption| {
            let entries = ipcache(&snapshot, &mode(encryption));
            ["10.1.0.5", "10.1.1.5", "10.2.0.5", "10.3.0.5"].map(|addr| lookup(&entries, addr).unwrap().1)
        };
        assert_eq!(encrypted(Encryption::Off), [false, false, false, false]);
        assert_eq!(encrypted(Encryption::CrossRegion), [false, false, true, false]);
        assert_eq!(encrypted(Encryption::CrossCluster), [false, false, true, true]);
        assert_eq!(encrypted(Encryption::All), [false, true, true, true]);
    }

    #[test]
    fn a_pod_that_nobody_has_named_is_encrypted_by_its_nodes_range() {
        let entries = ipcache(&two_clusters(), &mode(Encryption::CrossRegion));
        assert_eq!(lookup(&entries, "10.2.0.77"), Some((identity::WORLD, true)));
        assert_eq!(lookup(&entries, "10.1.1.77"), None);
    }

    #[test]
    fn what_is_encrypted_has_no_native_route_and_what_is_not_has_one() {
        let destinations = |mode| {
            let routes = routes(&two_clusters(), mode);
            routes.iter().map(|route| format!("{} via {}", route.destination, route.via)).collect::<Vec<_>>()
        };
        assert_eq!(
            destinations(Encryption::CrossRegion),
            ["10.1.1.0/24 via 192.168.0.2", "10.3.0.0/24 via 192.168.8.1"]
        );
        assert_eq!(destinations(Encryption::All), [""; 0]);
        assert_eq!(destinations(Encryption::Off).len(), 3);
    }

    #[test]
    fn nodes_are_hosts_and_never_take_a_cidr_identity() {
        let mut snapshot = two_clusters();
        cidr_identity(&mut snapshot, 300, "192.168.0.2/32");
        let settings = NodeSettings { host_addresses: vec![ip("169.254.1.1")], ..mode(Encryption::All) };
        let entries = ipcache(&snapshot, &settings);
        let of = |addr| lookup(&entries, addr).unwrap();
        assert_eq!(of("192.168.0.1"), (identity::HOST, false));
        assert_eq!(of("169.254.1.1"), (identity::HOST, false));
        assert_eq!(of("192.168.0.2"), (identity::REMOTE_NODE, false));
    }

    #[test]
    fn cidr_identities_and_encrypted_ranges_do_not_hide_each_other() {
        let mut snapshot = two_clusters();
        cidr_identity(&mut snapshot, 300, "10.0.0.0/8");
        cidr_identity(&mut snapshot, 301, "10.2.0.64/26");
        cidr_identity(&mut snapshot, 302, "10.2.0.0/24");
        let entries = ipcache(&snapshot, &mode(Encryption::CrossRegion));
        let of = |addr| lookup(&entries, addr).unwrap();
        assert_eq!(of("10.9.9.9"), (300, false));
        assert_eq!(of("10.2.0.77"), (301, true));
        assert_eq!(of("10.2.0.200"), (302, true));
        assert_eq!(of("10.2.0.5"), (258, true));
    }

    #[test]
    fn a_remote_pod_on_an_unknown_node_is_encrypted_unless_its_whole_cluster_is_near() {
        let mut snapshot = two_clusters();
        snapshot.workloads.extend([
            pod("west", "shop/lost", "", "10.77.0.1", 260),
            pod("north", "shop/lost", "", "10.77.0.2", 261),
            pod("south", "shop/lost", "", "10.77.0.3", 262),
        ]);
        let entries = ipcache(&snapshot, &mode(Encryption::CrossRegion));
        let of = |addr| lookup(&entries, addr).unwrap().1;
        assert_eq!([of("10.77.0.1"), of("10.77.0.2"), of("10.77.0.3")], [true, false, true]);
    }

    #[test]
    fn without_any_region_everything_is_near() {
        let mut snapshot = two_clusters();
        for node in &mut snapshot.nodes {
            node.region = None;
        }
        assert_eq!(lookup(&ipcache(&snapshot, &mode(Encryption::CrossRegion)), "10.2.0.5"), Some((258, false)));
        snapshot.nodes[0].region = Some("eu".into());
        assert_eq!(lookup(&ipcache(&snapshot, &mode(Encryption::CrossRegion)), "10.2.0.5"), Some((258, true)));
    }
}
