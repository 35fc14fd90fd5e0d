//! Where TCP looks for a listener by itself: a SYN for a connection in TIME_WAIT.
//!
//! Such a SYN is assigned to the remnant of the proxy's accepted socket. TCP then looks for a listener at the original
//! destination, where there is none: without an answer here the client would be refused once. Nothing else that is
//! looked up in the node's namespace is for a pod's address, so the node's own services are left alone.
use crate::{
    connections::judge_new,
    handover::Role,
    maps::{self, LISTENERS},
};
use aya_ebpf::{bindings::bpf_sk_lookup, programs::SkLookupContext};
use core::ptr::read_volatile;
use weft_bpf_abi::{
    net::{Addr, Endpoint, HBONE_PORT, Port, TCP, identity},
    policy::{EGRESS, INGRESS},
};
use weft_bpf_core::policy::Verdict;

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
const AF_INET6: u32 = 10;

#[inline(always)]
pub fn reopen(ctx: &SkLookupContext) -> u32 {
    let lookup: *mut bpf_sk_lookup = ctx.lookup;
    // Volatile and without conditions: the verifier refuses computed offsets into the context, which the compiler makes
    // of reads in branches. The fields of the other family read as zeroes.
    // SAFETY: the context is valid for the whole run.
    let (proto, family, port, v4, v6) = unsafe {
        (
            read_volatile(&raw const (*lookup).protocol),
            read_volatile(&raw const (*lookup).family),
            read_volatile(&raw const (*lookup).local_port),
            (read_volatile(&raw const (*lookup).remote_ip4), read_volatile(&raw const (*lookup).local_ip4)),
            (words(&raw const (*lookup).remote_ip6), words(&raw const (*lookup).local_ip6)),
        )
    };
    if proto != u32::from(TCP) {
        return SK_PASS;
    }
    let is_v6 = family == AF_INET6;
    let (from, to) = if is_v6 { v6 } else { (Addr::from_v4_be(v4.0), Addr::from_v4_be(v4.1)) };
    let port = Port::new(port as u16);
    match role(&from, &to, port) {
        Decision::NotOurs => SK_PASS,
        Decision::Refuse => SK_DROP,
        Decision::To(role) if LISTENERS.redirect_sk_lookup(ctx, role.slot(is_v6), 0).is_err() => SK_DROP,
        Decision::To(_) => SK_PASS,
    }
}

enum Decision {
    NotOurs,
    Refuse,
    To(Role),
}

/// As `from_pod` and `from_network` decide of a new connection.
#[inline(always)]
fn role(from: &Addr, to: &Addr, port: Port) -> Decision {
    let target = maps::endpoint(to);
    if let Some(source) = maps::endpoint(from) {
        let peer = maps::ip_info(to).identity;
        if target.is_none() && peer == identity::HOST {
            return Decision::NotOurs;
        }
        let verdict = judge_new(&source, EGRESS, peer, TCP, port).verdict;
        if verdict == Verdict::Deny {
            return Decision::Refuse;
        }
        if verdict == Verdict::Proxy || maps::is_auth_destination(to, port) {
            return Decision::To(Role::Outbound);
        }
    }
    let Some(target) = target else { return Decision::NotOurs };
    if port.be() == Port::new(HBONE_PORT).be() {
        return Decision::To(Role::Hbone);
    }
    if target.flags & Endpoint::PROXIED == 0 {
        return Decision::NotOurs;
    }
    let peer = maps::ip_info(from).identity;
    match judge_new(&target, INGRESS, peer, TCP, port).verdict {
        Verdict::Proxy => Decision::To(Role::Ingress),
        Verdict::Allow => Decision::NotOurs,
        Verdict::Deny => Decision::Refuse,
    }
}

/// # Safety
/// The context must be valid.
#[inline(always)]
unsafe fn words(addr: *const [u32; 4]) -> Addr {
    let first = addr.cast::<u32>();
    // SAFETY: within the array.
    let word = |at| unsafe { read_volatile(first.add(at)) };
    Addr::from_words_be([word(0), word(1), word(2), word(3)])
}
