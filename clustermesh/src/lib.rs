//! How clusters read each other: etcd's v3 API over mutual TLS, with the keys of `weft_clustermesh_core`.
//!
//! - `MeshServer` offers this cluster's keys, read-only. Its tasks: one that accepts connections (a bounded set of
//!   handshakes under it), the server, one that writes heartbeats, one for each watch or lease stream. They end when the
//!   `MeshServer` is dropped. A slow peer waits behind its own cursor in a bounded log, not in a queue.
//! - `PeerReader` follows another cluster, `NodeReader` one node of our own. Two tasks each (connection, judge) with a
//!   bounded channel between them, aborted on drop.
//! - `token` joins two clusters where nobody has access to both; what they exchange is `core::connect`'s.
mod reader;
pub mod server;
mod task;
pub mod tls;
pub mod token;

pub use reader::{NodeReader, NodeUpdate, PeerConfig, PeerReader, PeerState, PeerUpdate};
pub use server::{MeshServer, MeshServerConfig, ServerError};
pub use weft_clustermesh_core as core;

/// Generated from `proto/`.
mod pb {
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
}
