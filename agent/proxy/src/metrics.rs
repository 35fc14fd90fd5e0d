//! What Prometheus reads, and the small server that answers it.
use crate::{filters::Board, flows::Flows};
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Bytes, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
        histogram::Histogram,
    },
    registry::Registry,
};
use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};
use weft_proxy_api::flow::Verdict;

const SCRAPERS: usize = 16;
const SCRAPE_TIME: Duration = Duration::from_secs(10);
/// Not OpenMetrics: a name that a plugin chose must not spoil the whole answer.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("cannot serve metrics on {address}: choose another address with --metrics")]
    Bind {
        address: SocketAddr,
        #[source]
        cause: std::io::Error,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabel {
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PluginLabel {
    pub plugin: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabel {
    role: &'static str,
}

/// Requests and plain connections are counted by the same verdicts.
pub struct ByVerdict {
    forwarded: Counter,
    dropped: Counter,
    error: Counter,
}

impl ByVerdict {
    fn of(family: &Family<VerdictLabel, Counter>) -> Self {
        let counter = |verdict| family.get_or_create(&VerdictLabel { verdict }).clone();
        Self { forwarded: counter("forwarded"), dropped: counter("dropped"), error: counter("error") }
    }

    pub fn count(&self, verdict: Verdict) {
        match verdict {
            Verdict::Forwarded | Verdict::Redirected => self.forwarded.inc(),
            Verdict::Dropped => self.dropped.inc(),
            Verdict::Error => self.error.inc(),
        };
    }
}

pub struct Metrics {
    registry: Registry,
    pub requests: ByVerdict,
    pub connections: ByVerdict,
    /// Captured connections that are open.
    pub open: Gauge,
    pub hbone_client: Gauge,
    pub hbone_server: Gauge,
    pub svid_seconds_left: Gauge,
    plugin_latency: Family<PluginLabel, Histogram, fn() -> Histogram>,
    plugins: Arc<Board>,
}

impl Metrics {
    pub fn new(flows: Arc<Flows>, plugins: Arc<Board>) -> Self {
        let mut registry = Registry::with_prefix("weft_proxy");
        let requests = Family::<VerdictLabel, Counter>::default();
        registry.register("requests", "HTTP requests by verdict", requests.clone());
        let connections = Family::<VerdictLabel, Counter>::default();
        registry.register("connections", "Connections by verdict", connections.clone());
        let open = Gauge::default();
        registry.register("open_connections", "Captured connections that are open", open.clone());
        let hbone = Family::<RoleLabel, Gauge>::default();
        registry.register("hbone_connections", "HBONE connections that are open", hbone.clone());
        let svid_seconds_left = Gauge::default();
        registry.register("svid_seconds_left", "Until the first SVID in use ends", svid_seconds_left.clone());
        let plugin_latency = Family::new_with_constructor(latency as fn() -> Histogram);
        registry.register("plugin_latency_seconds", "Time of one callback", plugin_latency.clone());
        registry.register_collector(Box::new(LostFlows(flows)));
        let role = |role| hbone.get_or_create(&RoleLabel { role }).clone();
        Self {
            requests: ByVerdict::of(&requests),
            connections: ByVerdict::of(&connections),
            open,
            hbone_client: role("client"),
            hbone_server: role("server"),
            svid_seconds_left,
            plugin_latency,
            plugins,
            registry,
        }
    }

    /// Seconds in one callback of a plugin, from samples.
    pub fn plugin_latency(&self, name: &str) -> Histogram {
        self.plugin_latency.get_or_create(&PluginLabel { plugin: name.to_owned() }).clone()
    }

    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail; a half text would be no better than none.
        if text::encode(&mut out, &self.registry).is_err() {
            out.clear();
        }
        out.truncate(out.trim_end_matches("# EOF\n").len());
        self.plugins.metrics_text(&mut out);
        out
    }
}

fn latency() -> Histogram {
    Histogram::new([1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 1e-3, 1e-2, 1e-1])
}

#[derive(Debug)]
struct LostFlows(Arc<Flows>);

impl Collector for LostFlows {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let lost = ConstCounter::new(self.0.lost_total());
        let metric =
            encoder.encode_descriptor("flows_lost", "Flows that nobody read in time", None, lost.metric_type())?;
        lost.encode(metric)
    }
}

pub async fn bind(address: SocketAddr) -> Result<TcpListener, MetricsError> {
    TcpListener::bind(address).await.map_err(|cause| MetricsError::Bind { address, cause })
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    let slots = Arc::new(Semaphore::new(SCRAPERS));
    let mut tasks = JoinSet::new();
    // The semaphore is never closed.
    while let Ok(slot) = slots.clone().acquire_owned().await {
        while tasks.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let metrics = metrics.clone();
        tasks.spawn(async move {
            let service = service_fn(|request| std::future::ready(answer(&metrics, &request)));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(SCRAPE_TIME, connection).await {
                tracing::debug!(%error, "metrics connection broke");
            }
            drop(slot);
        });
    }
}

fn answer(metrics: &Metrics, request: &Request<hyper::body::Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = match request.uri().path() {
        "/metrics" => (StatusCode::OK, metrics.text()),
        _ => (StatusCode::NOT_FOUND, "see /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    if status == StatusCode::OK {
        response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(CONTENT_TYPE));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_every_metric_by_its_name() {
        let engine = weft_plugin_host::Engine::new(weft_plugin_host::EngineConfig::default()).unwrap();
        let metrics = Metrics::new(Arc::default(), Arc::new(Board::new(engine)));
        metrics.requests.count(Verdict::Dropped);
        metrics.plugin_latency("shop/add-header").observe(1e-6);
        let text = metrics.text();
        for line in [
            "weft_proxy_requests_total{verdict=\"dropped\"} 1",
            "weft_proxy_plugin_latency_seconds_count{plugin=\"shop/add-header\"} 1",
            "# TYPE weft_proxy_plugin_faults_total counter",
            "weft_proxy_flows_lost_total 0",
            "weft_proxy_hbone_connections{role=\"client\"} 0",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }
}
