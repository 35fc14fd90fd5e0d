//! The wires: each region is a bridge, each node a port of it, and links join the regions.
//!
//! Bridges and links are in a namespace of their own, so that all that passes between two regions can be captured on
//! one interface. It has no address and no way to the machine.
use crate::{
    layout::{Layout, Source},
    place::{self, Place, PlaceError},
    spec::{LinkSpec, Spec},
};

/// As tc(8) writes them: enough for a full-size burst, and for half a second at the slowest rates.
const LIMIT: &str = "burst 256kb latency 50ms";
/// What a Kubernetes node has set; everything else is the agent's to set.
const NODE_SETTINGS: [&str; 4] = [
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
    // Addresses are ours and unique: no second of waiting for duplicates.
    "net.ipv6.conf.all.accept_dad=0",
    "net.ipv6.conf.default.accept_dad=0",
];

/// Makes the wires and a namespace for each node, and for each control plane where the clusters have one.
pub fn build(layout: &Layout, spec: &Spec, source: Source) -> Result<(), PlaceError> {
    let fabric = layout.fabric_netns();
    place::make_netns(layout, &fabric)?;
    for (index, _) in spec.regions().iter().enumerate() {
        place::ip(&format!("-n {fabric} link add {} type bridge", bridge(index)))?;
        place::ip(&format!("-n {fabric} link set {} up", bridge(index)))?;
    }
    for link in &spec.links {
        join(&fabric, spec, link)?;
    }
    let nodes = spec.clusters.iter().flat_map(|cluster| cluster.nodes.iter().map(move |node| (cluster, node)));
    for (index, (cluster, node)) in nodes.enumerate() {
        let place = Place::node(layout, &cluster.name, &node.name);
        place::make_cgroup(&layout.agent_cgroup(&cluster.name, &node.name))?;
        let mut addresses = vec![format!("{}/{}", node.address, spec.network.prefix_len())];
        if let (Some(address), Some(network)) = (node.address6, spec.network6) {
            addresses.push(format!("{address}/{} nodad", network.prefix_len()));
        }
        plug(layout, &place, &port(index), region_of(spec, &node.region), &addresses)?;
        for setting in NODE_SETTINGS {
            let set = place.run(|| place::tool("sysctl", &format!("-qw {setting}")));
            set.map_err(|cause| PlaceError::Namespace { name: place.netns.clone(), cause })??;
        }
    }
    if source == Source::Kubernetes {
        for (index, cluster) in spec.clusters.iter().enumerate() {
            let (Some(address), Some(node)) = (spec.control_plane(&cluster.name), cluster.nodes.first()) else {
                continue;
            };
            let place = Place::control_plane(layout, &cluster.name);
            let addresses = [format!("{address}/{}", spec.network.prefix_len())];
            plug(layout, &place, &format!("plane{index}"), region_of(spec, &node.region), &addresses)?;
        }
    }
    Ok(())
}

/// Pulls a node's cable or puts it back.
pub fn set_cable(layout: &Layout, spec: &Spec, cluster: &str, node: &str, plugged: bool) -> Result<(), PlaceError> {
    let nodes =
        spec.clusters.iter().flat_map(|one| one.nodes.iter().map(|node| (one.name.as_str(), node.name.as_str())));
    let Some(index) = nodes.into_iter().position(|place| place == (cluster, node)) else { return Ok(()) };
    let state = if plugged { "up" } else { "down" };
    place::ip(&format!("-n {} link set {} {state}", layout.fabric_netns(), port(index)))
}

fn join(fabric: &str, spec: &Spec, link: &LinkSpec) -> Result<(), PlaceError> {
    let far = format!("{}-b", link.name);
    place::ip(&format!("-n {fabric} link add {} type veth peer name {far}", link.name))?;
    for (end, region) in [(&link.name, &link.between[0]), (&far, &link.between[1])] {
        place::ip(&format!("-n {fabric} link set {end} master {} up", bridge(region_of(spec, region))))?;
        if let Some(rate) = &link.rate {
            place::tool("tc", &format!("-n {fabric} qdisc add dev {end} root tbf rate {rate} {LIMIT}"))?;
        }
    }
    Ok(())
}

/// Makes the place, with an `eth0` that is a port of the region's bridge.
fn plug(layout: &Layout, place: &Place, port: &str, region: usize, addresses: &[String]) -> Result<(), PlaceError> {
    let (fabric, netns) = (layout.fabric_netns(), &place.netns);
    place::make_netns(layout, netns)?;
    place::make_cgroup(&place.cgroup)?;
    place::ip(&format!("-n {fabric} link add {port} type veth peer name eth0 netns {netns}"))?;
    place::ip(&format!("-n {fabric} link set {port} master {} up", bridge(region)))?;
    for address in addresses {
        place::ip(&format!("-n {netns} addr add {address} dev eth0"))?;
    }
    place::ip(&format!("-n {netns} link set eth0 up"))
}

/// Checked when the file was read: every region that is named has a node.
fn region_of(spec: &Spec, region: &str) -> usize {
    spec.regions().iter().position(|one| *one == region).unwrap_or_default()
}

fn bridge(region: usize) -> String {
    format!("region{region}")
}

fn port(node: usize) -> String {
    format!("node{node}")
}
