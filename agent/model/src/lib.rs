//! The model: Kubernetes objects and what other clusters say, as typed facts in one store. Pure: no I/O, no clock.
pub mod identity;
pub mod parse;
pub mod policy;
pub mod resolve;
pub mod snapshot;
pub mod store;
#[cfg(test)]
mod testing;
pub mod types;
mod usable;
