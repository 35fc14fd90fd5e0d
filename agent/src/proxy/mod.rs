//! The agent's side of weft-proxy: what it is told, and what it reports.
pub mod link;
pub mod plan;
