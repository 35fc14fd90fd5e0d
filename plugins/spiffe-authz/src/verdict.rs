//! Which peers may connect.
use serde::Deserialize;
use weft_identity::{SpiffeId, TrustDomain};

/// The plugin's configuration, as JSON.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Peers of these may connect; with none, nobody may.
    #[serde(default)]
    pub trust_domains: Vec<TrustDomain>,
}

impl Config {
    /// Nothing at all is a configuration without trust domains.
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(if json.is_empty() { b"{}" } else { json })
    }

    /// `peer` is what the certificate says, `expected` the identity that the connection is for, empty for any.
    /// The error is the reason, for people.
    pub fn judge(&self, peer: Option<&[u8]>, expected: Option<&[u8]>) -> Result<SpiffeId, String> {
        let peer = match peer {
            Some(peer) if !peer.is_empty() => {
                parse(peer).map_err(|reason| format!("no valid SPIFFE identity: {reason}"))?
            }
            _ => return Err("no valid SPIFFE identity: the peer showed none".to_owned()),
        };
        if !self.trust_domains.contains(peer.trust_domain()) {
            return Err(format!("trust domain {} is not trusted here", peer.trust_domain()));
        }
        if let Some(expected) = expected.filter(|expected| !expected.is_empty()) {
            let expected = parse(expected).map_err(|reason| format!("the expected identity is not valid: {reason}"))?;
            if peer != expected {
                return Err(format!("the peer is {peer}, not {expected}"));
            }
        }
        Ok(peer)
    }
}

fn parse(id: &[u8]) -> Result<SpiffeId, String> {
    let id = std::str::from_utf8(id).map_err(|_| "it is not text".to_owned())?;
    id.parse().map_err(|error: weft_identity::SpiffeError| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRONTEND: &[u8] = b"spiffe://east.example/ns/shop/sa/frontend";
    const BACKEND: &[u8] = b"spiffe://east.example/ns/shop/sa/backend";

    fn config() -> Config {
        Config::parse(br#"{"trust_domains":["east.example","west.example"]}"#).unwrap()
    }

    #[test]
    fn a_peer_of_a_trusted_domain_may_connect() {
        assert!(config().judge(Some(FRONTEND), None).is_ok());
        assert!(config().judge(Some(FRONTEND), Some(b"")).is_ok());
        assert!(config().judge(Some(b"spiffe://west.example/ns/a/sa/b"), None).is_ok());
    }

    #[test]
    fn a_peer_without_a_valid_identity_is_refused() {
        for peer in
            [None, Some(&b""[..]), Some(b"frontend"), Some(b"\xff"), Some(b"https://east.example/ns/shop/sa/frontend")]
        {
            assert!(config().judge(peer, None).unwrap_err().starts_with("no valid SPIFFE identity"), "{peer:?}");
        }
    }

    #[test]
    fn a_peer_of_another_domain_is_refused() {
        for peer in [&b"spiffe://north.example/ns/a/sa/b"[..], b"spiffe://east.example.evil/ns/a/sa/b"] {
            assert!(config().judge(Some(peer), None).unwrap_err().ends_with("is not trusted here"));
        }
        assert!(Config::parse(b"").unwrap().judge(Some(FRONTEND), None).is_err());
    }

    #[test]
    fn the_expected_identity_must_be_the_peers() {
        assert!(config().judge(Some(FRONTEND), Some(FRONTEND)).is_ok());
        let reason = config().judge(Some(FRONTEND), Some(BACKEND)).unwrap_err();
        assert_eq!(
            reason,
            "the peer is spiffe://east.example/ns/shop/sa/frontend, not spiffe://east.example/ns/shop/sa/backend"
        );
        assert!(config().judge(Some(FRONTEND), Some(b"nonsense")).is_err());
    }

    #[test]
    fn a_wrong_configuration_is_an_error() {
        assert!(Config::parse(br#"{"trust_domain":["a"]}"#).is_err());
        assert!(Config::parse(br#"{"trust_domains":["Not A Domain"]}"#).is_err());
    }
}
