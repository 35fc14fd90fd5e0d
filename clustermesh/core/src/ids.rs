//! Cluster ids: proposed from the name, so that clusters made apart seldom clash, and checked where they meet.
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use weft_model::types::ClusterName;

pub const CLUSTER_IDS: RangeInclusive<u32> = 1..=255;

/// An id that is not taken: the same for one name while the others stay. `None`: all 255 are.
pub fn propose_id(name: &ClusterName, taken: &BTreeSet<u32>) -> Option<u32> {
    let first = fnv1a(name.as_str().as_bytes()) % 255;
    (0..255).map(|step| 1 + (first + step) % 255).find(|id| !taken.contains(id))
}

/// FNV-1a: small, and the same in every build and on every machine.
pub(crate) fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_proposed_id_is_valid_and_free(name in "[a-z][a-z0-9]{0,20}", taken in proptest::collection::btree_set(1u32..=255, 0..=255)) {
            let name = ClusterName::try_from(name).unwrap();
            match propose_id(&name, &taken) {
                Some(id) => prop_assert!(CLUSTER_IDS.contains(&id) && !taken.contains(&id)),
                None => prop_assert_eq!(taken.len(), 255),
            }
            prop_assert_eq!(propose_id(&name, &BTreeSet::new()), propose_id(&name, &BTreeSet::new()));
        }
    }
}
