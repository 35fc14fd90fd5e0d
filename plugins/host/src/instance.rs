//! One instance of a plugin: a store with its memory, and calls into it that end in a value or a fault.
use crate::{
    error::{Fault, StartError},
    exports::{Exports, function},
    limits::MemoryLimiter,
    log::LogRing,
    services::HostServices,
    spec::{Limits, PluginSpec},
    state::{HostState, Identity, ROOT_CONTEXT, StreamState},
    stats::{PluginStats, TIMED_ONE_IN},
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};
use wasmtime::{Engine, Store, Trap, WasmBacktrace};

/// Lives until its first fault.
pub struct Instance {
    live: RefCell<Option<Live>>,
    /// Streams that were paused when the instance failed, for their owners to fetch.
    orphans: RefCell<HashMap<u32, Box<StreamState>>>,
    next_context: Cell<u32>,
    calls: Cell<u32>,
    limits: Limits,
    stats: Arc<PluginStats>,
    started: Instant,
}

pub struct Live {
    pub store: Store<HostState>,
    pub exports: Exports,
}

impl Instance {
    /// Instantiates, starts and configures.
    pub fn start(
        engine: &Engine,
        spec: &PluginSpec,
        services: &HostServices,
        stats: &Arc<PluginStats>,
        log: &LogRing,
    ) -> Result<Self, StartError> {
        let memory_limiter = MemoryLimiter::new(spec.limits.memory_bytes, Arc::clone(stats));
        let state = HostState::new(Identity::new(spec), memory_limiter, log.clone(), services.clone());
        let mut store = Store::new(engine, state);
        store.limiter(|state| &mut state.memory_limiter);
        store.epoch_deadline_callback(|mut context| Ok(context.data_mut().cpu.tick()));
        let mut starting = Starting { spec, store, log };
        let exports = starting.instantiate()?;
        starting.configure(&exports)?;
        stats.instances.fetch_add(1, Relaxed);
        Ok(Self {
            live: RefCell::new(Some(Live { store: starting.store, exports })),
            orphans: RefCell::default(),
            next_context: Cell::new(ROOT_CONTEXT),
            calls: Cell::new(0),
            limits: spec.limits,
            stats: Arc::clone(stats),
            started: Instant::now(),
        })
    }

    pub fn is_alive(&self) -> bool {
        // Borrowed: a call is under way, so it lives.
        self.live.try_borrow().map_or(true, |live| live.is_some())
    }

    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The number of a new stream.
    pub fn new_context(&self) -> u32 {
        // After four billion streams they begin anew; 0 and the root's number are never a stream's.
        let next = self.next_context.get().checked_add(1).unwrap_or(ROOT_CONTEXT + 1);
        self.next_context.set(next);
        next
    }

    /// Calls into the plugin for a stream, which comes back whatever happened.
    pub fn call<R>(
        &self,
        stream: Box<StreamState>,
        callback: &'static str,
        run: impl FnOnce(&mut Live) -> wasmtime::Result<R>,
    ) -> (Box<StreamState>, Result<R, Fault>) {
        let Ok(mut live) = self.live.try_borrow_mut() else {
            let message = "it was called from within its own call".to_owned();
            return (stream, Err(Fault::Host { callback, message }));
        };
        let Some(alive) = live.as_mut() else { return (stream, Err(Fault::InstanceLost)) };
        let id = stream.id;
        alive.store.data_mut().current = Some(stream);
        let result = self.timed(alive, run);
        let state = alive.store.data_mut();
        // The plugin may have moved on to another stream.
        state.switch_to(id);
        let stream = state.current.take();
        let result = result.map_err(|error| fault(&error, callback, alive.store.data(), &self.limits));
        if result.is_err() {
            let failed = live.take();
            drop(live);
            self.bury(failed);
        }
        match stream {
            Some(stream) => (stream, result),
            // `switch_to` finds what was made current above; if ever not, the stream ends with a fault.
            None => {
                let message = "the stream was lost".to_owned();
                (Box::new(StreamState::new(Box::new(()))), Err(Fault::Host { callback, message }))
            }
        }
    }

