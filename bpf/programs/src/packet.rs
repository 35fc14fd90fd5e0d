//! Reading the packet under a tc hook, from its network header on: devices with and without Ethernet alike.
//!
//! The packet as read lies in a per-CPU map, not on the stack, and is filled by a function that the verifier checks by
//! itself. So the verifier knows nothing of its fields, and the rest of a program is checked once instead of once for
//! each kind of packet.
use crate::maps;
use aya_ebpf::{
    bindings::{__sk_buff, bpf_hdr_start_off::BPF_HDR_START_NET},
    helpers::{bpf_skb_load_bytes_relative, bpf_skb_pull_data},
    programs::TcContext,
};
use core::mem::MaybeUninit;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use weft_bpf_abi::{
    net::{Addr, HBONE_PORT, ICMP, ICMPV6, Port, TCP, UDP},
    policy::ConnKey,
};
use weft_bpf_core::conntrack::tcp;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_ARP: u16 = 0x0806;

/// Headers up to here are made linear, since relative loads read nothing else.
const HEADERS: u32 = 192;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// More extension headers than this are nobody's traffic.
const EXTENSIONS: usize = 5;

/// ICMPv6 types of neighbour discovery: router and neighbour solicitations and advertisements (RFC 4861).
const NEIGHBOUR_DISCOVERY: core::ops::RangeInclusive<u8> = 133..=136;
/// ICMPv6 types by which multicast groups are joined (RFC 2710, RFC 3810).
const MULTICAST_LISTENER: [u8; 4] = [130, 131, 132, 143];

/// How much of the transport header could be read.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Transport {
    /// The ports are known, or the protocol has none.
    Whole,
    /// The first of several fragments: ports are known.
    FirstFragment,
    /// A later fragment: no ports.
    LaterFragment,
    /// The packet ends inside its headers, or they are not what honest senders make.
    Unreadable,
}

#[repr(C)]
pub struct Packet {
    pub from: Addr,
    pub to: Addr,
    pub from_port: Port,
    pub to_port: Port,
    /// The connection that the packet belongs to, as this packet's direction names it. For an ICMP error that is the
    /// one it speaks of.
    pub connection: Tuple,
    /// Where the transport header begins, from the network header.
    pub transport_at: u32,
    pub proto: u8,
    /// TCP: the flags; ICMP: the type; else 0.
    pub detail: u8,
    /// Hop limit or TTL.
    pub hops: u8,
    pub is_v6: bool,
    pub transport: Transport,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Tuple {
    pub from: Addr,
    pub to: Addr,
    pub from_port: Port,
    pub to_port: Port,
    pub proto: u8,
}

/// What is there instead of an IP packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum NotIp {
    Arp,
    Foreign,
    TooShort,
}

/// What `parse_packet` found.
const IS_IP: u32 = 0;
const IS_ARP: u32 = 1;
const IS_FOREIGN: u32 = 2;
const IS_TOO_SHORT: u32 = 3;

impl Packet {
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.proto == TCP
    }

    /// A TCP SYN without ACK.
    #[inline(always)]
    pub fn is_opening(&self) -> bool {
        self.is_tcp() && tcp::is_opening(self.detail)
    }

    #[inline(always)]
    pub fn tcp_flags(&self) -> u8 {
        if self.is_tcp() { self.detail } else { 0 }
    }

    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        matches!(self.transport, Transport::FirstFragment | Transport::LaterFragment)
    }

    /// IPv6's counterpart of ARP, and how multicast groups are joined: link-local, never routed.
    #[inline(always)]
    pub fn is_link_local_control(&self) -> bool {
        self.proto == ICMPV6
            && self.is_v6
            && self.transport == Transport::Whole
            && ((self.hops == 255 && NEIGHBOUR_DISCOVERY.contains(&self.detail))
                || (self.to.words_be()[0].to_ne_bytes()[0] == 0xff && MULTICAST_LISTENER.contains(&self.detail)))
    }

    /// Says that a packet could not be delivered, too large packets among them: path MTU discovery needs these.
    #[inline(always)]
    fn is_icmp_error(&self) -> bool {
        self.transport == Transport::Whole
            && match self.proto {
                ICMP if !self.is_v6 => matches!(self.detail, 3 | 11 | 12),
                ICMPV6 if self.is_v6 => matches!(self.detail, 1..=4),
                _ => false,
            }
    }

    #[inline(always)]
    pub fn is_to_hbone(&self) -> bool {
        self.to_port.be() == Port::new(HBONE_PORT).be()
    }

    #[inline(always)]
    pub fn is_from_hbone(&self) -> bool {
        self.from_port.be() == Port::new(HBONE_PORT).be()
    }
}

impl Tuple {
    const NOTHING: Self = Self {
        from: Addr::UNSPECIFIED,
        to: Addr::UNSPECIFIED,
        from_port: Port::new(0),
        to_port: Port::new(0),
        proto: 0,
    };

