//! Kubernetes objects as typed facts. Parsed once, here at the border; what is bad is named by its field and skipped,
//! and a policy that cannot be read whole fails closed.
mod endpoints;
pub(crate) mod fields;
mod node;
mod pod;
mod policy_cilium;
mod policy_k8s;
mod service;
mod weft;

#[cfg(test)]
mod tests;

pub use endpoints::SliceFact;
pub use fields::ParseError;
pub use node::{WIREGUARD_KEY, WIREGUARD_PORT};
pub use pod::{ContainerPort, PodFact};
pub use service::{ServiceFact, ServicePort, TargetPort};

use crate::{
    resolve::PolicyFact,
    types::{ClusterName, Labels, MeshPeer, Node, ObjectName, WasmPlugin},
};
use fields::Fields;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{fmt, path::PathBuf, sync::Arc};
use weft_identity::TrustDomain;

/// The kinds that Weft knows. All others are left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    EndpointSlice,
    NetworkPolicy,
    CiliumNetworkPolicy,
    CiliumClusterwideNetworkPolicy,
    WasmPlugin,
    MeshPeer,
}

impl Kind {
    pub const ALL: [Self; 10] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::NetworkPolicy,
        Self::CiliumNetworkPolicy,
        Self::CiliumClusterwideNetworkPolicy,
        Self::WasmPlugin,
        Self::MeshPeer,
    ];

    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod | Self::Service => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
            Self::CiliumNetworkPolicy | Self::CiliumClusterwideNetworkPolicy => "cilium.io/v2",
            Self::WasmPlugin | Self::MeshPeer => "weft.dev/v1alpha1",
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Self::WasmPlugin => "WasmPlugin",
            Self::MeshPeer => "MeshPeer",
        }
    }

    /// Its objects live in a namespace.
    pub const fn namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node | Self::CiliumClusterwideNetworkPolicy | Self::MeshPeer)
    }

    /// `None`: a kind that Weft does not know.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.name() == kind && k.api_version() == api_version)
    }
}

/// Names one object. Cluster-scoped ones have an empty namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectKey {
    pub kind: Kind,
    pub name: ObjectName,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.name)
    }
}

/// Where a document was found. Of two documents for one object the greater origin counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// Of several folders, a later one has the greater layer.
    pub layer: u32,
    /// A file, or words for the server: `kubernetes API`.
    pub path: String,
    /// Number of the document within the file, from 1; 0 where there is no file.
    pub document: u32,
}

impl Origin {
    pub fn server(name: impl Into<String>) -> Self {
        Self { layer: 0, path: name.into(), document: 0 }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.document {
            0 => f.write_str(&self.path),
            n => write!(f, "{}, document {n}", self.path),
        }
    }
}

/// What the reader must know beside the object.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub cluster: &'a ClusterName,
    pub trust_domain: &'a TrustDomain,
    pub origin: &'a Origin,
    /// Nobody has checked the object before (a file): unknown fields of Kubernetes' own kinds are reported.
    pub strict: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The labels.
    Namespace(Arc<Labels>),
    Node(Arc<Node>),
    Pod(Arc<PodFact>),
    Service(Arc<ServiceFact>),
    Slice(Arc<SliceFact>),
    Policy(Arc<PolicyFact>),
    Plugin(Arc<WasmPlugin>),
    Peer(Arc<MeshPeer>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not a kind of ours.
    Other,
    /// It cannot even be named; the object in words, and what is wrong.
    Unnamed { object: String, problem: String },
    Object {
        key: ObjectKey,
        /// `None`: refused, it counts as absent.
        fact: Option<Fact>,
        /// What is wrong with it, also where it is used all the same.
        problems: Vec<String>,
    },
}

/// The key of an object: what `Delete` and `Relisted` events name it by. `None`: not a kind of ours, or it has no name.
pub fn key_of(object: &Value) -> Option<ObjectKey> {
    let kind = Kind::of(object.get("apiVersion")?.as_str()?, object.get("kind")?.as_str()?)?;
    let metadata = object.get("metadata")?;
    let name = metadata.get("name")?.as_str().filter(|name| !name.is_empty())?;
    let namespace = match (kind.namespaced(), metadata.get("namespace").and_then(Value::as_str)) {
        (false, _) => "",
        (true, None | Some("")) => "default",
        (true, Some(namespace)) => namespace,
    };
    Some(ObjectKey { kind, name: ObjectName::new(namespace, name) })
}

