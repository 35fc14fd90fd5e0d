//! The cluster's own CA: an ECDSA P-256 key and certificate in a folder that only its owner may read.
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::{
    fmt, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use weft_identity::{SpiffeId, TrustDomain};

mod files;

pub const KEY_FILE: &str = "ca.key";
pub const CERTIFICATE_FILE: &str = "ca.crt";
/// Of a workload's certificate, unless the caller says otherwise.
pub const SVID_LIFETIME: Duration = Duration::from_secs(24 * 3600);
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Peers' clocks may be this far behind ours.
const SKEW: Duration = Duration::from_secs(60);

/// Signs the certificates of one trust domain. The key stays inside.
pub struct ClusterCa {
    trust_domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    not_after: SystemTime,
}

/// An X.509-SVID with its private key. `Debug` does not show the key.
#[derive(Clone, PartialEq, Eq)]
pub struct Svid {
    pub spiffe_id: SpiffeId,
    /// PEM, leaf first.
    pub certificates_pem: String,
    /// PEM, PKCS#8.
    pub private_key_pem: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("{path}: cannot be {action}")]
    File {
        path: PathBuf,
        action: &'static str,
        #[source]
        cause: io::Error,
    },
    #[error("{path} may be read or changed by others (mode {mode:04o}): run `chmod {wanted:04o} {path}`")]
    Permissions { path: PathBuf, mode: u32, wanted: u32 },
    #[error("{path} has no {KEY_FILE} beside it: restore the key, or remove the certificate to make a new CA")]
    KeyMissing { path: PathBuf },
    #[error(
        "{path} is not usable as the cluster's CA ({reason}): restore it, or remove {KEY_FILE} and {CERTIFICATE_FILE} to make a new CA"
    )]
    Unusable { path: PathBuf, reason: String },
    #[error(
        "{path} is the CA of trust domain {found}, but this cluster's is {wanted}: set the trust domain to {found} or use another folder"
    )]
    OtherTrustDomain { path: PathBuf, found: String, wanted: TrustDomain },
    #[error("cannot make a certificate for {name}")]
    Issue {
        name: String,
        #[source]
        cause: rcgen::Error,
    },
    #[error("cannot make a certificate for {id}: this CA is of trust domain {ours}")]
    ForeignId { id: SpiffeId, ours: TrustDomain },
    #[error("the cluster's CA certificate has ended: remove {KEY_FILE} and {CERTIFICATE_FILE} to make a new CA")]
    Ended,
}

impl ClusterCa {
    /// Reads the CA in `dir`, or makes folder and CA where there is none. Processes that start at once agree on one CA.
    pub fn load_or_create(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        let (key_pem, certificate_pem) = files::load_or_create(
            dir,
            || {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
                    .map_err(|cause| CaError::Issue { name: trust_domain.to_string(), cause })?;
                Ok(key.serialize_pem())
            },
            |key_pem| {
                let key = parse_key(&dir.join(KEY_FILE), key_pem)?;
                self_signed(trust_domain, &key, SystemTime::now())
                    .map_err(|cause| CaError::Issue { name: trust_domain.to_string(), cause })
            },
        )?;
        Self::from_pem(dir, trust_domain, &key_pem, certificate_pem)
    }

