//! Telling user space what was decided.
use crate::maps;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use weft_bpf_abi::{
    event::{Event, Reason},
    net::NodeConfig,
    policy::INGRESS,
};

/// A packet in the eyes of the endpoint that judges it.
#[derive(Clone, Copy)]
pub struct Parties {
    /// Identity of the endpoint whose rules apply.
    pub own: u32,
    pub peer: u32,
    pub direction: u8,
}

/// Counts and tells a drop. Returns nothing, so that no caller mistakes it for a verdict.
#[inline(always)]
pub fn dropped(parties: Parties, reason: Reason, rule: u32) {
    maps::count(reason);
    tell(parties, Event::DROPPED, reason, rule);
}

/// Tells a new connection that passes, or goes to the proxy, where that was asked for.
#[inline(always)]
pub fn passed(config: &NodeConfig, parties: Parties, verdict: u8, rule: u32) {
    if config.flags & NodeConfig::TRACE_ALLOWED != 0 {
        tell(parties, verdict, Reason::Forwarded, rule);
    }
}

#[inline(always)]
fn tell(parties: Parties, verdict: u8, reason: Reason, rule: u32) {
    let what = (reason as u32) << 16 | u32::from(parties.direction) << 8 | u32::from(verdict);
    tell_packet(parties.own, parties.peer, what, rule);
}

/// Numbers only, so that the verifier checks it once and not for each call.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell_packet(own: u32, peer: u32, what: u32, rule: u32) -> u32 {
    let Some(packet) = maps::packet() else { return 0 };
    let direction = (what >> 8) as u8;
    let (from_identity, to_identity) = if direction == INGRESS { (peer, own) } else { (own, peer) };
    maps::emit(|| Event {
        // SAFETY: no arguments.
        at_ns: unsafe { bpf_ktime_get_ns() },
        from: packet.from,
        to: packet.to,
        from_port: packet.from_port,
        to_port: packet.to_port,
        proto: packet.proto,
        direction,
        verdict: what as u8,
        reserved: 0,
        reason: what >> 16,
        from_identity,
        to_identity,
        rule,
    });
    0
}
