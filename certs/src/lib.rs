//! Certificates of the mesh: a cluster's own CA, the X.509-SVIDs it issues, when they are due for renewal, and rustls
//! configurations whose peers are judged by SPIFFE ID.
//!
//! A peer's chain is verified against the roots of the trust domain that its certificate names, and no other's: a CA
//! can vouch only for its own trust domain. What changes at run time (SVIDs, trust bundles) is swapped under running
//! configurations; nothing here has tasks or channels of its own.
mod bundles;
mod ca;
mod identity;
mod peer;
pub mod rotation;
mod tls;

pub use bundles::TrustBundles;
pub use ca::{CERTIFICATE_FILE, CaError, ClusterCa, KEY_FILE, SVID_LIFETIME, Svid};
pub use identity::{Identity, SharedIdentity};
pub use peer::{ExpectedId, peer_spiffe_id};
pub use tls::{TlsError, client_config, explain, server_config};
pub use weft_identity::{SpiffeError, SpiffeId, TrustDomain};

#[cfg(test)]
mod tests;
