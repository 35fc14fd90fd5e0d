//! The two hooks on a pod's interface: nothing enters or leaves a pod without passing one of them.
use crate::{
    connections::{self, Standing, standing},
    events::{self, Parties},
    handover::{self, Role, may_have_socket, to_listener, to_socket},
    maps,
    packet::{self, NotIp, Packet, Transport},
    sockets::Socket,
};
use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT},
    programs::TcContext,
};
use weft_bpf_abi::{
    event::{Event, Reason},
    mark,
    net::{Endpoint, NodeConfig},
    policy::{EGRESS, INGRESS},
};
use weft_bpf_core::policy::{Verdict, is_enforced};

/// Why a packet does not pass, and whose rule said so.
pub struct Refused {
    pub reason: Reason,
    pub rule: u32,
}

impl From<Reason> for Refused {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self { reason, rule: 0 }
    }
}

/// What a pod sends.
#[inline(always)]
pub fn from_pod(ctx: &TcContext) -> i32 {
    let packet = match packet::parse(ctx) {
        Ok(packet) => packet,
        Err(NotIp::Arp) => return TC_ACT_OK,
        Err(NotIp::Foreign) => return unparsed(Reason::PolicyDenied),
        Err(NotIp::TooShort) => return unparsed(Reason::TooShort),
    };
    if handover::mark_of(ctx) == mark::TURNED {
        let parties = Parties { own: 0, peer: 0, direction: INGRESS };
        return verdict(turned(ctx, packet), parties);
    }
    if packet.is_link_local_control() {
        return TC_ACT_OK;
    }
    let mut parties = Parties { own: 0, peer: 0, direction: EGRESS };
    let sent = send(ctx, packet, &mut parties);
    verdict(sent, parties)
}

/// What a pod is about to receive.
#[inline(always)]
pub fn to_pod(ctx: &TcContext) -> i32 {
    if handover::mark_of(ctx) == mark::PROXY {
        return TC_ACT_OK;
    }
    let packet = match packet::parse(ctx) {
        Ok(packet) => packet,
        Err(NotIp::Arp) => return TC_ACT_OK,
        Err(NotIp::Foreign) => return unparsed(Reason::PolicyDenied),
        Err(NotIp::TooShort) => return unparsed(Reason::TooShort),
    };
    if packet.is_link_local_control() {
        return TC_ACT_OK;
    }
    let mut parties = Parties { own: 0, peer: 0, direction: INGRESS };
    let received = receive(ctx, packet, &mut parties);
    verdict(received, parties)
}

#[inline(always)]
fn send(ctx: &TcContext, packet: &Packet, parties: &mut Parties) -> Result<i32, Refused> {
    let config = maps::node_config();
    if config.flags & NodeConfig::READY == 0 {
        return Err(Reason::NotReady.into());
    }
    let source = match maps::endpoint(&packet.from) {
        Some(source) if source.ifindex == ifindex(ctx) => source,
        _ => return Err(Reason::SpoofedSource.into()),
    };
    parties.own = source.identity;
    if packet.transport == Transport::Unreadable {
        return Err(Reason::TooShort.into());
    }
    let target = maps::endpoint(&packet.to);
    let proxied = (source.flags | target.map_or(0, |target| target.flags)) & Endpoint::PROXIED != 0;
    if packet.is_fragment() {
        check_fragment(packet, &source, EGRESS, proxied)?;
    }
    let auth = packet.is_tcp() && maps::is_auth_destination(&packet.to, packet.to_port);
    if packet.is_tcp()
        && (auth || proxied || may_have_socket(packet))
        && let Some(socket) = Socket::of_connection(ctx, packet)
    {
        return Ok(to_socket(ctx, socket)?);
    }
    parties.peer = maps::ip_info(&packet.to).identity;
    match standing(&source, EGRESS, parties.peer) {
        Standing::Reply => {}
        Standing::Known if auth => return Ok(to_listener(ctx, packet, Role::Outbound)?),
        Standing::Known => {}
        Standing::Revoked => return Err(Reason::PolicyDenied.into()),
        Standing::New(judgement) => {
            let rule = judgement.rule;
            match judgement.verdict {
                Verdict::Deny => return Err(Refused { reason: Reason::PolicyDenied, rule }),
                Verdict::Proxy if packet.is_tcp() => {
                    return redirect(ctx, &config, packet, *parties, Role::Outbound, rule);
                }
                // L7 rules speak of HTTP over TCP; for other protocols they allow nothing.
                Verdict::Proxy => return Err(Refused { reason: Reason::PolicyDenied, rule }),
                Verdict::Allow if auth => return redirect(ctx, &config, packet, *parties, Role::Outbound, rule),
                Verdict::Allow if proxied && packet.is_tcp() && !packet.is_opening() => {
                    // A server's segment of a connection that the proxy lost must not reach the client raw.
                    return Err(Reason::OrphanReply.into());
                }
                Verdict::Allow => {
                    connections::remember(packet, EGRESS);
                    if !packet.is_tcp() || packet.is_opening() {
                        events::passed(&config, *parties, Event::FORWARDED, rule);
                    }
                }
            }
        }
    }
    // The proxy's sockets can take packets here, but not in `to_pod`, which would have to turn them round.
    if let Some(target) = target
        && packet.is_tcp()
        && let Some((role, rule)) = proxy_role(packet, &target, source.identity)
    {
        *parties = Parties { own: target.identity, peer: source.identity, direction: INGRESS };
        return redirect(ctx, &config, packet, *parties, role, rule);
    }
    Ok(TC_ACT_OK)
}

