//! The kernel's half of the data path, as the agent drives it: what the maps and routes should hold ([`plan`], pure),
//! and how they come to hold it. The only user of aya.
pub mod plan;
pub mod reconcile;
