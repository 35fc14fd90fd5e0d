//! The peers of a device and their sessions. The table is replaced whole; sessions move from the old one to the new.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use ipnet::IpNet;

use crate::allowed::AllowedIps;
use crate::config::PeerConfig;
use crate::keys::{PrivateKey, PublicKey};

/// Bound of boringtun's own queue of packets that wait for a handshake.
const MAX_QUEUED: u64 = 256;
/// Receiver indices are 32 bits: 24 name the peer, 8 its session.
const INDEX_BITS: u32 = 24;

/// All peers at one moment.
#[derive(Default)]
pub(crate) struct PeerTable {
    pub(crate) peers: Vec<Peer>,
    pub(crate) allowed: AllowedIps,
    by_index: HashMap<u32, usize>,
    by_key: HashMap<PublicKey, usize>,
}

pub(crate) struct Peer {
    pub(crate) config: PeerConfig,
    pub(crate) ignored_allowed_ips: Vec<IpNet>,
    pub(crate) tunnel: Arc<Tunnel>,
}

/// One peer's sessions; they live as long as its key stays.
pub(crate) struct Tunnel {
    index: u32,
    state: Mutex<TunnelState>,
}

pub(crate) struct TunnelState {
    pub(crate) tunn: Tunn,
    /// Where the peer is: configured, or where it last sent from.
    pub(crate) endpoint: Option<SocketAddr>,
    /// Packets in boringtun's queue.
    pub(crate) queued: u64,
    pub(crate) last_keepalive: Instant,
}

impl Tunnel {
    pub(crate) fn lock(&self) -> MutexGuard<'_, TunnelState> {
        // What another thread left half done is at worst a lost packet.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TunnelState {
    pub(crate) fn has_session(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }

    /// Counts a packet that boringtun took into its queue; false where it must have dropped it.
    pub(crate) fn count_queued(&mut self) -> bool {
        let has_room = self.queued < MAX_QUEUED;
        self.queued += u64::from(has_room);
        has_room
    }

    /// Encrypts what waited for the session, once there is one, and hands each datagram to `send`.
    pub(crate) fn flush(&mut self, scratch: &mut [u8], mut send: impl FnMut(&[u8])) {
        if self.queued == 0 || !self.has_session() {
            return;
        }
        for _ in 0..MAX_QUEUED {
            match self.tunn.decapsulate(None, &[], scratch) {
                TunnResult::WriteToNetwork(datagram) => send(datagram),
                _ => break,
            }
        }
        self.queued = 0;
    }
}

impl PeerTable {
    /// The table for `configs`, with the sessions of those whose key `self` has. Also which of them are new.
    pub(crate) fn updated(
        &self,
        mut configs: Vec<PeerConfig>,
        key: &PrivateKey,
        limiter: &Arc<RateLimiter>,
    ) -> (Self, Vec<usize>) {
        let mut table = Self::default();
        let mut new = Vec::new();
        // The order decides who keeps a prefix that two claim, so it must not depend on the caller's.
        configs.sort_by(|a, b| (&a.name, a.public_key).cmp(&(&b.name, b.public_key)));
        for config in configs {
            if table.by_key.contains_key(&config.public_key) {
                continue;
            }
            let number = table.peers.len();
            let tunnel = match self.with_key(config.public_key) {
                Some(old) => {
                    if old.config.endpoint != config.endpoint {
                        old.tunnel.lock().endpoint = config.endpoint;
                    }
                    old.tunnel.clone()
                }
                None => {
                    new.push(number);
                    let index = self.free_index(&table);
                    Arc::new(Tunnel::new(index, &config, key, limiter))
                }
            };
            let ignored_allowed_ips =
                config.allowed_ips.iter().copied().filter(|prefix| !table.allowed.insert(*prefix, number)).collect();
            table.by_index.insert(tunnel.index, number);
            table.by_key.insert(config.public_key, number);
            table.peers.push(Peer { config, ignored_allowed_ips, tunnel });
        }
        (table, new)
    }

    pub(crate) fn with_key(&self, key: PublicKey) -> Option<&Peer> {
        self.peers.get(*self.by_key.get(&key)?)
    }

    /// Number of the peer that a received packet's receiver index names.
    pub(crate) fn number_by_receiver(&self, receiver: u32) -> Option<usize> {
        self.by_index.get(&(receiver >> (u32::BITS - INDEX_BITS))).copied()
    }

