//! The agent's API: HTTP/1.1 with JSON on a unix socket that only root may open; Prometheus metrics on TCP.
//! Tasks: one a listener, ended by the token; a connection ends with its peer.
pub mod metrics;
pub mod rows;
pub mod server;
pub mod types;
