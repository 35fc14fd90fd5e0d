//! The kernel's half of the data path, as the agent drives it: what the maps and routes should hold ([`plan`], pure),
//! and how they come to hold it. The only user of aya.
//!
//! One task: the netlink connection of a [`routing::Router`], which ends with it. Everything else runs in the caller.
//! All of it must run in the network namespace of the node.
pub mod attach;
pub mod bpffs;
pub mod check;
pub mod cleanup;
pub mod error;
pub mod events;
pub mod load;
pub mod plan;
pub mod reconcile;
pub mod routing;
pub mod status;
pub mod sys;
pub mod sysctl;

pub use error::DatapathError;
pub use events::Events;
pub use load::{AttachMode, Datapath};
pub use plan::{Desired, Encryption, LocalEndpoint, LocalEndpoints, NodeSettings};
pub use reconcile::Report;
pub use routing::Router;
