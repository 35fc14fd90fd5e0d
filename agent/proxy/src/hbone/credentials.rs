//! The certificates in force: an identity for each workload that has an SVID, and whom to trust.
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use weft_certs::{ExpectedId, Identity, SharedIdentity, TlsError, TrustBundles, client_config, server_config};
use weft_identity::{SpiffeId, TrustDomain};
use weft_proxy_api::config::Svid;

const ALPN: &[&[u8]] = &[b"h2"];

/// Immutable: a change of any certificate makes a new value, and connections made under an old one are not reused.
pub struct Credentials {
    svids: Vec<Svid>,
    pem: BTreeMap<TrustDomain, String>,
    identities: HashMap<SpiffeId, SharedIdentity>,
    bundles: TrustBundles,
    /// Certificates that cannot be used; what needs them fails closed.
    pub problems: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("no valid SVID for {0}: has its certificate been issued?")]
    NoSvid(SpiffeId),
    #[error("TLS cannot be set up")]
    Tls(#[from] TlsError),
}

impl Credentials {
    pub fn empty() -> Self {
        Self {
            svids: Vec::new(),
            pem: BTreeMap::new(),
            identities: HashMap::new(),
            bundles: TrustBundles::default(),
            problems: Vec::new(),
        }
    }

    /// The same value as before where nothing has changed.
    pub fn next(before: &Arc<Self>, svids: &[Svid], pem: &BTreeMap<TrustDomain, String>) -> Arc<Self> {
        if before.svids == svids && before.pem == *pem {
            return before.clone();
        }
        Arc::new(Self::new(svids, pem))
    }

    fn new(svids: &[Svid], pem: &BTreeMap<TrustDomain, String>) -> Self {
        let mut new = Self::empty();
        new.svids = svids.to_vec();
        new.pem = pem.clone();
        let mut usable = Vec::new();
        for (domain, bundle) in pem {
            match TrustBundles::from_pem([(domain, bundle.as_str())]) {
                Ok(_) => usable.push((domain, bundle.as_str())),
                Err(error) => new.problems.push(weft_certs::explain(&error)),
            }
        }
        match TrustBundles::from_pem(usable) {
            Ok(bundles) => new.bundles = bundles,
            Err(error) => new.problems.push(weft_certs::explain(&error)),
        }
        for svid in svids {
            match Identity::from_pem(&svid.certificates, &svid.private_key) {
                Ok(identity) if *identity.spiffe_id() == svid.spiffe_id => {
                    new.identities.insert(svid.spiffe_id.clone(), SharedIdentity::new(identity));
                }
                Ok(identity) => {
                    let id = identity.spiffe_id();
                    new.problems.push(format!("SVID of {}: the certificate is of {id}", svid.spiffe_id));
                }
                Err(error) => {
                    new.problems.push(format!("SVID of {}: {}", svid.spiffe_id, weft_certs::explain(&error)));
                }
            }
        }
        new
    }

    pub fn trust_domains(&self) -> Vec<TrustDomain> {
        self.bundles.trust_domains()
    }

    /// To be `as_workload` towards a server that must be `expected`.
    pub fn client(
        &self,
        as_workload: &SpiffeId,
        expected: &SpiffeId,
    ) -> Result<Arc<rustls::ClientConfig>, CredentialsError> {
        let expected = ExpectedId::Exact(expected.clone());
        Ok(client_config(self.identity(as_workload)?, &self.bundles, expected, ALPN)?)
    }

    /// To be `as_workload` towards any client with a certificate of a trust domain that we know.
    pub fn server(&self, as_workload: &SpiffeId) -> Result<Arc<rustls::ServerConfig>, CredentialsError> {
        Ok(server_config(self.identity(as_workload)?, &self.bundles, ExpectedId::Known, ALPN)?)
    }

    /// Seconds until the first SVID ends; 0: one has ended. `None`: there is none.
    pub fn seconds_left(&self, now: SystemTime) -> Option<u64> {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        self.svids.iter().map(|svid| svid.not_after.saturating_sub(now)).min()
    }

    fn identity(&self, id: &SpiffeId) -> Result<&SharedIdentity, CredentialsError> {
        let valid = |identity: &&SharedIdentity| identity.load().not_after() > SystemTime::now();
        self.identities.get(id).filter(valid).ok_or_else(|| CredentialsError::NoSvid(id.clone()))
    }
}
