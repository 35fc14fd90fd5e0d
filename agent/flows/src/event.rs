//! The kernel's events in the words of flows.
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use weft_bpf_abi::{
    event::{Event, Reason},
    net::identity,
    policy,
};
use weft_model::snapshot::Snapshot;
use weft_proxy_api::flow::{Flow, Peer, Verdict};

/// Names for addresses and rules, made anew with each snapshot.
#[derive(Clone, Default)]
pub struct Names {
    pods: Arc<HashMap<IpAddr, (String, String)>>,
    rules: Arc<HashMap<u32, String>>,
    node: String,
}

impl Names {
    /// `rules`: the policy that each rule number in the kernel's map stands for.
    pub fn new(snapshot: &Snapshot, rules: HashMap<u32, String>) -> Self {
        let pods = snapshot.workloads.iter().flat_map(|workload| {
            let name = (workload.pod.to_string(), workload.cluster.to_string());
            workload.addresses.iter().map(move |address| (*address, name.clone()))
        });
        Self { pods: Arc::new(pods.collect()), rules: Arc::new(rules), node: snapshot.node_name.clone() }
    }

    pub fn flow(&self, event: &Event) -> Flow {
        let verdict = match event.verdict {
            Event::FORWARDED => Verdict::Forwarded,
            Event::REDIRECTED => Verdict::Redirected,
            _ => Verdict::Dropped,
        };
        let reason = match Reason::from_u32(event.reason) {
            Some(Reason::Forwarded) => "",
            Some(reason) => reason.name(),
            None => "unknown",
        };
        Flow {
            time_ms: now_ms(),
            verdict,
            drop_reason: reason.to_owned(),
            source: self.peer(event.from.ip(), event.from_port.get(), event.from_identity),
            destination: self.peer(event.to.ip(), event.to_port.get(), event.to_identity),
            protocol: protocol(event.proto),
            direction: if event.direction == policy::INGRESS { "ingress" } else { "egress" }.to_owned(),
            policy: self.rules.get(&event.rule).cloned().unwrap_or_default(),
            plugin: String::new(),
            http: None,
            peer_spiffe_id: None,
            node: self.node.clone(),
        }
    }

    fn peer(&self, ip: IpAddr, port: u16, id: u32) -> Peer {
        let (pod, cluster) = match (self.pods.get(&ip), id) {
            (Some((pod, cluster)), _) => (pod.clone(), cluster.clone()),
            (None, identity::HOST) => ("host".to_owned(), String::new()),
            (None, identity::REMOTE_NODE) => ("remote-node".to_owned(), String::new()),
            (None, identity::WORLD) => ("world".to_owned(), String::new()),
            (None, _) => Default::default(),
        };
        Peer { address: SocketAddr::new(ip, port), identity: id, pod, cluster }
    }
}

fn protocol(number: u8) -> String {
    match number {
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        1 => "ICMP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => format!("IP protocol {other}"),
    }
}

/// Milliseconds since the epoch; 0 on a clock before it.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
