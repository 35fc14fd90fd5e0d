//! Prefixes. An address has the identity of the longest prefix that any policy names, so a rule for a prefix lists the
//! identities of all longer ones inside it too.
use super::{PeerSpec, PolicyFact};
use crate::{parse::Kind, types::ObjectName};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// The prefixes that policies name, exceptions among them. One that is the whole address of a pod or node is left out:
/// these have identities of their own, and prefixes never mean them.
pub fn prefixes(
    policies: &BTreeMap<(Kind, ObjectName), Arc<PolicyFact>>,
    addresses: &BTreeSet<IpAddr>,
) -> BTreeSet<IpNet> {
    let rules =
        policies.values().flat_map(|policy| &policy.specs).flat_map(|spec| spec.ingress.iter().chain(&spec.egress));
    let mut found = BTreeSet::new();
    for peer in rules.flat_map(|rule| &rule.peers) {
        if let PeerSpec::Cidr { net, except } = peer {
            found.insert(*net);
            found.extend(except.iter().copied());
        }
    }
    found.retain(|net| net.prefix_len() < net.max_prefix_len() || !addresses.contains(&net.addr()));
    found
}

/// The identities of all prefixes inside `net` and outside `except`.
pub(super) fn inside<'a>(
    net: IpNet,
    except: &'a [IpNet],
    cidrs: &'a [(IpNet, u32)],
) -> impl Iterator<Item = u32> + use<'a> {
    cidrs
        .iter()
        .filter(move |(prefix, _)| net.contains(prefix) && !except.iter().any(|hole| hole.contains(prefix)))
        .map(|(_, id)| *id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_rule_for_a_prefix_covers_longer_ones_but_not_its_exceptions() {
        let cidrs = [(net("0.0.0.0/0"), 1), (net("10.0.0.0/8"), 2), (net("10.1.0.0/16"), 3), (net("10.1.2.0/24"), 4)];
        let ids = |n: &str, except: &[IpNet]| inside(net(n), except, &cidrs).collect::<Vec<_>>();
        assert_eq!(ids("10.0.0.0/8", &[]), [2, 3, 4]);
        assert_eq!(ids("10.0.0.0/8", &[net("10.1.0.0/16")]), [2]);
        assert_eq!(ids("10.0.0.0/8", &[net("10.1.2.0/24")]), [2, 3]);
        assert_eq!(ids("0.0.0.0/0", &[]), [1, 2, 3, 4]);
        assert_eq!(ids("::/0", &[]), [] as [u32; 0]);
    }

    proptest! {
        /// The reference: an address is meant by a rule when it is inside the prefix and outside the exceptions. By
        /// identities: when the longest known prefix that holds it is among the rule's.
        #[test]
        fn identities_mean_the_same_addresses_as_the_prefixes(
            nets in proptest::collection::vec((any::<u8>(), any::<u8>(), 0u8..=16), 1..8),
            holes in proptest::collection::vec((any::<u8>(), any::<u8>(), 0u8..=16), 0..3),
            address in any::<[u8; 2]>(),
        ) {
            let make = |(a, b, len): (u8, u8, u8)| {
                IpNet::new(IpAddr::from([a & 3, b & 3, 0, 0]), len).unwrap().trunc()
            };
            let nets: Vec<IpNet> = nets.into_iter().map(make).collect();
            let rule = nets[0];
            let except: Vec<IpNet> = holes.into_iter().map(make).filter(|hole| rule.contains(hole)).collect();
            let known: BTreeSet<IpNet> = nets.iter().chain(&except).copied().collect();
            let cidrs: Vec<(IpNet, u32)> = known.into_iter().zip(256..).collect();
            let ip = IpAddr::from([address[0] & 3, address[1] & 3, 0, 1]);

            let meant = rule.contains(&ip) && !except.iter().any(|hole| hole.contains(&ip));
            let longest = cidrs.iter().filter(|(net, _)| net.contains(&ip)).max_by_key(|(net, _)| net.prefix_len());
            let allowed: Vec<u32> = inside(rule, &except, &cidrs).collect();
            prop_assert_eq!(longest.is_some_and(|(_, id)| allowed.contains(id)), meant);
        }
    }
}
