//! What the plugins of a process share, across threads: data, queues, metrics.
use crate::{
    metrics::{self, PluginMetrics},
    queues::Queues,
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// One per process, cheap to clone.
#[derive(Clone, Default)]
pub struct HostServices {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By vm_id. Lives as long as the process: a plugin that comes back finds its data.
    shared_data: Mutex<HashMap<String, Arc<SharedData>>>,
    metrics: Mutex<BTreeMap<String, Arc<PluginMetrics>>>,
    queues: Queues,
}

impl HostServices {
    pub(crate) fn shared_data(&self, vm_id: &str) -> Arc<SharedData> {
        lock(&self.inner.shared_data).entry(vm_id.to_owned()).or_default().clone()
    }

    pub(crate) fn metrics(&self, plugin: &str) -> Arc<PluginMetrics> {
        lock(&self.inner.metrics).entry(plugin.to_owned()).or_default().clone()
    }

    pub(crate) fn queues(&self) -> &Queues {
        &self.inner.queues
    }

    /// Forgets the metrics of a plugin that is gone for good, and the data that only it used.
    pub fn forget(&self, plugin: &str, vm_id: &str) {
        lock(&self.inner.metrics).remove(plugin);
        let mut shared = lock(&self.inner.shared_data);
        if shared.get(vm_id).is_some_and(|data| Arc::strong_count(data) == 1) {
            shared.remove(vm_id);
        }
    }

    /// Appends the metrics that plugins defined, in Prometheus' text format.
    pub fn metrics_text(&self, out: &mut String) {
        metrics::write_text(&lock(&self.inner.metrics), out);
    }
}

/// Nothing panics while it holds one of these locks, so a poisoned one is still right.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keys and values that the instances of a plugin share.
#[derive(Default)]
pub struct SharedData {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    values: HashMap<Vec<u8>, (Bytes, u32)>,
    bytes: usize,
}

/// Keys and values of one vm_id together.
const SHARED_BYTES: usize = 16 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetError {
    /// Somebody else was first.
    CasMismatch,
    Full,
}

impl SharedData {
    /// The value and its version, from 1.
    pub fn get(&self, key: &[u8]) -> Option<(Bytes, u32)> {
        lock(&self.table).values.get(key).cloned()
    }

    /// `cas` 0: whatever is there.
    pub fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), SetError> {
        let mut table = lock(&self.table);
        let (old_bytes, old_cas) = table.values.get(key).map_or((0, 0), |(value, cas)| (key.len() + value.len(), *cas));
        if cas != 0 && cas != old_cas {
            return Err(SetError::CasMismatch);
        }
        let bytes = table.bytes - old_bytes + key.len() + value.len();
        if bytes > SHARED_BYTES {
            return Err(SetError::Full);
        }
        table.bytes = bytes;
        // 0 would mean 'whatever is there' to a plugin that hands it back.
        let next = old_cas.checked_add(1).unwrap_or(1);
        table.values.insert(key.to_vec(), (Bytes::copy_from_slice(value), next));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_changed_only_from_the_version_that_was_read() {
        let data = SharedData::default();
        data.set(b"k", b"a", 0).unwrap();
        assert_eq!(data.get(b"k"), Some((Bytes::from_static(b"a"), 1)));
        data.set(b"k", b"b", 1).unwrap();
        assert_eq!(data.set(b"k", b"c", 1), Err(SetError::CasMismatch));
        assert_eq!(data.set(b"none", b"c", 1), Err(SetError::CasMismatch));
        assert_eq!(data.get(b"k"), Some((Bytes::from_static(b"b"), 2)));
    }

    #[test]
    fn shared_data_is_bounded() {
        let data = SharedData::default();
        data.set(b"k", &vec![0; SHARED_BYTES - 1], 0).unwrap();
        assert_eq!(data.set(b"l", b"", 0), Err(SetError::Full));
        data.set(b"k", b"", 0).unwrap();
        data.set(b"l", b"", 0).unwrap();
    }
}
