//! A whole proxy on real sockets; only the kernel programs are absent: listeners are given with the address that their
//! connections were meant for.
mod hbone;
mod http;
mod lab;
mod process;
mod tcp;
