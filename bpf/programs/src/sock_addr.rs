//! The hooks on sockets' addresses: a process names a service, its socket gets a backend, and the process never knows.
use crate::maps::{self, KernelTables};
use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_set_retval},
    programs::SockAddrContext,
};
use core::ptr::{read_volatile, write_volatile};
use weft_bpf_abi::{
    event::Reason,
    lb::{Backend, Frontend, ReverseKey},
    mark,
    net::{Addr, Port, TCP, UDP},
};
use weft_bpf_core::lb::{Choice, Client, choose, is_reserved};

const DENY: i32 = 0;
const ALLOW: i32 = 1;
const EADDRINUSE: i32 = 98;
const ECONNREFUSED: i32 = 111;

/// An address in the call's context, of one family.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    /// Mapped IPv4 addresses too: a dual-stack socket reaches IPv4 services through them.
    V6,
}

/// connect(), and sendmsg() with a destination: choose a backend.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    let Some(proto) = protocol(ctx) else { return ALLOW };
    if is_proxy(ctx) {
        // The proxy chooses backends itself.
        return ALLOW;
    }
    let (addr, port) = read(ctx, family);
    match choose(&KernelTables, &addr, port, proto, &client(ctx)) {
        Choice::NotAService => {
            if proto == UDP && !follows_connect(ctx, family) {
                // A socket may speak to a backend by its own name after it did so by the service's.
                maps::forget_frontend(&reverse_key(ctx, &Backend::new(addr, port)));
            }
            ALLOW
        }
        Choice::NoBackend => refuse(ECONNREFUSED, Reason::NoBackend),
        Choice::Backend(backend) if family == Family::V4 && !backend.addr.is_v4() => {
            refuse(ECONNREFUSED, Reason::NoBackend)
        }
        Choice::Backend(backend) => {
            maps::set_frontend(&reverse_key(ctx, &backend), &Frontend { addr, port, reserved: [0; 2] });
            write(ctx, family, &backend.addr, backend.port);
            ALLOW
        }
    }
}

/// recvmsg() and getpeername(): the peer as the process named it.
#[inline(always)]
pub fn peer(ctx: &SockAddrContext, family: Family) -> i32 {
    let (addr, port) = read(ctx, family);
    if let Some(frontend) = maps::frontend_of(&reverse_key(ctx, &Backend::new(addr, port))) {
        write(ctx, family, &frontend.addr, frontend.port);
    }
    ALLOW
}

/// bind(): node ports are reserved in the node's own namespace.
#[inline(always)]
pub fn bind(ctx: &SockAddrContext, family: Family) -> i32 {
    let Some(proto) = protocol(ctx) else { return ALLOW };
    // SAFETY: the context is valid for the whole run.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if netns_cookie != maps::node_config().netns_cookie || is_proxy(ctx) {
        return ALLOW;
    }
    let (addr, port) = read(ctx, family);
    if is_reserved(&KernelTables, &addr, port, proto) { refuse(EADDRINUSE, Reason::PortReserved) } else { ALLOW }
}

#[inline(always)]
fn refuse(errno: i32, reason: Reason) -> i32 {
    maps::count(reason);
    // SAFETY: no pointers.
    unsafe { bpf_set_retval(-errno) };
    DENY
}

#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> Option<u8> {
    // SAFETY: the context is valid for the whole run.
    match unsafe { read_volatile(&raw const (*ctx.sock_addr).protocol) } {
        6 => Some(TCP),
        17 => Some(UDP),
        _ => None,
    }
}

#[inline(always)]
fn is_proxy(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is valid for the whole run, and so is the socket, if there is one.
    unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        !socket.is_null() && (*socket).mark & mark::MASK == mark::PROXY
    }
}

/// A connected IPv6 socket whose peer is IPv4 sends by IPv4's way, where the kernel names the connected peer as if the
/// process had: no news, and what is known of it must stay.
#[inline(always)]
fn follows_connect(ctx: &SockAddrContext, family: Family) -> bool {
    const AF_INET6: u32 = 10;
    const ESTABLISHED: u32 = 1;
    // SAFETY: the context is valid for the whole run, and so is the socket, if there is one.
    unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        family == Family::V4
            && !socket.is_null()
            && read_volatile(&raw const (*socket).family) == AF_INET6
            && read_volatile(&raw const (*socket).state) == ESTABLISHED
    }
}

#[inline(always)]
fn client(ctx: &SockAddrContext) -> Client {
    // SAFETY: the context is valid for the whole run.
    let (netns_cookie, now_ns, random) =
        unsafe { (bpf_get_netns_cookie(ctx.as_ptr()), bpf_ktime_get_ns(), bpf_get_prandom_u32()) };
    Client { netns_cookie, on_host: netns_cookie == maps::node_config().netns_cookie, now_ns, random }
}

#[inline(always)]
fn reverse_key(ctx: &SockAddrContext, backend: &Backend) -> ReverseKey {
    // SAFETY: the context is valid for the whole run.
    ReverseKey { socket: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }, backend: *backend, reserved: 0 }
}

// The verifier wants these fields read and written as whole words: hence volatile.

#[inline(always)]
fn read(ctx: &SockAddrContext, family: Family) -> (Addr, Port) {
    let call: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: the context is valid for the whole run.
    unsafe {
        let addr = match family {
            Family::V4 => Addr::from_v4_be(read_volatile(&raw const (*call).user_ip4)),
            Family::V6 => {
                let words = (&raw const (*call).user_ip6).cast::<u32>();
                let word = |at| read_volatile(words.add(at));
                Addr::from_words_be([word(0), word(1), word(2), word(3)])
            }
        };
        (addr, Port::from_be(read_volatile(&raw const (*call).user_port) as u16))
    }
}

#[inline(always)]
fn write(ctx: &SockAddrContext, family: Family, addr: &Addr, port: Port) {
    let call: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: the context is valid for the whole run.
    unsafe {
        match family {
            Family::V4 => write_volatile(&raw mut (*call).user_ip4, addr.v4_be()),
            Family::V6 => {
                let words = (&raw mut (*call).user_ip6).cast::<u32>();
                let [a, b, c, d] = addr.words_be();
                write_volatile(words, a);
                write_volatile(words.add(1), b);
                write_volatile(words.add(2), c);
                write_volatile(words.add(3), d);
            }
        }
        write_volatile(&raw mut (*call).user_port, u32::from(port.be()));
    }
}
