//! Who is at the other end: the one SPIFFE ID in a peer's certificate, and whether it is the one that was expected.
use crate::{TlsError, bundles::TrustBundles};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use std::{
    collections::BTreeSet,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};
use weft_identity::{SpiffeId, TrustDomain};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, time::ASN1Time};

/// Which peers are taken, among those whose certificate is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpectedId {
    Exact(SpiffeId),
    AnyOf(BTreeSet<SpiffeId>),
    TrustDomainMember(TrustDomain),
    /// This service account in any trust domain that we know.
    ServiceAccount {
        namespace: String,
        service_account: String,
    },
    /// Any workload of any trust domain that we know: somebody else judges the identity.
    Known,
}

impl ExpectedId {
    pub fn admits(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exact(expected) => id == expected,
            Self::AnyOf(expected) => expected.contains(id),
            Self::TrustDomainMember(domain) => id.trust_domain() == domain,
            Self::ServiceAccount { namespace, service_account } => {
                id.namespace() == namespace && id.service_account() == service_account
            }
            Self::Known => true,
        }
    }
}

impl fmt::Display for ExpectedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(id) => id.fmt(f),
            Self::AnyOf(ids) => write!(f, "one of {} identities", ids.len()),
            Self::TrustDomainMember(domain) => write!(f, "a workload of trust domain {domain}"),
            Self::ServiceAccount { namespace, service_account } => {
                write!(f, "service account {namespace}/{service_account}")
            }
            Self::Known => f.write_str("any known workload"),
        }
    }
}

/// The SPIFFE ID of a peer, from its certificates as rustls shows them (leaf first). It reads, it does not verify:
/// call it after a handshake.
pub fn peer_spiffe_id(certificates: &[CertificateDer<'_>]) -> Result<SpiffeId, TlsError> {
    spiffe_id_of(certificates.first().ok_or(TlsError::NoPeerCertificate)?)
}

fn spiffe_id_of(leaf: &CertificateDer<'_>) -> Result<SpiffeId, TlsError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf).map_err(|_| TlsError::NotACertificate)?;
    match uris(&certificate)[..] {
        [uri] => uri.parse().map_err(TlsError::PeerId),
        ref uris => Err(TlsError::PeerNames(uris.len())),
    }
}

/// The URIs among its alternative names.
pub(crate) fn uris<'a>(certificate: &'a X509Certificate<'_>) -> Vec<&'a str> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return vec![] };
    let uri = |name: &'a GeneralName<'_>| if let GeneralName::URI(uri) = name { Some(*uri) } else { None };
    names.value.general_names.iter().filter_map(uri).collect()
}

pub(crate) fn system_time(time: ASN1Time) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.timestamp().max(0).unsigned_abs())
}

/// Verifies servers and clients alike.
#[derive(Debug)]
pub(crate) struct PeerVerifier {
    pub bundles: TrustBundles,
    pub expected: ExpectedId,
    pub provider: Arc<CryptoProvider>,
}

impl PeerVerifier {
    /// Judges the name last, so that a wrong name is told only of a peer that proved it.
    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        verify_chain: impl FnOnce(&crate::bundles::Roots) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let id = spiffe_id_of(leaf).map_err(refused)?;
        let bundles = self.bundles.load();
        let roots = bundles
            .get(id.trust_domain())
            .ok_or_else(|| refused(TlsError::UnknownTrustDomain(id.trust_domain().clone())))?;
        verify_chain(roots)?;
        if self.expected.admits(&id) {
            Ok(())
        } else {
            Err(refused(TlsError::UnexpectedPeer { found: Box::new(id), expected: Box::new(self.expected.clone()) }))
        }
    }
}

fn refused(error: TlsError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(leaf, |roots| {
            let parsed = ParsedCertificate::try_from(leaf)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, &roots.store, intermediates, now, algorithms)
        })?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    /// None: peers choose their certificate without hints, and ours would tell which clusters we know.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(leaf, |roots| roots.clients.verify_client_cert(leaf, intermediates, now).map(|_| ()))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}
