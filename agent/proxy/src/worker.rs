//! A worker: one thread with everything that it needs to serve captured connections without asking another. Plugin
//! instances and pooled tunnels belong to it alone, so there are no locks.
use crate::{
    capture::{
        connect::prepare,
        listeners::{Listener, Role},
    },
    filters::PluginSet,
    flows::Flows,
    generation::Generation,
    hbone,
    metrics::Metrics,
    serve,
};
use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::LocalSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections a worker has open at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 16_384;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Plugins run on this stack too.
const STACK: usize = 8 << 20;
/// How long connections may go on after a stop.
pub const DRAIN_TIME: Duration = Duration::from_secs(30);

/// What all workers see.
pub struct Shared {
    pub flows: Arc<Flows>,
    pub metrics: Arc<Metrics>,
    pub plugins: Arc<crate::filters::Board>,
    /// No new connections; those that are open may end.
    pub stop: CancellationToken,
    pub next_id: AtomicU64,
}

/// A generation as one worker runs it.
pub struct View {
    pub generation: Arc<Generation>,
    pub plugins: PluginSet,
}

pub struct Worker {
    pub shared: Arc<Shared>,
    pub tasks: TaskTracker,
    pub tunnels: hbone::pool::Pool,
    view: RefCell<Rc<View>>,
}

impl Worker {
    /// The view in force; what is begun under it ends under it.
    pub fn view(&self) -> Rc<View> {
        self.view.borrow().clone()
    }

    pub fn next_id(&self) -> u64 {
        self.shared.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn take_over(&self, generation: Arc<Generation>) {
        let before = self.view();
        let plugins = PluginSet::start(&generation, &before, &self.shared);
        if !Arc::ptr_eq(&generation.credentials, &before.generation.credentials) {
            self.tunnels.retire();
        }
        self.view.replace(Rc::new(View { generation, plugins }));
    }
}

/// Starts a worker; it ends by itself after `shared.stop`. `applied` tells which generation it runs.
pub fn spawn(
    index: usize,
    listeners: Vec<Listener>,
    shared: Arc<Shared>,
    generations: watch::Receiver<Arc<Generation>>,
    applied: watch::Sender<u64>,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = move || {
        let local = LocalSet::new();
        local.block_on(&runtime, run(listeners, shared, generations, applied));
    };
    std::thread::Builder::new().name(format!("worker-{index}")).stack_size(STACK).spawn(run)
}

async fn run(
    listeners: Vec<Listener>,
    shared: Arc<Shared>,
    mut generations: watch::Receiver<Arc<Generation>>,
    applied: watch::Sender<u64>,
) {
    let nothing = View { generation: Arc::new(Generation::empty()), plugins: PluginSet::default() };
    let worker = Rc::new(Worker {
        tunnels: hbone::pool::Pool::default(),
        tasks: TaskTracker::new(),
        view: RefCell::new(Rc::new(nothing)),
        shared: shared.clone(),
    });
    let first = generations.borrow_and_update().clone();
    applied.send_replace(take_over(&worker, first));
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    for listener in listeners {
        worker.tasks.spawn_local(accept(worker.clone(), listener, slots.clone()));
    }
    let follow = async {
        while generations.changed().await.is_ok() {
            let generation = generations.borrow_and_update().clone();
            applied.send_replace(take_over(&worker, generation));
        }
        // The sender is gone: the process ends.
        std::future::pending::<()>().await;
    };
    let tick = async {
        loop {
            let next = worker.view().plugins.tick();
            tokio::time::sleep(next).await;
        }
    };
    let drained = async {
        shared.stop.cancelled().await;
        worker.tasks.close();
        worker.tunnels.retire();
        if tokio::time::timeout(DRAIN_TIME, worker.tasks.wait()).await.is_err() {
            tracing::warn!(connections = worker.tasks.len(), "connections are cut: they did not end in time");
        }
    };
    tokio::select! { () = follow => {}, () = tick => {}, () = drained => {} }
}

fn take_over(worker: &Worker, generation: Arc<Generation>) -> u64 {
    let sequence = generation.sequence;
    worker.take_over(generation);
    sequence
}

async fn accept(worker: Rc<Worker>, listener: Listener, slots: Arc<Semaphore>) {
    let (role, original) = (listener.role, listener.original);
    let accepting = async {
        let listener = TcpListener::from_std(listener.socket)?;
        loop {
            // The semaphore is never closed.
            let Ok(slot) = slots.clone().acquire_owned().await else { return Ok(()) };
            let (stream, client) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or a client that is gone already: neither may end the proxy.
                    tracing::debug!(%error, "cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let task = connection(worker.clone(), role, stream, client, original);
            worker.tasks.spawn_local(async move {
                task.await;
                drop(slot);
            });
        }
    };
    let done: Option<io::Result<()>> = worker.shared.stop.run_until_cancelled(accepting).await;
    if let Some(Err(error)) = done {
        tracing::error!(%error, ?role, "a worker cannot use a listening socket");
    }
}

async fn connection(
    worker: Rc<Worker>,
    role: Role,
    stream: TcpStream,
    client: SocketAddr,
    original: Option<SocketAddr>,
) {
    let _open = Open::new(&worker.shared.metrics.open);
    let prepared = prepare(&stream).and_then(|()| original.map_or_else(|| stream.local_addr(), Ok));
    let destination = match prepared {
        Ok(destination) => canonical(destination),
        Err(error) => return tracing::debug!(%client, %error, "a connection ended before it began"),
    };
    let client = canonical(client);
    match role {
        Role::Ingress => serve::inbound(worker, stream, client, destination).await,
        Role::Outbound => serve::outbound(worker, stream, client, destination).await,
        Role::Hbone => hbone::server::handle(worker, Box::new(stream), client, destination).await,
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Counts something that is open, until dropped.
pub struct Open(prometheus_client::metrics::gauge::Gauge);

impl Open {
    pub fn new(gauge: &prometheus_client::metrics::gauge::Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
