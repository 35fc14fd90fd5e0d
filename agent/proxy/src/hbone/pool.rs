//! Tunnels that are open, each to be shared by many connections of one source to one destination.
use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http2::SendRequest;
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use weft_identity::SpiffeId;

/// Streams that one tunnel carries at once.
const STREAMS: usize = 100;
const IDLE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A tunnel is used only between these workloads at these addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub source: IpAddr,
    pub source_id: SpiffeId,
    pub destination: IpAddr,
    pub destination_id: SpiffeId,
}

pub struct Tunnel {
    pub sender: SendRequest<Empty<Bytes>>,
    /// One more than there are streams.
    lease: Arc<()>,
    retired: Cell<bool>,
}

/// Keeps a tunnel open.
pub struct Lease {
    _lease: Arc<()>,
}

#[derive(Clone, Default)]
pub struct Pool {
    tunnels: Rc<RefCell<HashMap<Key, Vec<Rc<Tunnel>>>>>,
}

impl Tunnel {
    pub fn new(sender: SendRequest<Empty<Bytes>>) -> Rc<Self> {
        Rc::new(Self { sender, lease: Arc::new(()), retired: Cell::new(false) })
    }

    pub fn lease(&self) -> Lease {
        Lease { _lease: self.lease.clone() }
    }

    fn streams(&self) -> usize {
        Arc::strong_count(&self.lease) - 1
    }

    /// Runs the tunnel's connection until it breaks, idles, or is retired and without streams.
    pub async fn run(self: Rc<Self>, connection: impl Future<Output = hyper::Result<()>>, stop: CancellationToken) {
        let unused = async {
            let mut looks = interval(LOOK_EVERY);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut idle = Duration::ZERO;
            loop {
                looks.tick().await;
                idle = if self.streams() == 0 { idle + LOOK_EVERY } else { Duration::ZERO };
                let last = self.retired.get() || stop.is_cancelled();
                // The first look may come before the first stream.
                if idle > IDLE || (last && idle > LOOK_EVERY) {
                    return;
                }
            }
        };
        tokio::select! {
            done = connection => if let Err(error) = done {
                tracing::debug!(%error, "a tunnel broke");
            },
            () = unused => {}
        }
    }
}

impl Pool {
    /// A tunnel with room for one more stream.
    pub fn get(&self, key: &Key) -> Option<Rc<Tunnel>> {
        let tunnels = self.tunnels.borrow();
        tunnels.get(key)?.iter().find(|tunnel| !tunnel.sender.is_closed() && tunnel.streams() < STREAMS).cloned()
    }

    pub fn put(&self, key: Key, tunnel: Rc<Tunnel>) {
        self.tunnels.borrow_mut().entry(key).or_default().push(tunnel);
    }

    pub fn remove(&self, key: &Key, tunnel: &Rc<Tunnel>) {
        let mut tunnels = self.tunnels.borrow_mut();
        if let Some(list) = tunnels.get_mut(key) {
            list.retain(|one| !Rc::ptr_eq(one, tunnel));
            if list.is_empty() {
                tunnels.remove(key);
            }
        }
    }

    /// New connections get new tunnels; those that are open end with their last stream.
    pub fn retire(&self) {
        for tunnel in self.tunnels.take().into_values().flatten() {
            tunnel.retired.set(true);
        }
    }
}
