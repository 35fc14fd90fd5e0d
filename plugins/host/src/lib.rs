//! The host of Weft's plugins: modules that speak Proxy-Wasm 0.2, run in wasmtime, which nothing else in Weft uses.
//!
//! A process has one [`Engine`], which compiles [`Module`]s and keeps deadlines, and one [`HostServices`], what plugins
//! share. Each worker thread starts a [`Plugin`] of its own from a [`PluginSpec`]; nothing on a request's way is shared
//! or locked. Of a plugin come [`HttpStream`]s and [`TcpStream`]s, one per request or connection: the caller hands in
//! headers and body chunks and gets an [`Outcome`].
//!
//! A plugin that traps, loops, or wants too much memory costs the streams that it had, never more: they end with a
//! [`Fault`], to which the caller applies the plugin's failure policy, and the next stream gets a new instance.
//!
//! Tasks and threads: one thread per engine, which ends with it.
mod abi;
mod cache;
mod engine;
mod error;
mod exports;
mod headers;
mod http_stream;
mod imports;
mod instance;
mod limits;
mod log;
mod metrics;
mod module;
mod outcome;
pub mod pairs;
mod plugin;
pub mod properties;
mod queues;
mod services;
mod spec;
mod state;
mod stats;
mod stream;
mod tcp_stream;

pub use engine::{Engine, EngineConfig, Pool};
pub use error::{EngineError, Fault, LoadError, StartError};
pub use headers::{Headers, Invalid};
pub use http_stream::HttpStream;
pub use module::{Abi, Module};
pub use outcome::{LocalResponse, Outcome, TcpOutcome};
pub use plugin::Plugin;
pub use properties::Properties;
pub use services::HostServices;
pub use spec::{Limits, PluginSpec};
pub use stats::{PluginStats, StatsSnapshot};
pub use stream::Direction;
pub use tcp_stream::{ClosedBy, TcpStream};
