//! The unix socket on which the agent tells the configuration and hears flows and state.
use crate::{
    applier::{Job, State},
    flows::Flows,
};
use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, TrySendError},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncWriteExt, BufReader, BufWriter},
    net::{UnixListener, UnixStream, unix::OwnedReadHalf},
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
};
use weft_proxy_api::wire::{self, FromProxy, ToProxy, WireError};

const CONNECTIONS: usize = 16;
/// Flows written before the next message is looked at.
const BATCH: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("cannot serve the agent on {path}: does its folder exist, and may this process write there? (--socket)")]
    Bind {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

pub struct Control {
    pub state: Arc<State>,
    pub flows: Arc<Flows>,
    pub jobs: SyncSender<Job>,
    /// Number of the latest connection: flows go there.
    pub latest: AtomicU64,
}

/// A socket that an earlier process left is replaced.
pub fn bind(path: &Path) -> Result<UnixListener, ControlError> {
    let bind = || {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    bind().map_err(|cause| ControlError::Bind { path: path.to_owned(), cause })
}

/// Serves until dropped.
pub async fn serve(listener: UnixListener, control: Arc<Control>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut tasks = JoinSet::new();
    // The semaphore is never closed.
    while let Ok(slot) = slots.clone().acquire_owned().await {
        while tasks.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let control = control.clone();
        tasks.spawn(async move {
            let number = control.latest.fetch_add(1, Ordering::Relaxed) + 1;
            if let Err(error) = connection(&control, stream, number).await {
                tracing::debug!(%error, "a control connection broke");
            }
            control.flows.wake();
            drop(slot);
        });
    }
}

async fn connection(control: &Control, stream: UnixStream, number: u64) -> Result<(), WireError> {
    let (from, to) = stream.into_split();
    let mut to = BufWriter::new(to);
    let (asked, mut asks) = mpsc::channel(1);
    let reading = read(control, BufReader::new(from), asked);
    let writing = async {
        write_status(control, &mut to).await?;
        // Wakes the reader of before as well, which sees that it is one no more.
        control.flows.wake();
        loop {
            let latest = control.latest.load(Ordering::Relaxed) == number;
            tokio::select! {
                ask = asks.recv() => match ask {
                    Some(()) => write_status(control, &mut to).await?,
                    None => return Ok(()),
                },
                () = control.flows.ready(), if latest => {
                    if control.latest.load(Ordering::Relaxed) != number {
                        control.flows.wake();
                        continue;
                    }
                    write_flows(control, &mut to).await?;
                }
            }
        }
    };
    tokio::select! { done = reading => done, done = writing => done }
}

/// Reads messages; `asked` is told when the state is to be written.
async fn read(control: &Control, mut from: BufReader<OwnedReadHalf>, asked: mpsc::Sender<()>) -> Result<(), WireError> {
    loop {
        match wire::read(&mut from).await {
            Ok(Some(ToProxy::Config(config))) => {
                let (done, applied) = oneshot::channel();
                let mut job = Job { config, done };
                while let Err(error) = control.jobs.try_send(job) {
                    match error {
                        TrySendError::Full(waiting) => job = waiting,
                        TrySendError::Disconnected(_) => return Ok(()),
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                // The applier drops it only when the process ends.
                if applied.await.is_err() {
                    return Ok(());
                }
            }
            Ok(Some(ToProxy::Status)) => {}
            Ok(None) => return Ok(()),
            // The line is read: the configuration in force stays, and the sender hears so by the status.
            Err(WireError::Json(error)) => {
                control.state.refuse(format!("a message of the agent is not understood: {error}"))
            }
            Err(error) => return Err(error),
        }
        if asked.send(()).await.is_err() {
            return Ok(());
        }
    }
}

async fn write_status(control: &Control, to: &mut (impl AsyncWriteExt + Unpin)) -> Result<(), WireError> {
    let status = control.state.status();
    wire::write(to, &FromProxy::Status(status)).await?;
    Ok(to.flush().await?)
}

async fn write_flows(control: &Control, to: &mut (impl AsyncWriteExt + Unpin)) -> Result<(), WireError> {
    let (flows, lost) = control.flows.take(BATCH);
    let (count, more) = (flows.len() as u64, flows.len() == BATCH);
    let write = async {
        if lost > 0 {
            wire::write(to, &FromProxy::LostFlows(lost)).await?;
        }
        for flow in flows {
            wire::write(to, &FromProxy::Flow(Box::new(flow))).await?;
        }
        Ok::<_, WireError>(to.flush().await?)
    };
    let done = write.await;
    if done.is_err() {
        control.flows.lost(count + lost);
    } else if more {
        control.flows.wake();
    }
    done
}
