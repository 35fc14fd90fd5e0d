//! `cilium/state/ip/v1/default/<ip>`: who has an address.
use super::{ValueError, from_json, null_is_empty, routable, same, to_json};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AddressValue {
    #[serde(rename = "IP", deserialize_with = "null_is_empty")]
    pub ip: String,
    /// Base64 of a Go net mask where the entry is a CIDR; null for a pod.
    pub mask: Option<String>,
    #[serde(rename = "HostIP", deserialize_with = "null_is_empty")]
    pub host_ip: String,
    #[serde(rename = "ID")]
    pub id: u32,
    pub key: u8,
    #[serde(deserialize_with = "null_is_empty")]
    pub metadata: String,
    #[serde(rename = "K8sNamespace", skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(rename = "K8sPodName", skip_serializing_if = "String::is_empty")]
    pub pod: String,
    #[serde(rename = "K8sServiceAccount", skip_serializing_if = "String::is_empty")]
    pub service_account: String,
}

impl AddressValue {
    /// `address`: as the key has it.
    pub fn read(value: &[u8], address: IpAddr) -> Result<Self, ValueError> {
        let value: Self = from_json(value)?;
        match value.ip.parse::<IpAddr>() {
            Ok(ip) if ip == address => routable(ip)?,
            _ => return Err(same("IP", &value.ip, &address.to_string()).err().unwrap_or(ValueError::Address(address))),
        };
        Ok(value)
    }

    pub fn to_bytes(&self) -> Bytes {
        to_json(self)
    }

    /// The node's InternalIP, where it is said and makes sense.
    pub fn node_ip(&self) -> Option<IpAddr> {
        self.host_ip.parse().ok().and_then(|ip| routable(ip).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_entry_as_cilium_writes_it() {
        let text = r#"{"IP":"10.244.1.7","Mask":null,"HostIP":"172.18.0.3","ID":218566,"Key":0,"Metadata":"","K8sNamespace":"foo","K8sPodName":"web-1","K8sServiceAccount":"web","NamedPorts":[{"Name":"http","Port":80,"Protocol":"TCP"}]}"#;
        let value = AddressValue::read(text.as_bytes(), "10.244.1.7".parse().unwrap()).unwrap();
        assert_eq!((value.id, value.pod.as_str(), value.service_account.as_str()), (218_566, "web-1", "web"));
        assert_eq!(value.node_ip(), Some("172.18.0.3".parse().unwrap()));
        let error = AddressValue::read(text.as_bytes(), "10.244.1.8".parse().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), r#"IP is "10.244.1.7", but the key says "10.244.1.8""#);
    }

    #[test]
    fn a_peer_cannot_claim_our_loopback() {
        let text = br#"{"IP":"127.0.0.1"}"#;
        let loopback = "127.0.0.1".parse().unwrap();
        assert_eq!(AddressValue::read(text, loopback), Err(ValueError::Address(loopback)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_entry_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = AddressValue::read(&bytes, IpAddr::from([10, 0, 0, 1]));
        }

        #[test]
        fn an_entry_reads_back_as_written(ip: [u8; 3], id: u32, pod in "[a-z0-9-]{0,20}", account in "[a-z]{0,9}") {
            let ip = IpAddr::from([10, ip[0], ip[1], ip[2]]);
            let value = AddressValue { ip: ip.to_string(), id, pod, service_account: account, ..Default::default() };
            prop_assert_eq!(AddressValue::read(&value.to_bytes(), ip).unwrap(), value);
        }
    }
}
