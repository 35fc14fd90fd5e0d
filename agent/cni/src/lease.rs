//! Addresses of this node's pods: allocated from the pod CIDRs and kept in one file, under a lock, until released.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::request::ContainerId;

/// The network's own address and the node's.
const RESERVED: u128 = 2;
/// Of a larger CIDR only so many addresses are used; a node has fewer pods by far.
const MAX_ADDRESSES: u128 = 1 << 20;

/// The file, locked as long as this lives. A process that dies lets go of the lock.
pub struct Leases {
    path: PathBuf,
    state: State,
    _lock: File,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct State {
    /// By container id.
    leases: BTreeMap<String, Vec<IpAddr>>,
    /// What was given last of each CIDR: an address rests as long as possible before somebody else gets it.
    last: BTreeMap<IpNet, IpAddr>,
}

impl Leases {
    /// Waits for the lock.
    pub fn open(data_dir: &Path) -> Result<Self, Error> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |cause: io::Error| Error::State { action, path, cause }
        };
        fs::create_dir_all(data_dir).map_err(failed("create", data_dir))?;
        let lock_path = data_dir.join("lock");
        let lock = File::create(&lock_path).map_err(failed("open", &lock_path))?;
        lock.lock().map_err(failed("lock", &lock_path))?;
        let path = data_dir.join("leases.json");
        let state = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|cause| Error::Leases { path: path.clone(), cause })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(cause) => return Err(failed("read", &path)(cause)),
        };
        Ok(Self { path, state, _lock: lock })
    }

    /// One address of each CIDR, the same as before where the container has them; whether they are new.
    pub fn allocate(&mut self, container: &ContainerId, cidrs: &[IpNet]) -> Result<(Vec<IpAddr>, bool), Error> {
        if let Some(addresses) = self.of(container) {
            // Unless the node's CIDRs have changed since.
            if cidrs.len() == addresses.len() && cidrs.iter().all(|cidr| addresses.iter().any(|a| cidr.contains(a))) {
                return Ok((addresses.to_vec(), false));
            }
        }
        let taken: HashSet<IpAddr> = self.state.leases.values().flatten().copied().collect();
        let mut addresses = Vec::with_capacity(cidrs.len());
        for cidr in cidrs {
            let address =
                next_free(*cidr, self.state.last.get(cidr).copied(), &taken).ok_or(Error::Exhausted { cidr: *cidr })?;
            addresses.push(address);
        }
        self.state.last.extend(cidrs.iter().copied().zip(addresses.iter().copied()));
        self.state.leases.insert(container.as_str().to_owned(), addresses.clone());
        self.save()?;
        Ok((addresses, true))
    }

    pub fn of(&self, container: &ContainerId) -> Option<&[IpAddr]> {
        self.state.leases.get(container.as_str()).map(Vec::as_slice)
    }

    /// Containers that have addresses.
    pub fn containers(&self) -> Vec<ContainerId> {
        self.state.leases.keys().filter_map(|id| ContainerId::parse(id)).collect()
    }

    /// Gives the container's addresses back; that it has none is no error.
    pub fn release(&mut self, container: &ContainerId) -> Result<(), Error> {
        if self.state.leases.remove(container.as_str()).is_some() {
            self.save()?;
        }
        Ok(())
    }

    /// The file is replaced whole: whoever dies in between leaves the old one.
    fn save(&self) -> Result<(), Error> {
        let temporary = self.path.with_extension("new");
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(&self.state)?)?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)
        };
        write().map_err(|cause| Error::State { action: "write", path: self.path.clone(), cause })
    }
}

