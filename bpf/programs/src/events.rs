//! Telling user space what was decided.
use crate::{maps, packet::Packet};
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
pub fn dropped(packet: &Packet, parties: Parties, reason: Reason, rule: u32) {
    maps::count(reason);
    emit(packet, parties, Event::DROPPED, reason, rule);
}

/// Tells a new connection that passes, or goes to the proxy, where that was asked for.
#[inline(always)]
pub fn passed(config: &NodeConfig, packet: &Packet, parties: Parties, verdict: u8, rule: u32) {
    if config.flags & NodeConfig::TRACE_ALLOWED != 0 {
        emit(packet, parties, verdict, Reason::Forwarded, rule);
    }
}

#[inline(always)]
fn emit(packet: &Packet, parties: Parties, verdict: u8, reason: Reason, rule: u32) {
    let (from_identity, to_identity) =
        if parties.direction == INGRESS { (parties.peer, parties.own) } else { (parties.own, parties.peer) };
    maps::emit(|| Event {
        // SAFETY: no arguments.
        at_ns: unsafe { bpf_ktime_get_ns() },
        from: packet.from,
        to: packet.to,
        from_port: packet.from_port,
        to_port: packet.to_port,
        proto: packet.proto,
        direction: parties.direction,
        verdict,
        reserved: 0,
        reason: reason as u32,
        from_identity,
        to_identity,
        rule,
    });
}
