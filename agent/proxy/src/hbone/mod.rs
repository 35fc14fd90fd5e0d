//! HBONE: connections between workloads as HTTP/2 CONNECT over mutual TLS, as Istio's ztunnel speaks it.
pub mod client;
pub mod credentials;
pub mod forwarded;
pub mod pool;
pub mod server;

use std::time::Duration;

pub use weft_bpf_abi::net::HBONE_PORT as PORT;

/// For a handshake, and for the answer to a CONNECT.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
const WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const FRAME: u32 = 1 << 20;
const STREAMS: u32 = 200;
const HEADER_LIST: u32 = 64 * 1024;
/// Finds connections whose peer has vanished.
const PING: Duration = Duration::from_secs(10);
const PING_TIME: Duration = Duration::from_secs(20);
