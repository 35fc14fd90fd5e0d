//! The built-in plugin `spiffe-authz`: judges the identity that a connection's peer proved in its TLS handshake. An
//! ordinary Proxy-Wasm module; `plugin.rs` alone knows that, the rest is plain Rust and tested as such.
pub mod verdict;

#[cfg(target_arch = "wasm32")]
mod plugin;
