//! The device: two threads between a TUN interface and UDP sockets.
//!
//! Threads: `weft-wg-tx` (interface to network) and `weft-wg-rx` (network to interface, and the timers). Both end when
//! the [`Device`] is dropped. There are no queues but the kernel's and boringtun's, which holds 256 packets a peer while
//! it waits for a handshake.

use std::io::PipeReader;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fmt, io};

use boringtun::noise::TunnResult;
use boringtun::noise::rate_limiter::RateLimiter;

use crate::Error;
use crate::config::{DeviceConfig, DeviceStatus, Dropped, Offload, PeerConfig, PeerStatus};
use crate::interface::Interface;
use crate::keys::{PrivateKey, PublicKey};
use crate::peers::PeerTable;
use crate::receive::Receiver;
use crate::transmit::Transmitter;
use crate::tun::Tun;
use crate::udp::{Sent, Udp};

/// Handshakes a second before senders must prove their address by a cookie.
const HANDSHAKES_PER_SECOND: u64 = 64;
/// A mesh has one peer a node.
const MAX_PEERS: usize = 16_384;
const MIN_MTU: u32 = 1280;
const MAX_MTU: u32 = 65_535 - crate::config::OVERHEAD;
/// A handshake message.
const MAX_HANDSHAKE: usize = 256;

/// A running WireGuard device. Dropping it stops the threads and leaves interface and routes: what is sent into them
/// then is lost, never sent in the clear.
pub struct Device {
    shared: Arc<Shared>,
    interface: Mutex<Interface>,
    name: String,
    threads: Vec<JoinHandle<()>>,
    /// Its closing tells the threads to end.
    stop: Option<io::PipeWriter>,
}

/// What the threads and the owner share.
pub(crate) struct Shared {
    pub(crate) key: PrivateKey,
    pub(crate) mtu: usize,
    pub(crate) tun: Tun,
    pub(crate) udp: Udp,
    /// One for the device and all sessions, so that a cookie is good for both.
    pub(crate) limiter: Arc<RateLimiter>,
    pub(crate) drops: Drops,
    pub(crate) stop: PipeReader,
    table: RwLock<Arc<PeerTable>>,
    failure: Mutex<Option<String>>,
}

#[derive(Default)]
pub(crate) struct Drops {
    pub(crate) no_peer: Counter,
    pub(crate) no_session: Counter,
    pub(crate) too_big: Counter,
    pub(crate) send_failed: Counter,
    pub(crate) bad_packet: Counter,
    pub(crate) unknown_peer: Counter,
    pub(crate) source_not_allowed: Counter,
    pub(crate) not_delivered: Counter,
}

