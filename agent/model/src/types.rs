//! The facts that plans are made from. Parsed once at the border; nothing here can be half valid.
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, net::IpAddr, time::Duration};
use weft_identity::{SpiffeId, TrustDomain};

pub type Labels = BTreeMap<String, String>;

/// `namespace/name`. Cluster-scoped objects have an empty namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectName {
    pub namespace: String,
    pub name: String,
}

impl ObjectName {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// At most 32 characters, `^([a-z0-9][-a-z0-9]*)?[a-z0-9]$`, as ClusterMesh has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(String);

impl ClusterName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl TryFrom<String> for ClusterName {
    type Error = String;
    fn try_from(name: String) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let fits = (1..=32).contains(&name.len())
            && name.chars().all(|c| plain(c) || c == '-')
            && name.starts_with(plain)
            && name.ends_with(plain);
        if fits {
            Ok(Self(name))
        } else {
            Err(format!("cluster name {name:?}: want 1 to 32 of a-z, 0-9 and inner '-'"))
        }
    }
}
impl From<ClusterName> for String {
    fn from(name: ClusterName) -> Self {
        name.0
    }
}
impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Icmpv6,
}

impl Protocol {
    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::Icmp => 1,
            Self::Icmpv6 => 58,
        }
    }
}

// ---- services -----------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FrontendKind {
    ClusterIP,
    NodePort,
    ExternalIP,
    LoadBalancer,
}

/// One address and port that answers for a service. `addr` is unspecified (0.0.0.0, ::) for a node port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Frontend {
    pub addr: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    pub port_name: String,
    pub kind: FrontendKind,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Affinity {
    #[default]
    None,
    Local,
    Remote,
}

/// What the annotations `weft.dev/*` and `service.cilium.io/*` say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalService {
    /// Offer our backends to the other clusters.
    pub shared: bool,
    pub affinity: Affinity,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: ObjectName,
    /// As in `spec.type`; headless services are `ClusterIP` with no frontend.
    pub kind: String,
    pub labels: Labels,
    /// `None`: no selector, endpoints come from EndpointSlices alone.
    pub selector: Option<Labels>,
    pub frontends: Vec<Frontend>,
    pub headless: bool,
    /// ClientIP session affinity and its time-out.
    pub session_affinity: Option<Duration>,
    pub internal_traffic_local: bool,
    pub external_traffic_local: bool,
    pub publish_not_ready: bool,
    pub global: Option<GlobalService>,
}

/// One address and port behind a service, local or of another cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Backend {
    pub addr: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    pub port_name: String,
    pub cluster: ClusterName,
    /// Node that runs it, where known.
    pub node: Option<String>,
    pub pod: Option<ObjectName>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

/// A service with all its backends of all clusters; `usable` picks those that new connections may go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    pub service: Service,
    pub backends: Vec<Backend>,
}

// ---- nodes, pods, addresses ---------------------------------------------------------------------------------------

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub cluster: ClusterName,
    pub name: String,
    pub labels: Labels,
    /// `topology.kubernetes.io/region`
    pub region: Option<String>,
    /// InternalIP first.
    pub addresses: Vec<IpAddr>,
    pub pod_cidrs: Vec<IpNet>,
    /// Base64 Curve25519 key, once the node's agent has published it.
    pub wireguard_key: Option<String>,
    /// UDP port of its WireGuard device.
    pub wireguard_port: u16,
}

/// Something with an address that policies may select: a pod of any connected cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    pub cluster: ClusterName,
    pub pod: ObjectName,
    pub service_account: String,
    pub trust_domain: TrustDomain,
    pub labels: Labels,
    pub addresses: Vec<IpAddr>,
    /// Node that runs it, and its InternalIP where known.
    pub node: Option<String>,
    pub node_ip: Option<IpAddr>,
    /// `hostNetwork: true`: has no address, identity or policy of its own.
    pub host_network: bool,
    pub ready: bool,
    /// Security identity, local to this node; filled in by the store.
    pub identity: u32,
}

impl Workload {
    pub fn spiffe_id(&self) -> SpiffeId {
        SpiffeId::new(self.trust_domain.clone(), &self.pod.namespace, &self.service_account)
    }
}

/// A security identity: labels with their source (`k8s:app=frontend`), the namespace and the cluster among them.
/// Cilium's keys: `k8s:io.kubernetes.pod.namespace`, `k8s:io.cilium.k8s.policy.cluster`,
/// `k8s:io.cilium.k8s.policy.serviceaccount`, `k8s:io.cilium.k8s.namespace.labels.<label>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityIdentity {
    pub id: u32,
    pub labels: Labels,
    /// CIDR identities (from `fromCIDR`/`toCIDR`): the prefix.
    pub cidr: Option<IpNet>,
}

// ---- what other clusters say --------------------------------------------------------------------------------------

/// Everything a connected cluster has told us, replaced as a whole by each update of its reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteCluster {
    pub name: ClusterName,
    pub id: u32,
    pub trust_domain: TrustDomain,
    /// False: its heartbeat is overdue or its connection is lost. Its backends are not used, its addresses, identities
    /// and nodes stay known.
    pub alive: bool,
    #[serde(with = "pairs")]
    pub services: BTreeMap<ObjectName, RemoteService>,
    pub nodes: BTreeMap<String, Node>,
    pub workloads: Vec<Workload>,
    /// Its pods and ports (0: all) that take mutual TLS only.
    pub auth_destinations: Vec<(IpAddr, u16)>,
    /// Its nodes run Weft, so its pods take HBONE on port 15008.
    pub hbone: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteService {
    pub shared: bool,
    pub backends: Vec<Backend>,
}

/// A map as a list: JSON has text for keys only.
mod pairs {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::BTreeMap;

    pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(map)
    }

    pub fn deserialize<'de, K, V, D>(from: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(from)?.into_iter().collect())
    }
}

// ---- Weft's own kinds ---------------------------------------------------------------------------------------------

/// A `WasmPlugin` (`weft.dev/v1alpha1`, fields as in Istio's).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WasmPlugin {
    pub name: ObjectName,
    /// Empty: every pod of the namespace.
    pub selector: Labels,
    /// `file:///…`, or a path relative to the object's own file.
    pub url: String,
    /// Hex, lower case; empty: not pinned.
    pub sha256: String,
    pub phase: PluginPhase,
    pub priority: i32,
    /// JSON
    pub plugin_config: serde_json::Value,
    pub fail_open: bool,
    /// Empty: every port.
    pub ports: Vec<u16>,
    pub env: BTreeMap<String, String>,
}

/// In the order of execution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PluginPhase {
    Authn,
    Authz,
    Stats,
    #[default]
    #[serde(rename = "UNSPECIFIED_PHASE")]
    Unspecified,
}

/// A `MeshPeer` (`weft.dev/v1alpha1`): another cluster to read from, written by `weft mesh connect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshPeer {
    pub cluster: ClusterName,
    pub cluster_id: u32,
    pub trust_domain: TrustDomain,
    /// PEM certificates of its CA.
    pub trust_bundle: String,
    /// `host:port` of its mesh servers.
    pub endpoints: Vec<String>,
}
