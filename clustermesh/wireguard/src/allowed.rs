//! Which peer an inner address belongs to: the longest prefix wins.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// Prefixes of all peers; few lengths are in use, so each has a table of its own, longest first.
#[derive(Debug, Default)]
pub(crate) struct AllowedIps {
    v4: Vec<(u8, HashMap<IpAddr, usize>)>,
    v6: Vec<(u8, HashMap<IpAddr, usize>)>,
}

impl AllowedIps {
    /// Gives `prefix` to `peer`, unless another has exactly it; whether `peer` has it now.
    pub(crate) fn insert(&mut self, prefix: IpNet, peer: usize) -> bool {
        let tables = match prefix {
            IpNet::V4(_) => &mut self.v4,
            IpNet::V6(_) => &mut self.v6,
        };
        let length = prefix.prefix_len();
        let position = tables.partition_point(|(other, _)| *other > length);
        if tables.get(position).is_none_or(|(other, _)| *other != length) {
            tables.insert(position, (length, HashMap::new()));
        }
        *tables[position].1.entry(prefix.network()).or_insert(peer) == peer
    }

    pub(crate) fn peer_of(&self, address: IpAddr) -> Option<usize> {
        let tables = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        tables.iter().find_map(|(length, table)| {
            let prefix = IpNet::new(address, *length).ok()?.network();
            table.get(&prefix).copied()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(prefixes: &[&str]) -> AllowedIps {
        let mut table = AllowedIps::default();
        for (peer, prefix) in prefixes.iter().enumerate() {
            table.insert(prefix.parse().expect("a prefix"), peer);
        }
        table
    }

    #[test]
    fn the_longest_prefix_wins() {
        let table = table(&["10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "fd00::/8", "10.1.2.3/32"]);
        let peer = |address: &str| table.peer_of(address.parse().expect("an address"));
        assert_eq!(peer("10.2.0.1"), Some(0));
        assert_eq!(peer("10.1.2.4"), Some(1));
        assert_eq!(peer("10.1.2.3"), Some(4));
        assert_eq!(peer("192.0.2.1"), Some(2));
        assert_eq!(peer("fd00::1"), Some(3));
        assert_eq!(peer("fe80::1"), None);
    }

    #[test]
    fn a_prefix_stays_with_the_first_peer_that_has_it() {
        let mut table = AllowedIps::default();
        let prefix = "10.1.0.0/24".parse().expect("a prefix");
        assert!(table.insert(prefix, 0));
        assert!(!table.insert(prefix, 1));
        assert!(table.insert(prefix, 0));
        assert_eq!(table.peer_of("10.1.0.7".parse().expect("an address")), Some(0));
    }

    proptest! {
        #[test]
        fn lookup_agrees_with_a_search_of_all_prefixes(
            prefixes in proptest::collection::vec((any::<[u8; 4]>(), 0_u8..=32), 0..30),
            address in any::<[u8; 4]>(),
        ) {
            let prefixes: Vec<_> = prefixes
                .into_iter()
                .filter_map(|(address, length)| IpNet::new(address.into(), length).ok())
                .collect();
            let mut table = AllowedIps::default();
            for (peer, prefix) in prefixes.iter().enumerate() {
                table.insert(*prefix, peer);
            }
            let address = IpAddr::from(address);
            let longest = prefixes.iter().filter(|prefix| prefix.contains(&address)).map(IpNet::prefix_len).max();
            let expected = prefixes
                .iter()
                .position(|prefix| Some(prefix.prefix_len()) == longest && prefix.contains(&address));
            prop_assert_eq!(table.peer_of(address), expected);
        }
    }
}
