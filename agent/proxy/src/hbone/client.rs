//! Opens HBONE to another workload's proxy, as the local workload.
use super::{
    CONNECTION_WINDOW, FRAME, HANDSHAKE_TIME, HEADER_LIST, PING, PING_TIME, PORT, WINDOW,
    credentials::CredentialsError,
    forwarded,
    pool::{Key, Lease, Tunnel},
    server,
};
use crate::{
    capture::connect::connect_as,
    conn::{Conn, Judged},
    http::serve::Local,
    stream::BoxStream,
    worker::Open,
};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header::FORWARDED};
use http_body_util::Empty;
use hyper::{client::conn::http2, upgrade::Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, duplex},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use weft_proxy_api::config::WorkloadInfo;

const LOCAL_BUFFER: usize = 256 * 1024;

/// Why there is no tunnel. The connection is refused then.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("mutual TLS is due, but the {0} is not a workload that has an identity")]
    NoWorkload(&'static str),
    #[error("mutual TLS is due, but the proxy of {0} takes no HBONE")]
    NoHbone(String),
    #[error("mutual TLS is due, but there is no certificate for it")]
    Credentials(#[from] CredentialsError),
    #[error("the proxy of the destination cannot be reached on port {PORT}")]
    Connect(#[source] io::Error),
    #[error("no valid SPIFFE identity: the handshake failed")]
    Handshake(#[source] io::Error),
    #[error("the proxy of the destination answers no HBONE")]
    Http(#[from] hyper::Error),
    #[error("the proxy of the destination refuses this workload: policy denies it")]
    Denied,
    #[error("the proxy of the destination answered {0}")]
    Refused(StatusCode),
    #[error("the proxy of the destination did not answer in time")]
    TimedOut,
}

/// A stream to the destination of `conn` whose other end has proved to be the workload there.
pub async fn open(conn: &Conn, judged: &Judged) -> Result<BoxStream, TunnelError> {
    let source = judged.source.workload.as_ref().ok_or(TunnelError::NoWorkload("source"))?;
    let destination = judged.destination.workload.as_ref().ok_or(TunnelError::NoWorkload("destination"))?;
    if !destination.hbone {
        return Err(TunnelError::NoHbone(destination.pod.to_string()));
    }
    let key = Key {
        source: conn.source.ip(),
        source_id: source.spiffe_id.clone(),
        destination: conn.destination.ip(),
        destination_id: destination.spiffe_id.clone(),
    };
    let opened = timeout(HANDSHAKE_TIME, async {
        let tunnel = match conn.worker.tunnels.get(&key) {
            Some(tunnel) => tunnel,
            None => connect(conn, judged, key, destination.local).await?,
        };
        let lease = tunnel.lease();
        let mut sender = tunnel.sender.clone();
        sender.ready().await?;
        let response = sender.send_request(request(conn, source)?).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => return Err(TunnelError::Denied),
            status => return Err(TunnelError::Refused(status)),
        }
        let stream = TokioIo::new(hyper::upgrade::on(response).await?);
        Ok(Box::new(Leased { stream, _lease: lease }) as BoxStream)
    });
    opened.await.unwrap_or(Err(TunnelError::TimedOut))
}

async fn connect(conn: &Conn, judged: &Judged, key: Key, local: bool) -> Result<Rc<Tunnel>, TunnelError> {
    let credentials = &judged.view.generation.credentials;
    let tls = credentials.client(&key.source_id, &key.destination_id)?;
    let to = SocketAddr::new(key.destination, PORT);
    let from = SocketAddr::new(key.source, 0);
    let stream: BoxStream = if local {
        // Our own listener would not see it: what the proxy sends is never captured. The rest is the same.
        let (ours, theirs) = duplex(LOCAL_BUFFER);
        let worker = conn.worker.clone();
        let serving: Pin<Box<dyn Future<Output = ()>>> =
            Box::pin(server::handle(worker, Box::new(theirs), conn.source, to));
        conn.worker.tasks.spawn_local(serving);
        Box::new(ours)
    } else {
        Box::new(connect_as(from, to).await.map_err(TunnelError::Connect)?)
    };
    let name = ServerName::IpAddress(key.destination.into());
    let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(TunnelError::Handshake)?;
    let (sender, connection) = http2::Builder::new(Local)
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(HEADER_LIST)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING_TIME)
        .handshake(TokioIo::new(stream))
        .await?;
    let tunnel = Tunnel::new(sender);
    let (worker, stop) = (conn.worker.clone(), conn.worker.shared.stop.clone());
    worker.tunnels.put(key.clone(), tunnel.clone());
    let open = Open::new(&worker.shared.metrics.hbone_client);
    let running = tunnel.clone();
    conn.worker.tasks.spawn_local(async move {
        running.clone().run(connection, stop).await;
        worker.tunnels.remove(&key, &running);
        drop(open);
    });
    Ok(tunnel)
}

fn request(conn: &Conn, source: &WorkloadInfo) -> Result<Request<Empty<Bytes>>, TunnelError> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::CONNECT;
    // An address and port always make an authority.
    let authority = conn.destination.to_string().parse().map_err(|_| TunnelError::NoWorkload("destination"))?;
    let mut uri = http::uri::Parts::default();
    uri.authority = Some(authority);
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| TunnelError::NoWorkload("destination"))?;
    if let Some(value) = forwarded::header(conn.source) {
        request.headers_mut().insert(FORWARDED, value);
    }
    if let Ok(value) = HeaderValue::from_str(&baggage(source)) {
        request.headers_mut().insert("baggage", value);
    }
    Ok(request)
}

/// As ztunnel tells of workloads.
pub fn baggage(workload: &WorkloadInfo) -> String {
    format!(
        "k8s.cluster.name={},k8s.namespace.name={},k8s.pod.name={}",
        workload.cluster, workload.pod.namespace, workload.pod.name
    )
}

/// A tunnelled stream that keeps its tunnel open.
struct Leased {
    stream: TokioIo<Upgraded>,
    _lease: Lease,
}

impl AsyncRead for Leased {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Leased {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
