//! `struct virtio_net_hdr`, which precedes each packet on the TUN device: what the kernel left for us to do.

/// Its length.
pub(crate) const LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// A TCP super-packet whose first segment has CWR.
const GSO_ECN: u8 = 0x80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gso {
    None,
    TcpV4,
    TcpV6,
    Udp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VnetHeader {
    /// The checksum at `csum_start + csum_offset` covers the pseudo-header only.
    pub(crate) needs_csum: bool,
    pub(crate) gso: Gso,
    pub(crate) header_len: u16,
    /// Payload bytes of a segment.
    pub(crate) gso_size: u16,
    pub(crate) csum_start: u16,
    pub(crate) csum_offset: u16,
}

impl VnetHeader {
    /// A whole packet with its checksum.
    pub(crate) const PLAIN: Self =
        Self { needs_csum: false, gso: Gso::None, header_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

    pub(crate) fn parse(bytes: [u8; LEN]) -> Option<Self> {
        let [flags, gso, rest @ ..] = bytes;
        let field = |at: usize| u16::from_ne_bytes([rest[at], rest[at + 1]]);
        Some(Self {
            needs_csum: flags & NEEDS_CSUM != 0,
            gso: match gso & !GSO_ECN {
                GSO_NONE => Gso::None,
                GSO_TCPV4 => Gso::TcpV4,
                GSO_TCPV6 => Gso::TcpV6,
                GSO_UDP_L4 => Gso::Udp,
                _ => return None,
            },
            header_len: field(0),
            gso_size: field(2),
            csum_start: field(4),
            csum_offset: field(6),
        })
    }

    pub(crate) fn bytes(self) -> [u8; LEN] {
        let gso = match self.gso {
            Gso::None => GSO_NONE,
            Gso::TcpV4 => GSO_TCPV4,
            Gso::TcpV6 => GSO_TCPV6,
            Gso::Udp => GSO_UDP_L4,
        };
        let mut bytes = [0; LEN];
        bytes[0] = if self.needs_csum { NEEDS_CSUM } else { 0 };
        bytes[1] = gso;
        for (at, field) in [(2, self.header_len), (4, self.gso_size), (6, self.csum_start), (8, self.csum_offset)] {
            bytes[at..at + 2].copy_from_slice(&field.to_ne_bytes());
        }
        bytes
    }
}
