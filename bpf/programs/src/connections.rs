//! Whether a packet belongs to a connection that policy let pass, and what policy says where it does not.
use crate::{
    maps::{self, KernelTables},
    packet::Packet,
};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use weft_bpf_abi::{
    net::{Endpoint, Port, TCP, UDP},
    policy::{ConnKey, EGRESS, INGRESS},
};
use weft_bpf_core::{
    conntrack::{self, State},
    policy::{Judgement, Question, Verdict, judge},
};

/// How a packet stands with one endpoint's rules.
pub enum Standing {
    /// An answer within a connection that passed the other way.
    Reply,
    /// A further packet of a connection that passed this way.
    Known,
    /// An answer that the rules of today no longer allow.
    Revoked,
    New(Judgement),
}

/// `direction` is the packet's, seen from the endpoint; `peer` the identity of the other side.
#[inline(always)]
pub fn standing(packet: &Packet, endpoint: &Endpoint, direction: u8, peer: u32) -> Standing {
    // A SYN opens a connection, whatever was there before: it is always judged.
    if !packet.is_opening() {
        let backwards = if direction == EGRESS { INGRESS } else { EGRESS };
        let key = packet.reply_key(backwards);
        match find(&key, packet) {
            Found::Live => return Standing::Reply,
            Found::Stale => {
                let ask = question_of(backwards, peer, packet.proto, packet.from_port);
                if judge(&KernelTables, endpoint, &ask).verdict == Verdict::Allow {
                    renew(&key, packet);
                    return Standing::Reply;
                }
                maps::forget_connection(&key);
                return Standing::Revoked;
            }
            Found::Nothing => {}
        }
        if matches!(find(&packet.forward_key(direction), packet), Found::Live) {
            return Standing::Known;
        }
    }
    Standing::New(judge(&KernelTables, endpoint, &question_of(direction, peer, packet.proto, packet.to_port)))
}

/// Lets the rest of an allowed connection, and its answers, pass without judging.
///
/// A TCP connection is entered by its SYN only: of a later packet nobody knows which side opened, and an entry made by
/// the wrong side would let the other one in.
#[inline(always)]
pub fn remember(packet: &Packet, direction: u8) {
    if !packet.is_tcp() || packet.is_opening() {
        renew(&packet.forward_key(direction), packet);
    }
}

enum Found {
    Nothing,
    Stale,
    Live,
}

#[inline(always)]
fn find(key: &ConnKey, packet: &Packet) -> Found {
    let Some(entry) = maps::connection(key) else { return Found::Nothing };
    // SAFETY: the look-up's result is valid for the whole run; a slot reused meanwhile costs one wrong time stamp.
    let conn = unsafe { *entry };
    let (now_ns, epoch) = (now(), maps::policy_epoch());
    match conntrack::state(&conn, packet.proto, now_ns, epoch) {
        State::Expired => Found::Nothing,
        State::Stale => Found::Stale,
        State::Live => {
            if let Some(touched) = conntrack::touched(&conn, packet.tcp_flags(), now_ns, epoch) {
                // SAFETY: as above; concurrent writers write the same values but for the time.
                unsafe { *entry = touched };
            }
            Found::Live
        }
    }
}

#[inline(always)]
fn renew(key: &ConnKey, packet: &Packet) {
    maps::set_connection(key, &conntrack::opened(packet.tcp_flags(), now(), maps::policy_epoch()));
}

/// What to ask the rules; protocols without ports are asked for port 0.
#[inline(always)]
pub fn question_of(direction: u8, peer: u32, proto: u8, port: Port) -> Question {
    Question { direction, peer, proto, port: if matches!(proto, TCP | UDP) { port } else { Port::new(0) } }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}
