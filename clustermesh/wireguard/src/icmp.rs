//! Telling a sender that its packet is too long for the path to the peer, as a router on that path would.

use crate::checksum::Sum;
use crate::packet::{Family, IPV4_HEADER, IPV6_HEADER, put, set_ip_length};

const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
const HEADER: usize = 8;
const TTL: u8 = 64;
/// Quoted of an IPv4 packet: its header with all options, and what shows the connection.
const QUOTED_V4: usize = 60 + 8;
/// An ICMPv6 error is not longer than the least MTU.
const QUOTED_V6: usize = MIN_MTU_V6 - IPV6_HEADER - HEADER;
const MIN_MTU_V6: usize = 1280;

/// The message to the sender of `packet`, whose path takes `mtu` bytes. It comes from the packet's destination, so that
/// it passes whatever the packet's answers pass. `None`: it is not an IP packet, or an ICMP error itself might be.
pub(crate) fn too_big(packet: &[u8], mtu: usize) -> Option<Vec<u8>> {
    let family = Family::of(packet)?;
    let (protocol, ip_header, quoted) = match family {
        Family::V4 => (ICMP, IPV4_HEADER, QUOTED_V4),
        Family::V6 => (ICMP_V6, IPV6_HEADER, QUOTED_V6),
    };
    let inner_protocol = match family {
        Family::V4 => packet[9],
        Family::V6 => packet[6],
    };
    if inner_protocol == protocol {
        return None;
    }
    let quoted = &packet[..packet.len().min(quoted)];
    let mut message = vec![0; ip_header + HEADER];
    message.extend_from_slice(quoted);
    let total = message.len();
    let mtu = u16::try_from(mtu).ok()?;
    let addresses = family.addresses();
    let middle = addresses.start + addresses.len() / 2;
    put(&mut message, addresses.start, &packet[middle..addresses.end]);
    put(&mut message, middle, &packet[addresses.start..middle]);
    match family {
        Family::V4 => {
            message[0] = 0x45;
            message[8] = TTL;
            message[9] = ICMP;
            // Destination unreachable: fragmentation needed.
            put(&mut message, ip_header, &[3, 4]);
            put(&mut message, ip_header + 6, &mtu.to_be_bytes());
        }
        Family::V6 => {
            message[0] = 0x60;
            message[6] = ICMP_V6;
            message[7] = TTL;
            // Packet too big.
            put(&mut message, ip_header, &[2, 0]);
            put(&mut message, ip_header + 6, &mtu.max(MIN_MTU_V6 as u16).to_be_bytes());
        }
    }
    set_ip_length(&mut message, family, ip_header, total);
    let start = match family {
        Family::V4 => Sum::default(),
        Family::V6 => Sum::of_pseudo_header(&message, family, ICMP_V6, total - ip_header),
    };
    let sum = start.add(&message[ip_header..]).finish();
    put(&mut message, ip_header + 2, &sum);
    Some(message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_sender_is_told_the_mtu_by_the_destination() {
        let mut packet = vec![0; 1_400];
        packet[0] = 0x45;
        packet[9] = 6;
        put(&mut packet, 12, &[10, 1, 0, 2, 10, 2, 0, 3]);
        let message = too_big(&packet, 1_340).expect("a message");
        assert_eq!(message[12..20], [10, 2, 0, 3, 10, 1, 0, 2]);
        assert_eq!(message[20..22], [3, 4]);
        assert_eq!(message[26..28], 1_340_u16.to_be_bytes());
        assert!(Sum::of(&message[..20]).is_valid() && Sum::of(&message[20..]).is_valid());
        assert_eq!(message[28..], packet[..68]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(packet in proptest::collection::vec(any::<u8>(), 0..1_500), mtu in any::<usize>()) {
            if let Some(message) = too_big(&packet, mtu) {
                prop_assert!(message.len() <= MIN_MTU_V6);
            }
        }
    }
}
