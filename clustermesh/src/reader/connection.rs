//! Keeps a session to one of the servers, and a new one after each break.
use super::session::{Session, SessionError, Span};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;
use weft_clustermesh_core::{Change, key::WEFT_PREFIX, liveness};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Of a peer that writes no heartbeat of ours: it may be silent for two minutes.
const CILIUM_PATIENCE: Duration = Duration::from_secs(150);

pub(super) struct Connection {
    /// Of the peer, for logs.
    pub name: String,
    pub endpoints: Vec<String>,
    pub spans: Vec<Span>,
    pub tls: Option<Arc<rustls::ClientConfig>>,
    pub events: mpsc::Sender<Event>,
}

#[derive(Debug)]
pub(super) enum Event {
    /// To this server.
    Connected(String),
    Disconnected {
        endpoint: String,
        error: String,
    },
    /// All keys, in place of what was known.
    Listed(Vec<(Bytes, Bytes)>),
    Changes(Vec<Change>),
}

enum End {
    /// Nobody listens any more.
    Unheard,
    Failed(SessionError),
}

impl<E: Into<SessionError>> From<E> for End {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Connection {
    /// Until nobody listens.
    pub async fn run(self) {
        if self.endpoints.is_empty() {
            let error = "it has no mesh servers: connect it again".to_owned();
            let _ = self.tell(Event::Disconnected { endpoint: String::new(), error }).await;
            return self.events.closed().await;
        }
        let (mut at, mut pause) = (0, FIRST_PAUSE);
        loop {
            let endpoint = &self.endpoints[at % self.endpoints.len()];
            let mut listed = false;
            let error = match self.session(endpoint, &mut listed).await {
                Err(End::Failed(error)) => error,
                Err(End::Unheard) | Ok(()) => return,
            };
            tracing::debug!(peer = self.name, endpoint, %error, "lost a mesh server");
            // A server whose history has moved on is a good one still.
            let keep = listed && matches!(error, SessionError::Compacted);
            let lost = Event::Disconnected { endpoint: endpoint.clone(), error: error.to_string() };
            if self.tell(lost).await.is_err() {
                return;
            }
            if listed {
                pause = FIRST_PAUSE;
            }
            if !keep {
                at += 1;
            }
            tokio::time::sleep(jittered(pause)).await;
            // Servers that were not tried yet in this round are no reason to wait longer.
            if at % self.endpoints.len() == 0 {
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    async fn session(&self, endpoint: &str, listed: &mut bool) -> Result<(), End> {
        let mut session = Session::open(endpoint, self.tls.clone(), self.spans.clone()).await?;
        let kvs = session.list().await?;
        let weft = kvs.iter().any(|(key, _)| key.starts_with(WEFT_PREFIX.as_bytes()));
        let mut patience = if weft { liveness::WEFT_TIMEOUT } else { CILIUM_PATIENCE };
        let mut watched = session.watch().await?;
        *listed = true;
        self.tell(Event::Connected(endpoint.to_owned())).await?;
        self.tell(Event::Listed(kvs)).await?;
        loop {
            let changes = session.next(&mut watched, patience).await?;
            let is_ours = |change: &Change| match change {
                Change::Put { key, .. } | Change::Delete { key } => key.starts_with(WEFT_PREFIX.as_bytes()),
            };
            if changes.iter().any(is_ours) {
                patience = liveness::WEFT_TIMEOUT;
            }
            if !changes.is_empty() {
                self.tell(Event::Changes(changes)).await?;
            }
        }
    }

    async fn tell(&self, event: Event) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Unheard)
    }
}

/// Half of it to all of it: clusters that lost the same server do not come back all at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..1.0))
}
