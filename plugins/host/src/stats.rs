//! Counters of one running plugin on one thread, readable from any.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One callback in so many is timed; the time is multiplied.
pub(crate) const TIMED_ONE_IN: u32 = 16;

/// Written by the plugin's thread, read by others.
#[derive(Debug, Default)]
pub struct PluginStats {
    pub(crate) requests: AtomicU64,
    pub(crate) denied: AtomicU64,
    pub(crate) faults: AtomicU64,
    pub(crate) restarts: AtomicU64,
    pub(crate) callback_ns: AtomicU64,
    pub(crate) memory_bytes: AtomicU64,
    pub(crate) instances: AtomicU64,
}

/// What was counted up to now. Sums of several threads: `+=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatsSnapshot {
    /// Streams that the plugin saw, HTTP and TCP.
    pub requests: u64,
    /// Streams that it answered itself or closed.
    pub denied: u64,
    /// Streams that ended with a fault.
    pub faults: u64,
    /// Instances that were started in the place of a failed one.
    pub restarts: u64,
    /// Time in callbacks, from samples: nanoseconds.
    pub callback_ns: u64,
    /// Linear memory of the instances now.
    pub memory_bytes: u64,
    /// Instances that are alive.
    pub instances: u64,
}

impl PluginStats {
    pub fn snapshot(&self) -> StatsSnapshot {
        StatsSnapshot {
            requests: self.requests.load(Relaxed),
            denied: self.denied.load(Relaxed),
            faults: self.faults.load(Relaxed),
            restarts: self.restarts.load(Relaxed),
            callback_ns: self.callback_ns.load(Relaxed),
            memory_bytes: self.memory_bytes.load(Relaxed),
            instances: self.instances.load(Relaxed),
        }
    }

    /// For counters that only one thread writes: cheaper than an atomic addition.
    pub(crate) fn add(counter: &AtomicU64, by: u64) {
        counter.store(counter.load(Relaxed).wrapping_add(by), Relaxed);
    }
}

impl std::ops::AddAssign for StatsSnapshot {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.denied += other.denied;
        self.faults += other.faults;
        self.restarts += other.restarts;
        self.callback_ns += other.callback_ns;
        self.memory_bytes += other.memory_bytes;
        self.instances += other.instances;
    }
}
