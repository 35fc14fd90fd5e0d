//! What two clusters exchange when they are joined, and whether they can be: names, ids and trust domains must differ.
use crate::ids::CLUSTER_IDS;
use serde::{Deserialize, Serialize};
use weft_identity::TrustDomain;
use weft_model::types::{ClusterName, MeshPeer};

/// A cluster as it presents itself. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectInfo {
    pub cluster: ClusterName,
    /// 1 to 255
    pub cluster_id: u32,
    pub trust_domain: TrustDomain,
    /// PEM certificates of its CA.
    pub trust_bundle_pem: String,
    /// `host:port` of its mesh servers.
    pub endpoints: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    #[error("both clusters are called {0}: give one of them another name (setting `cluster`) and connect again")]
    SameName(ClusterName),
    #[error(
        "{ours} and {theirs} both have id {id}: give one of them another (setting `clusterId`), {proposal} is free"
    )]
    SameId { ours: ClusterName, theirs: ClusterName, id: u32, proposal: u32 },
    #[error("{cluster} has id {id}; ids are 1 to 255: set its `clusterId`")]
    InvalidId { cluster: ClusterName, id: u32 },
    #[error(
        "{ours} and {theirs} both are trust domain {domain}, each with a CA of its own: give one of them another (setting `trustDomain`)"
    )]
    SameTrustDomain { ours: ClusterName, theirs: ClusterName, domain: TrustDomain },
    #[error("{0} is connected already, with another id, trust domain or CA: disconnect it first if it was made anew")]
    Changed(ClusterName),
    #[error("{0} offers no mesh server: set `mesh.listen` in the settings of one of its agents")]
    NoEndpoints(ClusterName),
    #[error(
        "{cluster} has a mesh server at {endpoint:?}, which is not host:port that others can reach: set its `mesh.listen`"
    )]
    Endpoint { cluster: ClusterName, endpoint: String },
    #[error("{0} sent no CA certificate")]
    NoBundle(ClusterName),
    #[error(
        "{0} sent a private key with its CA certificate: nothing is taken over; look at what its agent is given as CA"
    )]
    PrivateKey(ClusterName),
}

impl ConnectInfo {
    /// Whether the two can be connected. The same answer from both sides.
    pub fn check(&self, theirs: &Self) -> Result<(), ConnectError> {
        self.check_alone()?;
        theirs.check_alone()?;
        if self.cluster == theirs.cluster {
            return Err(ConnectError::SameName(self.cluster.clone()));
        }
        self.check_against(theirs, &theirs.cluster, theirs.cluster_id, &theirs.trust_domain, &[])
    }

    /// Whether `theirs` can join us and those that we are connected with. Joining again with the same facts is fine; other
    /// endpoints are no conflict.
    pub fn check_with_peers(&self, theirs: &Self, peers: &[MeshPeer]) -> Result<(), ConnectError> {
        self.check(theirs)?;
        for peer in peers {
            if peer.cluster != theirs.cluster {
                theirs.check_against(self, &peer.cluster, peer.cluster_id, &peer.trust_domain, peers)?;
            } else if (peer.cluster_id, &peer.trust_domain, peer.trust_bundle.trim())
                != (theirs.cluster_id, &theirs.trust_domain, theirs.trust_bundle_pem.trim())
            {
                return Err(ConnectError::Changed(peer.cluster.clone()));
            }
        }
        Ok(())
    }

    /// What is kept of a cluster that has been joined.
    pub fn to_peer(&self) -> MeshPeer {
        MeshPeer {
            cluster: self.cluster.clone(),
            cluster_id: self.cluster_id,
            trust_domain: self.trust_domain.clone(),
            trust_bundle: self.trust_bundle_pem.clone(),
            endpoints: self.endpoints.clone(),
        }
    }

    fn check_alone(&self) -> Result<(), ConnectError> {
        let cluster = || self.cluster.clone();
        if !CLUSTER_IDS.contains(&self.cluster_id) {
            return Err(ConnectError::InvalidId { cluster: cluster(), id: self.cluster_id });
        }
        if self.trust_bundle_pem.contains("PRIVATE KEY") {
            return Err(ConnectError::PrivateKey(cluster()));
        }
        if !self.trust_bundle_pem.contains("-----BEGIN CERTIFICATE-----") {
            return Err(ConnectError::NoBundle(cluster()));
        }
        if self.endpoints.is_empty() {
            return Err(ConnectError::NoEndpoints(cluster()));
        }
        match self.endpoints.iter().find(|endpoint| !is_reachable(endpoint)) {
            Some(endpoint) => Err(ConnectError::Endpoint { cluster: cluster(), endpoint: endpoint.clone() }),
            None => Ok(()),
        }
    }

