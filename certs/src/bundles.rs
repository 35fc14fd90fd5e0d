//! The roots of every trust domain that we know, replaced as a whole while connections are made.
use crate::{TlsError, tls::provider};
use arc_swap::ArcSwap;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use std::{collections::BTreeMap, fmt, sync::Arc};
use weft_identity::TrustDomain;

/// Cheap to clone; every clone sees a replacement.
#[derive(Clone, Default)]
pub struct TrustBundles(Arc<ArcSwap<BTreeMap<TrustDomain, Arc<Roots>>>>);

pub(crate) struct Roots {
    pub store: Arc<RootCertStore>,
    pub clients: Arc<dyn ClientCertVerifier>,
}

impl TrustBundles {
    /// `bundles`: PEM certificates of each trust domain's CA.
    pub fn from_pem<'a>(bundles: impl IntoIterator<Item = (&'a TrustDomain, &'a str)>) -> Result<Self, TlsError> {
        let new = Self::default();
        new.replace(bundles)?;
        Ok(new)
    }

    /// Takes the place of all that was known. On error nothing changes. Handshakes from now on use it; connections that
    /// stand are not ended.
    pub fn replace<'a>(&self, bundles: impl IntoIterator<Item = (&'a TrustDomain, &'a str)>) -> Result<(), TlsError> {
        let parsed = bundles
            .into_iter()
            .map(|(domain, pem)| Ok((domain.clone(), Arc::new(Roots::parse(domain, pem)?))))
            .collect::<Result<_, TlsError>>()?;
        self.0.store(Arc::new(parsed));
        Ok(())
    }

    pub fn trust_domains(&self) -> Vec<TrustDomain> {
        self.load().keys().cloned().collect()
    }

    pub(crate) fn load(&self) -> Arc<BTreeMap<TrustDomain, Arc<Roots>>> {
        self.0.load_full()
    }
}

impl Roots {
    fn parse(domain: &TrustDomain, pem: &str) -> Result<Self, TlsError> {
        let wrong = |reason: String| TlsError::Bundle { domain: domain.clone(), reason };
        let mut store = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            store.add(certificate.map_err(|e| wrong(e.to_string()))?).map_err(|e| wrong(e.to_string()))?;
        }
        if store.is_empty() {
            return Err(wrong("it holds no PEM certificate".to_owned()));
        }
        let store = Arc::new(store);
        let clients = WebPkiClientVerifier::builder_with_provider(store.clone(), provider())
            .build()
            .map_err(|e| wrong(e.to_string()))?;
        Ok(Self { store, clients })
    }
}

impl fmt::Debug for TrustBundles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TrustBundles").field(&self.trust_domains()).finish()
    }
}
