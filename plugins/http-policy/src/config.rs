//! The plugin's configuration, as JSON.
use serde::Deserialize;
use std::collections::BTreeMap;
use thiserror::Error;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// 200 to 599
    #[serde(default = "default_status")]
    pub deny_status: u16,
    #[serde(default = "default_body")]
    pub deny_body: String,
    /// Rules by the id that the proxy names for a request.
    #[serde(default)]
    pub sets: BTreeMap<String, Vec<RuleConfig>>,
}

/// All that is given must match. Regular expressions must match the whole text.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// Of which policy it is, for flow events.
    #[serde(default)]
    pub policy: String,
    pub method: Option<String>,
    /// Against the path with its query.
    pub path: Option<String>,
    /// Against the authority, with or without its port.
    pub host: Option<String>,
    /// `Name: value`, or `Name` alone: present.
    #[serde(default)]
    pub headers: Vec<String>,
}

#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("the configuration is not what http-policy understands: {0}")]
    Json(#[from] serde_json::Error),
    #[error("deny_status is {0}; it must be from 200 to 599")]
    Status(u16),
}

impl Config {
    /// An empty configuration has no rules, so that every request is denied.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let json: &[u8] = if json.is_empty() { b"{}" } else { json };
        let config: Self = serde_json::from_slice(json)?;
        if (200..600).contains(&config.deny_status) { Ok(config) } else { Err(ConfigError::Status(config.deny_status)) }
    }
}

fn default_status() -> u16 {
    403
}

fn default_body() -> String {
    "Access denied\n".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_has_its_default() {
        let config = Config::parse(b"").unwrap();
        assert_eq!((config.deny_status, config.deny_body.as_str(), config.sets.len()), (403, "Access denied\n", 0));
    }

    #[test]
    fn a_wrong_configuration_is_named() {
        let unknown = Config::parse(br#"{"sets":{"a":[{"pth":"/"}]}}"#).unwrap_err().to_string();
        assert!(unknown.contains("unknown field `pth`"), "{unknown}");
        assert!(matches!(Config::parse(br#"{"deny_status":99}"#), Err(ConfigError::Status(99))));
    }
}
