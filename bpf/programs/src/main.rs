//! The kernel programs of Weft. Each entry below is one hook; what it decides is in the module it names.
#![no_std]
#![no_main]

mod connections;
mod events;
mod handover;
mod maps;
mod network;
mod packet;
mod pod;
mod reopen;
mod sock_addr;
mod sockets;

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier, sk_lookup},
    programs::{SkLookupContext, SockAddrContext, TcContext},
};
use network::Device;
use sock_addr::Family;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    sock_addr::connect(&ctx, Family::V4)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    sock_addr::connect(&ctx, Family::V6)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sock_addr::connect(&ctx, Family::V4)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sock_addr::connect(&ctx, Family::V6)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    sock_addr::peer(&ctx, Family::V4)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    sock_addr::peer(&ctx, Family::V6)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    sock_addr::peer(&ctx, Family::V4)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    sock_addr::peer(&ctx, Family::V6)
}

#[cgroup_sock_addr(bind4)]
pub fn bind4(ctx: SockAddrContext) -> i32 {
    sock_addr::bind(&ctx, Family::V4)
}

#[cgroup_sock_addr(bind6)]
pub fn bind6(ctx: SockAddrContext) -> i32 {
    sock_addr::bind(&ctx, Family::V6)
}

#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    pod::from_pod(&ctx)
}

#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    pod::to_pod(&ctx)
}

#[classifier]
pub fn from_network(ctx: TcContext) -> i32 {
    network::from_network(&ctx, Device::Native)
}

#[classifier]
pub fn from_tunnel(ctx: TcContext) -> i32 {
    network::from_network(&ctx, Device::Tunnel)
}

#[classifier]
pub fn to_network(ctx: TcContext) -> i32 {
    network::to_network(&ctx)
}

#[sk_lookup]
pub fn reopen_time_wait(ctx: SkLookupContext) -> u32 {
    reopen::reopen(&ctx)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
