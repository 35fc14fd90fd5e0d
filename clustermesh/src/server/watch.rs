//! One `Watch` call: any number of watches, each no more than a cursor into the store's log.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tonic::{Status, Streaming};

use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use crate::pb::mvccpb::{Event, event::EventType};
use crate::server::{
    View, status,
    store::{KeySpan, RevisionError, Store, event_bytes},
};

/// Of events in one answer, about; clients take 4 MiB by default.
const BATCH_BYTES: usize = 1 << 20;
const WATCHES_PER_STREAM: usize = 1024;
/// For answers that are of no single watch.
const NO_WATCH: i64 = -1;

struct Watch {
    span: KeySpan,
    /// All before it was sent.
    next_revision: i64,
    hidden: Vec<EventType>,
    prev_kv: bool,
    fragment: bool,
    progress_notify: bool,
    quiet: bool,
}

pub(crate) struct WatchStream {
    view: View,
    responses: mpsc::Sender<Result<WatchResponse, Status>>,
    watches: BTreeMap<i64, Watch>,
    next_id: i64,
    progress_asked: bool,
}

/// Nobody reads the answers any more.
struct Gone;

impl WatchStream {
    pub fn new(view: View, responses: mpsc::Sender<Result<WatchResponse, Status>>) -> Self {
        Self { view, responses, watches: BTreeMap::new(), next_id: 0, progress_asked: false }
    }

    pub async fn run(mut self, requests: Streaming<WatchRequest>) {
        let _: Result<(), Gone> = self.until_gone(requests).await;
    }

    async fn until_gone(&mut self, mut requests: Streaming<WatchRequest>) -> Result<(), Gone> {
        let every = self.view.member.progress;
        let mut progress = interval_at(Instant::now() + every, every);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut behind = false;
        loop {
            tokio::select! {
                biased;
                request = requests.message() => match request {
                    Ok(Some(request)) => self.handle(request).await?,
                    Ok(None) | Err(_) => return Ok(()),
                },
                changed = self.view.revision.changed(), if !behind => {
                    if changed.is_err() {
                        let _ = self.responses.send(Err(status::stopped())).await;
                        return Ok(());
                    }
                    tokio::time::sleep(self.view.member.coalesce).await;
                }
                _ = progress.tick() => self.notify_progress().await?,
                _ = std::future::ready(()), if behind => {}
            }
            behind = self.send_one_batch_each().await?;
            if !behind && std::mem::take(&mut self.progress_asked) && !self.watches.is_empty() {
                let reached = self.watches.values().map(|watch| watch.next_revision - 1).min();
                self.send(NO_WATCH, reached, WatchResponse::default()).await?;
            }
        }
    }

