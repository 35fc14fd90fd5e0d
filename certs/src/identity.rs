//! The certificate that we show, replaced under running configurations.
use crate::{Svid, TlsError, peer_spiffe_id, tls::provider};
use arc_swap::ArcSwap;
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{fmt, sync::Arc, time::SystemTime};
use weft_identity::SpiffeId;

/// A certificate chain with its key, ready for handshakes.
#[derive(Clone)]
pub struct Identity {
    spiffe_id: SpiffeId,
    not_after: SystemTime,
    key: Arc<CertifiedKey>,
}

impl Identity {
    /// `certificates`: leaf first; `private_key`: PKCS#8. Both PEM.
    pub fn from_pem(certificates: &str, private_key: &str) -> Result<Self, TlsError> {
        let wrong = |e: rustls::pki_types::pem::Error| TlsError::OwnPem(e.to_string());
        let chain =
            CertificateDer::pem_slice_iter(certificates.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
        let key = PrivateKeyDer::from_pem_slice(private_key.as_bytes()).map_err(wrong)?;
        let spiffe_id = peer_spiffe_id(&chain)?;
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).map_err(|_| TlsError::NotACertificate)?;
        let not_after = crate::peer::system_time(leaf.validity().not_after);
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(TlsError::OwnKey)?;
        Ok(Self { spiffe_id, not_after, key: Arc::new(key) })
    }

    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

impl TryFrom<&Svid> for Identity {
    type Error = TlsError;
    fn try_from(svid: &Svid) -> Result<Self, TlsError> {
        Self::from_pem(&svid.certificates_pem, &svid.private_key_pem)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("spiffe_id", &self.spiffe_id)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Cheap to clone; handshakes use what was put in last.
#[derive(Clone, Debug)]
pub struct SharedIdentity(Arc<ArcSwap<Identity>>);

impl SharedIdentity {
    pub fn new(identity: Identity) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(identity)))
    }

    pub fn replace(&self, identity: Identity) {
        self.0.store(Arc::new(identity));
    }

    pub fn load(&self) -> Arc<Identity> {
        self.0.load_full()
    }
}

impl ResolvesServerCert for SharedIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.load().key.clone())
    }
}

impl ResolvesClientCert for SharedIdentity {
    fn resolve(&self, _root_hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.load().key.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
