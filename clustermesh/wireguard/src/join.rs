//! From decrypted packets to super-packets for the TUN device: neighbours of one TCP or UDP flow become one, so that the
//! kernel's stack runs once for all of them. What does not fit together passes as it came, in its flow's order.

use std::io::IoSlice;
use std::ops::Range;

use crate::checksum::Sum;
use crate::packet::{
    Family, IPV4_HEADER, IPV6_HEADER, MAX_PACKET, TCP, UDP, UDP_HEADER, be16, be32, put, set_ip_length, tcp_header_len,
};
use crate::vnet::{Gso, VnetHeader};

const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
/// Older kernels take no more segments than this in a UDP super-packet.
const MAX_SEGMENTS: usize = 64;
/// Flows that may be joined at the same time, for wires that mix them.
const OPEN_FLOWS: usize = 8;
/// An IP header without options or extensions, and the longest TCP header.
const MAX_HEADER: usize = IPV6_HEADER + 60;

/// Collects the packets of one batch. All ranges are of the one buffer that the caller passes each time.
pub(crate) struct Joiner {
    groups: Vec<Group>,
    open: Vec<usize>,
    /// The kernel takes UDP super-packets.
    join_udp: bool,
}

struct Group {
    first: Range<usize>,
    /// What allows joining; `None`: this packet stays alone.
    shape: Option<Shape>,
    /// Payloads after the first packet's.
    more: Vec<Range<usize>>,
    total: usize,
    next_sequence: u32,
    next_id: u16,
    push: bool,
    first_is_intact: bool,
}

#[derive(Clone, Copy)]
struct Shape {
    family: Family,
    protocol: u8,
    transport: usize,
    payload: usize,
    payload_len: usize,
    sequence: u32,
    flags: u8,
}

impl Joiner {
    pub(crate) fn new(join_udp: bool) -> Self {
        Self { groups: Vec::new(), open: Vec::new(), join_udp }
    }

    /// Adds the packet at `range`.
    pub(crate) fn push(&mut self, buffer: &[u8], range: Range<usize>) {
        let packet = &buffer[range.clone()];
        let shape = Shape::of(packet).filter(|shape| self.join_udp || shape.protocol == TCP);
        if let Some(shape) = shape {
            if let Some(position) = self.open.iter().position(|&group| self.groups[group].is_same_flow(buffer, packet))
            {
                let group = &mut self.groups[self.open[position]];
                match group.append(buffer, &range, shape) {
                    Appended::Yes => return,
                    Appended::Last => {
                        self.open.remove(position);
                        return;
                    }
                    Appended::No => {
                        self.open.remove(position);
                    }
                }
            }
        } else {
            // It may belong to an open flow, which must not be overtaken: fragments and odd flags have a flow too.
            self.open.retain(|&group| !self.groups[group].has_same_addresses(buffer, packet));
        }
        if let Some(shape) = shape.filter(Shape::may_be_followed) {
            if self.open.len() == OPEN_FLOWS {
                self.open.remove(0);
            }
            self.open.push(self.groups.len());
            self.groups.push(Group::new(range, Some(shape), packet));
        } else {
            self.groups.push(Group::new(range, None, packet));
        }
    }

