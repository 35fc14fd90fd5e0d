//! Owns everything of a running lab. It ends, and the lab with it, on a signal, or when its owner has ended.
use crate::{
    cleanup,
    cluster::{Cluster, Common},
    control::{LabStatus, Reply, Request},
    daemons::{self, Built},
    fabric,
    layout::{Layout, ProcessId, Record},
};
use anyhow::{Context, Result};
use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::{RwLock, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};

const OWNER_LOOK: Duration = Duration::from_millis(500);
const REQUEST_TIME: Duration = Duration::from_secs(30);
const MOST_REQUESTS: usize = 32;

#[derive(Default)]
struct State {
    failed: Option<String>,
    clusters: Vec<Cluster>,
    /// How many there will be.
    planned: usize,
}

struct Lab {
    layout: Layout,
    record: Record,
    state: RwLock<State>,
    /// Held while the wires are laid: that cannot be broken off, so what removes them waits for it.
    building: Arc<Mutex<()>>,
}

/// Runs the lab that `record` describes, until it is told to end; then nothing is left of it.
pub async fn run(layout: Layout, record: Record, owner: Option<ProcessId>) -> Result<()> {
    let mut interrupts =
        [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
    let [interrupt, terminate, hangup] = &mut interrupts;
    let planned = record.spec.clusters.len();
    let state = RwLock::new(State { planned, ..State::default() });
    let building = Arc::new(Mutex::new(()));
    let lab = Arc::new(Lab { layout: layout.clone(), record, state, building: building.clone() });
    // A socket that was left by a lab that is gone would be in the way.
    let _ = fs::remove_file(layout.socket());
    let listener = UnixListener::bind(layout.socket()).context("cannot open the lab's socket")?;
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(lab.clone(), listener));
    let starting = lab.clone();
    tasks.spawn(async move {
        if let Err(error) = starting.start().await {
            tracing::error!(error = format!("{error:#}"), "the lab cannot come up");
            starting.state.write().await.failed = Some(format!("{error:#}"));
        }
    });
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
        () = owner_ends(owner) => tracing::info!("the lab's owner has ended"),
    }
    tasks.shutdown().await;
    // Daemons and pods end with their owners; what they leave is removed after them.
    lab.state.write().await.clusters.clear();
    let remove = move || {
        let _built = building.lock().unwrap_or_else(PoisonError::into_inner);
        cleanup::remove(&layout);
    };
    tokio::task::spawn_blocking(remove).await?;
    Ok(())
}

impl Lab {
    async fn start(&self) -> Result<()> {
        let built = Built::find().context("cannot find the binaries")?;
        built.check(self.record.source)?;
        let (layout, spec, source) = (self.layout.clone(), self.record.spec.clone(), self.record.source);
        let building = self.building.clone();
        let build = move || {
            let _building = building.lock().unwrap_or_else(PoisonError::into_inner);
            fabric::build(&layout, &spec, source)
        };
        tokio::task::spawn_blocking(build).await??;
        let Record { spec, source, folder, .. } = &self.record;
        daemons::write_yaml(&self.layout.contexts(), &daemons::contexts(&self.layout, spec, *source))?;
        let common = Common { layout: &self.layout, built: &built, spec, source: *source, folder };
        let starts = spec.clusters.iter().map(|cluster| Cluster::start(&common, cluster));
        let clusters = futures::future::try_join_all(starts).await?;
        self.state.write().await.clusters = clusters;
        Ok(())
    }

    async fn answer(&self, request: Request) -> Reply {
        let state = self.state.read().await;
        let find = |name: &str| {
            let found = state.clusters.iter().find(|cluster| cluster.name() == name);
            found.ok_or_else(|| format!("there is no cluster {name}"))
        };
        let done = match request {
            Request::Status => return Reply::Status(state.status()),
            Request::Daemon { cluster, node, role, action } => match find(&cluster) {
                Ok(cluster) => cluster.daemon(&node, role, action).await,
                Err(error) => Err(error),
            },
            Request::ApiServer { cluster, action } => match find(&cluster) {
                Ok(cluster) => cluster.api_server(action).await,
                Err(error) => Err(error),
            },
            Request::Power { cluster, on } => match find(&cluster) {
                Ok(cluster) => cluster.set_power(&self.layout, &self.record.spec, on).await,
                Err(error) => Err(error),
            },
        };
        done.map_or_else(Reply::Refused, |()| Reply::Done)
    }
}

impl State {
    fn status(&self) -> LabStatus {
        let clusters: Vec<_> = self.clusters.iter().map(Cluster::status).collect();
        let mut status = LabStatus { ready: false, failed: self.failed.clone(), clusters };
        status.ready = self.clusters.len() == self.planned && status.waiting_for().is_empty();
        status
    }
}

async fn owner_ends(owner: Option<ProcessId>) {
    let Some(owner) = owner else { return std::future::pending().await };
    while owner.alive() {
        sleep(OWNER_LOOK).await;
    }
}

async fn serve(lab: Arc<Lab>, listener: UnixListener) {
    let slots = Arc::new(Semaphore::new(MOST_REQUESTS));
    let mut requests = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else { continue };
        while requests.try_join_next().is_some() {}
        let lab = lab.clone();
        requests.spawn(async move {
            let _slot = slot;
            // A client that has gone away needs no answer.
            let _ = timeout(REQUEST_TIME, attend(&lab, stream)).await;
        });
    }
}

async fn attend(lab: &Lab, stream: UnixStream) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let reply = match serde_json::from_str(&line) {
        Ok(request) => lab.answer(request).await,
        Err(error) => Reply::Refused(format!("not a request: {error}")),
    };
    let mut answer = serde_json::to_vec(&reply)?;
    answer.push(b'\n');
    stream.write_all(&answer).await
}
