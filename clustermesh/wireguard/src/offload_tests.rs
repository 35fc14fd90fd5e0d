//! Splitting and joining, against each other and against packets built by hand.

use proptest::prelude::*;

use crate::checksum::Sum;
use crate::join::Joiner;
use crate::packet::{Family, IPV4_HEADER, IPV6_HEADER, TCP, UDP, be16, be32, put, set_ip_length};
use crate::split::{Malformed, Packets, split};
use crate::vnet::{Gso, VnetHeader};

const MTU: usize = 1420;

#[derive(Clone, Debug)]
struct Flow {
    family: Family,
    protocol: u8,
    /// TCP options, a multiple of 4 bytes.
    options: Vec<u8>,
    flags: u8,
}

impl Flow {
    fn tcp(family: Family) -> Self {
        Self { family, protocol: TCP, options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], flags: 0x18 }
    }

    fn udp(family: Family) -> Self {
        Self { family, protocol: UDP, options: Vec::new(), flags: 0 }
    }

    fn transport(&self) -> usize {
        match self.family {
            Family::V4 => IPV4_HEADER,
            Family::V6 => IPV6_HEADER,
        }
    }

    fn header_len(&self) -> usize {
        self.transport() + if self.protocol == TCP { 20 + self.options.len() } else { 8 }
    }

    fn checksum_offset(&self) -> usize {
        if self.protocol == TCP { 16 } else { 6 }
    }

    fn headers(&self, payload_len: usize) -> Vec<u8> {
        let total = self.header_len() + payload_len;
        let mut header = vec![0; self.header_len()];
        let at = self.transport();
        match self.family {
            Family::V4 => {
                header[..12].copy_from_slice(&[0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, self.protocol, 0, 0]);
                put(&mut header, 12, &[10, 1, 0, 2, 10, 2, 0, 3]);
            }
            Family::V6 => {
                header[0] = 0x60;
                header[6] = self.protocol;
                header[7] = 64;
                put(&mut header, 8, &[0xfd; 15]);
                put(&mut header, 24, &[0xfe; 15]);
            }
        }
        set_ip_length(&mut header, self.family, at, total);
        put(&mut header, at, &[0x9c, 0x40, 0x1f, 0x90]);
        if self.protocol == TCP {
            put(&mut header, at + 4, &0xffff_f000_u32.to_be_bytes());
            put(&mut header, at + 8, &7_u32.to_be_bytes());
            header[at + 12] = ((20 + self.options.len()) / 4 * 16) as u8;
            header[at + 13] = self.flags;
            put(&mut header, at + 14, &[0x12, 0x34]);
            header[at + 20..].copy_from_slice(&self.options);
        } else {
            put(&mut header, at + 4, &((total - at) as u16).to_be_bytes());
        }
        header
    }

    /// A super-packet as the kernel hands it over: the checksum field has the pseudo-header's sum.
    fn super_packet(&self, payload: &[u8], segment: usize) -> (VnetHeader, Vec<u8>) {
        let mut packet = self.headers(payload.len());
        packet.extend_from_slice(payload);
        let at = self.transport();
        let sum = Sum::of_pseudo_header(&packet, self.family, self.protocol, packet.len() - at).folded();
        put(&mut packet, at + self.checksum_offset(), &sum);
        let vnet = VnetHeader {
            needs_csum: true,
            gso: match (self.protocol, self.family) {
                (UDP, _) => Gso::Udp,
                (_, Family::V4) => Gso::TcpV4,
                (_, Family::V6) => Gso::TcpV6,
            },
            header_len: self.header_len() as u16,
            gso_size: segment as u16,
            csum_start: at as u16,
            csum_offset: self.checksum_offset() as u16,
        };
        (vnet, packet)
    }

    fn checksum_is_valid(&self, packet: &[u8]) -> bool {
        let at = self.transport();
        Sum::of_pseudo_header(packet, self.family, self.protocol, packet.len() - at).add(&packet[at..]).is_valid()
            && (self.family == Family::V6 || Sum::of(&packet[..IPV4_HEADER]).is_valid())
    }

    fn segments(&self, payload: &[u8], segment: usize) -> Vec<Vec<u8>> {
        let (vnet, packet) = self.super_packet(payload, segment);
        split_all(vnet, &packet).expect("a consistent super-packet")
    }
}

/// Splits and takes the padding off, as the receiving side does.
fn split_all(vnet: VnetHeader, packet: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut packets = Packets::default();
    split(vnet, packet, MTU, &mut packets)?;
    Ok(packets.iter().map(unpad).collect())
}

fn unpad(packet: &[u8]) -> Vec<u8> {
    let length = match Family::of(packet) {
        Some(Family::V4) => be16(packet, 2).into(),
        _ => usize::from(be16(packet, 4)) + IPV6_HEADER,
    };
    assert!(packet[length..].iter().all(|&byte| byte == 0), "padding is zero");
    packet[..length].to_vec()
}

