//! What clusters tell each other, without sockets: the keys and values of Cilium's ClusterMesh with a few of our own,
//! what this cluster exports, how a peer's keys become a `RemoteCluster`, and when a peer counts as dead. Pure.
//!
//! | key | value | whose |
//! | --- | --- | --- |
//! | `cilium/cluster-config/<cluster>` | id and capabilities | Cilium's |
//! | `cilium/synced/<cluster>/<prefix>` | written once that prefix is complete | Cilium's |
//! | `cilium/.heartbeat` | time | Cilium's |
//! | `cilium/state/{services,nodes}/v1/<cluster>/…`, `cilium/state/ip/v1/default/<ip>`, `cilium/state/identities/v1/id/<n>` | | Cilium's |
//! | `weft/cluster/<cluster>` | trust domain, whether its pods take HBONE | ours |
//! | `weft/heartbeat/<cluster>`, `weft/synced/<cluster>` | time | ours |
//! | `weft/state/services/v1/<cluster>/<namespace>/<name>` | backends with their conditions; preferred over Cilium's | ours |
//! | `weft/state/auth/v1/<cluster>/<ip>` | ports that take mutual TLS only | ours |
pub mod connect;
pub mod export;
pub mod ids;
pub mod import;
pub mod key;
pub mod liveness;
mod time;
pub mod value;

use bytes::Bytes;

pub use export::{ExportOptions, export, heartbeat};
pub use import::{Importer, NotReady};
pub use key::Key;
pub use liveness::Liveness;

/// A key written or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put { key: Bytes, value: Bytes },
    Delete { key: Bytes },
}
