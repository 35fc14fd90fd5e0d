//! The decisions of the kernel programs, free of any hook, helper or map implementation.
//!
//! The hooks parse, ask here, and act; the tests ask here too, on the host. Everything is inlined into the programs,
//! so nothing here may panic, allocate or loop without a bound.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod conntrack;
pub mod lb;
pub mod policy;