    /// Hands each packet or super-packet to `write`, as its vnet header followed by its parts, and starts anew.
    pub(crate) fn drain(&mut self, buffer: &[u8], mut write: impl FnMut(&[IoSlice<'_>])) {
        self.open.clear();
        for group in self.groups.drain(..) {
            group.write(buffer, &mut write);
        }
    }
}

impl Shape {
    /// `None`: not a packet that may ever be joined.
    fn of(packet: &[u8]) -> Option<Self> {
        let family = Family::of(packet)?;
        let (protocol, transport) = match family {
            Family::V4 => {
                let fragment = be16(packet, 6) & 0x3fff != 0;
                if packet[0] != 0x45 || usize::from(be16(packet, 2)) != packet.len() || fragment {
                    return None;
                }
                (packet[9], IPV4_HEADER)
            }
            Family::V6 => {
                if usize::from(be16(packet, 4)) + IPV6_HEADER != packet.len() {
                    return None;
                }
                (packet[6], IPV6_HEADER)
            }
        };
        let (payload, sequence, flags) = match protocol {
            TCP => {
                let length = tcp_header_len(packet, transport)?;
                let flags = packet[transport + 13];
                if flags & !PSH != ACK {
                    return None;
                }
                (transport + length, be32(packet, transport + 4), flags)
            }
            UDP => {
                if packet.len() < transport + UDP_HEADER
                    || usize::from(be16(packet, transport + 4)) != packet.len() - transport
                    || be16(packet, transport + 6) == 0
                {
                    return None;
                }
                (transport + UDP_HEADER, 0, 0)
            }
            _ => return None,
        };
        let payload_len = packet.len() - payload;
        (payload_len > 0).then_some(Self { family, protocol, transport, payload, payload_len, sequence, flags })
    }

    fn may_be_followed(&self) -> bool {
        self.flags & PSH == 0
    }

    fn is_intact(&self, packet: &[u8]) -> bool {
        let transport = &packet[self.transport..];
        let header_ok = self.family == Family::V6 || Sum::of(&packet[..IPV4_HEADER]).is_valid();
        header_ok
            && Sum::of_pseudo_header(packet, self.family, self.protocol, transport.len()).add(transport).is_valid()
    }
}

enum Appended {
    Yes,
    /// Yes, and nothing can follow.
    Last,
    No,
}

impl Group {
    fn new(first: Range<usize>, shape: Option<Shape>, packet: &[u8]) -> Self {
        Self {
            total: first.len(),
            next_sequence: shape.map_or(0, |shape| shape.sequence.wrapping_add(shape.payload_len as u32)),
            next_id: if packet.len() >= IPV4_HEADER { be16(packet, 4).wrapping_add(1) } else { 0 },
            first,
            shape,
            more: Vec::new(),
            push: false,
            first_is_intact: false,
        }
    }

    fn has_same_addresses(&self, buffer: &[u8], packet: &[u8]) -> bool {
        let first = &buffer[self.first.clone()];
        match (Family::of(first), Family::of(packet)) {
            (Some(ours), Some(theirs)) => ours == theirs && first[ours.addresses()] == packet[theirs.addresses()],
            _ => false,
        }
    }

    /// Same protocol, addresses and ports. Both packets have a shape.
    fn is_same_flow(&self, buffer: &[u8], packet: &[u8]) -> bool {
        let first = &buffer[self.first.clone()];
        let Some(Shape { family, transport, .. }) = self.shape else { return false };
        let protocol = if family == Family::V4 { 9 } else { 6 };
        self.has_same_addresses(buffer, packet)
            && first[protocol] == packet[protocol]
            && first[transport..transport + 4] == packet[transport..transport + 4]
    }

    fn append(&mut self, buffer: &[u8], range: &Range<usize>, new: Shape) -> Appended {
        let Some(shape) = self.shape else { return Appended::No };
        let first = &buffer[self.first.clone()];
        let packet = &buffer[range.clone()];
        let fits = new.payload == shape.payload
            && new.payload_len <= shape.payload_len
            && self.total + new.payload_len <= MAX_PACKET
            && self.more.len() + 1 < MAX_SEGMENTS
            && same_headers(first, packet, &shape)
            && (shape.family == Family::V6 || be16(packet, 4) == self.next_id)
            && (shape.protocol == UDP || new.sequence == self.next_sequence);
        // The kernel will believe the joined checksum, so each of them is checked first.
        if !fits || !new.is_intact(packet) {
            return Appended::No;
        }
        if !self.first_is_intact {
            if !shape.is_intact(first) {
                return Appended::No;
            }
            self.first_is_intact = true;
        }
        self.more.push(range.start + new.payload..range.end);
        self.total += new.payload_len;
        self.next_sequence = self.next_sequence.wrapping_add(new.payload_len as u32);
        self.next_id = self.next_id.wrapping_add(1);
        self.push |= new.flags & PSH != 0;
        if self.push || new.payload_len < shape.payload_len { Appended::Last } else { Appended::Yes }
    }

    fn write(self, buffer: &[u8], write: &mut impl FnMut(&[IoSlice<'_>])) {
        let first = &buffer[self.first.clone()];
        let shape = match self.shape {
            Some(shape) if !self.more.is_empty() => shape,
            _ => return write(&[IoSlice::new(&VnetHeader::PLAIN.bytes()), IoSlice::new(first)]),
        };
        let Shape { family, protocol, transport, payload, .. } = shape;
        let mut header = [0; MAX_HEADER];
        // A shape has no IP options and at most 60 bytes of TCP header.
        let header = &mut header[..payload];
        header.copy_from_slice(&first[..payload]);
        set_ip_length(header, family, transport, self.total);
        let length = self.total - transport;
        let sum = Sum::of_pseudo_header(header, family, protocol, length).folded();
        let (gso, csum_offset) = match (protocol, family) {
            (UDP, _) => {
                put(header, transport + 4, &(length as u16).to_be_bytes());
                (Gso::Udp, 6)
            }
            (_, family) => {
                header[transport + 13] |= if self.push { PSH } else { 0 };
                (if family == Family::V4 { Gso::TcpV4 } else { Gso::TcpV6 }, 16)
            }
        };
        put(header, transport + csum_offset, &sum);
        let vnet = VnetHeader {
            needs_csum: true,
            gso,
            header_len: payload as u16,
            gso_size: shape.payload_len as u16,
            csum_start: transport as u16,
            csum_offset: csum_offset as u16,
        }
        .bytes();
        let mut parts = Vec::with_capacity(3 + self.more.len());
        parts.extend([IoSlice::new(&vnet), IoSlice::new(header), IoSlice::new(&first[payload..])]);
        parts.extend(self.more.iter().map(|range| IoSlice::new(&buffer[range.clone()])));
        write(&parts);
    }
}

/// Whether all that must be equal is, addresses and ports aside. Traffic class includes ECN.
fn same_headers(first: &[u8], packet: &[u8], shape: &Shape) -> bool {
    let same = |range: Range<usize>| first[range.clone()] == packet[range];
    let at = shape.transport;
    let ip = match shape.family {
        Family::V4 => same(0..2) && same(6..9),
        Family::V6 => same(0..4) && same(6..8),
    };
    // Acknowledgement and header length; window; urgent pointer and options.
    let tcp = || same(at + 8..at + 13) && same(at + 14..at + 16) && same(at + 18..shape.payload);
    ip && (shape.protocol == UDP || tcp())
}
