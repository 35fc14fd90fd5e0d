//! weft-agent and the `weft` command.
pub mod config;
pub mod proxy;
pub mod sources;
pub mod svids;
