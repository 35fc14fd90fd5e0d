//! What can go wrong with a plugin, in the operator's words.
use std::{path::PathBuf, time::Duration};
use thiserror::Error;

/// The engine could not be made.
#[derive(Debug, Error)]
pub enum EngineError {
    #[error("the Wasm engine cannot be made on this machine")]
    Engine(#[source] wasmtime::Error),
    #[error("the thread that keeps the plugins' deadlines cannot be started")]
    Thread(#[source] std::io::Error),
}

/// A module that cannot be used at all.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error("plugin {plugin}: {} cannot be read: does the file exist, and may the proxy read it?", path.display())]
    Read {
        plugin: String,
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("plugin {plugin}: the module is {size} bytes, more than the {limit} allowed")]
    TooLarge { plugin: String, size: u64, limit: u64 },
    #[error("plugin {plugin}: wrong module: its SHA-256 is {actual}, but the plugin object asks for {expected}")]
    WrongHash { plugin: String, expected: String, actual: String },
    #[error("plugin {plugin}: not a WebAssembly module: {hint}")]
    NotWasm { plugin: String, hint: &'static str },
    #[error("plugin {plugin}: the module is not valid WebAssembly, or uses features that Weft does not run")]
    Invalid {
        plugin: String,
        #[source]
        cause: wasmtime::Error,
    },
    #[error(
        "plugin {plugin}: no Proxy-Wasm ABI marker: the module must export one of proxy_abi_version_0_1_0, \
         proxy_abi_version_0_2_0, proxy_abi_version_0_2_1{hint}"
    )]
    NoAbi { plugin: String, hint: &'static str },
    #[error("plugin {plugin}: the module speaks {found}, which Weft does not run; build it for Proxy-Wasm 0.2")]
    UnsupportedAbi { plugin: String, found: String },
    #[error("plugin {plugin}: the module asks for functions that Weft does not have: {}", imports.join(", "))]
    MissingImports { plugin: String, imports: Vec<String> },
    #[error("plugin {plugin}: the module must export {what}")]
    MissingExport { plugin: String, what: &'static str },
}

/// An instance of a good module that did not come up.
#[derive(Debug, Error)]
pub enum StartError {
    #[error("plugin {plugin}: the module cannot be instantiated")]
    Instantiate {
        plugin: String,
        #[source]
        cause: wasmtime::Error,
    },
    #[error("plugin {plugin}: failed in {callback}{}", last_lines(.log))]
    Fault {
        plugin: String,
        callback: &'static str,
        /// The plugin's own last log lines.
        log: Vec<String>,
        #[source]
        fault: Fault,
    },
    #[error("plugin {plugin}: it refused to start ({callback} returned false){}: is its pluginConfig right?", last_lines(.log))]
    Refused { plugin: String, callback: &'static str, log: Vec<String> },
}

fn last_lines(log: &[String]) -> String {
    if log.is_empty() { String::new() } else { format!("; its last log lines: {}", log.join(" | ")) }
}

/// Why a plugin could not answer for a stream. The caller applies the plugin's failure policy to that stream.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    #[error("the plugin trapped in {callback}: {message}")]
    Trap { callback: &'static str, message: String },
    #[error("the plugin used more than {} ms of processor time in {callback}", limit.as_millis())]
    Deadline { callback: &'static str, limit: Duration },
    #[error("the plugin wanted more than {} MiB of memory in {callback}", limit >> 20)]
    Memory { callback: &'static str, limit: usize },
    #[error("the plugin's stack overflowed in {callback}")]
    StackOverflow { callback: &'static str },
    #[error("the plugin called exit({code}) in {callback}")]
    Exit { callback: &'static str, code: i32 },
    #[error("the plugin's instance failed in another stream")]
    InstanceLost,
    #[error("the plugin keeps failing: it is started again in {} ms", retry_in.as_millis())]
    BackOff { retry_in: Duration },
    #[error("the plugin could not be started again: {reason}")]
    Restart { reason: String },
    #[error("the host cannot go on with this plugin in {callback}: {message}")]
    Host { callback: &'static str, message: String },
}

impl Fault {
    /// A short word for metrics and flow events.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Trap { .. } => "trap",
            Self::Deadline { .. } => "deadline",
            Self::Memory { .. } => "memory",
            Self::StackOverflow { .. } => "stack_overflow",
            Self::Exit { .. } => "exit",
            Self::InstanceLost => "instance_lost",
            Self::BackOff { .. } => "back_off",
            Self::Restart { .. } => "restart",
            Self::Host { .. } => "host",
        }
    }
}
