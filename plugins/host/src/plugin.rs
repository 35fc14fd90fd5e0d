//! A plugin on one worker thread: its instance, and another one in its place when it fails.
use crate::{
    engine::Engine,
    error::{Fault, StartError},
    http_stream::HttpStream,
    instance::Instance,
    log::LogRing,
    properties::Properties,
    services::HostServices,
    spec::PluginSpec,
    state::{ROOT_CONTEXT, StreamState},
    stats::PluginStats,
    tcp_stream::TcpStream,
};
use std::{
    cell::RefCell,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::{info, warn};

/// Belongs to its thread; clones are the same plugin.
#[derive(Clone)]
pub struct Plugin {
    pub(crate) shared: Rc<Shared>,
}

pub(crate) struct Shared {
    engine: Engine,
    spec: PluginSpec,
    services: HostServices,
    pub stats: Arc<PluginStats>,
    log: LogRing,
    instance: RefCell<Rc<Instance>>,
    restart: RefCell<Restart>,
    /// Of streams that ended, for new ones.
    #[expect(clippy::vec_box, reason = "a stream owns its state boxed: the box itself goes back and forth")]
    spare: RefCell<Vec<Box<StreamState>>>,
}

/// States kept for new streams.
const SPARE: usize = 64;

/// When a failed instance may be replaced.
struct Restart {
    not_before: Option<Instant>,
    /// What the last start took.
    cost: Duration,
    /// Starts that failed in a row.
    failures: u32,
}

/// An instance that lived for less is thought to fail again.
const LONG_LIFE: Duration = Duration::from_secs(1);
/// A plugin that fails again and again may use a twentieth of its thread for being started.
const COST_FACTOR: u32 = 20;
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// After a start that failed; doubled up to the longest.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);

impl Plugin {
    /// Starts and configures an instance. Also the way to try a configuration out before it is used.
    pub fn start(engine: &Engine, spec: &PluginSpec, services: &HostServices) -> Result<Self, StartError> {
        let (stats, log) = (Arc::new(PluginStats::default()), LogRing::default());
        let begin = Instant::now();
        let instance = Instance::start(engine.wasm(), spec, services, &stats, &log)?;
        let restart = Restart { not_before: None, cost: begin.elapsed(), failures: 0 };
        let shared = Shared {
            engine: engine.clone(),
            spec: spec.clone(),
            services: services.clone(),
            stats,
            log,
            instance: RefCell::new(Rc::new(instance)),
            restart: RefCell::new(restart),
            spare: RefCell::default(),
        };
        Ok(Self { shared: Rc::new(shared) })
    }

    pub fn spec(&self) -> &PluginSpec {
        &self.shared.spec
    }

    /// What this thread counted; keep it to read it from others.
    pub fn stats(&self) -> Arc<PluginStats> {
        Arc::clone(&self.shared.stats)
    }

    /// The plugin's last log lines on this thread.
    pub fn log_lines(&self) -> Vec<String> {
        self.shared.log.lines()
    }

    /// Follows one HTTP request and its response.
    pub fn http_stream(&self, properties: Box<dyn Properties>) -> HttpStream {
        HttpStream::new(self, properties)
    }

    /// Follows one TCP connection.
    pub fn tcp_stream(&self, properties: Box<dyn Properties>) -> TcpStream {
        TcpStream::new(self, properties)
    }

    /// How often the plugin wants `tick`; it may change with every callback.
    pub fn tick_period(&self) -> Option<Duration> {
        self.shared.instance.borrow().look(|state| state.tick_period).flatten()
    }

    /// Lets the plugin do its periodic work, and tells it of items in its queues.
    pub fn tick(&self) -> Result<(), Fault> {
        let instance = self.shared.instance()?;
        let result = self.shared.tick(&instance);
        if let Err(fault) = &result {
            self.shared.failed(&instance, fault);
        }
        result
    }
}

impl Shared {
    pub fn new_state(&self, id: u32, properties: Box<dyn Properties>) -> Box<StreamState> {
        let mut state = self.spare.borrow_mut().pop().unwrap_or_else(|| Box::new(StreamState::new(Box::new(()))));
        state.id = id;
        state.properties = properties;
        state
    }

    pub fn take_back(&self, mut state: Box<StreamState>) {
        // First: what a caller's properties do when they are dropped is not known.
        state.reset();
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE {
            spare.push(state);
        }
    }

    /// The instance for a new stream.
    pub fn instance(&self) -> Result<Rc<Instance>, Fault> {
        let current = Rc::clone(&self.instance.borrow());
        if current.is_alive() {
            return Ok(current);
        }
        let now = Instant::now();
        let mut restart = self.restart.borrow_mut();
        if let Some(retry_in) = restart.not_before.and_then(|then| then.checked_duration_since(now)) {
            return Err(Fault::BackOff { retry_in });
        }
        match Instance::start(self.engine.wasm(), &self.spec, &self.services, &self.stats, &self.log) {
            Ok(instance) => {
                *restart = Restart { not_before: None, cost: now.elapsed(), failures: 0 };
                PluginStats::add(&self.stats.restarts, 1);
                info!(plugin = self.spec.name, "a new instance replaces the failed one");
                let instance = Rc::new(instance);
                *self.instance.borrow_mut() = Rc::clone(&instance);
                Ok(instance)
            }
            Err(cause) => {
                let wait = FIRST_RETRY.saturating_mul(1 << restart.failures.min(10)).min(LAST_RETRY);
                restart.failures += 1;
                restart.not_before = Some(now + wait);
                warn!(plugin = self.spec.name, %cause, retry_ms = wait.as_millis(), "the plugin cannot be started again");
                Err(Fault::Restart { reason: cause.to_string() })
            }
        }
    }

    /// A call into that instance ended with a fault.
    pub fn failed(&self, instance: &Instance, fault: &Fault) {
        if instance.is_alive() || *fault == Fault::InstanceLost {
            return;
        }
        warn!(plugin = self.spec.name, %fault, last_lines = ?self.log.lines(), "a plugin failed");
        let mut restart = self.restart.borrow_mut();
        if instance.age() < LONG_LIFE {
            let wait = restart.cost.saturating_mul(COST_FACTOR).min(LONGEST_WAIT);
            restart.not_before = Some(Instant::now() + wait);
        }
    }

    fn tick(&self, instance: &Instance) -> Result<(), Fault> {
        instance.call_root("proxy_on_tick", |live| match &live.exports.tick {
            Some(tick) if live.store.data().tick_period.is_some() => tick.call(&mut live.store, ROOT_CONTEXT),
            _ => Ok(()),
        })?;
        let queues = instance.look(|state| state.queues.clone()).unwrap_or_default();
        for queue in queues.into_iter().filter(|queue| self.services.queues().has_items(*queue)) {
            instance.call_root("proxy_on_queue_ready", |live| match &live.exports.queue_ready {
                Some(ready) => ready.call(&mut live.store, (ROOT_CONTEXT, queue.0)),
                None => Ok(()),
            })?;
        }
        Ok(())
    }
}
