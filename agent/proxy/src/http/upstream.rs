//! The server's side of an HTTP connection: one connection of the same protocol, opened when the first request is
//! allowed, and again if the server closed it between two requests.
use super::{
    body::Body,
    serve::{Local, MAX_HEAD},
    sniff::Kind,
};
use crate::{
    conn::{Conn, DialError},
    stream::BoxStream,
};
use http::{Request, Response, StatusCode};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{cell::RefCell, io, rc::Rc, time::Duration};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

const WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
const PING: Duration = Duration::from_secs(60);

pub struct Upstream {
    conn: Rc<Conn>,
    kind: Kind,
    /// Opened before the first request.
    ready: RefCell<Option<BoxStream>>,
    http1: RefCell<Option<http1::SendRequest<Body>>>,
    http2: RefCell<Option<http2::SendRequest<Body>>>,
    driver: RefCell<Option<AbortOnDropHandle<()>>>,
    closed: Rc<Notify>,
}

#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the server broke the connection, or does not speak this protocol")]
    Http(#[from] hyper::Error),
}

impl UpstreamError {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Dial(DialError::Connect(e)) if e.kind() == io::ErrorKind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::Dial(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Http(_) => StatusCode::BAD_GATEWAY,
        }
    }
}

impl Upstream {
    pub fn new(conn: Rc<Conn>, kind: Kind, ready: Option<BoxStream>) -> Self {
        Self {
            conn,
            kind,
            ready: RefCell::new(ready),
            http1: RefCell::new(None),
            http2: RefCell::new(None),
            driver: RefCell::new(None),
            closed: Rc::default(),
        }
    }

    /// The server has closed its connection, so the client's ends as well once it is idle.
    pub async fn closed(&self) {
        self.closed.notified().await;
    }

    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, UpstreamError> {
        match self.kind {
            Kind::Http2 => self.send_http2(request).await,
            Kind::Http1 | Kind::Other => self.send_http1(request).await,
        }
    }

    async fn send_http1(&self, request: Request<Body>) -> Result<Response<Incoming>, UpstreamError> {
        let mut used = self.http1.take();
        if let Some(sender) = &mut used
            && sender.ready().await.is_err()
        {
            used = None;
        }
        let fresh = used.is_none();
        let mut sender = match used {
            Some(sender) => sender,
            None => self.connect_http1().await?,
        };
        let response = match sender.try_send_request(request).await {
            Ok(response) => response,
            Err(mut error) => match error.take_message() {
                // The server closed while the request was on its way to it; it has seen nothing of it.
                Some(request) if !fresh => {
                    sender = self.connect_http1().await?;
                    sender.send_request(request).await?
                }
                _ => return Err(error.into_error().into()),
            },
        };
        self.http1.replace(Some(sender));
        Ok(response)
    }

    async fn connect_http1(&self) -> Result<http1::SendRequest<Body>, UpstreamError> {
        let stream = self.dial().await?;
        let (sender, connection) = http1::Builder::new()
            .preserve_header_case(true)
            .max_header_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await?;
        self.drive(async move { connection.with_upgrades().await });
        Ok(sender)
    }

    async fn send_http2(&self, request: Request<Body>) -> Result<Response<Incoming>, UpstreamError> {
        let open = self.http2.borrow().clone().filter(|sender| !sender.is_closed());
        let mut sender = match open {
            Some(sender) => sender,
            None => {
                let opened = self.connect_http2().await?;
                // Another request may have opened one meanwhile: the last one is kept, the other ends with its streams.
                self.http2.replace(Some(opened.clone()));
                opened
            }
        };
        sender.ready().await?;
        Ok(sender.send_request(request).await?)
    }

    async fn connect_http2(&self) -> Result<http2::SendRequest<Body>, UpstreamError> {
        let stream = self.dial().await?;
        let (sender, connection) = http2::Builder::new(Local)
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD as u32)
            .keep_alive_interval(PING)
            .handshake(TokioIo::new(stream))
            .await?;
        self.drive(connection);
        Ok(sender)
    }

    async fn dial(&self) -> Result<BoxStream, DialError> {
        let ready = self.ready.take();
        match ready {
            Some(stream) => Ok(stream),
            None => self.conn.dial().await,
        }
    }

    /// The task is this value's: it is aborted with it, unless it has become a tunnel.
    fn drive(&self, connection: impl Future<Output = hyper::Result<()>> + 'static) {
        let closed = self.closed.clone();
        let task = tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a server's connection broke");
            }
            closed.notify_one();
        });
        self.driver.replace(Some(AbortOnDropHandle::new(task)));
    }
}
