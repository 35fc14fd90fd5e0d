//! Packets as pods and others send them.
use etherparse::{
    IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, PacketBuilder, PacketBuilderStep, ip_number,
};
use std::net::{IpAddr, SocketAddr};

/// TCP flags of a test packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tcp {
    Syn,
    SynAck,
    Ack,
    Fin,
    Rst,
}

const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

fn ip_step(from: IpAddr, to: IpAddr) -> PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(MACS.0, MACS.1);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("{from} and {to} are of one family"),
    }
}

fn ends(from: &str, to: &str) -> (SocketAddr, SocketAddr) {
    (from.parse().unwrap(), to.parse().unwrap())
}

pub fn tcp(from: &str, to: &str, kind: Tcp) -> Vec<u8> {
    let (from, to) = ends(from, to);
    let step = ip_step(from.ip(), to.ip()).tcp(from.port(), to.port(), 1000, 65_000);
    let step = match kind {
        Tcp::Syn => step.syn(),
        Tcp::SynAck => step.syn().ack(1),
        Tcp::Ack => step.ack(1),
        Tcp::Fin => step.fin().ack(1),
        Tcp::Rst => step.rst(),
    };
    let mut bytes = Vec::new();
    step.write(&mut bytes, b"payload").unwrap();
    bytes
}

pub fn udp(from: &str, to: &str) -> Vec<u8> {
    let (from, to) = ends(from, to);
    let mut bytes = Vec::new();
    ip_step(from.ip(), to.ip()).udp(from.port(), to.port()).write(&mut bytes, b"payload").unwrap();
    bytes
}

/// An echo request, or the answer to one.
pub fn echo(from: &str, to: &str, id: u16, is_request: bool) -> Vec<u8> {
    let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let step = ip_step(from, to);
    let mut bytes = Vec::new();
    match (from, is_request) {
        (IpAddr::V4(_), true) => step.icmpv4_echo_request(id, 1).write(&mut bytes, b"ping").unwrap(),
        (IpAddr::V4(_), false) => step.icmpv4_echo_reply(id, 1).write(&mut bytes, b"ping").unwrap(),
        (IpAddr::V6(_), true) => step.icmpv6_echo_request(id, 1).write(&mut bytes, b"ping").unwrap(),
        (IpAddr::V6(_), false) => step.icmpv6_echo_reply(id, 1).write(&mut bytes, b"ping").unwrap(),
    }
    bytes
}

/// 'Too big' of a router, about a packet that `packet`'s sender sent.
pub fn too_big(router: &str, packet: &[u8]) -> Vec<u8> {
    let inner = &packet[14..];
    let router: IpAddr = router.parse().unwrap();
    let mut bytes = Vec::new();
    match router {
        IpAddr::V4(_) => {
            let to: [u8; 4] = inner[12..16].try_into().unwrap();
            ip_step(router, IpAddr::from(to)).icmpv4_raw(3, 4, [0, 0, 5, 0]).write(&mut bytes, inner).unwrap();
        }
        IpAddr::V6(_) => {
            let to: [u8; 16] = inner[8..24].try_into().unwrap();
            ip_step(router, IpAddr::from(to)).icmpv6_raw(2, 0, [0, 0, 5, 0]).write(&mut bytes, inner).unwrap();
        }
    }
    bytes
}

/// A neighbour solicitation, which on the link has a hop limit of 255.
pub fn neighbour_solicitation(from: &str, to: &str, hop_limit: u8) -> Vec<u8> {
    let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let mut bytes = Vec::new();
    ip_step(from, to).icmpv6_raw(135, 0, [0; 4]).write(&mut bytes, &[0; 24]).unwrap();
    bytes[14 + 7] = hop_limit;
    bytes
}

pub fn arp() -> Vec<u8> {
    let mut bytes = [MACS.1, MACS.0].concat();
    bytes.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.extend([0; 20]);
    bytes
}

/// A piece of a larger packet: the first has the ports.
pub fn fragment(from: &str, to: &str, proto: u8, is_first: bool) -> Vec<u8> {
    let (from, to) = ends(from, to);
    let mut payload = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    payload.extend([0; 12]);
    let offset = IpFragOffset::try_new(if is_first { 0 } else { 185 }).unwrap();
    let mut bytes = [MACS.1, MACS.0].concat();
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes.extend([0x08, 0x00]);
            let mut header =
                Ipv4Header::new(payload.len() as u16, 64, IpNumber(proto), from.octets(), to.octets()).unwrap();
            (header.dont_fragment, header.more_fragments, header.fragment_offset) = (false, is_first, offset);
            header.header_checksum = header.calc_header_checksum();
            header.write(&mut bytes).unwrap();
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            bytes.extend([0x86, 0xdd]);
            let piece = Ipv6FragmentHeader::new(IpNumber(proto), offset, is_first, 7);
            bytes.extend(ipv6_header(
                from.octets(),
                to.octets(),
                ip_number::IPV6_FRAGMENTATION_HEADER,
                8 + payload.len(),
            ));
            bytes.extend(piece.to_bytes());
        }
        _ => panic!("{from} and {to} are of one family"),
    }
    bytes.extend(payload);
    bytes
}

/// The packet with extension headers (destination options, empty) before its transport header.
pub fn with_extensions(packet: &[u8], count: usize) -> Vec<u8> {
    const DESTINATION_OPTIONS: u8 = 60;
    let (ethernet, rest) = packet.split_at(14);
    let (header, transport) = rest.split_at(40);
    let mut header = header.to_vec();
    let last = std::mem::replace(&mut header[6], DESTINATION_OPTIONS);
    header[4..6].copy_from_slice(&((transport.len() + 8 * count) as u16).to_be_bytes());
    let mut bytes = [ethernet, &header].concat();
    for number in 1..=count {
        let next = if number == count { last } else { DESTINATION_OPTIONS };
        bytes.extend([next, 0, 1, 4, 0, 0, 0, 0]);
    }
    bytes.extend(transport);
    bytes
}

/// The packet with IPv4 options (no-operation) before its transport header.
pub fn with_options(packet: &[u8]) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    bytes[14] = 0x46;
    let length = u16::from_be_bytes([bytes[16], bytes[17]]) + 4;
    bytes[16..18].copy_from_slice(&length.to_be_bytes());
    bytes.splice(34..34, [1, 1, 1, 0]);
    bytes
}

fn ipv6_header(from: [u8; 16], to: [u8; 16], next: IpNumber, length: usize) -> Vec<u8> {
    let header = Ipv6Header {
        payload_length: length as u16,
        next_header: next,
        hop_limit: 64,
        source: from,
        destination: to,
        ..Default::default()
    };
    header.to_bytes().to_vec()
}