    /// Calls into the plugin for no stream.
    pub fn call_root<R>(
        &self,
        callback: &'static str,
        run: impl FnOnce(&mut Live) -> wasmtime::Result<R>,
    ) -> Result<R, Fault> {
        let Ok(mut live) = self.live.try_borrow_mut() else {
            return Err(Fault::Host { callback, message: "it was called from within its own call".to_owned() });
        };
        let alive = live.as_mut().ok_or(Fault::InstanceLost)?;
        let result = self.timed(alive, run);
        alive.store.data_mut().switch_to(ROOT_CONTEXT);
        let result = result.map_err(|error| fault(&error, callback, alive.store.data(), &self.limits));
        let failed = if result.is_err() { live.take() } else { None };
        // Whoever waits looks for itself whether it may go on.
        let wakers: Vec<_> = live
            .iter_mut()
            .flat_map(|alive| alive.store.data_mut().parked.values_mut())
            .filter(|stream| stream.resumed.contains(&true) || stream.local_response.is_some() || stream.close)
            .filter_map(|stream| stream.waker.take())
            .collect();
        drop(live);
        self.bury(failed);
        wakers.into_iter().for_each(std::task::Waker::wake);
        result
    }

    /// Keeps a paused stream where callbacks of the root context find it; it comes back if the instance is gone.
    pub fn park(&self, stream: Box<StreamState>) -> Option<Box<StreamState>> {
        match self.live.borrow_mut().as_mut() {
            Some(live) => {
                live.store.data_mut().parked.insert(stream.id, stream);
                None
            }
            None => Some(stream),
        }
    }

    /// Fetches a parked stream.
    pub fn unpark(&self, id: u32) -> Option<Box<StreamState>> {
        let parked = self.live.borrow_mut().as_mut().and_then(|live| live.store.data_mut().parked.remove(&id));
        parked.or_else(|| self.orphans.borrow_mut().remove(&id))
    }

    /// Reads the state of the root context. `None`: the instance is gone.
    pub fn look<R>(&self, read: impl FnOnce(&HostState) -> R) -> Option<R> {
        self.live.borrow().as_ref().map(|live| read(live.store.data()))
    }

    fn timed<R>(&self, live: &mut Live, run: impl FnOnce(&mut Live) -> wasmtime::Result<R>) -> wasmtime::Result<R> {
        live.store.data_mut().cpu.start(self.limits.callback_deadline);
        live.store.set_epoch_deadline(1);
        let calls = self.calls.get().wrapping_add(1);
        self.calls.set(calls);
        if !calls.is_multiple_of(TIMED_ONE_IN) {
            return run(live);
        }
        let start = Instant::now();
        let result = run(live);
        let spent = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        PluginStats::add(&self.stats.callback_ns, spent.saturating_mul(TIMED_ONE_IN.into()));
        result
    }

    /// Frees a failed instance and tells the streams that waited in it.
    fn bury(&self, failed: Option<Live>) {
        let Some(mut failed) = failed else { return };
        self.stats.instances.fetch_sub(1, Relaxed);
        let mut orphans = std::mem::take(&mut failed.store.data_mut().parked);
        let wakers: Vec<_> = orphans.values_mut().filter_map(|stream| stream.waker.take()).collect();
        self.orphans.borrow_mut().extend(orphans);
        wakers.into_iter().for_each(std::task::Waker::wake);
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.live.get_mut().is_some() {
            self.stats.instances.fetch_sub(1, Relaxed);
        }
    }
}

/// An instance on its way up.
struct Starting<'a> {
    spec: &'a PluginSpec,
    store: Store<HostState>,
    log: &'a LogRing,
}

