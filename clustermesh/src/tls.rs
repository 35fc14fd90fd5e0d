//! The mesh's own identity: agents of connected clusters, and nobody else, talk to each other's mesh servers.
use std::sync::Arc;
use weft_certs::{
    ExpectedId, SharedIdentity, SpiffeId, TlsError, TrustBundles, TrustDomain, client_config, server_config,
};

const NAMESPACE: &str = "weft-system";
const SERVICE_ACCOUNT: &str = "weft-agent";
const ALPN: &[&[u8]] = &[b"h2"];

/// The agents of a trust domain.
pub fn agent_id(trust_domain: &TrustDomain) -> SpiffeId {
    SpiffeId::new(trust_domain.clone(), NAMESPACE, SERVICE_ACCOUNT)
}

/// For `MeshServer`: takes agents of every trust domain in `bundles`, our own included where it is there.
pub fn server(identity: &SharedIdentity, bundles: &TrustBundles) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let agents = ExpectedId::ServiceAccount { namespace: NAMESPACE.into(), service_account: SERVICE_ACCOUNT.into() };
    server_config(identity, bundles, agents, ALPN)
}

/// For readers of a cluster of `trust_domain`.
pub fn client(
    identity: &SharedIdentity,
    bundles: &TrustBundles,
    trust_domain: &TrustDomain,
) -> Result<Arc<rustls::ClientConfig>, TlsError> {
    client_config(identity, bundles, ExpectedId::Exact(agent_id(trust_domain)), ALPN)
}
