//! Keys, in the base64 form of `wg genkey` and `wg pubkey`.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use boringtun::x25519;
use serde::{Deserialize, Serialize};

const LEN: usize = 32;

/// What is not a key, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the key is not base64: make one with `weft` or `wg genkey`")]
    Encoding,
    #[error("the key has {0} bytes instead of 32: was it cut?")]
    Length(usize),
}

/// A node's secret. It has no way to be shown other than [`PrivateKey::to_base64`].
#[derive(Clone)]
pub struct PrivateKey(x25519::StaticSecret);

/// What other nodes know of a node's key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PublicKey([u8; LEN]);

impl PrivateKey {
    /// A new key from the system's random numbers.
    pub fn generate() -> Self {
        Self(rand::random::<[u8; LEN]>().into())
    }

    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.0).to_bytes())
    }

    /// For a file that only its owner can read.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0.to_bytes())
    }

    pub(crate) fn secret(&self) -> &x25519::StaticSecret {
        &self.0
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Ok(Self(decode(text)?.into()))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

impl PublicKey {
    pub(crate) fn from_bytes(bytes: [u8; LEN]) -> Self {
        Self(bytes)
    }

    pub(crate) fn to_x25519(self) -> x25519::PublicKey {
        self.0.into()
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn decode(text: &str) -> Result<[u8; LEN], KeyError> {
    let bytes = STANDARD.decode(text.trim()).map_err(|_| KeyError::Encoding)?;
    bytes.try_into().map_err(|bytes: Vec<u8>| KeyError::Length(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_base64() {
        let key = PrivateKey::generate();
        let again: PrivateKey = key.to_base64().parse().expect("our own encoding");
        assert_eq!(again.public_key(), key.public_key());
        assert_eq!(key.public_key().to_string().parse(), Ok(key.public_key()));
    }

    #[test]
    fn the_public_key_is_that_of_the_wireguard_tools() {
        let key: PrivateKey = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=".parse().expect("a key");
        assert_eq!(key.public_key().to_string(), "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=");
    }

    #[test]
    fn what_is_not_a_key_is_named() {
        assert_eq!("?".parse::<PublicKey>(), Err(KeyError::Encoding));
        assert_eq!("AAAA".parse::<PublicKey>(), Err(KeyError::Length(3)));
    }

    #[test]
    fn a_private_key_is_not_shown_in_logs() {
        assert_eq!(format!("{:?}", PrivateKey::generate()), "PrivateKey(..)");
    }
}
