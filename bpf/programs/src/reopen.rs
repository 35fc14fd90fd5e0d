//! Where TCP looks for a listener by itself: a SYN for a connection in TIME_WAIT.
//!
//! Such a SYN is assigned to the remnant of the proxy's accepted socket. TCP then looks for a listener at the original
//! destination, where there is none: without an answer here the client would be refused once. Nothing else that is
//! looked up in the node's namespace is for a pod's address, so the node's own services are left alone.
use crate::{
    connections::question_of,
    handover::Role,
    maps::{self, KernelTables, LISTENERS},
};
use aya_ebpf::programs::SkLookupContext;
use weft_bpf_abi::{
    net::{Addr, Endpoint, HBONE_PORT, Port, TCP, identity},
    policy::{EGRESS, INGRESS},
};
use weft_bpf_core::policy::{Verdict, judge};

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
const AF_INET6: u32 = 10;

#[inline(always)]
pub fn reopen(ctx: &SkLookupContext) -> u32 {
    // SAFETY: the context is valid for the whole run.
    let lookup = unsafe { &*ctx.lookup };
    if lookup.protocol != u32::from(TCP) {
        return SK_PASS;
    }
    let is_v6 = lookup.family == AF_INET6;
    let (from, to) = if is_v6 {
        (from_words(&lookup.remote_ip6), from_words(&lookup.local_ip6))
    } else {
        (Addr::from_v4_be(lookup.remote_ip4), Addr::from_v4_be(lookup.local_ip4))
    };
    let port = Port::new(lookup.local_port as u16);
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
        let verdict = judge(&KernelTables, &source, &question_of(EGRESS, peer, TCP, port)).verdict;
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
    match judge(&KernelTables, &target, &question_of(INGRESS, peer, TCP, port)).verdict {
        Verdict::Proxy => Decision::To(Role::Ingress),
        Verdict::Allow => Decision::NotOurs,
        Verdict::Deny => Decision::Refuse,
    }
}

#[inline(always)]
fn from_words(words: &[u32; 4]) -> Addr {
    let mut bytes = [0; 16];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    Addr(bytes)
}