    /// The key of the connection if the packet goes the way of its opener.
    #[inline(always)]
    pub fn forward_key(&self, direction: u8) -> ConnKey {
        ConnKey {
            from: self.from,
            to: self.to,
            from_port: self.from_port,
            to_port: self.to_port,
            proto: self.proto,
            direction,
            reserved: [0; 2],
        }
    }

    /// The key of the connection if the packet answers its opener.
    #[inline(always)]
    pub fn reply_key(&self, direction: u8) -> ConnKey {
        ConnKey {
            from: self.to,
            to: self.from,
            from_port: self.to_port,
            to_port: self.from_port,
            proto: self.proto,
            direction,
            reserved: [0; 2],
        }
    }
}

/// Reads the packet. Addresses are always right; what could not be read beyond them says `transport`.
#[inline(always)]
pub fn parse(ctx: &TcContext) -> Result<&'static Packet, NotIp> {
    match parse_packet(ctx.skb.skb) {
        IS_IP => maps::packet().map(|packet| &*packet).ok_or(NotIp::TooShort),
        IS_ARP => Err(NotIp::Arp),
        IS_FOREIGN => Err(NotIp::Foreign),
        _ => Err(NotIp::TooShort),
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn parse_packet(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the context is valid for the whole run.
    let protocol = unsafe { (*skb).protocol };
    let is_v6 = protocol == u32::from(ETHERTYPE_IPV6.to_be());
    if protocol == u32::from(ETHERTYPE_ARP.to_be()) {
        return IS_ARP;
    }
    if !is_v6 && protocol != u32::from(ETHERTYPE_IPV4.to_be()) {
        return IS_FOREIGN;
    }
    let Some(packet) = maps::packet() else { return IS_TOO_SHORT };
    make_linear(skb);
    let read = if is_v6 { ipv6(skb, packet) } else { ipv4(skb, packet) };
    if read.is_none() {
        return IS_TOO_SHORT;
    }
    read_transport(skb, packet);
    packet.connection = Tuple {
        from: packet.from,
        to: packet.to,
        from_port: packet.from_port,
        to_port: packet.to_port,
        proto: packet.proto,
    };
    if packet.is_icmp_error()
        && let Some(connection) = connection_of_error(skb, packet)
    {
        packet.connection = connection;
    }
    IS_IP
}

#[inline(always)]
fn ipv4(skb: *mut __sk_buff, packet: &mut Packet) -> Option<()> {
    let header: Ipv4Hdr = load(skb, 0)?;
    let (offset, more) = (header.frag_offset(), header.frag_flags() & 1 != 0);
    // IP options are honoured: to skip such packets would be a way around the proxy.
    let transport_at = u32::from(header.ihl());
    *packet = Packet {
        from: Addr::from_v4_be(u32::from_ne_bytes(header.src_addr)),
        to: Addr::from_v4_be(u32::from_ne_bytes(header.dst_addr)),
        from_port: Port::new(0),
        to_port: Port::new(0),
        connection: Tuple::NOTHING,
        transport_at,
        proto: header.proto,
        detail: 0,
        hops: header.ttl,
        is_v6: false,
        transport: if header.version() != 4 || transport_at < Ipv4Hdr::LEN as u32 {
            Transport::Unreadable
        } else if offset != 0 {
            Transport::LaterFragment
        } else if more {
            Transport::FirstFragment
        } else {
            Transport::Whole
        },
    };
    Some(())
}

#[inline(always)]
fn ipv6(skb: *mut __sk_buff, packet: &mut Packet) -> Option<()> {
    let header: Ipv6Hdr = load(skb, 0)?;
    let (from, to) = (addr(&header.src_addr), addr(&header.dst_addr));
    // On the wire nobody has a mapped address; here it would pass for the IPv4 one.
    let is_honest = header.version() == 6 && !from.is_v4() && !to.is_v4();
    *packet = Packet {
        from,
        to,
        from_port: Port::new(0),
        to_port: Port::new(0),
        connection: Tuple::NOTHING,
        transport_at: Ipv6Hdr::LEN as u32,
        proto: header.next_hdr,
        detail: 0,
        hops: header.hop_limit,
        is_v6: true,
        transport: if is_honest { Transport::Whole } else { Transport::Unreadable },
    };
    if is_honest {
        skip_extensions(skb, packet);
    }
    Some(())
}

#[inline(always)]
fn addr(bytes: &[u8; 16]) -> Addr {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *bytes;
    Addr::from_words_be([
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ])
}

#[inline(always)]
fn skip_extensions(skb: *mut __sk_buff, packet: &mut Packet) {
    for _ in 0..EXTENSIONS {
        if !matches!(packet.proto, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS) {
            return;
        }
        let Some([next, length, high, low]) = load::<[u8; 4]>(skb, packet.transport_at) else {
            packet.transport = Transport::Unreadable;
            return;
        };
        let units = u32::from(length);
        packet.transport_at += match packet.proto {
            FRAGMENT => 8,
            AUTHENTICATION => (units + 2) * 4,
            _ => (units + 1) * 8,
        };
        if packet.proto == FRAGMENT {
            let field = u16::from_be_bytes([high, low]);
            if field >> 3 != 0 {
                (packet.transport, packet.proto) = (Transport::LaterFragment, next);
                return;
            }
            if field & 1 != 0 {
                packet.transport = Transport::FirstFragment;
            }
        }
        packet.proto = next;
    }
    packet.transport = Transport::Unreadable;
}

#[inline(always)]
fn read_transport(skb: *mut __sk_buff, packet: &mut Packet) {
    if matches!(packet.transport, Transport::LaterFragment | Transport::Unreadable) {
        return;
    }
    let at = packet.transport_at;
    match packet.proto {
        TCP => match (load::<[u8; 4]>(skb, at), load::<[u8; 2]>(skb, at + 12)) {
            (Some([a, b, c, d]), Some([_, flags])) => {
                (packet.from_port, packet.to_port, packet.detail) = (port(a, b), port(c, d), flags);
            }
            _ => packet.transport = Transport::Unreadable,
        },
        UDP => match load::<[u8; 4]>(skb, at) {
            Some([a, b, c, d]) => (packet.from_port, packet.to_port) = (port(a, b), port(c, d)),
            None => packet.transport = Transport::Unreadable,
        },
        ICMP | ICMPV6 => match load::<[u8; 8]>(skb, at) {
            Some([kind, _, _, _, a, b, _, _]) => {
                packet.detail = kind;
                // An echo's identifier stands for its sender's port, so that the answer finds the request.
                match (packet.is_v6, kind) {
                    (false, 8) | (true, 128) => packet.from_port = port(a, b),
                    (false, 0) | (true, 129) => packet.to_port = port(a, b),
                    _ => {}
                }
            }
            None => packet.transport = Transport::Unreadable,
        },
        _ => {}
    }
}

/// What an ICMP error speaks of: the packet within it, its ends swapped, since the error goes to that packet's sender.
/// Nothing if that sender is another, or where more headers lie between.
#[inline(always)]
fn connection_of_error(skb: *mut __sk_buff, packet: &Packet) -> Option<Tuple> {
    let at = packet.transport_at + 8;
    let (from, to, proto, ports_at) = if packet.is_v6 {
        let inner: Ipv6Hdr = load(skb, at)?;
        (addr(&inner.src_addr), addr(&inner.dst_addr), inner.next_hdr, at + Ipv6Hdr::LEN as u32)
    } else {
        let inner: Ipv4Hdr = load(skb, at)?;
        let (from, to) = (u32::from_ne_bytes(inner.src_addr), u32::from_ne_bytes(inner.dst_addr));
        (Addr::from_v4_be(from), Addr::from_v4_be(to), inner.proto, at + u32::from(inner.ihl()))
    };
    let [a, b, c, d, e, f, _, _] = load::<[u8; 8]>(skb, ports_at)?;
    let (from_port, to_port) = match proto {
        TCP | UDP => (port(a, b), port(c, d)),
        // An echo request: its identifier, as in `read_transport`.
        ICMP | ICMPV6 if matches!(a, 8 | 128) => (port(e, f), Port::new(0)),
        ICMP | ICMPV6 => (Port::new(0), port(e, f)),
        _ => return None,
    };
    (from == packet.to).then_some(Tuple { from: to, to: from, from_port: to_port, to_port: from_port, proto })
}

#[inline(always)]
fn port(high: u8, low: u8) -> Port {
    Port::new(u16::from_be_bytes([high, low]))
}

/// Some bytes of the packet, counted from its network header.
#[inline(always)]
fn load<T: Copy>(skb: *mut __sk_buff, at: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the destination is `T`-sized. `T` is a plain header: every bit pattern is valid.
    unsafe {
        let (to, length) = (value.as_mut_ptr().cast(), size_of::<T>() as u32);
        let status = bpf_skb_load_bytes_relative(skb.cast(), at, to, length, BPF_HDR_START_NET);
        (status == 0).then(|| value.assume_init())
    }
}

#[inline(always)]
fn make_linear(skb: *mut __sk_buff) {
    // SAFETY: the context is valid for the whole run; nobody keeps a pointer into the packet.
    unsafe {
        let (linear, length) = ((*skb).data_end - (*skb).data, (*skb).len);
        let wanted = if length < HEADERS { length } else { HEADERS };
        if linear < wanted {
            // A failure shows when the bytes are read.
            let _ = bpf_skb_pull_data(skb, wanted);
        }
    }
}