/// The first free address after `last`, from the start again at the end.
fn next_free(cidr: IpNet, last: Option<IpAddr>, taken: &HashSet<IpAddr>) -> Option<IpAddr> {
    let bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
    let size = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
    // IPv4's last address is the broadcast one.
    let end = (size - u128::from(cidr.network().is_ipv4())).min(MAX_ADDRESSES);
    let offset = last.filter(|last| cidr.contains(last)).map_or(0, |last| number(last) - number(cidr.network()));
    let start = (offset + 1).max(RESERVED);
    (start..end).chain(RESERVED..start.min(end)).map(|offset| at(cidr, offset)).find(|address| !taken.contains(address))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// The address at `offset`, which is less than the CIDR's size.
fn at(cidr: IpNet, offset: u128) -> IpAddr {
    let address = number(cidr.network()) + offset;
    match cidr {
        IpNet::V4(_) => Ipv4Addr::from(address as u32).into(),
        IpNet::V6(_) => Ipv6Addr::from(address).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(text: &str) -> ContainerId {
        ContainerId::parse(text).expect("an id")
    }

    fn cidrs(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a CIDR")).collect()
    }

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn the_first_pod_gets_the_address_after_the_nodes_in_each_family() {
        let folder = tempfile::tempdir().expect("a folder");
        let cidrs = cidrs(&["10.1.0.0/24", "fd00:10:1::/64"]);
        let allocate = |container| Leases::open(folder.path()).expect("open").allocate(&id(container), &cidrs);
        assert_eq!(allocate("a").expect("room"), (addresses(&["10.1.0.2", "fd00:10:1::2"]), true));
        assert_eq!(allocate("b").expect("room"), (addresses(&["10.1.0.3", "fd00:10:1::3"]), true));
        assert_eq!(allocate("a").expect("room"), (addresses(&["10.1.0.2", "fd00:10:1::2"]), false));
    }

    #[test]
    fn a_released_address_is_given_again_only_when_all_others_were() {
        let folder = tempfile::tempdir().expect("a folder");
        let cidrs = cidrs(&["10.1.0.0/29"]);
        let mut leases = Leases::open(folder.path()).expect("open");
        let mut given = Vec::new();
        for number in 0..6 {
            let container = id(&format!("c{number}"));
            given.extend(leases.allocate(&container, &cidrs).expect("room").0);
            leases.release(&container).expect("released");
        }
        assert_eq!(given, addresses(&["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6", "10.1.0.2"]));
    }

    #[test]
    fn an_exhausted_range_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let cidrs = cidrs(&["10.1.0.0/30"]);
        let mut leases = Leases::open(folder.path()).expect("open");
        leases.allocate(&id("a"), &cidrs).expect("the only one");
        let error = leases.allocate(&id("b"), &cidrs).expect_err("none is left");
        assert!(error.to_string().contains("every address of 10.1.0.0/30 is taken"), "{error}");
        leases.release(&id("a")).expect("released");
        leases.allocate(&id("b"), &cidrs).expect("the one that was released");
    }

    #[test]
    fn a_damaged_file_is_named_and_not_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("leases.json");
        fs::write(&path, "{").expect("written");
        let error = Leases::open(folder.path()).map(drop).expect_err("it is damaged");
        assert!(error.to_string().contains("leases.json is damaged"), "{error}");
        assert_eq!(fs::read(&path).expect("still there"), b"{");
    }

    #[test]
    fn leases_follow_the_nodes_cidrs() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut leases = Leases::open(folder.path()).expect("open");
        leases.allocate(&id("a"), &cidrs(&["10.1.0.0/24"])).expect("room");
        let moved = leases.allocate(&id("a"), &cidrs(&["10.2.0.0/24"])).expect("room");
        assert_eq!(moved, (addresses(&["10.2.0.2"]), true));
    }

    proptest! {
        #[test]
        fn no_two_containers_ever_have_the_same_address(steps in proptest::collection::vec((0_u8..12, any::<bool>()), 1..60)) {
            let folder = tempfile::tempdir().expect("a folder");
            let cidrs = cidrs(&["10.1.0.0/28"]);
            let mut leases = Leases::open(folder.path()).expect("open");
            for (container, add) in steps {
                let container = id(&format!("c{container}"));
                if add {
                    leases.allocate(&container, &cidrs).expect("12 containers fit");
                } else {
                    leases.release(&container).expect("released");
                }
                let all: Vec<_> = leases.state.leases.values().flatten().collect();
                let distinct: HashSet<_> = all.iter().collect();
                prop_assert_eq!(all.len(), distinct.len());
                for address in all {
                    prop_assert!(cidrs[0].contains(address) && number(*address) & 0xf >= 2 && number(*address) & 0xf < 15);
                }
            }
        }
    }
}
