//! One connection to one mesh server: list everything at one revision, then watch from there.
use super::connector::{Connector, Refusal};
use crate::pb::{
    etcdserverpb::{
        RangeRequest, ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse,
        kv_client::KvClient,
        range_request::{SortOrder, SortTarget},
        watch_client::WatchClient,
        watch_request::RequestUnion,
    },
    mvccpb::{Event, event::EventType},
};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use weft_clustermesh_core::Change;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that does not answer a ping in time is left, well before its cluster would count as dead.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
const PAGE_KEYS: i64 = 1000;
/// A service with very many backends makes a large answer; a peer cannot make us hold more.
const ANSWER_BYTES: usize = 64 << 20;
/// Of one list: a peer cannot make us hold more.
const MAX_LISTED: usize = 2_000_000;

/// Keys to list and watch.
#[derive(Clone, Debug)]
pub(super) struct Span {
    key: Bytes,
    end: Bytes,
    /// A server that refuses it, as Cilium's does for keys that it does not know, is read without it.
    optional: bool,
}

impl Span {
    pub fn key(key: String) -> Self {
        Self { key: key.into(), end: Bytes::new(), optional: false }
    }

    pub fn prefix(prefix: impl Into<String>) -> Self {
        let key = Bytes::from(prefix.into());
        let mut end = key.to_vec();
        // Our prefixes are text: the last byte is below 0xff.
        if let Some(last) = end.last_mut() {
            *last = last.wrapping_add(1);
        }
        Self { key, end: end.into(), optional: false }
    }

    pub fn optional(self) -> Self {
        Self { optional: true, ..self }
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("{0:?} is not host:port")]
    Endpoint(String),
    #[error("cannot connect: {}", weft_certs::explain(.0))]
    Connect(tonic::transport::Error),
    #[error("no connection within {CONNECT_TIMEOUT:?}")]
    ConnectTimeout,
    #[error("{}", status_text(.0))]
    Status(Box<Status>),
    #[error("the server refuses our certificate ({0}): has its cluster connected ours?")]
    Refused(String),
    #[error("an answer without a header: is this an etcd?")]
    NoHeader,
    #[error("another server answers at this address than before")]
    OtherServer,
    #[error("the server's history has moved on: listing again")]
    Compacted,
    #[error("the server ended the watch: {0}")]
    Canceled(String),
    #[error("the server closed the connection")]
    Closed,
    #[error("nothing heard for {0:?}")]
    Silent(Duration),
    #[error("more than {MAX_LISTED} keys")]
    TooMany,
}

impl From<Status> for SessionError {
    fn from(status: Status) -> Self {
        if status.code() == Code::OutOfRange { Self::Compacted } else { Self::Status(Box::new(status)) }
    }
}

fn status_text(status: &Status) -> String {
    let cause = std::error::Error::source(status).map(|cause| format!(" ({})", weft_certs::explain(cause)));
    format!("{}{}", status.message(), cause.unwrap_or_default())
}

pub(super) struct Session {
    channel: Channel,
    refusal: Refusal,
    /// Of the first answer; revisions mean something with this server only.
    server: Option<u64>,
    revision: i64,
    spans: Vec<Span>,
}

