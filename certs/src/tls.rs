//! rustls configurations for both ends of a mutual TLS connection: TLS 1.3 only, certificates always both ways.
use crate::{ExpectedId, SharedIdentity, TrustBundles, peer::PeerVerifier};
use rustls::{
    CertificateError, ClientConfig, Error, OtherError, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    server::NoServerSessionStorage,
    version::TLS13,
};
use std::sync::{Arc, LazyLock};
use weft_identity::{SpiffeError, SpiffeId, TrustDomain};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the peer showed no certificate")]
    NoPeerCertificate,
    #[error("not an X.509 certificate")]
    NotACertificate,
    #[error("the peer's certificate does not name a workload")]
    PeerId(#[source] SpiffeError),
    #[error("the certificate has {0} URI names; an X.509-SVID has exactly one, its SPIFFE ID")]
    PeerNames(usize),
    #[error("trust domain {0} is not known here: connect its cluster first")]
    UnknownTrustDomain(TrustDomain),
    #[error("the peer is {found}, expected {expected}")]
    UnexpectedPeer { found: Box<SpiffeId>, expected: Box<ExpectedId> },
    #[error("the trust bundle of {domain} is not usable: {reason}")]
    Bundle { domain: TrustDomain, reason: String },
    #[error("our own certificate or key is not PEM: {0}")]
    OwnPem(String),
    #[error("our own key does not fit its certificate")]
    OwnKey(#[source] rustls::Error),
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// What went wrong in a handshake, in words: rustls shows a verifier's own errors only as debug text. Takes a
/// `rustls::Error`, an `io::Error` around one, or anything whose causes lead to one.
pub fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(error) = error.downcast_ref::<std::io::Error>()
        && let Some(inner) = error.get_ref()
    {
        return explain(inner);
    }
    if let Some(Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))) = error.downcast_ref::<Error>() {
        return format!("the peer's certificate is refused: {}", explain(inner.as_ref()));
    }
    match error.source() {
        Some(cause) => format!("{error}: {}", explain(cause)),
        None => error.to_string(),
    }
}

/// For servers: shows `identity`, takes only peers that `callers` admits. `alpn` in order of preference, e.g. `[b"h2"]`.
/// Sessions are never resumed: each connection proves its identity against the bundles of that moment.
pub fn server_config(
    identity: &SharedIdentity,
    bundles: &TrustBundles,
    callers: ExpectedId,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Setup)?
        .with_client_cert_verifier(verifier(bundles, callers))
        .with_cert_resolver(Arc::new(identity.clone()));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For clients: shows `identity`, takes only a server that `expected` admits. The server name given to rustls plays no
/// part in that; an address as the name sends no SNI.
pub fn client_config(
    identity: &SharedIdentity,
    bundles: &TrustBundles,
    expected: ExpectedId,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Setup)?
        .dangerous()
        .with_custom_certificate_verifier(verifier(bundles, expected))
        .with_client_cert_resolver(Arc::new(identity.clone()));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn verifier(bundles: &TrustBundles, expected: ExpectedId) -> Arc<PeerVerifier> {
    Arc::new(PeerVerifier { bundles: bundles.clone(), expected, provider: provider() })
}

/// One for all, passed explicitly: another crate's choice of a process default does not matter.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));
    PROVIDER.clone()
}
