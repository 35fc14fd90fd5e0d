//! The SVIDs of this node's workloads: issued by the cluster's CA, kept until they are due, handed to the proxy.
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    time::{SystemTime, UNIX_EPOCH},
};
use weft_certs::{CaError, ClusterCa, SVID_LIFETIME, Svid, rotation};
use weft_identity::SpiffeId;
use weft_proxy_api::config;

#[derive(Default)]
pub struct Svids {
    held: BTreeMap<SpiffeId, Svid>,
}

impl Svids {
    /// Holds one valid SVID for each of `wanted`, and none for others. True: something changed.
    ///
    /// # Errors
    /// The CA cannot issue; what is held stays.
    pub fn keep(&mut self, ca: &ClusterCa, wanted: &BTreeSet<SpiffeId>, now: SystemTime) -> Result<bool, CaError> {
        let before = self.held.len();
        self.held.retain(|id, _| wanted.contains(id));
        let mut changed = self.held.len() != before;
        for id in wanted {
            let valid =
                self.held.get(id).is_some_and(|svid| !rotation::due(svid.not_before, svid.not_after, spread(id), now));
            if !valid {
                self.held.insert(id.clone(), ca.issue(id, SVID_LIFETIME, now)?);
                changed = true;
            }
        }
        Ok(changed)
    }

    pub fn for_proxy(&self) -> Vec<config::Svid> {
        self.held
            .values()
            .map(|svid| config::Svid {
                spiffe_id: svid.spiffe_id.clone(),
                certificates: svid.certificates_pem.clone(),
                private_key: svid.private_key_pem.clone(),
                not_after: svid.not_after.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            })
            .collect()
    }
}

fn spread(id: &SpiffeId) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_svid_is_renewed_at_half_its_life_and_dropped_with_its_workload() {
        let dir = tempfile::tempdir().unwrap();
        let domain = "east.weft.local".parse().unwrap();
        let ca = ClusterCa::load_or_create(&dir.path().join("ca"), &domain).unwrap();
        let id = SpiffeId::new(domain, "shop", "frontend");
        let wanted = BTreeSet::from([id]);
        let (mut svids, now) = (Svids::default(), SystemTime::now());
        assert!(svids.keep(&ca, &wanted, now).unwrap());
        assert!(!svids.keep(&ca, &wanted, now + SVID_LIFETIME / 3).unwrap());
        let first = svids.for_proxy();
        assert!(svids.keep(&ca, &wanted, now + SVID_LIFETIME.mul_f64(0.6)).unwrap());
        assert_ne!(first, svids.for_proxy());
        assert!(svids.keep(&ca, &BTreeSet::new(), now + Duration::from_secs(1)).unwrap());
        assert!(svids.for_proxy().is_empty());
    }
}