impl Starting<'_> {
    fn instantiate(&mut self) -> Result<Exports, StartError> {
        let failed = |cause| StartError::Instantiate { plugin: self.spec.name.clone(), cause };
        self.store.data_mut().cpu.start(self.spec.limits.start_deadline);
        self.store.set_epoch_deadline(1);
        let instance = self.spec.module.instance_pre().instantiate(&mut self.store).map_err(&failed)?;
        let store = &mut self.store;
        let memory = instance.get_memory(&mut *store, "memory");
        let mut allocate = function(&instance, store, "malloc").map_err(&failed)?;
        if allocate.is_none() {
            allocate = function(&instance, store, "proxy_on_memory_allocate").map_err(&failed)?;
        }
        let state = store.data_mut();
        (state.memory, state.allocate) = (memory, allocate);
        let exports = Exports::of(&instance, store).map_err(&failed)?;
        let initialize = function::<(), ()>(&instance, store, "_initialize").map_err(&failed)?;
        if let Some(initialize) = initialize {
            let main = function::<(u32, u32), u32>(&instance, store, "main").ok().flatten();
            let main_void = function::<(), u32>(&instance, store, "__main_void").ok().flatten();
            self.run("_initialize", |store| {
                initialize.call(&mut *store, ())?;
                if let Some(main) = main {
                    main.call(store, (0, 0))?;
                } else if let Some(main) = main_void {
                    main.call(store, ())?;
                }
                Ok(())
            })?;
        } else if let Some(start) = function::<(), ()>(&instance, store, "_start").map_err(&failed)? {
            self.run("_start", |store| match start.call(&mut *store, ()) {
                // A program that ends well has only set itself up.
                Err(_) if store.data().exit_code == Some(0) => Ok(()),
                result => result,
            })?;
            self.store.data_mut().exit_code = None;
        }
        Ok(exports)
    }

    fn configure(&mut self, exports: &Exports) -> Result<(), StartError> {
        if let Some(create) = &exports.context_create {
            self.run("proxy_on_context_create", |store| create.call(store, (ROOT_CONTEXT, 0)))?;
        }
        if let Some(start) = &exports.vm_start {
            self.accepted("proxy_on_vm_start", |store| start.call(store, (ROOT_CONTEXT, 0)))?;
        }
        if let Some(configure) = &exports.configure {
            let size = crate::imports::length(self.spec.configuration.len());
            self.accepted("proxy_on_configure", |store| configure.call(store, (ROOT_CONTEXT, size)))?;
        }
        self.store.data_mut().switch_to(ROOT_CONTEXT);
        Ok(())
    }

    fn accepted(
        &mut self,
        callback: &'static str,
        call: impl FnOnce(&mut Store<HostState>) -> wasmtime::Result<u32>,
    ) -> Result<(), StartError> {
        if self.run(callback, call)? != 0 {
            return Ok(());
        }
        Err(StartError::Refused { plugin: self.spec.name.clone(), callback, log: self.log.lines() })
    }

    fn run<R>(
        &mut self,
        callback: &'static str,
        call: impl FnOnce(&mut Store<HostState>) -> wasmtime::Result<R>,
    ) -> Result<R, StartError> {
        self.store.data_mut().cpu.start(self.spec.limits.start_deadline);
        self.store.set_epoch_deadline(1);
        call(&mut self.store).map_err(|error| {
            let mut limits = self.spec.limits;
            limits.callback_deadline = limits.start_deadline;
            StartError::Fault {
                plugin: self.spec.name.clone(),
                callback,
                log: self.log.lines(),
                fault: fault(&error, callback, self.store.data(), &limits),
            }
        })
    }
}

/// Says what an error from a call means.
fn fault(error: &wasmtime::Error, callback: &'static str, state: &HostState, limits: &Limits) -> Fault {
    if let Some(code) = state.exit_code {
        return Fault::Exit { callback, code };
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => Fault::Deadline { callback, limit: limits.callback_deadline },
        Some(Trap::StackOverflow) => Fault::StackOverflow { callback },
        _ if state.memory_limiter.refused => Fault::Memory { callback, limit: limits.memory_bytes },
        Some(trap) => Fault::Trap { callback, message: format!("{trap}{}", place(error)) },
        None => Fault::Host { callback, message: error.root_cause().to_string() },
    }
}

/// The innermost functions, for the plugin's author.
fn place(error: &wasmtime::Error) -> String {
    const FRAMES: usize = 4;
    let Some(trace) = error.downcast_ref::<WasmBacktrace>() else { return String::new() };
    let names = trace.frames().iter().filter_map(|frame| frame.func_name()).take(FRAMES).collect::<Vec<_>>();
    if names.is_empty() { String::new() } else { format!(" in {}", names.join(" < ")) }
}
