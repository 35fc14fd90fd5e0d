//! Network to interface: each received message is decrypted under one lock a peer, joined and written; and the timers,
//! which must not depend on traffic.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, TunnResult};

use crate::device::Shared;
use crate::join::Joiner;
use crate::keys::PublicKey;
use crate::peers::{Peer, PeerTable, TunnelState};
use crate::poll;
use crate::udp::{Received, Udp};

const TICK: Duration = Duration::from_millis(200);
/// Messages from one socket before the other, the timers and stopping have their turn.
const MESSAGES_AT_ONCE: usize = 64;
const MAX_MESSAGE: usize = 64 * 1024;
/// boringtun wants this much more than the plain text.
const ROOM: usize = 256;
const DATA: [u8; 4] = [4, 0, 0, 0];
const COOKIE_REPLY: u8 = 3;
const MAX_COOKIE: usize = 64;
/// A session that is so old would be used beyond what WireGuard allows; adding to it could overflow boringtun's sums.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

pub(crate) struct Receiver {
    shared: Arc<Shared>,
    joiner: Joiner,
    /// Decrypted packets of one message.
    plain: Vec<u8>,
    scratch: Vec<u8>,
    /// Datagrams to send once no lock is held.
    answers: Vec<(SocketAddr, Vec<u8>)>,
}

