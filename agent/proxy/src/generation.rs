//! One accepted configuration with all that follows from it: look-ups, certificates, and plugins whose modules are
//! compiled. Workers take it over as a whole.
use crate::{
    hbone::credentials::Credentials,
    state::{Compiled, ConfigError, HTTP_POLICY, SPIFFE_AUTHZ},
};
use serde_json::json;
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};
use weft_plugin_host::{Engine, Module, PluginSpec};
use weft_proxy_api::config::{PluginConfig, ProxyConfig};

pub struct Generation {
    /// Counts generations of this process, from 0: the empty one.
    pub sequence: u64,
    pub compiled: Arc<Compiled>,
    pub credentials: Arc<Credentials>,
    /// One for each of `compiled.plugins`.
    pub plugins: Vec<Planned>,
}

/// A plugin that is to run, or why it cannot.
#[derive(Clone)]
pub struct Planned {
    pub name: String,
    pub fail_open: bool,
    pub spec: Result<PluginSpec, String>,
    /// What a running instance depends on: where it is the same, instances go on.
    pub key: PluginKey,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginKey {
    name: String,
    pub sha256: String,
    configuration: Vec<u8>,
    env: Vec<(String, String)>,
    fail_open: bool,
}

/// What a module's file looked like when it was compiled.
#[derive(Clone, PartialEq, Eq, Hash)]
struct FileState {
    path: PathBuf,
    expected: String,
    size: u64,
    modified: Option<SystemTime>,
}

/// Makes generations; keeps compiled modules between them. Slow work: never on a worker thread.
pub struct Builder {
    engine: Engine,
    modules: HashMap<FileState, Module>,
    sequence: u64,
    credentials: Arc<Credentials>,
}

impl PluginKey {
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Generation {
    pub fn empty() -> Self {
        Self {
            sequence: 0,
            compiled: Arc::new(Compiled::empty()),
            credentials: Arc::new(Credentials::empty()),
            plugins: Vec::new(),
        }
    }

    /// Everything of this configuration that fails closed.
    pub fn problems(&self) -> Vec<String> {
        let plugins = self.plugins.iter().filter_map(|plugin| plugin.spec.as_ref().err());
        self.compiled.problems.iter().chain(&self.credentials.problems).chain(plugins).cloned().collect()
    }
}

impl Builder {
    pub fn new(engine: Engine) -> Self {
        Self { engine, modules: HashMap::new(), sequence: 0, credentials: Arc::new(Credentials::empty()) }
    }

    /// Compiles all that is new. A plugin that cannot be loaded does not stop the rest.
    pub fn build(&mut self, config: ProxyConfig) -> Result<Generation, ConfigError> {
        let credentials = Credentials::next(&self.credentials, &config.svids, &config.trust_bundles);
        let compiled = Compiled::new(config)?;
        let mut modules = HashMap::new();
        let plugins =
            compiled.plugins.iter().map(|plugin| self.plan(plugin, &compiled, &credentials, &mut modules)).collect();
        self.modules = modules;
        self.credentials = credentials.clone();
        self.sequence += 1;
        Ok(Generation { sequence: self.sequence, compiled: Arc::new(compiled), credentials, plugins })
    }

    fn plan(
        &self,
        config: &PluginConfig,
        compiled: &Compiled,
        credentials: &Credentials,
        modules: &mut HashMap<FileState, Module>,
    ) -> Planned {
        let plugin = &config.plugin;
        let name = plugin.name.to_string();
        let configuration = match (&config.targets, plugin.name.name.as_str()) {
            (None, HTTP_POLICY) => compiled.sets.plugin_configuration(compiled.deny_status).to_string().into_bytes(),
            (None, SPIFFE_AUTHZ) => json!({ "trust_domains": credentials.trust_domains() }).to_string().into_bytes(),
            _ if plugin.plugin_config.is_null() => Vec::new(),
            _ => plugin.plugin_config.to_string().into_bytes(),
        };
        let module = self.module(&name, &config.module, &plugin.sha256, modules);
        let key = PluginKey {
            name: name.clone(),
            sha256: module.as_ref().map_or_else(|_| plugin.sha256.clone(), |module| module.sha256().to_owned()),
            configuration: configuration.clone(),
            env: plugin.env.clone().into_iter().collect(),
            fail_open: plugin.fail_open,
        };
        let spec = module.map(|module| PluginSpec {
            configuration,
            env: plugin.env.clone(),
            fail_open: plugin.fail_open,
            ..PluginSpec::new(name.clone(), module)
        });
        Planned { name, fail_open: plugin.fail_open, spec, key }
    }

    fn module(
        &self,
        name: &str,
        path: &Path,
        expected: &str,
        modules: &mut HashMap<FileState, Module>,
    ) -> Result<Module, String> {
        let meta = fs::metadata(path).ok();
        let state = FileState {
            path: path.to_owned(),
            expected: expected.to_owned(),
            size: meta.as_ref().map_or(0, fs::Metadata::len),
            modified: meta.and_then(|meta| meta.modified().ok()),
        };
        let module = match self.modules.get(&state).or_else(|| modules.get(&state)) {
            Some(module) => module.clone(),
            None => Module::from_file(&self.engine, name, path, Some(expected)).map_err(|e| weft_certs::explain(&e))?,
        };
        modules.insert(state, module.clone());
        Ok(module)
    }
}
