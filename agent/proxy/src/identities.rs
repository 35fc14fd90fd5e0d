//! Who has an address: pods by address, everything else by its longest prefix, as the kernel's `IPCACHE` says.
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};
use weft_bpf_abi::net::identity;
use weft_proxy_api::{config::WorkloadInfo, flow::Peer};

/// One end of a connection, as this node knows it.
#[derive(Clone, Debug)]
pub struct Party {
    pub address: SocketAddr,
    pub identity: u32,
    pub workload: Option<Arc<WorkloadInfo>>,
}

impl Party {
    pub fn peer(&self) -> Peer {
        let (pod, cluster) = match &self.workload {
            Some(workload) => (workload.pod.to_string(), workload.cluster.to_string()),
            None => (reserved_name(self.identity).to_owned(), String::new()),
        };
        Peer { address: self.address, identity: self.identity, pod, cluster }
    }
}

/// Look-ups by address.
#[derive(Debug, Default)]
pub struct Identities {
    workloads: HashMap<IpAddr, Arc<WorkloadInfo>>,
    /// By family and prefix length; the longest length is asked first.
    prefixes: BTreeMap<(bool, u8), HashMap<IpAddr, u32>>,
}

impl Identities {
    pub fn new(workloads: &[WorkloadInfo], prefixes: &[(IpNet, u32)]) -> Self {
        let mut all = Self::default();
        for workload in workloads {
            let workload = Arc::new(workload.clone());
            for address in &workload.addresses {
                all.workloads.insert(*address, workload.clone());
            }
        }
        for (prefix, id) in prefixes {
            let key = (prefix.addr().is_ipv4(), prefix.prefix_len());
            all.prefixes.entry(key).or_default().insert(prefix.network(), *id);
        }
        all
    }

    pub fn workload(&self, address: IpAddr) -> Option<&Arc<WorkloadInfo>> {
        self.workloads.get(&address)
    }

    pub fn party(&self, address: SocketAddr) -> Party {
        let workload = self.workload(address.ip()).cloned();
        let identity = match &workload {
            Some(workload) => workload.identity,
            None => self.prefix(address.ip()).unwrap_or(identity::WORLD),
        };
        Party { address, identity, workload }
    }

    fn prefix(&self, address: IpAddr) -> Option<u32> {
        let v4 = address.is_ipv4();
        self.prefixes.range((v4, 0)..=(v4, 128)).rev().find_map(|((_, length), nets)| {
            let network = IpNet::new(address, *length).ok()?.network();
            nets.get(&network).copied()
        })
    }
}

/// Reserved identities in the words of Hubble; the empty word for one that belongs to a CIDR.
fn reserved_name(id: u32) -> &'static str {
    match id {
        identity::HOST => "host",
        identity::REMOTE_NODE => "remote-node",
        identity::WORLD => "world",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins_and_what_none_claims_is_world() {
        let prefixes = [
            ("10.0.0.0/8".parse().unwrap(), 300),
            ("10.1.0.0/16".parse().unwrap(), 301),
            ("10.1.2.3/32".parse().unwrap(), identity::HOST),
            ("fd00::/64".parse().unwrap(), 302),
        ];
        let all = Identities::new(&[], &prefixes);
        let id = |a: &str| all.party(SocketAddr::new(a.parse().unwrap(), 1)).identity;
        assert_eq!(
            ["10.1.2.3", "10.1.2.4", "10.2.0.1", "192.0.2.1", "fd00::9", "fd01::9"].map(id),
            [identity::HOST, 301, 300, identity::WORLD, 302, identity::WORLD]
        );
    }
}
