//! What is known of every plugin over all workers, for status and metrics.
use crate::generation::Planned;
use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use weft_plugin_host::{Engine, HostServices, PluginStats, StatsSnapshot};
use weft_proxy_api::{config::PluginConfig, flow::PluginStatus};

pub struct Board {
    pub engine: Engine,
    pub services: HostServices,
    entries: Mutex<BTreeMap<String, Entry>>,
}

#[derive(Default)]
struct Entry {
    status: Option<PluginStatus>,
    running: Vec<Arc<PluginStats>>,
    /// Of instances that were replaced.
    before: StatsSnapshot,
}

impl Board {
    pub fn new(engine: Engine) -> Self {
        Self { engine, services: HostServices::default(), entries: Mutex::default() }
    }

    /// A worker runs this plugin, in place of `before`.
    pub fn running(
        &self,
        plan: &Planned,
        config: &PluginConfig,
        stats: Arc<PluginStats>,
        before: Option<&Arc<PluginStats>>,
    ) {
        let mut entries = self.entries();
        let entry = entries.entry(plan.name.clone()).or_default();
        entry.retire(before);
        entry.running.push(stats);
        entry.status = Some(status(plan, config, "running".to_owned()));
    }

    /// The plugin does not run; its fail strategy answers.
    pub fn failed(&self, plan: &Planned, config: &PluginConfig, reason: &str, before: Option<&Arc<PluginStats>>) {
        let mut entries = self.entries();
        let entry = entries.entry(plan.name.clone()).or_default();
        entry.retire(before);
        entry.status = Some(status(plan, config, format!("failed: {reason}")));
    }

    /// Only these are configured.
    pub fn keep<'a>(&self, plans: impl Iterator<Item = &'a Planned>) {
        let names: std::collections::BTreeSet<&str> = plans.map(|plan| plan.name.as_str()).collect();
        self.entries().retain(|name, _| {
            let kept = names.contains(name.as_str());
            if !kept {
                self.services.forget(name, name);
            }
            kept
        });
    }

    pub fn status(&self) -> Vec<PluginStatus> {
        let entries = self.entries();
        entries
            .values()
            .filter_map(|entry| {
                let sum = entry.sum();
                let status = entry.status.clone()?;
                Some(PluginStatus {
                    requests: sum.requests,
                    denied: sum.denied,
                    faults: sum.faults,
                    memory_bytes: sum.memory_bytes,
                    ..status
                })
            })
            .collect()
    }

    /// In Prometheus' text format, with the metrics that plugins define themselves.
    pub fn metrics_text(&self, out: &mut String) {
        type Value = fn(&StatsSnapshot) -> f64;
        let metrics: [(&str, &str, &str, Value); 6] = [
            ("requests_total", "counter", "Streams that a plugin saw", |s| s.requests as f64),
            ("denied_total", "counter", "Streams that a plugin answered itself or closed", |s| s.denied as f64),
            ("faults_total", "counter", "Streams that ended with a fault of the plugin", |s| s.faults as f64),
            ("restarts_total", "counter", "Instances that replaced a failed one", |s| s.restarts as f64),
            ("callback_seconds_total", "counter", "Time in callbacks", |s| s.callback_ns as f64 / 1e9),
            ("memory_bytes", "gauge", "Linear memory of the instances", |s| s.memory_bytes as f64),
        ];
        let entries = self.entries();
        for (name, kind, help, value) in metrics {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "# HELP weft_proxy_plugin_{name} {help}\n# TYPE weft_proxy_plugin_{name} {kind}");
            for (plugin, entry) in entries.iter() {
                let _ = writeln!(out, "weft_proxy_plugin_{name}{{plugin={plugin:?}}} {}", value(&entry.sum()));
            }
        }
        drop(entries);
        self.services.metrics_text(out);
    }

    /// Nothing panics while it is held.
    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn retire(&mut self, before: Option<&Arc<PluginStats>>) {
        let Some(before) = before else { return };
        if let Some(place) = self.running.iter().position(|stats| Arc::ptr_eq(stats, before)) {
            let mut gone = self.running.swap_remove(place).snapshot();
            (gone.memory_bytes, gone.instances) = (0, 0);
            self.before += gone;
        }
    }

    fn sum(&self) -> StatsSnapshot {
        let mut sum = self.before;
        for stats in &self.running {
            sum += stats.snapshot();
        }
        sum
    }
}

fn status(plan: &Planned, config: &PluginConfig, state: String) -> PluginStatus {
    let phase = serde_json::to_value(config.plugin.phase).ok();
    PluginStatus {
        name: plan.name.clone(),
        sha256: plan.key.sha256.clone(),
        state,
        phase: phase.and_then(|phase| phase.as_str().map(str::to_owned)).unwrap_or_default(),
        priority: config.plugin.priority,
        requests: 0,
        denied: 0,
        faults: 0,
        memory_bytes: 0,
    }
}
