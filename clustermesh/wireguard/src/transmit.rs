//! Interface to network: super-packets are split, encrypted under one lock for all that go to one peer, and sent in runs
//! of equal size.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use boringtun::noise::TunnResult;

use crate::config::{OVERHEAD, OVERHEAD_V4};
use crate::device::Shared;
use crate::icmp;
use crate::packet::{MAX_PACKET, addresses};
use crate::peers::PeerTable;
use crate::poll;
use crate::split::{Packets, split};
use crate::udp::Udp;
use crate::vnet::{self, VnetHeader};

/// Plain bytes that are encrypted at once: a few super-packets, and still in the L2 cache.
const BATCH: usize = 176 * 1024;
/// A segment of the smallest size that TCP uses is more than this, so splitting adds less than this factor.
const MOST_SEGMENTS_IN_BATCH: usize = 2048;
/// Of a data message: header and tag.
const DATA_OVERHEAD: usize = 32;
/// boringtun wants room for a handshake message in any case.
const MIN_ROOM: usize = 256;
const HANDSHAKE_INITIATION: u8 = 1;

pub(crate) struct Transmitter {
    shared: Arc<Shared>,
    packets: Packets,
    sealed: Vec<u8>,
    ranges: Vec<Range<usize>>,
}

impl Transmitter {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, packets: Packets::with_capacity(2 * BATCH), sealed: Vec::new(), ranges: Vec::new() }
    }

    /// Runs until the device is dropped or the interface is removed.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let shared = self.shared.clone();
        let mut buffer = vec![0; vnet::LEN + MAX_PACKET];
        loop {
            let [stop, _] = poll::wait([Some(shared.stop_descriptor()), Some(shared.tun.descriptor())], None)?;
            if stop {
                return Ok(());
            }
            let table = shared.table();
            self.drain(&table, &mut buffer)?;
        }
    }

    /// Sends all that waits at the interface, but not more than a batch: then stopping and new peers are looked at.
    fn drain(&mut self, table: &PeerTable, buffer: &mut [u8]) -> io::Result<()> {
        let mut peer = None;
        let mut read = 0;
        while read < BATCH && self.packets.count() < MOST_SEGMENTS_IN_BATCH {
            let length = match self.shared.tun.read(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            read += length;
            let Some((header, packet)) = buffer[..length].split_first_chunk::<{ vnet::LEN }>() else { continue };
            let Some((_, destination)) = addresses(packet) else {
                self.shared.drops.bad_packet.add(1);
                continue;
            };
            let Some(number) = table.allowed.peer_of(destination) else {
                tracing::trace!(%destination, "no peer");
                self.shared.drops.no_peer.add(1);
                continue;
            };
            if let Some(other) = peer.filter(|peer| *peer != number) {
                self.flush(table, other);
            }
            peer = Some(number);
            let outcome =
                VnetHeader::parse(*header).map(|vnet| split(vnet, packet, self.shared.mtu, &mut self.packets));
            if !matches!(outcome, Some(Ok(()))) {
                self.shared.drops.bad_packet.add(1);
            }
        }
        if let Some(peer) = peer {
            self.flush(table, peer);
        }
        Ok(())
    }

    /// Encrypts and sends the collected packets, all for one peer.
    fn flush(&mut self, table: &PeerTable, peer: usize) {
        let Self { shared, packets, sealed, ranges } = self;
        let room = packets.len() + packets.count() * DATA_OVERHEAD + MIN_ROOM;
        if sealed.len() < room {
            sealed.resize(room, 0);
        }
        ranges.clear();
        // The number is of this table.
        let Some(peer) = table.peers.get(peer) else { return packets.clear() };
        let mut initiation = None;
        let mut end = 0;
        let mut state = peer.tunnel.lock();
        let endpoint = state.endpoint;
        for packet in packets.iter() {
            if endpoint.is_none() && !state.has_session() {
                shared.drops.no_session.add(1);
                continue;
            }
            let result = state.tunn.encapsulate(packet, &mut sealed[end..]);
            match result {
                TunnResult::WriteToNetwork(datagram) if datagram[0] != HANDSHAKE_INITIATION => {
                    let start = end;
                    end += datagram.len();
                    ranges.push(start..end);
                }
                TunnResult::WriteToNetwork(datagram) => {
                    initiation = Some(datagram.to_vec());
                    shared.drops.no_session.add(u64::from(!state.count_queued()));
                }
                TunnResult::Done => shared.drops.no_session.add(u64::from(!state.count_queued())),
                _ => shared.drops.no_session.add(1),
            }
        }
        drop(state);
        if let Some(endpoint) = endpoint {
            if let Some(initiation) = initiation {
                shared.send_one(endpoint, &initiation);
            }
            if shared.send(endpoint, sealed, ranges) > 0 {
                report_too_big(shared, endpoint, packets);
            }
        }
        packets.clear();
    }
}

/// Tells the first sender whose packet was too long for the path; the others of this batch will try again.
fn report_too_big(shared: &Shared, endpoint: SocketAddr, packets: &Packets) {
    let overhead = if endpoint.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD } as usize;
    let Ok(path) = Udp::path_mtu(endpoint) else { return };
    // What is encrypted is padded to 16 bytes, so this length is sure to fit.
    let mtu = path.saturating_sub(overhead) / 16 * 16;
    let message = packets.iter().filter(|packet| packet.len() > mtu).find_map(|packet| icmp::too_big(packet, mtu));
    if let Some(message) = message {
        tracing::debug!(%endpoint, path, mtu, "the path to the peer is narrower than the interface");
        let written = shared.tun.write(&[IoSlice::new(&VnetHeader::PLAIN.bytes()), IoSlice::new(&message)]);
        shared.drops.not_delivered.add(u64::from(written.is_err()));
    }
}
