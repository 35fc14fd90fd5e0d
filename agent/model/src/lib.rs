//! The model: Kubernetes objects and what other clusters say, as typed facts in one store. Pure: no I/O, no clock.
pub mod policy;
pub mod snapshot;
pub mod types;
