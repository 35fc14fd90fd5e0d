//! Tests of the kernel programs as built, on the kernel that runs them. This library is their vocabulary.
//!
//! They need root and the object (`WEFT_BPF_OBJECT`, or where `cargo xtask build` leaves it). What they make has the
//! prefix `weft-` and the process id in its name, and is gone when they end.
pub mod bench;
pub mod node;
pub mod object;
pub mod packets;
pub mod pods;
