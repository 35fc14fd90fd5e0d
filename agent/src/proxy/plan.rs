//! The proxy's whole configuration, from a snapshot. Pure.
use crate::config::{Config, gateway};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};
use weft_bpf_abi::{mark, net::identity};
use weft_datapath::plan::{Encryption, addresses::encrypted, policy::plugin_selects};
use weft_identity::{SpiffeId, TrustDomain};
use weft_model::{
    snapshot::Snapshot,
    types::{ClusterName, Labels, Node, ObjectName, PluginPhase, WasmPlugin, Workload},
};
use weft_proxy_api::config::{PluginConfig, ProxyConfig, Svid, WireGuardConfig, WireGuardPeer, WorkloadInfo};

/// Room for the outer headers: IPv6 40, UDP 8, WireGuard 32.
const WIREGUARD_OVERHEAD: u32 = 80;
pub const BUILT_IN: [&str; 2] = ["http-policy", "spiffe-authz"];

/// What is not in the snapshot.
pub struct Inputs<'a> {
    pub config: &'a Config,
    pub map_dir: PathBuf,
    pub svids: Vec<Svid>,
    pub trust_bundles: BTreeMap<TrustDomain, String>,
    /// Clusters whose pods take HBONE, this one left out.
    pub hbone_clusters: BTreeSet<ClusterName>,
    pub wireguard_key: &'a str,
    /// Of the native devices, in bytes.
    pub mtu: u32,
    pub host_addresses: &'a [IpAddr],
}

pub fn config(snapshot: &Snapshot, inputs: Inputs<'_>, version: u64) -> ProxyConfig {
    let is_local = |workload: &Workload| {
        workload.cluster == snapshot.cluster && workload.node.as_deref() == Some(snapshot.node_name.as_str())
    };
    let workloads = snapshot.workloads.iter().map(|workload| WorkloadInfo {
        addresses: workload.addresses.clone(),
        pod: workload.pod.clone(),
        cluster: workload.cluster.clone(),
        spiffe_id: workload.spiffe_id(),
        identity: workload.identity,
        labels: workload.labels.clone(),
        local: is_local(workload),
        hbone: workload.cluster == snapshot.cluster || inputs.hbone_clusters.contains(&workload.cluster),
    });
    let policies = snapshot
        .local_workloads()
        .filter_map(|workload| Some((workload, snapshot.policies.get(&workload.pod)?)))
        .flat_map(|(workload, policy)| workload.addresses.iter().map(move |address| (*address, policy.clone())));
    ProxyConfig {
        version,
        node: snapshot.node_name.clone(),
        cluster: snapshot.cluster.clone(),
        trust_domain: snapshot.trust_domain.clone(),
        map_dir: inputs.map_dir,
        workloads: workloads.collect(),
        identities: identities(snapshot, inputs.host_addresses),
        policies: policies.collect(),
        auth_destinations: snapshot.auth_destinations.clone(),
        svids: inputs.svids,
        trust_bundles: inputs.trust_bundles,
        plugins: plugins(snapshot, &inputs.config.plugin_dir),
        deny_status: inputs.config.deny_status,
        wireguard: wireguard(snapshot, inputs.config, inputs.wireguard_key, inputs.mtu),
    }
}

/// The SPIFFE IDs that this node must be able to prove.
pub fn local_identities(snapshot: &Snapshot) -> BTreeSet<SpiffeId> {
    snapshot.local_workloads().map(Workload::spiffe_id).collect()
}

fn identities(snapshot: &Snapshot, host_addresses: &[IpAddr]) -> Vec<(IpNet, u32)> {
    let cidrs = snapshot.identities.values().filter_map(|id| Some((id.cidr?, id.id)));
    let this = |node: &Node| node.cluster == snapshot.cluster && node.name == snapshot.node_name;
    let nodes = snapshot.nodes.iter().flat_map(|node| {
        let id = if this(node) { identity::HOST } else { identity::REMOTE_NODE };
        node.addresses.iter().map(move |address| (IpNet::from(*address), id))
    });
    let host = host_addresses.iter().map(|address| (IpNet::from(*address), identity::HOST));
    let mut all: BTreeMap<IpNet, u32> = cidrs.collect();
    all.extend(nodes);
    all.extend(host);
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
    all
}

fn plugins(snapshot: &Snapshot, plugin_dir: &Path) -> Vec<PluginConfig> {
    let built_in = BUILT_IN.map(|name| PluginConfig {
        plugin: WasmPlugin {
            name: ObjectName::new("weft-system", name),
            selector: Labels::new(),
            url: format!("file://{}", plugin_dir.join(format!("{name}.wasm")).display()),
            sha256: String::new(),
            phase: PluginPhase::Authz,
            priority: 0,
            plugin_config: serde_json::Value::Null,
            fail_open: false,
            ports: vec![],
            env: BTreeMap::new(),
        },
        module: plugin_dir.join(format!("{name}.wasm")),
        targets: None,
    });
    let users = snapshot.plugins.iter().map(|plugin| PluginConfig {
        plugin: plugin.clone(),
        module: plugin.url.strip_prefix("file://").unwrap_or(&plugin.url).into(),
        targets: Some(targets(snapshot, plugin)),
    });
    built_in.into_iter().chain(users).collect()
}

fn targets(snapshot: &Snapshot, plugin: &WasmPlugin) -> Vec<IpAddr> {
    let selected = snapshot.local_workloads().filter(|workload| plugin_selects(plugin, workload));
    selected.flat_map(|workload| workload.addresses.clone()).collect()
}

fn wireguard(snapshot: &Snapshot, config: &Config, key: &str, mtu: u32) -> Option<WireGuardConfig> {
    let mode = config.encryption.mode;
    let this = snapshot.this_node()?;
    if mode == Encryption::Off {
        return None;
    }
    let peers = snapshot
        .nodes
        .iter()
        .filter(|node| encrypted(mode, Some(this), &snapshot.cluster, node))
        .filter_map(|node| {
            Some(WireGuardPeer {
                name: format!("{}/{}", node.cluster, node.name),
                public_key: node.wireguard_key.clone().filter(|key| !key.is_empty())?,
                endpoint: SocketAddr::new(*node.addresses.first()?, node.wireguard_port),
                allowed_ips: node.pod_cidrs.clone(),
            })
        })
        .collect();
    Some(WireGuardConfig {
        interface: config.encryption.interface.clone(),
        private_key: key.to_owned(),
        listen_port: config.encryption.listen_port,
        mtu: mtu.saturating_sub(WIREGUARD_OVERHEAD),
        mark: mark::WIREGUARD,
        addresses: this.pod_cidrs.iter().filter_map(gateway).collect(),
        peers,
    })
}
