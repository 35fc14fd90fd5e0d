//! What plugins can ask of a connection. Names and encodings are Envoy's; what is Weft's own is under `weft`.
use crate::{
    conn::{Conn, Judged},
    state::Decision,
};
use std::{net::SocketAddr, rc::Rc};
use weft_identity::SpiffeId;
use weft_plugin_host::{
    Properties,
    properties::{put_bool, put_bytes, put_int, put_uint},
};

/// Of a connection whose requests plugins see.
pub struct ConnProperties {
    pub conn: Rc<Conn>,
    pub judged: Rc<Judged>,
    pub protocol: &'static str,
}

impl Properties for ConnProperties {
    fn get(&self, path: &[&str], out: &mut Vec<u8>) -> bool {
        match path {
            ["weft", "policy_set"] => match &self.judged.decision {
                Decision::Http { set } => put_bytes(out, set.as_str()),
                _ => return false,
            },
            ["request", "protocol"] => put_bytes(out, self.protocol),
            ["listener_direction"] => put_int(out, if self.conn.ingress { 1 } else { 2 }),
            ["node", "id"] => put_bytes(out, &self.judged.view.generation.compiled.node),
            ["connection", "id"] => put_uint(out, self.conn.id),
            ["weft", "source", key] => return workload(&self.judged.source, key, out),
            ["weft", "destination", key] => return workload(&self.judged.destination, key, out),
            _ => {
                let expected = self.judged.source.workload.as_ref().map(|w| &w.spiffe_id);
                return common(path, self.conn.source, self.conn.destination, self.conn.proved.as_ref(), expected, out);
            }
        }
        true
    }
}

/// Of a tunnel whose peer is to be judged.
pub struct TunnelProperties {
    pub id: u64,
    pub node: String,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub peer: SpiffeId,
    /// Of the workload at the source's address.
    pub expected: Option<SpiffeId>,
}

impl Properties for TunnelProperties {
    fn get(&self, path: &[&str], out: &mut Vec<u8>) -> bool {
        match path {
            ["connection", "id"] => put_uint(out, self.id),
            ["node", "id"] => put_bytes(out, &self.node),
            _ => {
                let (peer, expected) = (Some(&self.peer), self.expected.as_ref());
                return common(path, self.source, self.destination, peer, expected, out);
            }
        }
        true
    }
}

fn common(
    path: &[&str],
    source: SocketAddr,
    destination: SocketAddr,
    peer: Option<&SpiffeId>,
    expected: Option<&SpiffeId>,
    out: &mut Vec<u8>,
) -> bool {
    match path {
        ["source", "address"] => put_bytes(out, source.to_string()),
        ["source", "port"] => put_int(out, source.port().into()),
        ["destination", "address"] => put_bytes(out, destination.to_string()),
        ["destination", "port"] => put_int(out, destination.port().into()),
        ["connection", "mtls"] => put_bool(out, peer.is_some()),
        ["connection", "uri_san_peer_certificate"] => match peer {
            Some(id) => put_bytes(out, id.to_string()),
            None => return false,
        },
        ["weft", "expected_spiffe_id"] => match expected {
            Some(id) => put_bytes(out, id.to_string()),
            None => return false,
        },
        _ => return false,
    }
    true
}

fn workload(party: &crate::identities::Party, key: &str, out: &mut Vec<u8>) -> bool {
    let Some(workload) = &party.workload else { return false };
    match key {
        "pod" => put_bytes(out, &workload.pod.name),
        "namespace" => put_bytes(out, &workload.pod.namespace),
        "service_account" => put_bytes(out, workload.spiffe_id.service_account()),
        "cluster" => put_bytes(out, workload.cluster.as_str()),
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_tells_the_proved_and_the_expected_name_apart() {
        let id = |name: &str| format!("spiffe://a.example/ns/x/sa/{name}").parse::<SpiffeId>().unwrap();
        let properties = TunnelProperties {
            id: 7,
            node: "n1".into(),
            source: "10.0.0.1:5".parse().unwrap(),
            destination: "10.0.0.2:15008".parse().unwrap(),
            peer: id("proved"),
            expected: Some(id("expected")),
        };
        let get = |path: &[&str]| {
            let mut out = Vec::new();
            properties.get(path, &mut out).then_some(out)
        };
        assert_eq!(get(&["connection", "uri_san_peer_certificate"]), Some(id("proved").to_string().into_bytes()));
        assert_eq!(get(&["weft", "expected_spiffe_id"]), Some(id("expected").to_string().into_bytes()));
        assert_eq!(get(&["source", "address"]), Some(b"10.0.0.1:5".to_vec()));
        assert_eq!(get(&["connection", "mtls"]), Some(vec![1]));
        assert_eq!(get(&["weft", "policy_set"]), None);
    }
}
