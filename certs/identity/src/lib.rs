//! SPIFFE names: trust domains and workload IDs (SPIFFE-ID specification, sections 2 and 3). Pure.
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Lower-case letters, digits, dots, dashes and underscores; at most 255 bytes (SPIFFE-ID, 2.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(String);

impl TrustDomain {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    #[error("trust domain {0:?}: want 1 to 255 of a-z, 0-9, '.', '-', '_'")]
    TrustDomain(String),
    #[error("{0:?} is not a SPIFFE ID of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")]
    Id(String),
}

impl TryFrom<String> for TrustDomain {
    type Error = SpiffeError;
    fn try_from(name: String) -> Result<Self, SpiffeError> {
        let fits = (1..=255).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b));
        if fits { Ok(Self(name)) } else { Err(SpiffeError::TrustDomain(name)) }
    }
}
impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.0
    }
}
impl FromStr for TrustDomain {
    type Err = SpiffeError;
    fn from_str(name: &str) -> Result<Self, SpiffeError> {
        Self::try_from(name.to_owned())
    }
}
impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    namespace: String,
    service_account: String,
}

impl SpiffeId {
    pub fn new(trust_domain: TrustDomain, namespace: impl Into<String>, service_account: impl Into<String>) -> Self {
        Self { trust_domain, namespace: namespace.into(), service_account: service_account.into() }
    }
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;
    fn from_str(id: &str) -> Result<Self, SpiffeError> {
        let wrong = || SpiffeError::Id(id.to_owned());
        let segment = |s: &str| {
            !s.is_empty()
                && s != "."
                && s != ".."
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
        };
        let rest = id.strip_prefix("spiffe://").ok_or_else(wrong)?;
        let [domain, "ns", namespace, "sa", account] = rest.split('/').collect::<Vec<_>>()[..] else {
            return Err(wrong());
        };
        if id.len() > 2048 || !segment(namespace) || !segment(account) {
            return Err(wrong());
        }
        Ok(Self::new(domain.parse()?, namespace, account))
    }
}
impl TryFrom<String> for SpiffeId {
    type Error = SpiffeError;
    fn try_from(id: String) -> Result<Self, SpiffeError> {
        id.parse()
    }
}
impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_workload_form_is_an_id() {
        for wrong in [
            "",
            "spiffe://a",
            "spiffe://a/ns/x/sa/",
            "spiffe://A/ns/x/sa/y",
            "spiffe://a/ns/../sa/y",
            "https://a/ns/x/sa/y",
            "spiffe://a/ns/x/sa/y/z",
        ] {
            assert!(wrong.parse::<SpiffeId>().is_err(), "{wrong}");
        }
        let id: SpiffeId = "spiffe://east.example/ns/shop/sa/frontend".parse().unwrap();
        assert_eq!(
            (id.trust_domain().as_str(), id.namespace(), id.service_account()),
            ("east.example", "shop", "frontend")
        );
    }

    proptest! {
        #[test]
        fn an_id_reads_back_as_written(domain in "[a-z0-9._-]{1,20}", ns in "[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", sa in "[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?") {
            let id = SpiffeId::new(domain.parse().unwrap(), ns, sa);
            prop_assert_eq!(id.to_string().parse::<SpiffeId>().unwrap(), id);
        }
    }
}
