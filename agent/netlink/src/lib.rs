//! Links, addresses, routes and neighbours of one network namespace, by blocking requests over rtnetlink.
//!
//! For callers without an async runtime: the CNI plugin, and devices that live in threads of their own. A [`Netlink`]
//! keeps working in the namespace of the thread that opened it, whichever thread uses it later.

mod link;
pub mod namespace;
mod route;
mod socket;

pub use link::{Link, Mac, Veth};
pub use route::Route;
pub use socket::Netlink;

/// Why the kernel's network configuration could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open an rtnetlink socket")]
    Open(#[source] std::io::Error),
    #[error("cannot {action}")]
    Refused {
        action: String,
        #[source]
        cause: std::io::Error,
    },
    #[error("the kernel's answer to '{action}' cannot be understood: {reason}")]
    Answer { action: String, reason: String },
    #[error("cannot enter the network namespace")]
    Namespace(#[source] std::io::Error),
}

impl Error {
    /// The kernel's error number, where it refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { cause, .. } | Self::Open(cause) | Self::Namespace(cause) => cause.raw_os_error(),
            Self::Answer { .. } => None,
        }
    }
}