/// The listener that a TCP packet to a local endpoint must go to, if any, and the rule that says so. What goes to no
/// listener is judged by `to_pod`.
#[inline(always)]
pub fn proxy_role(packet: &Packet, target: &Endpoint, peer: u32) -> Option<(Role, u32)> {
    if packet.is_to_hbone() {
        return Some((Role::Hbone, 0));
    }
    if target.flags & Endpoint::PROXIED == 0 {
        return None;
    }
    match standing(target, INGRESS, peer) {
        Standing::New(judgement) if judgement.verdict == Verdict::Proxy => Some((Role::Ingress, judgement.rule)),
        _ => None,
    }
}

#[inline(always)]
fn receive(ctx: &TcContext, packet: &Packet, parties: &mut Parties) -> Result<i32, Refused> {
    let config = maps::node_config();
    if config.flags & NodeConfig::READY == 0 {
        return Err(Reason::NotReady.into());
    }
    // An address that is not (yet) known to be this pod's has no rules: closed.
    let target = match maps::endpoint(&packet.to) {
        Some(target) if target.ifindex == ifindex(ctx) => target,
        _ => return Err(Reason::NotReady.into()),
    };
    parties.own = target.identity;
    if packet.transport == Transport::Unreadable {
        return Err(Reason::TooShort.into());
    }
    let proxied = target.flags & Endpoint::PROXIED != 0;
    if packet.is_fragment() {
        check_fragment(packet, &target, INGRESS, proxied)?;
    }
    if packet.is_tcp()
        && (packet.is_to_hbone()
            || ((proxied || may_have_socket(packet)) && Socket::of_connection(ctx, packet).is_some()))
    {
        return Ok(handover::turn_round(ctx));
    }
    parties.peer = maps::ip_info(&packet.from).identity;
    match standing(&target, INGRESS, parties.peer) {
        Standing::Reply | Standing::Known => Ok(TC_ACT_OK),
        Standing::Revoked => Err(Reason::PolicyDenied.into()),
        Standing::New(judgement) => {
            let rule = judgement.rule;
            match judgement.verdict {
                Verdict::Proxy if packet.is_tcp() => Ok(handover::turn_round(ctx)),
                Verdict::Deny | Verdict::Proxy => Err(Refused { reason: Reason::PolicyDenied, rule }),
                Verdict::Allow => {
                    connections::remember(packet, INGRESS);
                    if !packet.is_tcp() || packet.is_opening() {
                        events::passed(&config, *parties, Event::FORWARDED, rule);
                    }
                    Ok(TC_ACT_OK)
                }
            }
        }
    }
}

/// A packet that `to_pod` sent back: it is the proxy's, or nobody's.
#[inline(always)]
fn turned(ctx: &TcContext, packet: &Packet) -> Result<i32, Refused> {
    if let Some(socket) = Socket::of_connection(ctx, packet) {
        return Ok(to_socket(ctx, socket)?);
    }
    let role = if packet.is_to_hbone() { Role::Hbone } else { Role::Ingress };
    Ok(to_listener(ctx, packet, role)?)
}

/// To a listener of the proxy, telling the new connection.
#[inline(always)]
pub fn redirect(
    ctx: &TcContext,
    config: &NodeConfig,
    packet: &Packet,
    parties: Parties,
    role: Role,
    rule: u32,
) -> Result<i32, Refused> {
    let verdict = to_listener(ctx, packet, role).map_err(|reason| Refused { reason, rule })?;
    if packet.is_opening() {
        events::passed(config, parties, Event::REDIRECTED, rule);
    }
    Ok(verdict)
}

/// Later fragments have no ports, so no rule can be asked: they pass only where nothing is enforced. TCP in fragments
/// is not for the proxy's sockets at all.
#[inline(always)]
fn check_fragment(packet: &Packet, endpoint: &Endpoint, direction: u8, proxied: bool) -> Result<(), Refused> {
    let is_late = packet.transport == Transport::LaterFragment;
    if (packet.is_tcp() && proxied) || (is_late && is_enforced(endpoint, direction)) {
        return Err(Reason::Fragment.into());
    }
    Ok(())
}

#[inline(always)]
fn verdict(result: Result<i32, Refused>, parties: Parties) -> i32 {
    match result {
        Ok(verdict) => verdict,
        Err(refused) => {
            events::dropped(parties, refused.reason, refused.rule);
            TC_ACT_SHOT
        }
    }
}

#[inline(always)]
fn unparsed(reason: Reason) -> i32 {
    maps::count(reason);
    TC_ACT_SHOT
}

#[inline(always)]
fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid for the whole run.
    unsafe { (*ctx.skb.skb).ifindex }
}
