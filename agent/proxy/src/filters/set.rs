//! The plugin instances of one worker under one generation.
use crate::{
    generation::{Generation, PluginKey},
    worker::{Shared, View},
};
use prometheus_client::metrics::histogram::Histogram;
use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};
use weft_plugin_host::Plugin;

/// One callback in so many is timed for the histogram.
const TIMED_ONE_IN: u32 = 16;

#[derive(Default)]
pub struct PluginSet {
    slots: Vec<Slot>,
}

/// In the place of each of the generation's plugins.
pub enum Slot {
    Running(Rc<Running>),
    /// Why not.
    Failed(String),
}

pub struct Running {
    key: PluginKey,
    pub plugin: Plugin,
    latency: Histogram,
    calls: Cell<u32>,
}

impl Running {
    /// Calls into the plugin.
    pub fn timed<T>(&self, call: impl FnOnce() -> T) -> T {
        let count = self.calls.get().wrapping_add(1);
        self.calls.set(count);
        if !count.is_multiple_of(TIMED_ONE_IN) {
            return call();
        }
        let begin = Instant::now();
        let done = call();
        self.latency.observe(begin.elapsed().as_secs_f64());
        done
    }
}

impl PluginSet {
    /// Starts what is new or changed; the rest goes on as it is.
    pub fn start(generation: &Generation, before: &View, shared: &Shared) -> Self {
        let board = &shared.plugins;
        let configs = &generation.compiled.plugins;
        let slots = generation.plugins.iter().zip(configs).map(|(plan, config)| {
            let same_name = before.plugins.running().find(|running| running.key.name() == plan.name);
            if let Some(running) = same_name.filter(|running| running.key == plan.key && plan.spec.is_ok()) {
                return Slot::Running(running.clone());
            }
            let replaced = same_name.map(|running| running.plugin.stats());
            let started = match &plan.spec {
                Ok(spec) => Plugin::start(&board.engine, spec, &board.services).map_err(|e| weft_certs::explain(&e)),
                Err(reason) => Err(reason.clone()),
            };
            match started {
                Ok(plugin) => {
                    board.running(plan, config, plugin.stats(), replaced.as_ref());
                    let latency = shared.metrics.plugin_latency(&plan.name);
                    Slot::Running(Rc::new(Running { key: plan.key.clone(), plugin, latency, calls: Cell::new(0) }))
                }
                Err(reason) => {
                    tracing::warn!(plugin = plan.name, reason, "a plugin does not run");
                    board.failed(plan, config, &reason, replaced.as_ref());
                    Slot::Failed(reason)
                }
            }
        });
        let slots = slots.collect();
        board.keep(generation.plugins.iter());
        Self { slots }
    }

    /// `None`: no such plugin.
    pub fn get(&self, index: usize) -> Option<&Slot> {
        self.slots.get(index)
    }

    /// Lets plugins do their periodic work; when to come again.
    pub fn tick(&self) -> Duration {
        let mut next = Duration::from_secs(1);
        for running in self.running() {
            if let Some(period) = running.plugin.tick_period() {
                next = next.min(period);
                if let Err(fault) = running.plugin.tick() {
                    tracing::debug!(plugin = running.key.name(), %fault, "a plugin's periodic work failed");
                }
            }
        }
        next.max(Duration::from_millis(10))
    }

    fn running(&self) -> impl Iterator<Item = &Rc<Running>> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Running(running) => Some(running),
            Slot::Failed(_) => None,
        })
    }
}
