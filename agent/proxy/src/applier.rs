//! Takes over configurations, one after the other: compiled, handed to the workers, kept on disk, and told as status.
//! Its work blocks (files, compiling, netlink), so it has a thread of its own.
use crate::{
    capture::listeners::{self, CaptureError, Listener},
    filters::Board,
    generation::{Builder, Generation},
    metrics::Metrics,
    wireguard::WireGuard,
};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::{oneshot, watch};
use weft_proxy_api::{config::ProxyConfig, flow::ProxyStatus};

/// Configurations that wait; who brings more waits too.
const WAITING: usize = 4;
/// What failed for reasons outside the configuration is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// Workers take a configuration over between two polls.
const TAKE_OVER_TIME: Duration = Duration::from_secs(5);

/// A configuration for the applier; `done` is told when it is in force or refused.
pub struct Job {
    pub config: Box<ProxyConfig>,
    pub done: oneshot::Sender<()>,
}

/// What the applier knows of the state of things, for everybody to read.
pub struct State {
    inner: Mutex<Inner>,
    plugins: Arc<Board>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Inner {
    version: u64,
    generation: Option<Arc<Generation>>,
    refused: Option<String>,
    kept: Option<String>,
    captured: Option<String>,
    slow: Option<String>,
    wireguard: WireGuard,
    map_dir: PathBuf,
}

pub struct Applier {
    pub state: Arc<State>,
    pub builder: Builder,
    pub generations: watch::Sender<Arc<Generation>>,
    pub applied: Vec<watch::Receiver<u64>>,
    /// Empty once the process stops.
    pub listeners: Arc<Mutex<Vec<Listener>>>,
    /// The listeners belong into the kernel's map.
    pub publish: bool,
    pub file: PathBuf,
}

impl State {
    pub fn new(plugins: Arc<Board>, metrics: Arc<Metrics>) -> Self {
        Self { inner: Mutex::default(), plugins, metrics }
    }

    pub fn status(&self) -> ProxyStatus {
        let inner = self.inner();
        let first = [&inner.refused, &inner.kept, &inner.captured, &inner.slow].into_iter().flatten().cloned();
        let generation = inner.generation.iter().flat_map(|generation| generation.problems());
        let left = inner.generation.as_ref().and_then(|g| g.credentials.seconds_left(SystemTime::now()));
        self.metrics.svid_seconds_left.set(left.map_or(0, |left| left as i64));
        ProxyStatus {
            pid: std::process::id(),
            config_version: inner.version,
            config_errors: first.chain(generation).chain(inner.wireguard.problems()).collect(),
            plugins: self.plugins.status(),
            wireguard: inner.wireguard.status(),
            connections: self.metrics.open.get().max(0) as u64,
            svid_seconds_left: left,
        }
    }

    /// A message or configuration that was not taken; what is in force stays.
    pub fn refuse(&self, reason: String) {
        self.inner().refused = Some(reason);
    }

    /// Nothing that is held over it leaves it half changed.
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Applier {
    /// Loads the configuration that an earlier process kept. Then follows until all senders are gone.
    pub fn spawn(mut self) -> std::io::Result<(SyncSender<Job>, JoinHandle<()>)> {
        let (jobs, queue) = sync_channel(WAITING);
        let thread = std::thread::Builder::new().name("applier".to_owned()).spawn(move || self.run(&queue))?;
        Ok((jobs, thread))
    }

    /// The configuration of before, in force before the first connection. That there is none is no error.
    pub fn load(&mut self) {
        match read(&self.file) {
            Ok(Some(config)) => self.apply(config),
            Ok(None) => {}
            Err(reason) => {
                tracing::warn!(reason, "starting without a configuration");
                self.state.inner().kept = Some(reason);
            }
        }
    }

    fn run(&mut self, queue: &Receiver<Job>) {
        loop {
            match queue.recv_timeout(RETRY_EVERY) {
                Ok(job) => {
                    self.apply(*job.config);
                    // Who asked may be gone.
                    let _ = job.done.send(());
                }
                Err(RecvTimeoutError::Timeout) => self.retry(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn apply(&mut self, config: ProxyConfig) {
        let (version, map_dir, wireguard) = (config.version, config.map_dir.clone(), config.wireguard.clone());
        let text = serde_json::to_vec(&config);
        let generation = match self.builder.build(config) {
            Ok(generation) => Arc::new(generation),
            Err(error) => {
                let reason = weft_certs::explain(&error);
                tracing::warn!(reason, "a configuration is refused");
                self.state.refuse(reason);
                return;
            }
        };
        self.generations.send_replace(generation.clone());
        let slow = self.wait_for_workers(generation.sequence).err();
        let kept = text.map_err(|e| e.to_string()).and_then(|text| keep(&self.file, &text)).err();
        let captured = self.capture(&map_dir).err().map(|error| weft_certs::explain(&error));
        let mut inner = self.state.inner();
        inner.version = version;
        inner.generation = Some(generation);
        inner.refused = None;
        (inner.kept, inner.captured, inner.slow) = (kept, captured, slow);
        inner.wireguard.apply(wireguard.as_ref());
        inner.map_dir = map_dir;
        tracing::info!(version, "configuration in force");
    }

    fn retry(&mut self) {
        let (map_dir, capture) = {
            let inner = self.state.inner();
            (inner.map_dir.clone(), inner.captured.is_some())
        };
        if capture {
            let captured = self.capture(&map_dir).err().map(|error| weft_certs::explain(&error));
            self.state.inner().captured = captured;
        }
        let mut inner = self.state.inner();
        if inner.wireguard.failed() {
            inner.wireguard.retry();
        }
    }

    fn capture(&self, map_dir: &Path) -> Result<(), CaptureError> {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if self.publish { listeners::publish(&listeners, map_dir) } else { Ok(()) }
    }

    fn wait_for_workers(&self, sequence: u64) -> Result<(), String> {
        let until = Instant::now() + TAKE_OVER_TIME;
        while self.applied.iter().any(|applied| *applied.borrow() < sequence) {
            if Instant::now() > until {
                return Err("a worker is busy and has not yet taken the configuration over".to_owned());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

fn read(file: &Path) -> Result<Option<ProxyConfig>, String> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{} cannot be read: {error}", file.display())),
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        format!("{} is no configuration of this version ({error}): waiting for the agent", file.display())
    })
}

/// Whole or not at all, and for our own eyes: private keys are in it.
fn keep(file: &Path, text: &[u8]) -> Result<(), String> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let write = || {
        let draft = file.with_extension("tmp");
        let mut out = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        out.write_all(text)?;
        out.sync_all()?;
        std::fs::rename(&draft, file)
    };
    write().map_err(|error: std::io::Error| {
        format!(
            "the configuration cannot be kept in {}: {error}; a restart without the agent would be without it",
            file.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_kept_is_for_our_own_eyes_and_a_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        assert!(matches!(read(&file), Ok(None)));
        keep(&file, b"{").unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(read(&file).unwrap_err().contains("config.json is no configuration of this version"));
        let nowhere = dir.path().join("none/config.json");
        assert!(keep(&nowhere, b"{}").unwrap_err().contains("cannot be kept in"));
    }
}