/// Never panics, whatever the object is.
pub fn parse(object: &Value, context: &Context<'_>) -> Parsed {
    let word = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind_name) = (word("apiVersion"), word("kind"));
    let unnamed = |problem: String| Parsed::Unnamed { object: kind_name.to_owned(), problem };
    if api_version.is_empty() || kind_name.is_empty() {
        return unnamed("apiVersion and kind: each object needs both".to_owned());
    }
    let Some(kind) = Kind::of(api_version, kind_name) else {
        return match near_miss(api_version, kind_name) {
            Some(problem) => unnamed(problem),
            None => Parsed::Other,
        };
    };
    let Some(key) = key_of(object) else { return unnamed("metadata.name: each object needs a name".to_owned()) };
    let mut problems = Vec::new();
    let result = fact(kind, &key.name, object, context, &mut problems);
    let fact = result.map_err(|error| problems.push(error.to_string())).ok();
    if let Some(Fact::Policy(policy)) = &fact {
        problems.extend(policy.rejected.clone());
    }
    Parsed::Object { key, fact, problems }
}

fn fact(
    kind: Kind,
    name: &ObjectName,
    object: &Value,
    context: &Context<'_>,
    problems: &mut Vec<String>,
) -> Result<Fact, ParseError> {
    Ok(match kind {
        Kind::Namespace => Fact::Namespace(Arc::new(node::namespace(name, object, context, problems)?)),
        Kind::Node => Fact::Node(Arc::new(node::node(name, object, context, problems)?)),
        Kind::Pod => Fact::Pod(Arc::new(pod::pod(name, object, context, problems)?)),
        Kind::Service => Fact::Service(Arc::new(service::service(name, object, context, problems)?)),
        Kind::EndpointSlice => Fact::Slice(Arc::new(endpoints::slice(name, object, context, problems)?)),
        Kind::NetworkPolicy => Fact::Policy(Arc::new(policy_k8s::policy(name, object, context))),
        Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => {
            Fact::Policy(Arc::new(policy_cilium::policy(kind, name, object, context)))
        }
        Kind::WasmPlugin => Fact::Plugin(Arc::new(weft::plugin(name, object, context)?)),
        Kind::MeshPeer => Fact::Peer(Arc::new(weft::peer(object)?)),
    })
}

/// An object that was surely meant for us, but would be overlooked: a policy under another version, an unknown kind of
/// our own group.
fn near_miss(api_version: &str, kind: &str) -> Option<String> {
    let group = |version: &str| version.rsplit_once('/').map_or(String::new(), |(group, _)| group.to_owned());
    let cilium = |kind: Kind| matches!(kind, Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy);
    // Other groups have kinds of the same name (Knative's Service, Calico's NetworkPolicy): these are left alone.
    let ours = |k: Kind| cilium(k) || group(api_version).is_empty() || group(api_version) == group(k.api_version());
    let meant = Kind::ALL.into_iter().find(|k| k.name() == kind && ours(*k));
    if let Some(meant) = meant {
        let want = meant.api_version();
        return Some(format!("apiVersion: {api_version:?} of a {kind} is not known; write {want:?}"));
    }
    (group(api_version) == "weft.dev")
        .then(|| format!("kind: weft.dev has no {kind:?}; it has WasmPlugin and MeshPeer"))
}

/// Reads one of Kubernetes' own kinds. Unknown fields are problems where nobody has checked the object before.
fn typed<T: DeserializeOwned + Serialize>(
    object: &Value,
    context: &Context<'_>,
    problems: &mut Vec<String>,
) -> Result<T, ParseError> {
    let value: T = serde_path_to_error::deserialize(object).map_err(|error| {
        let path = error.path().to_string();
        ParseError::invalid(path, error.into_inner().to_string())
    })?;
    if context.strict {
        // A typed value written again has exactly the fields that its type knows.
        let known = serde_json::to_value(&value).unwrap_or(Value::Null);
        let unknown = fields::unknown_fields(object, &known);
        problems
            .extend(unknown.into_iter().map(|path| format!("unknown field {path}: check its spelling, or remove it")));
    }
    Ok(value)
}

/// The fields of an object beside apiVersion, kind, metadata and status.
fn body(object: &Value) -> Result<Fields<'_>, ParseError> {
    let mut fields = Fields::new("", object)?;
    for known in ["apiVersion", "kind", "metadata", "status"] {
        fields.take(known);
    }
    Ok(fields)
}

/// The folder of the file that the object is from.
fn folder(origin: &Origin) -> Option<PathBuf> {
    if origin.document == 0 {
        return None;
    }
    std::path::Path::new(&origin.path).parent().map(PathBuf::from)
}
