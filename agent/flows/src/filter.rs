//! What `weft observe` may be asked for.
use serde::{Deserialize, Serialize};
use weft_proxy_api::flow::{Flow, Peer, Verdict};

/// All that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FlowFilter {
    /// `pod`, `namespace/pod` or a beginning of it, on either side.
    pub pod: Option<String>,
    pub from_pod: Option<String>,
    pub to_pod: Option<String>,
    pub namespace: Option<String>,
    pub verdict: Option<Verdict>,
    pub protocol: Option<String>,
    /// Port of either side.
    pub port: Option<u16>,
    /// Only HTTP requests.
    pub http: bool,
    pub http_method: Option<String>,
    /// A beginning of the path.
    pub http_path: Option<String>,
    pub http_status: Option<u16>,
    pub policy: Option<String>,
    /// Milliseconds since the epoch.
    pub since_ms: Option<u64>,
}

impl FlowFilter {
    pub fn matches(&self, flow: &Flow) -> bool {
        let (from, to) = (&flow.source, &flow.destination);
        let all = |wanted: &Option<String>, test: &dyn Fn(&str) -> bool| wanted.as_deref().is_none_or(test);
        all(&self.pod, &|pod| names(from, pod) || names(to, pod))
            && all(&self.from_pod, &|pod| names(from, pod))
            && all(&self.to_pod, &|pod| names(to, pod))
            && all(&self.namespace, &|ns| in_namespace(from, ns) || in_namespace(to, ns))
            && self.verdict.is_none_or(|verdict| flow.verdict == verdict)
            && all(&self.protocol, &|protocol| flow.protocol.eq_ignore_ascii_case(protocol))
            && self.port.is_none_or(|port| from.address.port() == port || to.address.port() == port)
            && (!self.http || flow.http.is_some())
            && all(&self.http_method, &|method| {
                flow.http.as_ref().is_some_and(|h| h.method.eq_ignore_ascii_case(method))
            })
            && all(&self.http_path, &|path| flow.http.as_ref().is_some_and(|h| h.path.starts_with(path)))
            && self.http_status.is_none_or(|status| flow.http.as_ref().is_some_and(|h| h.status == status))
            && all(&self.policy, &|policy| flow.policy == policy)
            && self.since_ms.is_none_or(|since| flow.time_ms >= since)
    }
}

fn names(peer: &Peer, wanted: &str) -> bool {
    match wanted.contains('/') {
        true => peer.pod.starts_with(wanted),
        false => peer.pod.rsplit('/').next().is_some_and(|name| name.starts_with(wanted)),
    }
}

fn in_namespace(peer: &Peer, namespace: &str) -> bool {
    peer.pod.split_once('/').is_some_and(|(ns, _)| ns == namespace)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use weft_proxy_api::flow::HttpFlow;

    pub(crate) fn flow(from: &str, to: &str, path: &str) -> Flow {
        let peer = |pod: &str, address: &str| Peer {
            address: address.parse().unwrap(),
            identity: 300,
            pod: pod.into(),
            cluster: "east".into(),
        };
        Flow {
            time_ms: 1_000,
            verdict: Verdict::Forwarded,
            drop_reason: String::new(),
            source: peer(from, "10.1.0.2:40000"),
            destination: peer(to, "10.1.0.3:8080"),
            protocol: "TCP".into(),
            direction: "ingress".into(),
            policy: "shop/api".into(),
            plugin: String::new(),
            http: Some(HttpFlow {
                method: "GET".into(),
                path: path.into(),
                host: "api".into(),
                status: 200,
                protocol: "HTTP/1.1".into(),
                duration_us: 10,
            }),
            peer_spiffe_id: None,
            node: "east-1".into(),
        }
    }

    #[test]
    fn all_given_conditions_must_hold() {
        let flow = flow("shop/frontend-1", "shop/api-2", "/api/users/42");
        let cases = [
            (FlowFilter::default(), true),
            (FlowFilter { pod: Some("frontend".into()), ..Default::default() }, true),
            (FlowFilter { to_pod: Some("frontend".into()), ..Default::default() }, false),
            (FlowFilter { from_pod: Some("shop/frontend".into()), port: Some(8080), ..Default::default() }, true),
            (FlowFilter { namespace: Some("sho".into()), ..Default::default() }, false),
            (FlowFilter { http_path: Some("/api/".into()), http_status: Some(200), ..Default::default() }, true),
            (FlowFilter { verdict: Some(Verdict::Dropped), ..Default::default() }, false),
            (FlowFilter { since_ms: Some(1_001), ..Default::default() }, false),
        ];
        for (filter, expected) in cases {
            assert_eq!(filter.matches(&flow), expected, "{filter:?}");
        }
    }
}