/// Joins and gives each result as one piece.
fn join_all(packets: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    let buffer = packets.concat();
    let mut joiner = Joiner::new(true);
    let mut start = 0;
    for packet in packets {
        joiner.push(&buffer, start..start + packet.len());
        start += packet.len();
    }
    let mut joined = Vec::new();
    joiner.drain(&buffer, |parts| {
        let vnet = VnetHeader::parse(parts[0].to_vec().try_into().expect("10 bytes")).expect("ours");
        joined.push((vnet, parts[1..].iter().flat_map(|part| part.to_vec()).collect()));
    });
    joined
}

fn flows() -> impl Strategy<Value = Flow> {
    (
        prop_oneof![Just(Family::V4), Just(Family::V6)],
        any::<bool>(),
        prop_oneof![Just(0), Just(12), Just(40)],
        prop_oneof![Just(0x10_u8), Just(0x18)],
    )
        .prop_map(|(family, is_tcp, options, flags)| {
            if is_tcp { Flow { family, protocol: TCP, options: vec![1; options], flags } } else { Flow::udp(family) }
        })
}

proptest! {
    #[test]
    fn joining_what_was_split_gives_the_same_super_packet(
        flow in flows(),
        payload in proptest::collection::vec(any::<u8>(), 1..20_000),
        segment in 400_usize..1300,
    ) {
        let segments = flow.segments(&payload, segment);
        prop_assert_eq!(segments.len(), payload.len().div_ceil(segment));
        for packet in &segments {
            prop_assert!(flow.checksum_is_valid(packet));
        }
        let joined = join_all(&segments);
        prop_assert_eq!(joined.len(), 1);
        let (vnet, packet) = flow.super_packet(&payload, segment);
        if segments.len() > 1 {
            prop_assert_eq!(&joined[0], &(vnet, packet));
        } else {
            prop_assert_eq!(&joined[0], &(VnetHeader::PLAIN, segments[0].clone()));
        }
    }

    #[test]
    fn bytes_of_mixed_flows_all_arrive_and_in_the_order_of_their_flow(
        flows in proptest::collection::vec(flows(), 2..4),
        order in proptest::collection::vec(any::<prop::sample::Index>(), 1..40),
    ) {
        let mut queues: Vec<_> = flows.iter().enumerate().map(|(number, flow)| {
            let mut segments = flow.segments(&vec![number as u8; 9_000], 1_000);
            for packet in &mut segments {
                // A port of its own, with the checksum made right again.
                put(packet, flow.transport(), &(number as u16 + 1).to_be_bytes());
                let at = flow.transport() + flow.checksum_offset();
                put(packet, at, &[0, 0]);
                let sum = Sum::of_pseudo_header(packet, flow.family, flow.protocol, packet.len() - flow.transport())
                    .add(&packet[flow.transport()..]).finish_udp();
                put(packet, at, &sum);
            }
            segments.into_iter()
        }).collect();
        let mixed: Vec<_> = order.iter().filter_map(|pick| queues[pick.index(flows.len())].next()).collect();
        let key = |packet: &[u8]| {
            let at = if packet[0] >> 4 == 4 { IPV4_HEADER } else { IPV6_HEADER };
            be16(packet, at)
        };
        let mut resplit = Vec::new();
        for (vnet, packet) in join_all(&mixed) {
            resplit.extend(split_all(vnet, &packet).expect("what we joined can be split"));
        }
        for number in 1..=flows.len() as u16 {
            let sent: Vec<_> = mixed.iter().filter(|packet| key(packet) == number).collect();
            let received: Vec<_> = resplit.iter().filter(|packet| key(packet) == number).collect();
            prop_assert_eq!(sent, received);
        }
    }

    #[test]
    fn no_bytes_make_splitting_panic(
        header in any::<[u8; 10]>(),
        packet in proptest::collection::vec(any::<u8>(), 0..3_000),
        first in prop_oneof![Just(None), Just(Some(0x45_u8)), Just(Some(0x4f)), Just(Some(0x60))],
    ) {
        let mut packet = packet;
        if let (Some(byte), Some(first)) = (packet.first_mut(), first) {
            *byte = first;
        }
        if let Some(vnet) = VnetHeader::parse(header) {
            let _ = split_all_padded(vnet, &packet);
        }
    }

    #[test]
    fn no_bytes_make_joining_panic(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20)) {
        prop_assert_eq!(join_all(&packets).len(), packets.len());
    }

    #[test]
    fn damaged_headers_never_make_joining_panic_or_lose_bytes(
        flow in flows(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..80, any::<u8>()), 0..10),
    ) {
        let mut segments = flow.segments(&[7; 6_000], 900);
        for (packet, at, byte) in damage {
            let index = packet.index(segments.len());
            segments[index][at] ^= byte;
        }
        let total: usize = segments.iter().map(Vec::len).sum();
        let joined = join_all(&segments);
        let headers_saved: usize = segments.len() - joined.len();
        let joined_total: usize = joined.iter().map(|(_, packet)| packet.len()).sum();
        prop_assert_eq!(joined_total + headers_saved * flow.header_len(), total);
    }
}

