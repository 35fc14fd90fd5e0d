//! How a plugin is to be run.
use crate::module::Module;
use std::{collections::BTreeMap, time::Duration};

/// One configured plugin. Each worker thread starts its own instance from it.
#[derive(Clone)]
pub struct PluginSpec {
    /// For logs, metrics and the property `plugin_name`.
    pub name: String,
    pub module: Module,
    /// The root context that the module looks for; often empty.
    pub root_id: String,
    /// Plugins with the same one see the same shared data and queues.
    pub vm_id: String,
    /// What the plugin reads as its configuration: JSON mostly.
    pub configuration: Vec<u8>,
    pub env: BTreeMap<String, String>,
    pub limits: Limits,
    /// What the caller does on a fault: let the stream pass, or (by default) refuse it.
    pub fail_open: bool,
}

impl PluginSpec {
    /// A plugin with default limits and no configuration, closed on faults.
    pub fn new(name: impl Into<String>, module: Module) -> Self {
        let name = name.into();
        Self {
            vm_id: name.clone(),
            name,
            module,
            root_id: String::new(),
            configuration: Vec::new(),
            env: BTreeMap::new(),
            limits: Limits::default(),
            fail_open: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory of one instance.
    pub memory_bytes: usize,
    /// Processor time of one callback on a stream; kept to within two ticks of the engine.
    pub callback_deadline: Duration,
    /// Processor time to start and configure an instance.
    pub start_deadline: Duration,
    /// Body bytes that a paused stream may gather.
    pub buffered_body_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            callback_deadline: Duration::from_millis(10),
            start_deadline: Duration::from_secs(1),
            buffered_body_bytes: 1 << 20,
        }
    }
}
