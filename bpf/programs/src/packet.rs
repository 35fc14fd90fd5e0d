//! Reading the packet under a tc hook, from its network header on: devices with and without Ethernet alike.
use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_hdr_start_off::BPF_HDR_START_NET,
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

const ETHERTYPE_IPV4: u32 = 0x0800;
const ETHERTYPE_IPV6: u32 = 0x86dd;
const ETHERTYPE_ARP: u32 = 0x0806;

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

pub struct Packet {
    pub from: Addr,
    pub to: Addr,
    pub from_port: Port,
    pub to_port: Port,
    pub proto: u8,
    /// TCP: the flags; ICMP: the type; else 0.
    pub detail: u8,
    /// Hop limit or TTL.
    pub hops: u8,
    pub is_v6: bool,
    pub transport: Transport,
    /// Where the transport header begins, from the network header.
    pub transport_at: u32,
}

pub enum NotIp {
    Arp,
    Foreign,
    TooShort,
}

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
                || (self.to.0[0] == 0xff && MULTICAST_LISTENER.contains(&self.detail)))
    }

    #[inline(always)]
    pub fn is_to_hbone(&self) -> bool {
        self.to_port.be() == Port::new(HBONE_PORT).be()
    }

    #[inline(always)]
    pub fn is_from_hbone(&self) -> bool {
        self.from_port.be() == Port::new(HBONE_PORT).be()
    }

    /// The key of the connection if this packet goes the way of its opener.
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

    /// The key of the connection if this packet answers its opener.
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
pub fn parse(ctx: &TcContext) -> Result<Packet, NotIp> {
    // SAFETY: the context is valid for the whole run.
    let protocol = unsafe { (*ctx.skb.skb).protocol };
    if protocol == ETHERTYPE_IPV4.to_be() >> 16 {
        make_linear(ctx);
        ipv4(ctx)
    } else if protocol == ETHERTYPE_IPV6.to_be() >> 16 {
        make_linear(ctx);
        ipv6(ctx)
    } else if protocol == ETHERTYPE_ARP.to_be() >> 16 {
        Err(NotIp::Arp)
    } else {
        Err(NotIp::Foreign)
    }
}

#[inline(always)]
fn ipv4(ctx: &TcContext) -> Result<Packet, NotIp> {
    let header: Ipv4Hdr = load(ctx, 0).ok_or(NotIp::TooShort)?;
    let [a, b, c, d] = header.src_addr;
    let from = Addr::from_v4_be(u32::from_ne_bytes([a, b, c, d]));
    let [a, b, c, d] = header.dst_addr;
    let to = Addr::from_v4_be(u32::from_ne_bytes([a, b, c, d]));
    let (offset, more) = (header.frag_offset(), header.frag_flags() & 1 != 0);
    let mut packet = Packet {
        from,
        to,
        from_port: Port::new(0),
        to_port: Port::new(0),
        proto: header.proto,
        detail: 0,
        hops: header.ttl,
        is_v6: false,
        transport: if offset != 0 {
            Transport::LaterFragment
        } else if more {
            Transport::FirstFragment
        } else {
            Transport::Whole
        },
        // IP options are honoured: to skip such packets would be a way around the proxy.
        transport_at: u32::from(header.ihl()),
    };
    if header.version() != 4 || packet.transport_at < Ipv4Hdr::LEN as u32 {
        packet.transport = Transport::Unreadable;
    }
    read_transport(ctx, &mut packet);
    Ok(packet)
}

#[inline(always)]
fn ipv6(ctx: &TcContext) -> Result<Packet, NotIp> {
    let header: Ipv6Hdr = load(ctx, 0).ok_or(NotIp::TooShort)?;
    let mut packet = Packet {
        from: Addr(header.src_addr),
        to: Addr(header.dst_addr),
        from_port: Port::new(0),
        to_port: Port::new(0),
        proto: header.next_hdr,
        detail: 0,
        hops: header.hop_limit,
        is_v6: true,
        transport: Transport::Whole,
        transport_at: Ipv6Hdr::LEN as u32,
    };
    // On the wire nobody has a mapped address; here it would pass for the IPv4 one.
    if header.version() != 6 || packet.from.is_v4() || packet.to.is_v4() {
        packet.transport = Transport::Unreadable;
    } else {
        skip_extensions(ctx, &mut packet);
    }
    read_transport(ctx, &mut packet);
    Ok(packet)
}

#[inline(always)]
fn skip_extensions(ctx: &TcContext, packet: &mut Packet) {
    for _ in 0..EXTENSIONS {
        if !matches!(packet.proto, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS) {
            return;
        }
        let Some([next, length, high, low]) = load::<[u8; 4]>(ctx, packet.transport_at) else {
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
fn read_transport(ctx: &TcContext, packet: &mut Packet) {
    if matches!(packet.transport, Transport::LaterFragment | Transport::Unreadable) {
        return;
    }
    let at = packet.transport_at;
    match packet.proto {
        TCP => match (load::<[u8; 4]>(ctx, at), load::<[u8; 2]>(ctx, at + 12)) {
            (Some([a, b, c, d]), Some([_, flags])) => {
                (packet.from_port, packet.to_port, packet.detail) = (Port([a, b]), Port([c, d]), flags);
            }
            _ => packet.transport = Transport::Unreadable,
        },
        UDP => match load::<[u8; 4]>(ctx, at) {
            Some([a, b, c, d]) => (packet.from_port, packet.to_port) = (Port([a, b]), Port([c, d])),
            None => packet.transport = Transport::Unreadable,
        },
        ICMP | ICMPV6 => match load::<[u8; 8]>(ctx, at) {
            Some([kind, _, _, _, a, b, _, _]) => {
                packet.detail = kind;
                // An echo's identifier stands for its sender's port, so that the answer finds the request.
                match (packet.is_v6, kind) {
                    (false, 8) | (true, 128) => packet.from_port = Port([a, b]),
                    (false, 0) | (true, 129) => packet.to_port = Port([a, b]),
                    _ => {}
                }
            }
            None => packet.transport = Transport::Unreadable,
        },
        _ => {}
    }
}

/// Some bytes of the packet, counted from its network header.
#[inline(always)]
pub fn load<T: Copy>(ctx: &TcContext, at: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the destination is `T`-sized. `T` is a plain header: every bit pattern is valid.
    unsafe {
        let status = bpf_skb_load_bytes_relative(
            ctx.as_ptr(),
            at,
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            BPF_HDR_START_NET,
        );
        (status == 0).then(|| value.assume_init())
    }
}

#[inline(always)]
fn make_linear(ctx: &TcContext) {
    let linear = (ctx.data_end() - ctx.data()) as u32;
    let length = ctx.len();
    let wanted = if length < HEADERS { length } else { HEADERS };
    if linear < wanted {
        // A failure shows when the bytes are read.
        // SAFETY: no pointer into the packet is kept by anyone.
        let _ = unsafe { bpf_skb_pull_data(ctx.skb.skb, wanted) };
    }
}
