//! Metrics that plugins define for themselves.
use crate::services::lock;
use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// The metrics of one plugin, shared by its instances on all threads.
#[derive(Default)]
pub struct PluginMetrics {
    all: Mutex<Vec<Arc<Metric>>>,
}

pub struct Metric {
    name: String,
    value: Value,
}

enum Value {
    Counter(AtomicU64),
    Gauge(AtomicU64),
    Histogram { sum: AtomicU64, buckets: [AtomicU64; BUCKETS] },
}

/// Bucket n counts values below 4^n; the last one all others.
const BUCKETS: usize = 16;
const MOST: usize = 1024;

/// What a plugin can do with a metric that it must not: by its number in the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricError {
    NotFound,
    /// Not for this kind of metric.
    WrongKind,
}

impl PluginMetrics {
    /// The number of the metric, which is the old one if it is there. `None`: unknown kind, or too many metrics.
    pub fn define(&self, kind: u32, name: &[u8]) -> Option<u32> {
        let value = match kind {
            0 => Value::Counter(AtomicU64::new(0)),
            1 => Value::Gauge(AtomicU64::new(0)),
            2 => Value::Histogram { sum: AtomicU64::new(0), buckets: Default::default() },
            _ => return None,
        };
        let name = String::from_utf8_lossy(name).into_owned();
        let mut all = lock(&self.all);
        let index = match all.iter().position(|metric| metric.name == name && metric.value.kind() == value.kind()) {
            Some(index) => index,
            None if all.len() < MOST => {
                all.push(Arc::new(Metric { name, value }));
                all.len() - 1
            }
            None => return None,
        };
        u32::try_from(index).ok().map(|index| index + 1)
    }

    pub fn record(&self, id: u32, to: u64) -> Result<(), MetricError> {
        match &self.find(id)?.value {
            Value::Counter(_) => return Err(MetricError::WrongKind),
            Value::Gauge(value) => value.store(to, Relaxed),
            Value::Histogram { sum, buckets } => {
                sum.fetch_add(to, Relaxed);
                buckets[bucket_of(to)].fetch_add(1, Relaxed);
            }
        }
        Ok(())
    }

    /// Counters only grow.
    pub fn increment(&self, id: u32, by: i64) -> Result<(), MetricError> {
        match &self.find(id)?.value {
            Value::Counter(value) if by >= 0 => value.fetch_add(by.unsigned_abs(), Relaxed),
            Value::Gauge(value) => value.fetch_add(by.cast_unsigned(), Relaxed),
            _ => return Err(MetricError::WrongKind),
        };
        Ok(())
    }

    pub fn get(&self, id: u32) -> Result<u64, MetricError> {
        match &self.find(id)?.value {
            Value::Counter(value) | Value::Gauge(value) => Ok(value.load(Relaxed)),
            Value::Histogram { .. } => Err(MetricError::WrongKind),
        }
    }

    fn find(&self, id: u32) -> Result<Arc<Metric>, MetricError> {
        let index = usize::try_from(id).ok().and_then(|id| id.checked_sub(1)).ok_or(MetricError::NotFound)?;
        lock(&self.all).get(index).cloned().ok_or(MetricError::NotFound)
    }
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::Counter(_) => "counter",
            Self::Gauge(_) => "gauge",
            Self::Histogram { .. } => "histogram",
        }
    }
}

fn bucket_of(value: u64) -> usize {
    let bits = 64 - value.leading_zeros();
    usize::try_from(bits.div_ceil(2)).map_or(BUCKETS - 1, |bucket| bucket.min(BUCKETS - 1))
}

pub(crate) fn write_text(plugins: &BTreeMap<String, Arc<PluginMetrics>>, out: &mut String) {
    // Prometheus wants the series of one metric together, whichever plugin they are from.
    let mut series = BTreeMap::<_, Vec<(&str, Arc<Metric>)>>::new();
    for (plugin, metrics) in plugins {
        for metric in lock(&metrics.all).iter() {
            let key = (prometheus_name(&metric.name), metric.value.kind());
            series.entry(key).or_default().push((plugin, Arc::clone(metric)));
        }
    }
    for ((name, kind), metrics) in series {
        let _ = writeln!(out, "# TYPE {name} {kind}");
        for (plugin, metric) in metrics {
            write_one(&name, plugin, &metric.value, out);
        }
    }
}

