//! Handing TCP packets to the node's proxy. No packet is rewritten: the kernel is told which socket a packet is for.
use crate::{maps, packet::Packet, sockets::Socket};
use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_OK},
    helpers::bpf_redirect,
    programs::TcContext,
};
use weft_bpf_abi::{event::Reason, mark, net::listener};

/// Which of the proxy's listeners takes a new connection: the IPv4 slot of each pair.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    Ingress = listener::INGRESS4,
    Outbound = listener::OUTBOUND4,
    Hbone = listener::HBONE4,
}

impl Role {
    #[inline(always)]
    pub fn slot(self, is_v6: bool) -> u32 {
        self as u32 + u32::from(is_v6)
    }
}

const _: () = assert!(
    listener::INGRESS6 == listener::INGRESS4 + 1
        && listener::OUTBOUND6 == listener::OUTBOUND4 + 1
        && listener::HBONE6 == listener::HBONE4 + 1
);

/// To the socket that has the connection.
///
/// # Errors
/// The kernel refused.
#[inline(always)]
pub fn to_socket(ctx: &TcContext, socket: Socket) -> Result<i32, Reason> {
    if socket.assign(ctx).is_err() {
        return Err(Reason::AssignFailed);
    }
    set_mark(ctx, mark::CAPTURED);
    Ok(TC_ACT_OK)
}

/// To a listener of the proxy. Not only SYNs: where the kernel uses SYN cookies, the connection begins with an ACK;
/// any other stray packet gets a reset from the listener.
///
/// # Errors
/// The proxy is not there, or the kernel refused.
#[inline(always)]
pub fn to_listener(ctx: &TcContext, packet: &Packet, role: Role) -> Result<i32, Reason> {
    match Socket::of_listener(role.slot(packet.is_v6)) {
        Some(listener) => to_socket(ctx, listener),
        None => Err(Reason::NoListener),
    }
}

/// Whether the proxy may have a socket with these ends, though neither endpoint is known for it: HBONE connections,
/// and the answers of ports that take mutual TLS only. Spares all other traffic the socket look-up.
#[inline(always)]
pub fn may_have_socket(packet: &Packet) -> bool {
    packet.is_to_hbone() || packet.is_from_hbone() || maps::is_auth_destination(&packet.from, packet.from_port)
}

/// Sends a packet that is about to enter a pod back through the ingress hook of the same device, since sockets can be
/// assigned there only.
#[inline(always)]
pub fn turn_round(ctx: &TcContext) -> i32 {
    set_mark(ctx, mark::TURNED);
    // SAFETY: the context is valid for the whole run; no pointers.
    unsafe { bpf_redirect((*ctx.skb.skb).ifindex, u64::from(BPF_F_INGRESS)) as i32 }
}

/// Our part of the packet's mark.
#[inline(always)]
pub fn mark_of(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid for the whole run.
    unsafe { (*ctx.skb.skb).mark & mark::MASK }
}

#[inline(always)]
fn set_mark(ctx: &TcContext, value: u32) {
    // SAFETY: as above.
    let others = unsafe { (*ctx.skb.skb).mark & !mark::MASK };
    ctx.set_mark(others | value);
}
