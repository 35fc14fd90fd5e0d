//! The built-in plugin `http-policy`: judges HTTP requests by the L7 rules of network policies. An ordinary Proxy-Wasm
//! module; `plugin.rs` and `host.rs` alone know that, the rest is plain Rust and tested as such.
pub mod config;
pub mod matcher;
pub mod path;
pub mod rules;

#[cfg(target_arch = "wasm32")]
mod host;
#[cfg(target_arch = "wasm32")]
mod plugin;