impl Session {
    pub async fn open(
        endpoint: &str,
        tls: Option<Arc<rustls::ClientConfig>>,
        spans: Vec<Span>,
    ) -> Result<Self, SessionError> {
        let wrong = || SessionError::Endpoint(endpoint.to_owned());
        // The scheme is for tonic alone, which would insist on its own TLS for https.
        let uri = Endpoint::from_shared(format!("http://{endpoint}")).map_err(|_| wrong())?;
        let refusal = Arc::default();
        let connector = Connector { address: endpoint.to_owned(), tls, refusal: Arc::clone(&refusal) };
        let endpoint = uri
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20);
        let channel = tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect_with_connector(connector))
            .await
            .map_err(|_| SessionError::ConnectTimeout)?
            .map_err(SessionError::Connect)?;
        Ok(Self { channel, refusal, server: None, revision: 0, spans })
    }

    /// Every key of the spans at one revision.
    pub async fn list(&mut self) -> Result<Vec<(Bytes, Bytes)>, SessionError> {
        let mut kvs = vec![];
        for span in std::mem::take(&mut self.spans) {
            match self.list_span(&span, &mut kvs).await {
                Err(SessionError::Status(status)) if span.optional && status.code() == Code::PermissionDenied => {}
                Ok(()) => self.spans.push(span),
                // With TLS 1.3 a client hears only after its own handshake that it is not welcome.
                Err(error) => return Err(self.refusal.get().cloned().map_or(error, SessionError::Refused)),
            }
        }
        Ok(kvs)
    }

    async fn list_span(&mut self, span: &Span, kvs: &mut Vec<(Bytes, Bytes)>) -> Result<(), SessionError> {
        let mut client = KvClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES);
        let mut key = span.key.clone();
        loop {
            let request = RangeRequest {
                key,
                range_end: span.end.clone(),
                limit: PAGE_KEYS,
                revision: self.revision,
                sort_order: SortOrder::Ascend.into(),
                sort_target: SortTarget::Key.into(),
                ..RangeRequest::default()
            };
            let answer = tokio::time::timeout(REQUEST_TIMEOUT, client.range(request))
                .await
                .map_err(|_| SessionError::Silent(REQUEST_TIMEOUT))??
                .into_inner();
            let revision = self.check(answer.header.as_ref())?;
            if self.revision == 0 {
                self.revision = revision;
            }
            let last = answer.kvs.last().map(|kv| [&kv.key[..], b"\0"].concat());
            kvs.extend(answer.kvs.into_iter().map(|kv| (kv.key, kv.value)));
            if kvs.len() > MAX_LISTED {
                return Err(SessionError::TooMany);
            }
            match last {
                Some(last) if answer.more => key = last.into(),
                _ => return Ok(()),
            }
        }
    }

    pub async fn watch(&mut self) -> Result<Watched, SessionError> {
        let create = |span: &Span| WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
                key: span.key.clone(),
                range_end: span.end.clone(),
                start_revision: self.revision + 1,
                ..WatchCreateRequest::default()
            })),
        };
        let (open, requests) = mpsc::channel(self.spans.len().max(1));
        for span in &self.spans {
            // There is room for all of them.
            let _ = open.try_send(create(span));
        }
        let requests = ReceiverStream::new(requests);
        let mut request = tonic::Request::new(requests);
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let mut client = WatchClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES);
        let answers = tokio::time::timeout(REQUEST_TIMEOUT, client.watch(request))
            .await
            .map_err(|_| SessionError::Silent(REQUEST_TIMEOUT))??
            .into_inner();
        Ok(Watched { answers, _open: open })
    }

    /// The next changes, at most `patience` from now.
    pub async fn next(&mut self, watched: &mut Watched, patience: Duration) -> Result<Vec<Change>, SessionError> {
        let answer: WatchResponse = tokio::time::timeout(patience, watched.answers.message())
            .await
            .map_err(|_| SessionError::Silent(patience))??
            .ok_or(SessionError::Closed)?;
        self.check(answer.header.as_ref())?;
        if answer.compact_revision > 0 {
            return Err(SessionError::Compacted);
        }
        if answer.canceled {
            return Err(SessionError::Canceled(answer.cancel_reason));
        }
        Ok(answer.events.into_iter().filter_map(change).collect())
    }

    fn check(&mut self, header: Option<&ResponseHeader>) -> Result<i64, SessionError> {
        let header = header.ok_or(SessionError::NoHeader)?;
        match *self.server.get_or_insert(header.cluster_id) == header.cluster_id {
            true => Ok(header.revision),
            false => Err(SessionError::OtherServer),
        }
    }
}

pub(super) struct Watched {
    answers: Streaming<WatchResponse>,
    /// The server ends a watch whose requests end; and a connection lasts as long as they do not.
    _open: mpsc::Sender<WatchRequest>,
}

fn change(event: Event) -> Option<Change> {
    let deleted = event.r#type() == EventType::Delete;
    let kv = event.kv?;
    Some(if deleted { Change::Delete { key: kv.key } } else { Change::Put { key: kv.key, value: kv.value } })
}
