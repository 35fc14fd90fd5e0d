//! What an instance may use: memory, and processor time per callback.
use crate::stats::PluginStats;
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use wasmtime::{ResourceLimiter, UpdateDeadline};

/// Refuses growth beyond the limit, and remembers that it did.
#[derive(Default)]
pub struct MemoryLimiter {
    pub limit: usize,
    pub refused: bool,
    stats: Arc<PluginStats>,
    bytes: u64,
}

/// Entries of an instance's tables (function pointers).
const TABLE_ENTRIES: usize = 100_000;

impl MemoryLimiter {
    pub fn new(limit: usize, stats: Arc<PluginStats>) -> Self {
        Self { limit, refused: false, stats, bytes: 0 }
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        if desired > self.limit {
            self.refused = true;
            return Ok(false);
        }
        let desired = desired as u64;
        self.stats.memory_bytes.fetch_add(desired.saturating_sub(self.bytes), Relaxed);
        self.bytes = self.bytes.max(desired);
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ENTRIES)
    }
}

impl Drop for MemoryLimiter {
    fn drop(&mut self) {
        self.stats.memory_bytes.fetch_sub(self.bytes, Relaxed);
    }
}

/// Processor time, not time on the wall: on a busy machine a thread may wait long without any fault of the plugin.
/// The clock is read at the first tick within a callback, so a callback that ends before it costs nothing.
#[derive(Default)]
pub struct CpuLimit {
    limit: Duration,
    since: Option<Duration>,
}

impl CpuLimit {
    /// A callback begins.
    pub fn start(&mut self, limit: Duration) {
        *self = Self { limit, since: None };
    }

    /// A tick passed while the plugin ran.
    pub fn tick(&mut self) -> UpdateDeadline {
        let now = thread_cpu_time();
        match self.since {
            None => self.since = Some(now),
            Some(since) if now.saturating_sub(since) >= self.limit => return UpdateDeadline::Interrupt,
            Some(_) => {}
        }
        UpdateDeadline::Continue(1)
    }
}

/// Processor time that this thread has used.
fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec to write to. The clock exists on every Linux; on failure `time` stays zero.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