fn split_all_padded(vnet: VnetHeader, packet: &[u8]) -> Result<usize, Malformed> {
    let mut packets = Packets::default();
    split(vnet, packet, MTU, &mut packets)?;
    Ok(packets.count())
}

#[test]
fn sequence_numbers_wrap_and_only_the_last_segment_has_push_and_fin() {
    let flow = Flow { flags: 0x10 | 0x08 | 0x01 | 0x80, ..Flow::tcp(Family::V4) };
    let segments = flow.segments(&[1; 10_000], 1_400 - 32);
    let sequence: Vec<_> = segments.iter().map(|packet| be32(packet, 24)).collect();
    assert_eq!(sequence[3], 0xffff_f000_u32.wrapping_add(3 * 1_368));
    let flags: Vec<_> = segments.iter().map(|packet| packet[33]).collect();
    assert_eq!(flags[0], 0x10 | 0x80);
    assert!(flags[1..flags.len() - 1].iter().all(|&flags| flags == 0x10));
    assert_eq!(flags[flags.len() - 1], 0x10 | 0x08 | 0x01);
    let ids: Vec<_> = segments.iter().map(|packet| be16(packet, 4)).collect();
    assert_eq!(ids, (0x1234..0x1234 + segments.len() as u16).collect::<Vec<_>>());
}

#[test]
fn packets_are_padded_to_16_bytes_but_not_beyond_the_mtu() {
    let flow = Flow::udp(Family::V4);
    for (payload, padded) in [(1, 32), (4, 32), (5, 48), (1_392, 1_420), (1_380, 1_408)] {
        let (vnet, packet) = flow.super_packet(&vec![0; payload], 2_000);
        let mut packets = Packets::default();
        split(VnetHeader { gso: Gso::None, ..vnet }, &packet, MTU, &mut packets).expect("well formed");
        assert_eq!(packets.iter().map(<[u8]>::len).collect::<Vec<_>>(), [padded], "{payload} bytes of payload");
    }
}

#[test]
fn an_unfinished_checksum_of_a_single_packet_is_completed() {
    for flow in [Flow::udp(Family::V4), Flow::tcp(Family::V6)] {
        let (vnet, packet) = flow.super_packet(b"hello", 1_000);
        let packets = split_all(VnetHeader { gso: Gso::None, ..vnet }, &packet).expect("well formed");
        assert!(flow.checksum_is_valid(&packets[0]));
    }
}

#[test]
fn contradictory_super_packets_are_refused() {
    let (vnet, packet) = Flow::tcp(Family::V4).super_packet(&[0; 3_000], 1_000);
    for wrong in [
        VnetHeader { gso_size: 0, ..vnet },
        VnetHeader { gso: Gso::TcpV6, ..vnet },
        VnetHeader { gso: Gso::Udp, ..vnet },
        VnetHeader { csum_start: 4_000, ..vnet },
        VnetHeader { needs_csum: false, ..vnet },
    ] {
        assert_eq!(split_all(wrong, &packet), Err(Malformed), "{wrong:?}");
    }
}

#[test]
fn a_packet_with_a_wrong_checksum_is_never_joined() {
    let mut segments = Flow::tcp(Family::V4).segments(&[1; 4_000], 1_000);
    segments[1][100] ^= 1;
    let joined = join_all(&segments);
    assert_eq!(joined[1], (VnetHeader::PLAIN, segments[1].clone()));
    assert_eq!(joined.len(), 3);
}

#[test]
fn packets_of_different_ecn_are_not_joined() {
    let mut segments = Flow::udp(Family::V6).segments(&[1; 2_000], 1_000);
    segments[1][1] |= 0x30;
    assert_eq!(join_all(&segments).len(), 2);
}

#[test]
fn a_bare_acknowledgement_between_two_segments_is_not_overtaken() {
    let flow = Flow { flags: 0x10, ..Flow::tcp(Family::V4) };
    let mut segments = flow.segments(&[1; 2_000], 1_000);
    let mut bare = segments[0][..flow.header_len()].to_vec();
    set_ip_length(&mut bare, Family::V4, IPV4_HEADER, flow.header_len());
    segments.insert(1, bare.clone());
    let joined: Vec<_> = join_all(&segments).into_iter().map(|(_, packet)| packet).collect();
    assert_eq!(joined, segments);
}