    async fn handle(&mut self, request: WatchRequest) -> Result<(), Gone> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(request).await,
            Some(RequestUnion::CancelRequest(request)) => match self.watches.remove(&request.watch_id) {
                Some(_) => self.send(request.watch_id, None, canceled(String::new())).await,
                None => Ok(()),
            },
            Some(RequestUnion::ProgressRequest(_)) => {
                self.progress_asked = true;
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn create(&mut self, request: WatchCreateRequest) -> Result<(), Gone> {
        let hidden = request.filters().map(|filter| match filter {
            FilterType::Noput => EventType::Put,
            FilterType::Nodelete => EventType::Delete,
        });
        let hidden = hidden.collect();
        let key = if request.key.is_empty() { vec![0].into() } else { request.key };
        let span = KeySpan::from_wire(key, request.range_end);
        let refusal = if request.start_revision < 0 {
            Some("etcdserver: mvcc: required revision has been compacted")
        } else if self.watches.contains_key(&request.watch_id) && request.watch_id != 0 {
            Some("mvcc: duplicate watch ID provided on the WatchStream")
        } else if span.is_empty() {
            Some("mvcc: watcher range is empty")
        } else if self.watches.len() >= WATCHES_PER_STREAM {
            Some("etcdserver: too many requests")
        } else {
            None
        };
        if let Some(reason) = refusal {
            let answer = WatchResponse { created: true, ..canceled(reason.to_owned()) };
            return self.send(NO_WATCH, None, answer).await;
        }

        let id = if request.watch_id == 0 { self.free_id() } else { request.watch_id };
        let revision = self.view.store().revision();
        let watch = Watch {
            span,
            next_revision: if request.start_revision == 0 { revision + 1 } else { request.start_revision },
            hidden,
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            progress_notify: request.progress_notify,
            quiet: true,
        };
        self.watches.insert(id, watch);
        self.send(id, Some(revision), WatchResponse { created: true, ..Default::default() }).await
    }

    fn free_id(&mut self) -> i64 {
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    /// True while some watch is behind.
    async fn send_one_batch_each(&mut self) -> Result<bool, Gone> {
        let mut behind = false;
        for id in self.watches.keys().copied().collect::<Vec<_>>() {
            let Some(watch) = self.watches.get_mut(&id) else { continue };
            let (batch, now) = {
                let store = self.view.store();
                (watch.next_batch(&store), store.revision())
            };
            match batch {
                Ok(events) => {
                    let (reached, fragment) = (watch.next_revision - 1, watch.fragment);
                    behind |= reached < now;
                    watch.quiet &= events.is_empty();
                    self.send_events(id, reached, events, fragment).await?;
                }
                Err(oldest) => {
                    self.watches.remove(&id);
                    let answer = WatchResponse { compact_revision: oldest, ..canceled(String::new()) };
                    self.send(id, None, answer).await?;
                }
            }
        }
        Ok(behind)
    }

    async fn send_events(&self, id: i64, reached: i64, mut events: Vec<Event>, fragment: bool) -> Result<(), Gone> {
        while !events.is_empty() {
            let mut bytes = 0;
            let fits = events.iter().take_while(|event| {
                bytes += event_bytes(event);
                bytes <= BATCH_BYTES
            });
            let cut = if fragment { fits.count().max(1) } else { events.len() };
            let rest = events.split_off(cut);
            let answer = WatchResponse { events, fragment: !rest.is_empty(), ..Default::default() };
            self.send(id, Some(reached), answer).await?;
            events = rest;
        }
        Ok(())
    }

    async fn notify_progress(&mut self) -> Result<(), Gone> {
        let mut due = Vec::new();
        for (&id, watch) in self.watches.iter_mut().filter(|(_, watch)| watch.progress_notify) {
            if std::mem::replace(&mut watch.quiet, true) {
                due.push((id, watch.next_revision - 1));
            }
        }
        for (id, reached) in due {
            self.send(id, Some(reached), WatchResponse::default()).await?;
        }
        Ok(())
    }

    /// Waits for a peer that does not read; nothing else holds it back, and nothing else is needed.
    async fn send(&self, watch_id: i64, revision: Option<i64>, answer: WatchResponse) -> Result<(), Gone> {
        let revision = revision.unwrap_or_else(|| self.view.store().revision());
        let answer = WatchResponse { header: self.view.header(revision), watch_id, ..answer };
        self.responses.send(Ok(answer)).await.map_err(|_| Gone)
    }
}

impl Watch {
    /// Moves the cursor. `Err`: the log begins only at this revision.
    fn next_batch(&mut self, store: &Store) -> Result<Vec<Event>, i64> {
        let (events, next) = match store.events_from(self.next_revision, &self.span, BATCH_BYTES) {
            Ok(batch) => batch,
            Err(RevisionError::Compacted { oldest }) => return Err(oldest),
            Err(RevisionError::Future) => return Ok(Vec::new()),
        };
        self.next_revision = next;
        let shown = events.into_iter().filter(|event| !self.hidden.contains(&event.r#type()));
        Ok(shown.map(|event| self.as_sent(event)).collect())
    }

    fn as_sent(&self, event: &Event) -> Event {
        let prev_kv = if self.prev_kv { event.prev_kv.clone() } else { None };
        Event { r#type: event.r#type, kv: event.kv.clone(), prev_kv }
    }
}

fn canceled(cancel_reason: String) -> WatchResponse {
    WatchResponse { canceled: true, cancel_reason, ..Default::default() }
}
