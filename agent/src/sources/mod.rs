//! Where objects come from. A source only tells what is there now and what changed; it decides nothing.
//!
//! Tasks: one for the directory source, one a kind for the Kubernetes source; each ends when its `JoinSet` is dropped.
//! Channel: one, bounded, to the app's loop; a source that is faster than the loop waits.
pub mod dir;
pub mod kube;
pub mod writer;

use serde_json::Value;
use weft_model::snapshot::ObjectError;

/// Names an object whatever its version: kind with API group, namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub api_version: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    /// `None`: not a Kubernetes object.
    pub fn of(object: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let metadata = object.get("metadata")?;
        Some(Self {
            api_version: text(object.get("apiVersion")?)?,
            kind: text(object.get("kind")?)?,
            namespace: metadata.get("namespace").and_then(text).unwrap_or_default(),
            name: text(metadata.get("name")?)?,
        })
    }
}

#[derive(Debug)]
pub enum SourceEvent {
    Upsert {
        /// Of two objects with one key, the one with the higher layer counts.
        layer: u32,
        origin: String,
        object: Box<Value>,
    },
    Delete {
        layer: u32,
        origin: String,
        key: ObjectKey,
    },
    /// What is wrong with a whole file or watch now; an empty list: nothing any more.
    Errors { origin: String, errors: Vec<ObjectError> },
    /// All that was there at the start has been told.
    Synced,
}

/// How many events may wait for the app's loop.
pub const EVENTS_IN_FLIGHT: usize = 1024;

/// A `MeshPeer` as the object that is stored.
pub fn mesh_peer_object(peer: &weft_model::types::MeshPeer) -> Value {
    serde_json::json!({
        "apiVersion": "weft.dev/v1alpha1",
        "kind": "MeshPeer",
        "metadata": { "name": peer.cluster },
        "spec": peer,
    })
}