    fn check_against(
        &self,
        local: &Self,
        other: &ClusterName,
        id: u32,
        domain: &TrustDomain,
        peers: &[MeshPeer],
    ) -> Result<(), ConnectError> {
        if self.cluster_id == id {
            let taken =
                [self.cluster_id, local.cluster_id].into_iter().chain(peers.iter().map(|p| p.cluster_id)).collect();
            let proposal = crate::ids::propose_id(&self.cluster, &taken).unwrap_or(id);
            return Err(ConnectError::SameId { ours: self.cluster.clone(), theirs: other.clone(), id, proposal });
        }
        if self.trust_domain == *domain {
            let (ours, theirs) = (self.cluster.clone(), other.clone());
            return Err(ConnectError::SameTrustDomain { ours, theirs, domain: domain.clone() });
        }
        Ok(())
    }
}

/// `host:port` that is not 'any address'.
fn is_reachable(endpoint: &str) -> bool {
    if let Ok(address) = endpoint.parse::<std::net::SocketAddr>() {
        return !address.ip().is_unspecified() && address.port() != 0;
    }
    let Some((host, port)) = endpoint.rsplit_once(':') else { return false };
    let name = |b: u8| b.is_ascii_alphanumeric() || b".-".contains(&b);
    !host.is_empty() && host.bytes().all(name) && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(cluster: &str, id: u32) -> ConnectInfo {
        ConnectInfo {
            cluster: ClusterName::try_from(cluster.to_owned()).unwrap(),
            cluster_id: id,
            trust_domain: format!("{cluster}.example").parse().unwrap(),
            trust_bundle_pem: format!("-----BEGIN CERTIFICATE-----\n{cluster}\n-----END CERTIFICATE-----\n"),
            endpoints: vec!["192.0.2.1:2379".into(), "mesh.example:2379".into(), "[fd00::1]:2379".into()],
        }
    }

    #[test]
    fn clusters_that_differ_can_be_joined_and_joined_again() {
        let (east, west) = (info("east", 1), info("west", 2));
        assert_eq!((east.check(&west), west.check(&east)), (Ok(()), Ok(())));
        let moved = ConnectInfo { endpoints: vec!["192.0.2.9:2379".into()], ..west.clone() };
        assert_eq!(east.check_with_peers(&moved, &[west.to_peer()]), Ok(()));
    }

    #[test]
    fn what_clashes_is_said_with_its_remedy() {
        let (east, west) = (info("east", 1), info("west", 2));
        let says = |theirs: &ConnectInfo, peers: &[MeshPeer], wanted: &str| {
            let error = east.check_with_peers(theirs, peers).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error:?} does not say {wanted:?}");
        };
        says(&info("east", 2), &[], "both clusters are called east");
        says(&info("west", 1), &[], "east and west both have id 1");
        says(&info("west", 300), &[], "ids are 1 to 255");
        says(
            &ConnectInfo { trust_domain: east.trust_domain.clone(), ..west.clone() },
            &[],
            "both are trust domain east.example",
        );
        says(&ConnectInfo { endpoints: vec![], ..west.clone() }, &[], "offers no mesh server");
        for endpoint in ["0.0.0.0:2379", "192.0.2.1", "192.0.2.1:0", "[::]:1", "a b:1", ":1"] {
            says(&ConnectInfo { endpoints: vec![endpoint.into()], ..west.clone() }, &[], "which is not host:port");
        }
        says(&ConnectInfo { trust_bundle_pem: String::new(), ..west.clone() }, &[], "no CA certificate");
        let leak = format!("{}-----BEGIN PRIVATE KEY-----", west.trust_bundle_pem);
        says(&ConnectInfo { trust_bundle_pem: leak, ..west.clone() }, &[], "sent a private key");
        says(&west, &[info("south", 2).to_peer()], "west and south both have id 2");
        let anew = ConnectInfo { trust_bundle_pem: "-----BEGIN CERTIFICATE-----".into(), ..west.clone() };
        says(&anew, &[west.to_peer()], "disconnect it first");
    }

    #[test]
    fn an_id_that_is_proposed_is_free() {
        let (east, west) = (info("east", 1), info("west", 1));
        let Err(ConnectError::SameId { proposal, .. }) = east.check(&west) else { panic!("ids clash") };
        assert_ne!(proposal, 1);
    }
}
