//! Joining two clusters where nobody has access to both: a short text that is carried from one side to the other by hand.
//!
//! One side issues it; the other redeems it, which tells the issuer who it is, once and soon. The text holds the issuer's
//! `ConnectInfo` and a random secret that proves the right to answer; the issuer keeps only the secret's hash. No private
//! key is in it, and after it was redeemed or has ended it is worth nothing.
use crate::core::connect::ConnectInfo;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub const TOKEN_LIFETIME: Duration = Duration::from_secs(15 * 60);
/// Tokens that may wait to be redeemed.
pub const MAX_ISSUED: usize = 64;
const PREFIX: &str = "weft-mesh-1.";
const MAX_TEXT: usize = 64 << 10;

/// Not shown by `Debug`: who has it can join the mesh.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    pub issuer: ConnectInfo,
    /// Seconds since the epoch, by the issuer's clock.
    pub not_after: u64,
    secret: [u8; 32],
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("this is not a mesh token: copy all of what `weft mesh token issue` printed")]
    Text,
    #[error("the token has ended: tokens live {} minutes; issue a new one", TOKEN_LIFETIME.as_secs() / 60)]
    Ended,
    #[error("the token was not issued here, or was used before: issue a new one")]
    Unknown,
    #[error("{MAX_ISSUED} tokens wait to be redeemed: wait until some have ended")]
    TooMany,
}

impl Token {
    pub fn encode(&self) -> String {
        // A token is plain fields: JSON has nothing to refuse.
        let json = serde_json::to_vec(self).unwrap_or_default();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }

    pub fn decode(text: &str) -> Result<Self, TokenError> {
        let text = text.trim().strip_prefix(PREFIX).filter(|text| text.len() <= MAX_TEXT).ok_or(TokenError::Text)?;
        let json = URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Text)?;
        serde_json::from_slice(&json).map_err(|_| TokenError::Text)
    }

    /// What the redeemer sends to the issuer beside its own `ConnectInfo`.
    pub fn proof(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.secret)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("issuer", &self.issuer.cluster).finish_non_exhaustive()
    }
}

/// The issuer's memory: hashes, and when they end.
#[derive(Clone, Debug, Default)]
pub struct IssuedTokens(Vec<([u8; 32], u64)>);

impl IssuedTokens {
    pub fn issue(&mut self, issuer: ConnectInfo, now: SystemTime) -> Result<Token, TokenError> {
        self.forget_ended(now);
        if self.0.len() >= MAX_ISSUED {
            return Err(TokenError::TooMany);
        }
        let token = Token { issuer, not_after: seconds(now + TOKEN_LIFETIME), secret: rand::random() };
        self.0.push((Sha256::digest(token.secret).into(), token.not_after));
        Ok(token)
    }

    /// Uses the token up. The hash is what is compared, so the time that takes tells nothing of the secret.
    pub fn redeem(&mut self, proof: &str, now: SystemTime) -> Result<(), TokenError> {
        let secret = URL_SAFE_NO_PAD.decode(proof.trim()).map_err(|_| TokenError::Unknown)?;
        let hash: [u8; 32] = Sha256::digest(secret).into();
        let found = self.0.iter().position(|(known, _)| *known == hash).ok_or(TokenError::Unknown)?;
        let (_, not_after) = self.0.swap_remove(found);
        if seconds(now) >= not_after { Err(TokenError::Ended) } else { Ok(()) }
    }

    fn forget_ended(&mut self, now: SystemTime) {
        self.0.retain(|(_, not_after)| seconds(now) < *not_after);
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weft_model::types::ClusterName;

    fn issuer() -> ConnectInfo {
        ConnectInfo {
            cluster: ClusterName::try_from("east".to_owned()).unwrap(),
            cluster_id: 1,
            trust_domain: "east.example".parse().unwrap(),
            trust_bundle_pem: "-----BEGIN CERTIFICATE-----".into(),
            endpoints: vec!["192.0.2.1:2379".into()],
        }
    }

    #[test]
    fn a_token_is_redeemed_once_and_soon() {
        let (mut issued, now) = (IssuedTokens::default(), SystemTime::now());
        let token = issued.issue(issuer(), now).unwrap();
        let carried = Token::decode(&format!(" {}\n", token.encode())).unwrap();
        assert_eq!(carried, token);
        assert_eq!(issued.redeem("AAAA", now), Err(TokenError::Unknown));
        assert_eq!(issued.redeem(&carried.proof(), now), Ok(()));
        assert_eq!(issued.redeem(&carried.proof(), now), Err(TokenError::Unknown));

        let late = issued.issue(issuer(), now).unwrap();
        assert_eq!(issued.redeem(&late.proof(), now + TOKEN_LIFETIME), Err(TokenError::Ended));
    }

    #[test]
    fn tokens_that_wait_are_bounded_and_those_that_ended_make_room() {
        let (mut issued, now) = (IssuedTokens::default(), SystemTime::now());
        for _ in 0..MAX_ISSUED {
            issued.issue(issuer(), now).unwrap();
        }
        assert_eq!(issued.issue(issuer(), now), Err(TokenError::TooMany));
        issued.issue(issuer(), now + TOKEN_LIFETIME).unwrap();
    }

    #[test]
    fn neither_debug_nor_the_issuers_memory_shows_the_secret() {
        let mut issued = IssuedTokens::default();
        let token = issued.issue(issuer(), SystemTime::now()).unwrap();
        assert_eq!(format!("{token:?}"), r#"Token { issuer: ClusterName("east"), .. }"#);
        assert!(issued.0.iter().all(|(hash, _)| *hash != token.secret));
    }

    proptest! {
        #[test]
        fn any_text_is_a_token_or_not(text in ".{0,100}") {
            let _ = Token::decode(&text);
            let prefixed = format!("{PREFIX}{text}");
            prop_assert!(Token::decode(&prefixed).is_err());
        }
    }
}
