//! What plans read: one consistent picture of everything known, cheap to clone (`Arc` inside the store).
use crate::{
    policy::{EndpointPolicy, PolicyStatus},
    types::{ClusterName, MeshPeer, Node, ObjectName, SecurityIdentity, ServiceView, WasmPlugin, Workload},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};
use weft_identity::TrustDomain;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub cluster: ClusterName,
    /// 1 to 255
    pub cluster_id: u32,
    pub trust_domain: TrustDomain,
    /// The node that this agent runs on.
    pub node_name: String,
    /// Every source has delivered its first full list. Nothing is written to the kernel before.
    pub synced: bool,
    /// With the backends of all clusters that are alive.
    pub services: BTreeMap<ObjectName, ServiceView>,
    /// Of all clusters.
    pub nodes: Vec<Node>,
    /// Of all clusters, with an address, host network left out.
    pub workloads: Vec<Workload>,
    pub identities: BTreeMap<u32, SecurityIdentity>,
    /// Of the pods of this node.
    pub policies: BTreeMap<ObjectName, EndpointPolicy>,
    /// Pods of any node and cluster with ports (0: all) that some policy lets be reached by mutual TLS only.
    pub auth_destinations: Vec<(IpAddr, u16)>,
    pub policy_status: Vec<PolicyStatus>,
    pub plugins: Vec<WasmPlugin>,
    pub mesh_peers: Vec<MeshPeer>,
    /// Objects that were refused, with the reason.
    pub object_errors: Vec<ObjectError>,
}

/// A bad object: it counts as absent (a policy: fails closed); the rest goes on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectError {
    /// File and document, or the API server.
    pub origin: String,
    /// `Kind namespace/name`, where it could be read.
    pub object: String,
    /// Names the field and the remedy.
    pub message: String,
}

impl Snapshot {
    /// This node, once its object is known.
    pub fn this_node(&self) -> Option<&Node> {
        self.nodes.iter().find(|node| node.cluster == self.cluster && node.name == self.node_name)
    }

    /// The pods of this node.
    pub fn local_workloads(&self) -> impl Iterator<Item = &Workload> {
        self.workloads
            .iter()
            .filter(|w| w.cluster == self.cluster && w.node.as_deref() == Some(self.node_name.as_str()))
    }
}
