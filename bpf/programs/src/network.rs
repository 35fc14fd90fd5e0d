//! The hooks on the node's own devices: what enters it, and the guard on what leaves it.
use crate::{
    events::{self, Parties},
    handover::{self, may_have_socket, to_socket},
    maps,
    packet::{self, Packet, Transport},
    pod::{Refused, proxy_role, redirect},
    sockets::Socket,
};
use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT},
    programs::TcContext,
};
use weft_bpf_abi::{
    event::Reason,
    mark,
    net::{Endpoint, IpInfo, NodeConfig, identity},
    policy::{EGRESS, INGRESS},
};

/// Where a packet came in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// Plain text.
    Native,
    /// Decrypted by WireGuard, which has checked the source address too.
    Tunnel,
}

/// What enters the node. Plain packets are only passed on: `to_pod` judges them.
#[inline(always)]
pub fn from_network(ctx: &TcContext, device: Device) -> i32 {
    let Ok(packet) = packet::parse(ctx) else { return TC_ACT_OK };
    let mut parties = Parties { own: 0, peer: 0, direction: INGRESS };
    match enter(ctx, packet, device, &mut parties) {
        Ok(verdict) => verdict,
        Err(refused) => {
            events::dropped(parties, refused.reason, refused.rule);
            TC_ACT_SHOT
        }
    }
}

/// The guard: what is due for encryption leaves through the tunnel's UDP socket or not at all.
#[inline(always)]
pub fn to_network(ctx: &TcContext) -> i32 {
    if handover::mark_of(ctx) == mark::WIREGUARD {
        return TC_ACT_OK;
    }
    let Ok(packet) = packet::parse(ctx) else { return TC_ACT_OK };
    let peer = maps::ip_info(&packet.to);
    if peer.flags & IpInfo::ENCRYPT == 0 {
        return TC_ACT_OK;
    }
    let own = maps::ip_info(&packet.from).identity;
    events::dropped(Parties { own, peer: peer.identity, direction: EGRESS }, Reason::Unencrypted, 0);
    TC_ACT_SHOT
}

#[inline(always)]
fn enter(ctx: &TcContext, packet: &Packet, device: Device, parties: &mut Parties) -> Result<i32, Refused> {
    let peer = maps::ip_info(&packet.from);
    parties.peer = peer.identity;
    if device == Device::Native && peer.flags & IpInfo::ENCRYPT != 0 {
        return Err(Reason::Unencrypted.into());
    }
    // Nobody out there has an address of this node or of its pods; as the node's, it would pass every rule.
    if peer.identity == identity::HOST || maps::endpoint(&packet.from).is_some() {
        return Err(Reason::SpoofedSource.into());
    }
    let Some(target) = maps::endpoint(&packet.to) else { return Ok(TC_ACT_OK) };
    parties.own = target.identity;
    if !packet.is_tcp() || packet.transport == Transport::Unreadable {
        return Ok(TC_ACT_OK);
    }
    let config = maps::node_config();
    if config.flags & NodeConfig::READY == 0 {
        return Err(Reason::NotReady.into());
    }
    let proxied = target.flags & Endpoint::PROXIED != 0;
    if packet.is_fragment() {
        return if proxied { Err(Reason::Fragment.into()) } else { Ok(TC_ACT_OK) };
    }
    if (proxied || may_have_socket(packet))
        && let Some(socket) = Socket::of_connection(ctx, packet)
    {
        return Ok(to_socket(ctx, socket)?);
    }
    match proxy_role(packet, &target, peer.identity) {
        Some((role, rule)) => redirect(ctx, &config, packet, *parties, role, rule),
        None => Ok(TC_ACT_OK),
    }
}
