//! aya's maps behind the trait that the reconciler writes through.
use super::table::{KernelMap, Refusal};
use crate::plan::{AddrPrefix, PolicyPrefix};
use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, MapData, MapError, lpm_trie},
};
use std::io;
use weft_bpf_abi::{net::Addr, policy::PolicyKey};

pub struct Hash<K: Pod, V: Pod>(pub HashMap<MapData, K, V>);
pub struct Trie<K: Pod, V: Pod>(pub LpmTrie<MapData, K, V>);
/// An array of one.
pub struct Cell<V: Pod>(pub Array<MapData, V>);

impl<K: Pod + Send, V: Pod + Send> KernelMap<K, V> for Hash<K, V> {
    fn dump(&self) -> Result<Vec<(K, V)>, Refusal> {
        self.0.iter().map(|entry| entry.map_err(refusal)).collect()
    }
    fn insert(&mut self, key: &K, value: &V) -> Result<(), Refusal> {
        self.0.insert(key, value, 0).map_err(refusal)
    }
    fn remove(&mut self, key: &K) -> Result<(), Refusal> {
        absent_is_fine(self.0.remove(key))
    }
}

/// How a plan's prefix and a trie's key say the same.
pub trait Prefix: Copy {
    type Data: Pod;
    fn key(&self) -> lpm_trie::Key<Self::Data>;
    fn from_key(key: &lpm_trie::Key<Self::Data>) -> Self;
}

impl Prefix for AddrPrefix {
    type Data = Addr;
    fn key(&self) -> lpm_trie::Key<Addr> {
        lpm_trie::Key::new(self.bits, self.addr)
    }
    fn from_key(key: &lpm_trie::Key<Addr>) -> Self {
        Self { bits: key.prefix_len(), addr: key.data() }
    }
}

impl Prefix for PolicyPrefix {
    type Data = PolicyKey;
    fn key(&self) -> lpm_trie::Key<PolicyKey> {
        lpm_trie::Key::new(self.bits, self.key)
    }
    fn from_key(key: &lpm_trie::Key<PolicyKey>) -> Self {
        Self { bits: key.prefix_len(), key: key.data() }
    }
}

impl<P: Prefix, V: Pod + Send> KernelMap<P, V> for Trie<P::Data, V>
where
    P::Data: Send,
{
    fn dump(&self) -> Result<Vec<(P, V)>, Refusal> {
        let entries = self.0.iter();
        entries.map(|entry| entry.map(|(key, value)| (P::from_key(&key), value)).map_err(refusal)).collect()
    }
    fn insert(&mut self, key: &P, value: &V) -> Result<(), Refusal> {
        self.0.insert(&key.key(), value, 0).map_err(refusal)
    }
    fn remove(&mut self, key: &P) -> Result<(), Refusal> {
        absent_is_fine(self.0.remove(&key.key()))
    }
}

impl<V: Pod + Send> KernelMap<u32, V> for Cell<V> {
    fn dump(&self) -> Result<Vec<(u32, V)>, Refusal> {
        Ok(vec![(0, self.0.get(&0, 0).map_err(refusal)?)])
    }
    fn insert(&mut self, key: &u32, value: &V) -> Result<(), Refusal> {
        self.0.set(*key, value, 0).map_err(refusal)
    }
    fn remove(&mut self, _key: &u32) -> Result<(), Refusal> {
        Err(Refusal::Kernel(io::Error::from(io::ErrorKind::Unsupported)))
    }
}

fn absent_is_fine(removed: Result<(), MapError>) -> Result<(), Refusal> {
    match removed {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(error) => Err(refusal(error)),
    }
}

fn refusal(error: MapError) -> Refusal {
    match error {
        // Hash maps say E2BIG when they are full, tries ENOSPC.
        MapError::SyscallError(error) if matches!(error.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) => {
            Refusal::Full
        }
        MapError::SyscallError(error) => Refusal::Kernel(error.io_error),
        MapError::IoError(error) => Refusal::Kernel(error),
        other => Refusal::Kernel(io::Error::other(other)),
    }
}
