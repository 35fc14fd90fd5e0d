//! Plugins in the way of requests and connections: which instances a worker runs, what they are told of a stream, and
//! what their answers come to.
mod board;
mod body;
mod exchange;
mod properties;
mod set;

pub use board::Board;
pub use exchange::{Exchange, Step, admit};
pub use properties::TunnelProperties;
pub use set::PluginSet;
