//! Transparent sockets: connections come in under the server's address and go out under the client's.
pub mod connect;
pub mod listeners;