    fn from_pem(
        dir: &Path,
        trust_domain: &TrustDomain,
        key_pem: &str,
        certificate_pem: String,
    ) -> Result<Self, CaError> {
        let path = dir.join(CERTIFICATE_FILE);
        let unusable = |reason: &dyn fmt::Display| CaError::Unusable { path: path.clone(), reason: reason.to_string() };
        let key = parse_key(&dir.join(KEY_FILE), key_pem)?;
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|e| unusable(&e))?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).map_err(|e| unusable(&e))?;
        if certificate.public_key().raw != key.subject_public_key_info() {
            return Err(unusable(&format_args!("{KEY_FILE} is the key of another certificate")));
        }
        if !certificate.is_ca() {
            return Err(unusable(&"it is not a CA certificate"));
        }
        // An operator's own CA may have no SPIFFE name; one that has another's is a mix-up of folders.
        if let Some(found) = crate::peer::uris(&certificate).into_iter().find_map(|uri| uri.strip_prefix("spiffe://"))
            && found != trust_domain.as_str()
        {
            return Err(CaError::OtherTrustDomain { found: found.to_owned(), wanted: trust_domain.clone(), path });
        }
        let not_after = crate::peer::system_time(certificate.validity().not_after);
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| unusable(&e))?;
        Ok(Self { trust_domain: trust_domain.clone(), issuer, certificate_pem, not_after })
    }

    /// The CA of `other` under another name: what a hostile but trusted cluster could sign with.
    #[cfg(test)]
    pub(crate) fn forged(other: &Self, trust_domain: &TrustDomain) -> Self {
        let key = KeyPair::from_pem(&other.issuer.key().serialize_pem()).expect("a key that was loaded before");
        let issuer =
            Issuer::from_ca_cert_pem(&other.certificate_pem, key).expect("a certificate that was loaded before");
        let (certificate_pem, not_after) = (other.certificate_pem.clone(), other.not_after);
        Self { trust_domain: trust_domain.clone(), issuer, certificate_pem, not_after }
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// What others need to verify this CA's certificates: PEM, no key.
    pub fn bundle_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A workload's SVID: the SPIFFE ID is its only name. It starts a minute before `now`, for clocks that are behind,
    /// and ends `ttl` after `now` or with the CA.
    pub fn issue(&self, id: &SpiffeId, ttl: Duration, now: SystemTime) -> Result<Svid, CaError> {
        self.sign(id, None, vec![], ttl, now)
    }

    /// As `issue`, with a common name, DNS names and addresses for clients that know servers by these.
    pub fn issue_server(
        &self,
        id: &SpiffeId,
        common_name: &str,
        dns_names: &[&str],
        addresses: &[IpAddr],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Svid, CaError> {
        let failed = |cause| CaError::Issue { name: id.to_string(), cause };
        let mut names = Vec::with_capacity(dns_names.len() + addresses.len());
        for &name in dns_names {
            names.push(SanType::DnsName(name.try_into().map_err(failed)?));
        }
        names.extend(addresses.iter().map(|&addr| SanType::IpAddress(addr)));
        self.sign(id, Some(common_name), names, ttl, now)
    }

    fn sign(
        &self,
        id: &SpiffeId,
        common_name: Option<&str>,
        names: Vec<SanType>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Svid, CaError> {
        if *id.trust_domain() != self.trust_domain {
            return Err(CaError::ForeignId { id: id.clone(), ours: self.trust_domain.clone() });
        }
        let (not_before, not_after) = (now - SKEW, (now + ttl).min(self.not_after));
        if not_after <= now {
            return Err(CaError::Ended);
        }
        let failed = |cause| CaError::Issue { name: id.to_string(), cause };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = parameters(common_name, not_before, not_after);
        params.subject_alt_names = names;
        params.subject_alt_names.push(SanType::URI(id.to_string().try_into().map_err(failed)?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Svid {
            spiffe_id: id.clone(),
            certificates_pem: certificate.pem(),
            private_key_pem: key.serialize_pem(),
            not_before,
            not_after,
        })
    }
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterCa").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("spiffe_id", &self.spiffe_id)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn parse_key(path: &Path, pem: &str) -> Result<KeyPair, CaError> {
    KeyPair::from_pem(pem).map_err(|e| CaError::Unusable { path: path.to_owned(), reason: e.to_string() })
}

fn parameters(common_name: Option<&str>, not_before: SystemTime, not_after: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(name) = common_name {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    params
}

fn self_signed(trust_domain: &TrustDomain, key: &KeyPair, now: SystemTime) -> Result<String, rcgen::Error> {
    let mut params = parameters(Some(&format!("Weft CA of {trust_domain}")), now - SKEW, now + CA_LIFETIME);
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params.self_signed(key)?.pem())
}
