//! From what the kernel hands over (TCP and UDP super-packets, unfinished checksums) to packets as they go on a wire.

use std::ops::Range;

use crate::checksum::Sum;
use crate::packet::{Family, MAX_PACKET, TCP, UDP, UDP_HEADER, be16, be32, put, set_ip_length, tcp_header_len};
use crate::vnet::{Gso, VnetHeader};

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// WireGuard pads what it encrypts, so that lengths tell less.
const PADDING: usize = 16;

/// Packets ready to be encrypted, one after the other in one buffer.
#[derive(Default)]
pub(crate) struct Packets {
    bytes: Vec<u8>,
    slots: Vec<Range<usize>>,
}

/// A super-packet that contradicts itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Packets {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), slots: Vec::with_capacity(bytes / 1024) }
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.slots.clear();
    }

    /// Bytes of all packets with their padding.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn count(&self) -> usize {
        self.slots.len()
    }

    /// The packets, padded.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.slots.iter().map(|slot| &self.bytes[slot.clone()])
    }

    /// Adds a packet made of two parts and pads it to a multiple of 16 bytes, but not beyond the MTU.
    fn push(&mut self, header: &[u8], payload: &[u8], mtu: usize) -> &mut [u8] {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(header);
        self.bytes.extend_from_slice(payload);
        let length = header.len() + payload.len();
        let padded = length.next_multiple_of(PADDING).min(mtu).max(length);
        self.bytes.resize(start + padded, 0);
        self.slots.push(start..start + padded);
        &mut self.bytes[start..start + length]
    }
}

/// Splits what was read from the TUN device into `packets`. Nothing is added where it is malformed.
pub(crate) fn split(vnet: VnetHeader, packet: &[u8], mtu: usize, packets: &mut Packets) -> Result<(), Malformed> {
    let family = Family::of(packet).ok_or(Malformed)?;
    if packet.len() > MAX_PACKET {
        return Err(Malformed);
    }
    match vnet.gso {
        Gso::None => whole(vnet, packet, mtu, packets),
        Gso::TcpV4 | Gso::TcpV6 => {
            if (vnet.gso == Gso::TcpV4) != (family == Family::V4) {
                return Err(Malformed);
            }
            let layout = Layout::of(vnet, packet, family, TCP)?;
            tcp(&layout, packet, mtu, packets);
            Ok(())
        }
        Gso::Udp => {
            let layout = Layout::of(vnet, packet, family, UDP)?;
            udp(&layout, packet, mtu, packets);
            Ok(())
        }
    }
}

fn whole(vnet: VnetHeader, packet: &[u8], mtu: usize, packets: &mut Packets) -> Result<(), Malformed> {
    if !vnet.needs_csum {
        packets.push(packet, &[], mtu);
        return Ok(());
    }
    let start = usize::from(vnet.csum_start);
    let field = start + usize::from(vnet.csum_offset);
    if field + 2 > packet.len() {
        return Err(Malformed);
    }
    // The field holds the pseudo-header's sum, so it is part of the sum.
    let sum = Sum::of(&packet[start..]).finish_udp();
    put(packets.push(packet, &[], mtu), field, &sum);
    Ok(())
}

/// Where the parts of a super-packet are. The kernel's `header_len` is not used: forwarded packets have it wrong.
struct Layout {
    family: Family,
    /// Start of the TCP or UDP header.
    transport: usize,
    /// Start of the payload.
    payload: usize,
    segment: usize,
}

impl Layout {
    fn of(vnet: VnetHeader, packet: &[u8], family: Family, protocol: u8) -> Result<Self, Malformed> {
        let transport = usize::from(vnet.csum_start);
        let ip_header = match family {
            Family::V4 => usize::from(packet[0] & 0xf) * 4,
            Family::V6 => crate::packet::IPV6_HEADER,
        };
        let at_transport = match family {
            Family::V4 => packet[9] == protocol && transport == ip_header && ip_header >= crate::packet::IPV4_HEADER,
            // Extension headers may stand between.
            Family::V6 => transport >= ip_header,
        };
        if !vnet.needs_csum || vnet.gso_size == 0 || !at_transport {
            return Err(Malformed);
        }
        let header = match protocol {
            TCP => tcp_header_len(packet, transport).ok_or(Malformed)?,
            _ => UDP_HEADER,
        };
        let payload = transport + header;
        if packet.len() <= payload {
            return Err(Malformed);
        }
        Ok(Self { family, transport, payload, segment: vnet.gso_size.into() })
    }
}

fn tcp(layout: &Layout, packet: &[u8], mtu: usize, packets: &mut Packets) {
    let &Layout { family, transport, payload, segment } = layout;
    let sequence = be32(packet, transport + 4);
    let flags = packet[transport + 13];
    let segments = packet[payload..].chunks(segment);
    let last = segments.len() - 1;
    for (number, data) in segments.enumerate() {
        let out = packets.push(&packet[..payload], data, mtu);
        set_identity(out, packet, layout, number);
        put(out, transport + 4, &sequence.wrapping_add((number * segment) as u32).to_be_bytes());
        let mut flags = flags;
        if number > 0 {
            flags &= !CWR;
        }
        if number < last {
            flags &= !(FIN | PSH);
        }
        out[transport + 13] = flags;
        put(out, transport + 16, &[0, 0]);
        let sum = Sum::of_pseudo_header(out, family, TCP, out.len() - transport).add(&out[transport..]).finish();
        put(out, transport + 16, &sum);
    }
}

fn udp(layout: &Layout, packet: &[u8], mtu: usize, packets: &mut Packets) {
    let &Layout { family, transport, payload, segment } = layout;
    for (number, data) in packet[payload..].chunks(segment).enumerate() {
        let out = packets.push(&packet[..payload], data, mtu);
        set_identity(out, packet, layout, number);
        let length = out.len() - transport;
        put(out, transport + 4, &(length as u16).to_be_bytes());
        put(out, transport + 6, &[0, 0]);
        let sum = Sum::of_pseudo_header(out, family, UDP, length).add(&out[transport..]).finish_udp();
        put(out, transport + 6, &sum);
    }
}

/// The IP header of segment `number`.
fn set_identity(out: &mut [u8], packet: &[u8], layout: &Layout, number: usize) {
    if layout.family == Family::V4 {
        put(out, 4, &be16(packet, 4).wrapping_add(number as u16).to_be_bytes());
    }
    let total = out.len();
    // With IPv4 the transport header starts where the IP header ends (checked in `Layout::of`).
    set_ip_length(out, layout.family, layout.transport, total);
}
