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
pub fn standing(endpoint: &Endpoint, direction: u8, peer: u32) -> Standing {
    let packed = standing_of_packet(endpoint.id, endpoint.flags, peer, u32::from(direction));
    let rule = (packed >> 32) as u32;
    match packed as u32 {
        REPLY => Standing::Reply,
        KNOWN => Standing::Known,
        ALLOWED => Standing::New(Judgement { verdict: Verdict::Allow, rule }),
        PROXIED => Standing::New(Judgement { verdict: Verdict::Proxy, rule }),
        DENIED => Standing::New(Judgement { verdict: Verdict::Deny, rule }),
        _ => Standing::Revoked,
    }
}

/// What the rules of an endpoint say of a new connection; `proto` and `port` are those that the opener named.
#[inline(always)]
pub fn judge_new(endpoint: &Endpoint, direction: u8, peer: u32, proto: u8, port: Port) -> Judgement {
    // Protocols without ports are asked for port 0.
    let port = if matches!(proto, TCP | UDP) { port.be() } else { 0 };
    let what = u32::from(port) << 16 | u32::from(direction) << 8 | u32::from(proto);
    let packed = judge_connection(endpoint.id, endpoint.flags, peer, what);
    let verdict = match packed as u32 {
        ALLOWED => Verdict::Allow,
        PROXIED => Verdict::Proxy,
        _ => Verdict::Deny,
    };
    Judgement { verdict, rule: (packed >> 32) as u32 }
}

// Both functions below take and give numbers only, so that the verifier checks each of them once, alone, and not again
// for each call with all that led to it.

const REPLY: u32 = 0;
const KNOWN: u32 = 1;
const REVOKED: u32 = 2;
const ALLOWED: u32 = 3;
const PROXIED: u32 = 4;
const DENIED: u32 = 5;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_connection(id: u32, flags: u32, peer: u32, what: u32) -> u64 {
    let endpoint = Endpoint { id, identity: 0, ifindex: 0, flags };
    let (port, direction, proto) = (Port::from_be((what >> 16) as u16), (what >> 8) as u8, what as u8);
    let judgement = judge(&KernelTables, &endpoint, &Question { direction, peer, proto, port });
    let verdict = match judgement.verdict {
        Verdict::Allow => ALLOWED,
        Verdict::Proxy => PROXIED,
        Verdict::Deny => DENIED,
    };
    u64::from(judgement.rule) << 32 | u64::from(verdict)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn standing_of_packet(id: u32, flags: u32, peer: u32, direction: u32) -> u64 {
    let endpoint = Endpoint { id, identity: 0, ifindex: 0, flags };
    let direction = direction as u8;
    let Some(packet) = maps::packet() else { return u64::from(REVOKED) };
    // A SYN opens a connection, whatever was there before: it is always judged.
    if !packet.is_opening() {
        let backwards = if direction == EGRESS { INGRESS } else { EGRESS };
        let key = packet.connection.reply_key(backwards);
        match find(&key, packet) {
            Found::Live => return u64::from(REPLY),
            Found::Stale => {
                let judgement = judge_new(&endpoint, backwards, peer, key.proto, key.to_port);
                if judgement.verdict == Verdict::Allow {
                    renew(&key, packet);
                    return u64::from(REPLY);
                }
                maps::forget_connection(&key);
                return u64::from(judgement.rule) << 32 | u64::from(REVOKED);
            }
            Found::Nothing => {}
        }
        if matches!(find(&packet.connection.forward_key(direction), packet), Found::Live) {
            return u64::from(KNOWN);
        }
    }
    let judgement = judge_new(&endpoint, direction, peer, packet.proto, packet.to_port);
    let verdict = match judgement.verdict {
        Verdict::Allow => ALLOWED,
        Verdict::Proxy => PROXIED,
        Verdict::Deny => DENIED,
    };
    u64::from(judgement.rule) << 32 | u64::from(verdict)
}

/// Lets the rest of an allowed connection, and its answers, pass without judging.
///
/// A TCP connection is entered by its SYN only: of a later packet nobody knows which side opened, and an entry made by
/// the wrong side would let the other one in.
#[inline(always)]
pub fn remember(packet: &Packet, direction: u8) {
    if !packet.is_tcp() || packet.is_opening() {
        renew(&packet.connection.forward_key(direction), packet);
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
    match conntrack::state(&conn, key.proto, now_ns, epoch) {
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

#[inline(always)]
fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}
