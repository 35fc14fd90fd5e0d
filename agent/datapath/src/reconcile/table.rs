//! One kernel map with a copy of what it holds, so that only differences are written.
use super::Report;
use crate::plan::{AddrPrefix, PolicyPrefix};
use std::{collections::BTreeMap, fmt, io};
use weft_bpf_abi::{
    lb::{BackendKey, MemberKey, ServiceKey},
    net::{Addr, AuthDestination, Port},
};

/// The operations of a kernel map. Tests put a map in memory behind it, and make it fail.
pub trait KernelMap<K, V>: Send {
    /// Every entry.
    fn dump(&self) -> Result<Vec<(K, V)>, Refusal>;
    /// Adds or replaces.
    fn insert(&mut self, key: &K, value: &V) -> Result<(), Refusal>;
    /// An absent key is no error.
    fn remove(&mut self, key: &K) -> Result<(), Refusal>;
}

/// Why a map did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the map is full")]
    Full,
    #[error(transparent)]
    Kernel(#[from] io::Error),
}

pub struct Table<K, V> {
    name: &'static str,
    map: Box<dyn KernelMap<K, V>>,
    known: BTreeMap<K, V>,
}

impl<K: Key, V: Copy + PartialEq> Table<K, V> {
    /// Reads the map.
    pub fn open(name: &'static str, map: Box<dyn KernelMap<K, V>>) -> Result<Self, Refusal> {
        let known = map.dump()?.into_iter().collect();
        Ok(Self { name, map, known })
    }

    /// Reads the map again. Returns how many entries were not as this process left them.
    pub fn audit(&mut self) -> Result<usize, Refusal> {
        let actual: BTreeMap<K, V> = self.map.dump()?.into_iter().collect();
        let strange = actual.iter().filter(|(key, value)| self.known.get(key) != Some(value)).count();
        let lost = self.known.keys().filter(|key| !actual.contains_key(key)).count();
        self.known = actual;
        Ok(strange + lost)
    }

    pub fn known(&self) -> &BTreeMap<K, V> {
        &self.known
    }

    /// True if the map holds the value now. Writes only what differs.
    pub fn put(&mut self, key: K, value: V, report: &mut Report) -> bool {
        if self.known.get(&key) == Some(&value) {
            return true;
        }
        match self.map.insert(&key, &value) {
            Ok(()) => {
                self.known.insert(key, value);
                report.written += 1;
                true
            }
            Err(refusal) => {
                report.fail(self.name, key.to_text(), &refusal);
                false
            }
        }
    }

    /// True if the map does not hold the key now.
    pub fn take(&mut self, key: &K, report: &mut Report) -> bool {
        if !self.known.contains_key(key) {
            return true;
        }
        match self.map.remove(key) {
            Ok(()) => {
                self.known.remove(key);
                report.removed += 1;
                true
            }
            Err(refusal) => {
                report.fail(self.name, key.to_text(), &refusal);
                false
            }
        }
    }

    /// Removes what `keep` refuses.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool, report: &mut Report) {
        let gone: Vec<K> = self.known.keys().filter(|key| !keep(key)).copied().collect();
        for key in gone {
            self.take(&key, report);
        }
    }
}

/// A map key that can be named to an operator.
pub trait Key: Copy + Ord {
    fn to_text(&self) -> String;
}

impl Key for u32 {
    fn to_text(&self) -> String {
        self.to_string()
    }
}
impl Key for Addr {
    fn to_text(&self) -> String {
        self.ip().to_string()
    }
}
impl Key for ServiceKey {
    fn to_text(&self) -> String {
        format!("{} protocol {}", At(self.addr, self.port), self.proto)
    }
}
impl Key for BackendKey {
    fn to_text(&self) -> String {
        format!("set {} slot {}", self.service, self.slot)
    }
}
impl Key for MemberKey {
    fn to_text(&self) -> String {
        format!("set {} backend {}", self.service, At(self.backend.addr, self.backend.port))
    }
}
impl Key for AuthDestination {
    fn to_text(&self) -> String {
        At(self.addr, self.port).to_string()
    }
}
impl Key for AddrPrefix {
    fn to_text(&self) -> String {
        let mapped = if self.addr.is_v4() { 96 } else { 0 };
        format!("{}/{}", self.addr.ip(), self.bits.saturating_sub(mapped))
    }
}
impl Key for PolicyPrefix {
    fn to_text(&self) -> String {
        let key = self.key;
        let (endpoint, identity, proto, port) = (key.endpoint, key.identity, key.proto, key.port.get());
        let direction = if key.direction == weft_bpf_abi::policy::INGRESS { "ingress" } else { "egress" };
        format!("endpoint {endpoint} {direction} identity {identity} protocol {proto} port {port}/{} bits", self.bits)
    }
}

struct At(Addr, Port);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::net::SocketAddr::new(self.0.ip(), self.1.get()))
    }
}