    pub(crate) fn number_by_key(&self, key: PublicKey) -> Option<usize> {
        self.by_key.get(&key).copied()
    }

    /// Random, so that packets for a former process's sessions do not hit ours.
    fn free_index(&self, table: &Self) -> u32 {
        loop {
            let index = rand::random::<u32>() >> (u32::BITS - INDEX_BITS);
            if !self.by_index.contains_key(&index) && !table.by_index.contains_key(&index) {
                return index;
            }
        }
    }
}

impl Tunnel {
    fn new(index: u32, config: &PeerConfig, key: &PrivateKey, limiter: &Arc<RateLimiter>) -> Self {
        let tunn = Tunn::new(
            key.secret().clone(),
            config.public_key.to_x25519(),
            None,
            // Ours, in `receive`: boringtun's cannot change without losing the session.
            None,
            index,
            Some(limiter.clone()),
        );
        let state = TunnelState { tunn, endpoint: config.endpoint, queued: 0, last_keepalive: Instant::now() };
        Self { index, state: Mutex::new(state) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, key: &PrivateKey, prefix: &str) -> PeerConfig {
        PeerConfig {
            name: name.to_owned(),
            public_key: key.public_key(),
            endpoint: Some("192.0.2.1:51820".parse().expect("an address")),
            allowed_ips: vec![prefix.parse().expect("a prefix")],
            persistent_keepalive: None,
        }
    }

    #[test]
    fn a_peer_keeps_its_session_until_its_key_changes() {
        let ours = PrivateKey::generate();
        let limiter = Arc::new(RateLimiter::new(&ours.public_key().to_x25519(), 10));
        let (a, b) = (PrivateKey::generate(), PrivateKey::generate());
        let (first, new) = PeerTable::default().updated(vec![peer("a", &a, "10.1.0.0/24")], &ours, &limiter);
        assert_eq!(new, [0]);

        let moved = peer("renamed", &a, "10.9.0.0/24");
        let (second, new) = first.updated(vec![peer("b", &b, "10.2.0.0/24"), moved], &ours, &limiter);
        assert_eq!(new, [0], "only b");
        assert!(Arc::ptr_eq(&first.peers[0].tunnel, &second.peers[1].tunnel));
        assert_eq!(second.allowed.peer_of("10.9.0.1".parse().expect("an address")), Some(1));
        assert_eq!(second.allowed.peer_of("10.1.0.1".parse().expect("an address")), None);

        let (third, new) = second.updated(vec![peer("renamed", &b, "10.9.0.0/24")], &ours, &limiter);
        assert_eq!(new, [0; 0]);
        assert!(third.with_key(a.public_key()).is_none());
    }

    #[test]
    fn a_roamed_endpoint_stays_until_the_configured_one_changes() {
        let ours = PrivateKey::generate();
        let limiter = Arc::new(RateLimiter::new(&ours.public_key().to_x25519(), 10));
        let config = peer("a", &PrivateKey::generate(), "10.1.0.0/24");
        let (first, _) = PeerTable::default().updated(vec![config.clone()], &ours, &limiter);
        let roamed = "198.51.100.7:4000".parse().ok();
        first.peers[0].tunnel.lock().endpoint = roamed;
        let (second, _) = first.updated(vec![config.clone()], &ours, &limiter);
        assert_eq!(second.peers[0].tunnel.lock().endpoint, roamed);
        let moved = PeerConfig { endpoint: "192.0.2.9:51820".parse().ok(), ..config };
        let (third, _) = second.updated(vec![moved.clone()], &ours, &limiter);
        assert_eq!(third.peers[0].tunnel.lock().endpoint, moved.endpoint);
    }

    #[test]
    fn a_prefix_that_two_peers_claim_stays_with_one_whatever_the_order() {
        let ours = PrivateKey::generate();
        let limiter = Arc::new(RateLimiter::new(&ours.public_key().to_x25519(), 10));
        let a = peer("a", &PrivateKey::generate(), "10.1.0.0/24");
        let b = peer("b", &PrivateKey::generate(), "10.1.0.0/24");
        for configs in [vec![a.clone(), b.clone()], vec![b, a]] {
            let (table, _) = PeerTable::default().updated(configs, &ours, &limiter);
            assert_eq!(table.peers[0].config.name, "a");
            assert_eq!(table.peers[1].ignored_allowed_ips, ["10.1.0.0/24".parse().expect("a prefix")]);
        }
    }
}
