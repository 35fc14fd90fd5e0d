//! The Wasm engine of the process, and the clock of its deadlines.
use crate::{cache::CodeCache, error::EngineError, imports, state::HostState};
use std::{
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};
use wasmtime::{Config, Linker, PoolingAllocationConfig};

#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// How finely deadlines are kept. Each tick wakes one thread for a moment.
    pub tick: Duration,
    /// Memory for instances is set aside at once; quicker to replace an instance. `None`: allocated as needed.
    pub pool: Option<Pool>,
    /// A folder (made with mode 0700) for compiled code. `None`: modules are compiled at every start.
    pub cache: Option<PathBuf>,
    /// Larger modules are refused.
    pub module_bytes: u64,
    /// Stack of a plugin; the threads that run plugins need a good deal more than this.
    pub stack_bytes: usize,
}

/// Address space, not memory, is what a pool costs.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    pub instances: u32,
    /// Largest linear memory of an instance; a plugin's own limit can be lower.
    pub memory_bytes: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { tick: Duration::from_millis(2), pool: None, cache: None, module_bytes: 64 << 20, stack_bytes: 512 << 10 }
    }
}

/// Shared by all plugins and threads of a process.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    engine: wasmtime::Engine,
    linker: Linker<HostState>,
    cache: Option<CodeCache>,
    module_bytes: u64,
    ticker: Ticker,
}

impl Engine {
    pub fn new(config: EngineConfig) -> Result<Self, EngineError> {
        let mut wasm = Config::new();
        wasm.epoch_interruption(true)
            .concurrency_support(false)
            .max_wasm_stack(config.stack_bytes)
            .wasm_memory64(false)
            .wasm_multi_memory(false);
        if let Some(pool) = &config.pool {
            let mut allocation = PoolingAllocationConfig::default();
            allocation
                .total_core_instances(pool.instances)
                .total_memories(pool.instances)
                .total_tables(pool.instances)
                .max_memory_size(pool.memory_bytes)
                .max_memories_per_module(1)
                .table_elements(100_000);
            wasm.memory_reservation(pool.memory_bytes as u64).allocation_strategy(allocation);
        }
        let engine = wasmtime::Engine::new(&wasm).map_err(EngineError::Engine)?;
        let linker = imports::linker(&engine).map_err(EngineError::Engine)?;
        let cache = config.cache.and_then(|folder| CodeCache::open(folder, &engine));
        let ticker = Ticker::start(engine.clone(), config.tick).map_err(EngineError::Thread)?;
        Ok(Self { inner: Arc::new(Inner { engine, linker, cache, module_bytes: config.module_bytes, ticker }) })
    }

    pub(crate) fn wasm(&self) -> &wasmtime::Engine {
        &self.inner.engine
    }

    pub(crate) fn linker(&self) -> &Linker<HostState> {
        &self.inner.linker
    }

    pub(crate) fn cache(&self) -> Option<&CodeCache> {
        self.inner.cache.as_ref()
    }

    pub(crate) fn module_bytes(&self) -> u64 {
        self.inner.module_bytes
    }

    /// One tick of the deadline clock.
    pub fn tick(&self) -> Duration {
        self.inner.ticker.tick
    }
}

/// Advances the epoch until it is dropped.
struct Ticker {
    tick: Duration,
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    fn start(engine: wasmtime::Engine, tick: Duration) -> std::io::Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let signal = Arc::clone(&stop);
        let thread = thread::Builder::new().name("plugin-ticks".to_owned()).spawn(move || {
            let (stopped, changed) = &*signal;
            // Nothing panics while it holds this lock, so a poisoned one is still right.
            let mut stopped = stopped.lock().unwrap_or_else(PoisonError::into_inner);
            while !*stopped {
                stopped = changed.wait_timeout(stopped, tick).unwrap_or_else(PoisonError::into_inner).0;
                engine.increment_epoch();
            }
        })?;
        Ok(Self { tick, stop, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // It cannot panic, and there is nothing to do about it here if it did.
            let _ = thread.join();
        }
    }
}
