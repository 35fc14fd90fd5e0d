//! What weft-agent tells weft-proxy, and what it hears back: whole, versioned configuration one way, flows and plugin
//! state the other, as JSON lines over a unix socket that the proxy serves.
pub mod config;
pub mod flow;
pub mod wire;
