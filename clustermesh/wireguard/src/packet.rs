//! Views of the inner packets: addresses, and where headers start and end. Every length is checked here, once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

pub(crate) const IPV4_HEADER: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;
pub(crate) const TCP_HEADER: usize = 20;
pub(crate) const UDP_HEADER: usize = 8;
pub(crate) const MAX_PACKET: usize = 65_535;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// Where source and destination address are in the IP header.
    pub(crate) fn addresses(self) -> Range<usize> {
        match self {
            Self::V4 => 12..20,
            Self::V6 => 8..40,
        }
    }

    /// Family of a packet that is long enough for its fixed header.
    pub(crate) fn of(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 if packet.len() >= IPV4_HEADER => Some(Self::V4),
            6 if packet.len() >= IPV6_HEADER => Some(Self::V6),
            _ => None,
        }
    }
}

/// Source and destination of an IP packet.
pub(crate) fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let family = Family::of(packet)?;
    let both = &packet[family.addresses()];
    let (source, destination) = both.split_at(both.len() / 2);
    let parse = |bytes: &[u8]| match family {
        Family::V4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| Ipv4Addr::from(bytes).into()),
        Family::V6 => <[u8; 16]>::try_from(bytes).ok().map(|bytes| Ipv6Addr::from(bytes).into()),
    };
    Some((parse(source)?, parse(destination)?))
}

/// Length of the TCP header that starts at `at`, options included, if all of it is there.
pub(crate) fn tcp_header_len(packet: &[u8], at: usize) -> Option<usize> {
    let length = usize::from(packet.get(at + 12)? >> 4) * 4;
    (length >= TCP_HEADER && packet.len() >= at + length).then_some(length)
}

pub(crate) fn be16(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

pub(crate) fn be32(packet: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
}

pub(crate) fn put(packet: &mut [u8], at: usize, bytes: &[u8]) {
    packet[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Writes the length of the whole packet into its IP header, and the IPv4 header's checksum.
pub(crate) fn set_ip_length(packet: &mut [u8], family: Family, header_len: usize, total: usize) {
    match family {
        Family::V4 => {
            put(packet, 2, &(total as u16).to_be_bytes());
            put(packet, 10, &[0, 0]);
            let sum = crate::checksum::Sum::of(&packet[..header_len]).finish();
            put(packet, 10, &sum);
        }
        Family::V6 => put(packet, 4, &((total - IPV6_HEADER) as u16).to_be_bytes()),
    }
}