// Writing to a String cannot fail.
fn write_one(name: &str, plugin: &str, value: &Value, out: &mut String) {
    let plugin = plugin.escape_default();
    match value {
        Value::Counter(value) => {
            let _ = writeln!(out, "{name}{{plugin=\"{plugin}\"}} {}", value.load(Relaxed));
        }
        Value::Gauge(value) => {
            let _ = writeln!(out, "{name}{{plugin=\"{plugin}\"}} {}", value.load(Relaxed).cast_signed());
        }
        Value::Histogram { sum, buckets } => {
            let mut count = 0;
            for (index, bucket) in buckets.iter().enumerate() {
                count += bucket.load(Relaxed);
                let below =
                    if index + 1 == BUCKETS { "+Inf".to_owned() } else { ((1u64 << (2 * index)) - 1).to_string() };
                let _ = writeln!(out, "{name}_bucket{{plugin=\"{plugin}\",le=\"{below}\"}} {count}");
            }
            let _ = writeln!(out, "{name}_sum{{plugin=\"{plugin}\"}} {}", sum.load(Relaxed));
            let _ = writeln!(out, "{name}_count{{plugin=\"{plugin}\"}} {count}");
        }
    }
}

fn prometheus_name(name: &str) -> String {
    let valid = |c: char| if c.is_ascii_alphanumeric() || c == '_' || c == ':' { c } else { '_' };
    format!("weft_plugin_custom_{}", name.chars().map(valid).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_keeps_its_number_and_its_kind() {
        let metrics = PluginMetrics::default();
        let counter = metrics.define(0, b"hits").unwrap();
        assert_eq!(metrics.define(0, b"hits"), Some(counter));
        let gauge = metrics.define(1, b"level").unwrap();
        metrics.increment(counter, 3).unwrap();
        metrics.record(gauge, 7).unwrap();
        metrics.increment(gauge, -2).unwrap();
        assert_eq!((metrics.get(counter), metrics.get(gauge)), (Ok(3), Ok(5)));
        assert_eq!(metrics.increment(counter, -1), Err(MetricError::WrongKind));
        assert_eq!(metrics.record(counter, 1), Err(MetricError::WrongKind));
        assert_eq!((metrics.get(0), metrics.get(99)), (Err(MetricError::NotFound), Err(MetricError::NotFound)));
        assert_eq!(metrics.define(9, b"x"), None);
    }

    #[test]
    fn prometheus_reads_the_metrics_of_all_plugins() {
        let metrics = Arc::new(PluginMetrics::default());
        let counter = metrics.define(0, b"hits.by-path").unwrap();
        metrics.increment(counter, 3).unwrap();
        let histogram = metrics.define(2, b"size").unwrap();
        metrics.record(histogram, 5).unwrap();
        let mut out = String::new();
        write_text(&BTreeMap::from([("ns/p".to_owned(), metrics)]), &mut out);
        assert!(
            out.contains(
                "# TYPE weft_plugin_custom_hits_by_path counter\nweft_plugin_custom_hits_by_path{plugin=\"ns/p\"} 3\n"
            ),
            "{out}"
        );
        assert!(out.contains("size_bucket{plugin=\"ns/p\",le=\"3\"} 0\n"), "{out}");
        assert!(out.contains("size_bucket{plugin=\"ns/p\",le=\"15\"} 1\n"), "{out}");
        assert!(out.contains("size_sum{plugin=\"ns/p\"} 5\n"), "{out}");
    }

    #[test]
    fn metrics_of_a_plugin_are_bounded() {
        let metrics = PluginMetrics::default();
        for n in 0..MOST {
            assert!(metrics.define(0, n.to_string().as_bytes()).is_some());
        }
        assert_eq!(metrics.define(0, b"one more"), None);
    }
}
