//! Services: Cilium's form, which knows only backends that are ready, and ours, which carries their conditions so that
//! connections can end gracefully across clusters.
use super::{ValueError, from_json, null_is_empty, routable, same, to_json};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};
use weft_model::types::{Backend, ClusterName, Labels, ObjectName, Protocol};

/// Address, then port name.
pub type PortsByAddress = BTreeMap<IpAddr, BTreeMap<String, PortValue>>;

/// `cilium/state/services/v1/<cluster>/<namespace>/<name>`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceValue {
    pub cluster: String,
    pub namespace: String,
    pub name: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub frontends: PortsByAddress,
    #[serde(deserialize_with = "null_is_empty")]
    pub backends: PortsByAddress,
    #[serde(deserialize_with = "null_is_empty")]
    pub labels: Labels,
    #[serde(deserialize_with = "null_is_empty")]
    pub selector: Labels,
    pub include_external: bool,
    pub shared: bool,
    #[serde(rename = "clusterID")]
    pub cluster_id: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PortValue {
    pub protocol: Protocol,
    pub port: u16,
}

impl ServiceValue {
    pub fn read(value: &[u8], cluster: &ClusterName, name: &ObjectName) -> Result<Self, ValueError> {
        let value: Self = from_json(value)?;
        same("cluster", &value.cluster, cluster.as_str())?;
        same("namespace", &value.namespace, &name.namespace)?;
        same("name", &value.name, &name.name)?;
        for (&addr, ports) in &value.backends {
            routable(addr)?;
            ports.values().try_for_each(|port| check_port(port.port, port.protocol))?;
        }
        Ok(value)
    }

    pub fn to_bytes(&self) -> Bytes {
        to_json(self)
    }

    /// Ready, all of them: this form has no other condition.
    pub fn backends(&self, cluster: &ClusterName) -> Vec<Backend> {
        let of = |(&addr, ports): (&IpAddr, &BTreeMap<String, PortValue>)| {
            let backend = move |(name, port): (&String, &PortValue)| Backend {
                addr,
                port: port.port,
                protocol: port.protocol,
                port_name: name.clone(),
                cluster: cluster.clone(),
                node: None,
                pod: None,
                ready: true,
                serving: true,
                terminating: false,
            };
            ports.iter().map(backend).collect::<Vec<_>>()
        };
        self.backends.iter().flat_map(of).collect()
    }
}

/// `weft/state/services/v1/<cluster>/<namespace>/<name>`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WeftServiceValue {
    pub shared: bool,
    pub backends: Vec<WeftBackend>,
}

/// A backend without its cluster, which the key names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WeftBackend {
    pub addr: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub port_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<ObjectName>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

impl WeftServiceValue {
    pub fn read(value: &[u8]) -> Result<Self, ValueError> {
        let value: Self = from_json(value)?;
        for backend in &value.backends {
            routable(backend.addr)?;
            check_port(backend.port, backend.protocol)?;
        }
        Ok(value)
    }

    pub fn to_bytes(&self) -> Bytes {
        to_json(self)
    }

    pub fn backends(&self, cluster: &ClusterName) -> Vec<Backend> {
        let backend = |b: &WeftBackend| Backend {
            addr: b.addr,
            port: b.port,
            protocol: b.protocol,
            port_name: b.port_name.clone(),
            cluster: cluster.clone(),
            node: b.node.clone(),
            pod: b.pod.clone(),
            ready: b.ready,
            serving: b.serving,
            terminating: b.terminating,
        };
        self.backends.iter().map(backend).collect()
    }
}

impl From<&Backend> for WeftBackend {
    fn from(b: &Backend) -> Self {
        Self {
            addr: b.addr,
            port: b.port,
            protocol: b.protocol,
            port_name: b.port_name.clone(),
            node: b.node.clone(),
            pod: b.pod.clone(),
            ready: b.ready,
            serving: b.serving,
            terminating: b.terminating,
        }
    }
}

/// `weft/state/auth/v1/<cluster>/<ip>`: ports of a pod that take mutual TLS only; 0 is all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthValue {
    pub ports: Vec<u16>,
}

impl AuthValue {
    pub fn read(value: &[u8]) -> Result<Self, ValueError> {
        from_json(value)
    }

    pub fn to_bytes(&self) -> Bytes {
        to_json(self)
    }
}

fn check_port(port: u16, protocol: Protocol) -> Result<(), ValueError> {
    match protocol {
        Protocol::Tcp | Protocol::Udp | Protocol::Sctp if port != 0 => Ok(()),
        _ => Err(ValueError::Port(format!("{port}/{protocol:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cluster(name: &str) -> ClusterName {
        ClusterName::try_from(name.to_owned()).unwrap()
    }

    #[test]
    fn a_service_as_cilium_writes_it() {
        let text = r#"{"cluster":"cluster3","namespace":"foo","name":"echo","frontends":{"10.96.0.7":{"http":{"Protocol":"TCP","Port":80}}},"backends":{"10.244.1.7":{"http":{"Protocol":"TCP","Port":8080}},"fd00::7":{"http":{"Protocol":"TCP","Port":8080}}},"hostnames":{"10.244.1.7":"echo-1"},"zones":{"10.244.1.7":{"zone":"a","forZones":[{"name":"a"}]}},"labels":{},"selector":null,"includeExternal":true,"shared":true,"clusterID":3}"#;
        let (name, east) = (ObjectName::new("foo", "echo"), cluster("cluster3"));
        let value = ServiceValue::read(text.as_bytes(), &east, &name).unwrap();
        let backends: Vec<_> =
            value.backends(&east).into_iter().map(|b| (b.addr.to_string(), b.port, b.ready)).collect();
        assert_eq!(backends, [("10.244.1.7".to_owned(), 8080, true), ("fd00::7".to_owned(), 8080, true)]);
        assert!(value.shared && value.cluster_id == 3);

        let error = ServiceValue::read(text.as_bytes(), &cluster("other"), &name).unwrap_err();
        assert_eq!(error.to_string(), r#"cluster is "cluster3", but the key says "other""#);
        for (from, to) in
            [("10.244.1.7\":{\"http\"", "127.0.0.1\":{\"http\""), ("8080", "0"), ("TCP", "ICMP"), ("8080", "70000")]
        {
            let changed = text.replace(from, to);
            assert!(ServiceValue::read(changed.as_bytes(), &east, &name).is_err(), "{to}");
        }
    }

    fn backend() -> impl Strategy<Value = WeftBackend> {
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
        (any::<u16>(), 1u16.., protocol, "[a-z]{0,5}", any::<[bool; 3]>()).prop_map(
            |(host, port, protocol, name, c)| WeftBackend {
                addr: IpAddr::from([10, 1, (host >> 8) as u8, host as u8]),
                port,
                protocol,
                pod: (!name.is_empty()).then(|| ObjectName::new("shop", &name)),
                port_name: name,
                node: None,
                ready: c[0],
                serving: c[1],
                terminating: c[2],
            },
        )
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_service_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ServiceValue::read(&bytes, &cluster("east"), &ObjectName::new("a", "b"));
            let _ = WeftServiceValue::read(&bytes);
            let _ = AuthValue::read(&bytes);
        }

        #[test]
        fn a_service_with_conditions_reads_back_as_written(backends in proptest::collection::vec(backend(), 0..6), shared: bool) {
            let value = WeftServiceValue { shared, backends };
            prop_assert_eq!(WeftServiceValue::read(&value.to_bytes()).unwrap(), value);
        }
    }
}