impl Receiver {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let joiner = Joiner::new(shared.tun.udp_offload);
        let plain = vec![0; MAX_MESSAGE + ROOM];
        Self { joiner, plain, scratch: vec![0; MAX_MESSAGE + ROOM], answers: Vec::new(), shared }
    }

    /// Runs until the device is dropped.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let shared = self.shared.clone();
        let mut buffer = vec![0; MAX_MESSAGE];
        let mut next_tick = Instant::now();
        loop {
            let mut sockets = shared.udp.descriptors();
            let descriptors = [Some(shared.stop_descriptor()), sockets.next(), sockets.next()];
            let [stop, ready @ ..] = poll::wait(
                descriptors,
                Some(next_tick.saturating_duration_since(Instant::now()) + Duration::from_millis(1)),
            )?;
            if stop {
                return Ok(());
            }
            let table = shared.table();
            for (socket, _) in shared.udp.sockets().zip(ready).filter(|(_, ready)| *ready) {
                for _ in 0..MESSAGES_AT_ONCE {
                    match Udp::receive(socket, &mut buffer) {
                        Ok(Some(received)) => self.message(&table, &received, &buffer[..received.length]),
                        Ok(None) => break,
                        // An error of an earlier packet, told late; the socket goes on.
                        Err(error) => tracing::debug!(%error, "receiving failed"),
                    }
                }
            }
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                self.tick(&table);
            }
        }
    }

    fn message(&mut self, table: &PeerTable, received: &Received, bytes: &[u8]) {
        let mut segments = bytes.chunks(received.segment).peekable();
        let mut end = 0;
        while let Some(segment) = segments.next() {
            let Some(number) = data_receiver(segment).and_then(|receiver| table.number_by_receiver(receiver)) else {
                self.handshake(table, received.from, segment);
                continue;
            };
            // Known to the table it came from.
            let Some(peer) = table.peers.get(number) else { continue };
            let mut state = peer.tunnel.lock();
            let mut authentic = self.open(table, number, &mut state, segment, &mut end);
            while let Some(next) = segments.next_if(|next| {
                data_receiver(next).and_then(|receiver| table.number_by_receiver(receiver)) == Some(number)
            }) {
                authentic |= self.open(table, number, &mut state, next, &mut end);
            }
            if authentic {
                self.heard_from(peer, &mut state, received.from);
            }
        }
        let (shared, plain) = (&self.shared, &self.plain);
        self.joiner.drain(plain, |parts| {
            if let Err(error) = shared.tun.write(parts) {
                tracing::trace!(%error, "the interface does not take a packet");
                shared.drops.not_delivered.add(1);
            }
        });
        self.send_answers();
    }

    /// Decrypts one data message behind the others; whether it was authentic.
    fn open(
        &mut self,
        table: &PeerTable,
        peer: usize,
        state: &mut TunnelState,
        datagram: &[u8],
        end: &mut usize,
    ) -> bool {
        let drops = &self.shared.drops;
        let start = *end;
        // All segments together are no longer than the buffer, and plain text is shorter.
        let (length, source) = match state.tunn.decapsulate(None, datagram, &mut self.plain[start..]) {
            TunnResult::Done => return true,
            TunnResult::WriteToTunnelV4(packet, source) => (packet.len(), IpAddr::V4(source)),
            TunnResult::WriteToTunnelV6(packet, source) => (packet.len(), IpAddr::V6(source)),
            TunnResult::Err(error) => {
                tracing::trace!(?error, "not decrypted");
                drops.bad_packet.add(1);
                return false;
            }
            TunnResult::WriteToNetwork(_) => return false,
        };
        if table.allowed.peer_of(source) == Some(peer) {
            *end += length;
            self.joiner.push(&self.plain, start..start + length);
        } else {
            tracing::debug!(%source, "a peer sends from an address that is not its own");
            drops.source_not_allowed.add(1);
        }
        true
    }

    /// Anything but a data message for a known session.
    fn handshake(&mut self, table: &PeerTable, from: SocketAddr, datagram: &[u8]) {
        let mut cookie = [0; MAX_COOKIE];
        let shared = self.shared.clone();
        let packet = match shared.limiter.verify_packet(Some(from.ip()), datagram, &mut cookie) {
            Ok(packet) => packet,
            Err(TunnResult::WriteToNetwork(reply)) => return shared.send_one(from, reply),
            Err(_) => return shared.drops.bad_packet.add(1),
        };
        let number = match &packet {
            Packet::HandshakeInit(initiation) => {
                let own = shared.key.public_key().to_x25519();
                let Ok(caller) = parse_handshake_anon(shared.key.secret(), &own, initiation) else {
                    return shared.drops.bad_packet.add(1);
                };
                let key = PublicKey::from_bytes(caller.peer_static_public);
                let number = table.number_by_key(key);
                if number.is_none() {
                    tracing::debug!(%from, %key, "handshake by an unknown peer");
                    return shared.drops.unknown_peer.add(1);
                }
                number
            }
            Packet::HandshakeResponse(response) => table.number_by_receiver(response.receiver_idx),
            Packet::PacketCookieReply(reply) => table.number_by_receiver(reply.receiver_idx),
            // The index is no peer's: a session of our former process, most likely.
            Packet::PacketData(_) => None,
        };
        let Some(peer) = number.and_then(|number| table.peers.get(number)) else {
            return shared.drops.bad_packet.add(1);
        };
        let mut state = peer.tunnel.lock();
        match state.tunn.decapsulate(Some(from.ip()), datagram, &mut self.scratch) {
            TunnResult::WriteToNetwork(answer) => {
                let is_cookie = answer[0] == COOKIE_REPLY;
                self.answers.push((from, answer.to_vec()));
                if !is_cookie {
                    self.heard_from(peer, &mut state, from);
                }
            }
            TunnResult::Err(error) => {
                tracing::debug!(%from, ?error, peer = %peer.config.name, "handshake refused");
                shared.drops.bad_packet.add(1);
            }
            _ => {}
        }
        drop(state);
        self.send_answers();
    }

    /// The peer has proved that it is at `from`; what waited for its session can go.
    fn heard_from(&mut self, peer: &Peer, state: &mut TunnelState, from: SocketAddr) {
        if state.endpoint != Some(from) {
            tracing::debug!(peer = %peer.config.name, %from, "peer has moved");
            state.endpoint = Some(from);
        }
        let answers = &mut self.answers;
        state.flush(&mut self.scratch, |datagram| answers.push((from, datagram.to_vec())));
    }

    fn send_answers(&mut self) {
        for (to, datagram) in self.answers.drain(..) {
            self.shared.send_one(to, &datagram);
        }
    }

    /// Handshakes to repeat or renew, keepalives, sessions to forget.
    fn tick(&mut self, table: &PeerTable) {
        self.shared.limiter.reset_count();
        for peer in &table.peers {
            let mut state = peer.tunnel.lock();
            let result = match state.tunn.update_timers(&mut self.scratch) {
                TunnResult::Done => self.persistent_keepalive(peer, &mut state),
                TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
                TunnResult::Err(WireGuardError::ConnectionExpired) => {
                    // boringtun has cleared its queue. The next packet starts anew.
                    self.shared.drops.no_session.add(std::mem::take(&mut state.queued));
                    self.persistent_keepalive(peer, &mut state)
                }
                _ => None,
            };
            let endpoint = state.endpoint;
            drop(state);
            if let (Some(length), Some(endpoint)) = (result, endpoint) {
                self.shared.send_one(endpoint, &self.scratch[..length]);
            }
        }
    }

    /// Length of the message to send, where one is due.
    fn persistent_keepalive(&mut self, peer: &Peer, state: &mut TunnelState) -> Option<usize> {
        let interval = Duration::from_secs(peer.config.persistent_keepalive.filter(|seconds| *seconds > 0)?.into());
        if state.last_keepalive.elapsed() < interval {
            return None;
        }
        state.last_keepalive = Instant::now();
        let result = if state.has_session() {
            state.tunn.encapsulate(&[], &mut self.scratch)
        } else {
            state.tunn.format_handshake_initiation(&mut self.scratch, false)
        };
        match result {
            TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
            _ => None,
        }
    }
}

/// Receiver index of a data message that may be decrypted.
fn data_receiver(datagram: &[u8]) -> Option<u32> {
    let (kind, rest) = datagram.split_first_chunk::<4>()?;
    let (receiver, rest) = rest.split_first_chunk::<4>()?;
    let (counter, _) = rest.split_first_chunk::<8>()?;
    (*kind == DATA && u64::from_le_bytes(*counter) < REJECT_AFTER_MESSAGES).then_some(u32::from_le_bytes(*receiver))
}