#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Device {
    /// Starts a device without peers in the calling thread's network namespace. An interface that a former process left
    /// is taken over with its routes.
    pub fn start(config: DeviceConfig) -> Result<Self, Error> {
        if !(MIN_MTU..=MAX_MTU).contains(&config.mtu) {
            return Err(Error::Mtu { mtu: config.mtu, min: MIN_MTU, max: MAX_MTU });
        }
        // The port before the interface: where it is taken, nothing has been made.
        let udp = Udp::bind(config.listen_port, config.mark)?;
        let tun = Tun::attach(&config.interface)?;
        let interface = Interface::configure(&config)?;
        let (stop, stop_writer) = io::pipe().map_err(Error::Thread)?;
        let public_key = config.private_key.public_key();
        // A handshake is counted twice: by us, to find its peer, and by the peer's session.
        let limiter = Arc::new(RateLimiter::new(&public_key.to_x25519(), 2 * HANDSHAKES_PER_SECOND));
        let shared = Arc::new(Shared {
            key: config.private_key,
            mtu: config.mtu as usize,
            tun,
            udp,
            limiter,
            drops: Drops::default(),
            stop,
            table: RwLock::default(),
            failure: Mutex::default(),
        });
        let mut device = Self {
            shared,
            interface: Mutex::new(interface),
            name: config.interface,
            threads: Vec::new(),
            stop: Some(stop_writer),
        };
        device.spawn("weft-wg-tx", |shared| Transmitter::new(shared).run())?;
        device.spawn("weft-wg-rx", |shared| Receiver::new(shared).run())?;
        tracing::info!(interface = %device.name, port = device.shared.udp.port(), %public_key, "WireGuard device runs");
        Ok(device)
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce(Arc<Shared>) -> io::Result<()> + Send + 'static,
    ) -> Result<(), Error> {
        let shared = self.shared.clone();
        let run = move || {
            let guard = FailureGuard(&shared);
            let outcome = work(shared.clone());
            guard.finish(outcome);
        };
        self.threads.push(thread::Builder::new().name(name.to_owned()).spawn(run).map_err(Error::Thread)?);
        Ok(())
    }

    /// Makes these the peers, and the routes through the interface those to their allowed IPs. Sessions of peers whose
    /// key stays are kept. With the routes' error the peers are in force nevertheless; call again to retry.
    pub fn set_peers(&self, peers: Vec<PeerConfig>) -> Result<(), Error> {
        if peers.len() > MAX_PEERS {
            return Err(Error::TooManyPeers { count: peers.len(), max: MAX_PEERS });
        }
        if let Some(peer) = peers.iter().find(|peer| peer.public_key == self.public_key()) {
            return Err(Error::OwnKey { peer: peer.name.clone() });
        }
        // Held throughout, so that two callers cannot mix one's peers with the other's routes.
        let mut interface = self.interface.lock().unwrap_or_else(PoisonError::into_inner);
        let (table, new) = self.shared.table().updated(peers, &self.shared.key, &self.shared.limiter);
        let table = Arc::new(table);
        *self.shared.table.write().unwrap_or_else(PoisonError::into_inner) = table.clone();
        for peer in new.into_iter().filter_map(|number| table.peers.get(number)) {
            tracing::info!(peer = %peer.config.name, key = %peer.config.public_key, "WireGuard peer added");
            self.shared.call(&peer.tunnel);
        }
        let prefixes = table.peers.iter().flat_map(|peer| {
            peer.config.allowed_ips.iter().copied().filter(|prefix| !peer.ignored_allowed_ips.contains(prefix))
        });
        interface.set_routes(prefixes)
    }

    pub fn public_key(&self) -> PublicKey {
        self.shared.key.public_key()
    }

    pub fn status(&self) -> DeviceStatus {
        let shared = &self.shared;
        let table = shared.table();
        let peers = table.peers.iter().map(|peer| {
            let state = peer.tunnel.lock();
            let (_, sent, received, ..) = state.tunn.stats();
            PeerStatus {
                name: peer.config.name.clone(),
                public_key: peer.config.public_key,
                endpoint: state.endpoint,
                handshake_age: state.tunn.time_since_last_handshake().map(|age| Duration::from_secs(age.as_secs())),
                sent_bytes: sent as u64,
                received_bytes: received as u64,
                queued: state.queued,
                ignored_allowed_ips: peer.ignored_allowed_ips.clone(),
            }
        });
        DeviceStatus {
            interface: self.name.clone(),
            public_key: self.public_key(),
            listen_port: shared.udp.port(),
            implementation: "boringtun (kernel WireGuard not used)".to_owned(),
            offload: Offload {
                tun_tcp: shared.tun.tcp_offload,
                tun_udp: shared.tun.udp_offload,
                udp_send: shared.udp.send_offload(),
                udp_receive: shared.udp.receive_offload,
            },
            failure: shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            peers: peers.collect(),
            dropped: shared.drops.read(),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.stop = None;
        for thread in self.threads.drain(..) {
            // A panic in it has been recorded by its guard.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("interface", &self.name).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn table(&self) -> Arc<PeerTable> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends datagrams and counts what was lost; how many were too long for the path.
    pub(crate) fn send(&self, to: SocketAddr, bytes: &[u8], ranges: &[Range<usize>]) -> u64 {
        let Sent { too_big, failed } = self.udp.send(to, bytes, ranges);
        self.drops.too_big.add(too_big);
        self.drops.send_failed.add(failed);
        too_big
    }

    pub(crate) fn send_one(&self, to: SocketAddr, datagram: &[u8]) {
        self.send(to, datagram, std::slice::from_ref(&(0..datagram.len())));
    }

    /// Starts a handshake, unless one is on its way or the peer's address is not known.
    pub(crate) fn call(&self, tunnel: &crate::peers::Tunnel) {
        let mut buffer = [0; MAX_HANDSHAKE];
        let mut state = tunnel.lock();
        let Some(endpoint) = state.endpoint else { return };
        if let TunnResult::WriteToNetwork(datagram) = state.tunn.format_handshake_initiation(&mut buffer, false) {
            let length = datagram.len();
            drop(state);
            self.send_one(endpoint, &buffer[..length]);
        }
    }

    pub(crate) fn stop_descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.stop.as_fd()
    }
}

impl Drops {
    fn read(&self) -> Dropped {
        Dropped {
            no_peer: self.no_peer.get(),
            no_session: self.no_session.get(),
            too_big: self.too_big.get(),
            send_failed: self.send_failed.get(),
            bad_packet: self.bad_packet.get(),
            unknown_peer: self.unknown_peer.get(),
            source_not_allowed: self.source_not_allowed.get(),
            not_delivered: self.not_delivered.get(),
        }
    }
}

/// Records why a thread ended other than by request, a panic included.
struct FailureGuard<'a>(&'a Shared);

impl FailureGuard<'_> {
    fn finish(self, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            self.record(error.to_string());
        }
        std::mem::forget(self);
    }

    fn record(&self, reason: String) {
        tracing::error!(reason, "the WireGuard device failed");
        *self.0.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }
}

impl Drop for FailureGuard<'_> {
    fn drop(&mut self) {
        self.record("a thread of the device panicked".to_owned());
    }
}
