//! The wiring of the process: what is built in which order, and how it ends.
use crate::{
    applier::{Applier, State},
    capture::listeners::{self, CaptureError, Listener},
    control::{self, Control, ControlError},
    filters::Board,
    flows::Flows,
    generation::{Builder, Generation},
    metrics::{self, Metrics, MetricsError},
    worker::{self, DRAIN_TIME, Shared},
};
use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    thread::JoinHandle,
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use weft_plugin_host::{Engine, EngineConfig, EngineError};

#[derive(Debug)]
pub struct Settings {
    pub socket: PathBuf,
    /// For the last configuration. Made if it is not there.
    pub state_dir: PathBuf,
    /// For compiled plugins; made with mode 0700.
    pub plugin_cache: PathBuf,
    pub metrics: SocketAddr,
    pub workers: usize,
    /// Instead of the transparent ones that the kernel programs hand connections to.
    pub listeners: Option<Vec<Listener>>,
}

#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("cannot use the folder {path}: it must be a folder that this process may write to (--state-dir)")]
    StateDir {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// A running proxy. Dropping it stops what is new at once; `drain` waits for what is open.
pub struct App {
    pub metrics_address: SocketAddr,
    stop: CancellationToken,
    /// Those of the applier; the workers have their own.
    listeners: Arc<Mutex<Vec<Listener>>>,
    workers: Vec<JoinHandle<()>>,
    /// Control socket and metrics.
    tasks: JoinSet<()>,
}

impl App {
    pub async fn start(settings: Settings) -> Result<Self, AppError> {
        let state_dir = |cause| AppError::StateDir { path: settings.state_dir.clone(), cause };
        std::fs::create_dir_all(&settings.state_dir).map_err(state_dir)?;
        let engine = Engine::new(EngineConfig { cache: Some(settings.plugin_cache), ..Default::default() })?;
        let (flows, plugins) = (Arc::new(Flows::default()), Arc::new(Board::new(engine.clone())));
        let metrics = Arc::new(Metrics::new(flows.clone(), plugins.clone()));
        let metrics_listener = metrics::bind(settings.metrics).await?;
        let control_listener = control::bind(&settings.socket)?;
        let publish = settings.listeners.is_none();
        let listeners = match settings.listeners {
            Some(listeners) => listeners,
            None => listeners::open()?,
        };
        let stop = CancellationToken::new();
        let state = Arc::new(State::new(plugins.clone(), metrics.clone()));
        let shared = Arc::new(Shared {
            flows: flows.clone(),
            metrics: metrics.clone(),
            plugins,
            stop: stop.clone(),
            next_id: AtomicU64::new(1),
        });
        let (generations, _) = watch::channel(Arc::new(Generation::empty()));
        let mut workers = Vec::new();
        let mut applied = Vec::new();
        for index in 0..settings.workers.max(1) {
            let (tell, told) = watch::channel(0);
            let own = listeners.iter().map(Listener::try_clone).collect::<io::Result<_>>().map_err(AppError::Thread)?;
            let worker = worker::spawn(index, own, shared.clone(), generations.subscribe(), tell);
            workers.push(worker.map_err(AppError::Thread)?);
            applied.push(told);
        }
        let listeners = Arc::new(Mutex::new(listeners));
        let mut applier = Applier {
            state: state.clone(),
            builder: Builder::new(engine),
            generations,
            applied,
            listeners: listeners.clone(),
            publish,
            file: settings.state_dir.join("config.json"),
        };
        applier.load();
        let (jobs, _applier) = applier.spawn().map_err(AppError::Thread)?;
        let control = Arc::new(Control { state: state.clone(), flows, jobs, latest: AtomicU64::new(0) });
        let metrics_address =
            metrics_listener.local_addr().map_err(|cause| MetricsError::Bind { address: settings.metrics, cause })?;
        let mut tasks = JoinSet::new();
        tasks.spawn(control::serve(control_listener, control));
        tasks.spawn(metrics::serve(metrics_listener, metrics));
        tasks.spawn(refresh(state));
        tracing::info!(socket = %settings.socket.display(), metrics = %metrics_address, "weft-proxy runs");
        Ok(Self { metrics_address, stop, listeners, workers, tasks })
    }

    /// No new connections; those that are open may go on.
    pub fn shutdown(&self) {
        self.stop.cancel();
        // The sockets close when nobody holds them any more.
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Stops, and waits for open connections to end, for half a minute at most.
    pub async fn drain(mut self) {
        self.shutdown();
        // Threads cannot be awaited; the workers end by themselves in the time given.
        let until = tokio::time::Instant::now() + DRAIN_TIME + Duration::from_secs(1);
        while !self.workers.iter().all(JoinHandle::is_finished) && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.tasks.shutdown().await;
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Keeps metrics that follow the clock up to date.
async fn refresh(state: Arc<State>) {
    loop {
        state.status();
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}
