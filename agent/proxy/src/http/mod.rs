//! HTTP/1.1 and HTTP/2 between a client and a server: every request is judged, then goes on as it came.
pub mod body;
pub mod exchange;
pub mod head_timer;
pub mod request;
pub mod serve;
pub mod sniff;
pub mod upstream;
