//! Where objects come from. A source only tells what is there now and what changed; the store decides what it means.
//!
//! Tasks: one for the directory source, one a kind for the Kubernetes source; each ends when its owner drops it.
//! Channel: one, bounded, to the control loop; a source that is faster than the loop waits.
pub mod dir;
pub mod kube;
pub mod writer;

use serde_json::Value;
use weft_model::types::MeshPeer;

/// Names of sources in the store.
pub const DIRECTORY: &str = "directory";
pub const KUBERNETES: &str = "kubernetes";

/// How the origin of a watch's problem begins.
pub const WATCH_OF: &str = "watch of ";

/// How many events may wait for the control loop.
pub const EVENTS_IN_FLIGHT: usize = 1024;

/// A `MeshPeer` as the object that is stored.
pub fn mesh_peer_object(peer: &MeshPeer) -> Value {
    serde_json::json!({
        "apiVersion": "weft.dev/v1alpha1",
        "kind": "MeshPeer",
        "metadata": { "name": peer.cluster },
        "spec": peer,
    })
}
