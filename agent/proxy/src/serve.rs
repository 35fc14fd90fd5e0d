//! Captured connections: refused, spliced, or served as HTTP, as policy and plugins say.
use crate::{
    capture::connect::reset,
    conn::{Conn, DialError},
    http::sniff::{Kind, classify},
    state::Decision,
    stream::{BoxStream, Rewind, splice},
    worker::Worker,
};
use bytes::BytesMut;
use std::{io, net::SocketAddr, rc::Rc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep},
};
use weft_proxy_api::flow::Verdict;

/// For the first request line.
pub const FIRST_BYTES_TIME: Duration = Duration::from_secs(10);
const NOT_HTTP: &str = "not HTTP, where policy or plugins take only HTTP";
const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 12\r\nConnection: close\r\n\r\nBad Request\n";

/// A connection in plain text to a local pod.
pub async fn inbound(worker: Rc<Worker>, stream: TcpStream, client: SocketAddr, destination: SocketAddr) {
    judge_and_serve(Conn::new(worker, true, client, destination, None), stream).await;
}

/// A connection of a local pod: HTTP rules on egress, or mutual TLS to the destination. Where that is due and cannot be
/// had the connection is refused; it never goes out in plain text.
pub async fn outbound(worker: Rc<Worker>, stream: TcpStream, client: SocketAddr, destination: SocketAddr) {
    judge_and_serve(Conn::new(worker, false, client, destination, None), stream).await;
}

async fn judge_and_serve(conn: Conn, stream: TcpStream) {
    let conn = Rc::new(conn);
    if let Decision::Deny { reason, policy } = &conn.judged().decision {
        conn.tell(Verdict::Dropped, reason, policy, "");
        return reset(stream);
    }
    match ready(&conn).await {
        Ok(ready) => serve(conn, ready, Box::new(stream)).await,
        Err(error) => {
            unreachable(&conn, &error);
            reset(stream);
        }
    }
}

/// How a connection will be served, and its server where that is needed before the client's first byte.
pub struct Ready {
    mode: Mode,
    server: Option<BoxStream>,
}

pub async fn ready(conn: &Conn) -> Result<Ready, DialError> {
    let mode = mode(conn);
    let server = match mode {
        Mode::Http => None,
        Mode::Splice | Mode::Detect => Some(conn.dial().await?),
    };
    Ok(Ready { mode, server })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Splice,
    /// Plugins see it if it turns out to be HTTP.
    Detect,
    /// HTTP, or nothing.
    Http,
}

fn mode(conn: &Conn) -> Mode {
    let judged = conn.judged();
    if matches!(judged.decision, Decision::Http { .. }) {
        return Mode::Http;
    }
    let plugins = &judged.view.generation.compiled.plugins;
    let named_port = |index: &usize| plugins[*index].plugin.ports.contains(&conn.destination.port());
    match &judged.chain[..] {
        [] => Mode::Splice,
        chain if chain.iter().any(named_port) => Mode::Http,
        _ => Mode::Detect,
    }
}

/// Serves a connection that policy has let in, whatever carries it.
pub async fn serve(conn: Rc<Conn>, ready: Ready, mut client: BoxStream) {
    let Ready { mode, mut server } = ready;
    let mut ahead = BytesMut::new();
    let first = match mode {
        Mode::Splice => First::Client(Kind::Other),
        Mode::Detect | Mode::Http => match first_bytes(&mut client, server.as_mut(), &mut ahead).await {
            Ok(first) => first,
            Err(error) => return tracing::debug!(source = %conn.source, %error, "no first bytes"),
        },
    };
    match (first, server) {
        (First::Client(kind @ (Kind::Http1 | Kind::Http2)), server) => {
            crate::http::serve::serve(conn, kind, Box::new(Rewind::new(ahead, client)), server).await;
        }
        (First::Client(Kind::Other), Some(server)) => {
            spliced(&conn, Box::new(Rewind::new(ahead, client)), server).await;
        }
        (First::Server(said), Some(server)) => {
            spliced(&conn, Box::new(Rewind::new(ahead, client)), Box::new(Rewind::new(said, server))).await;
        }
        (First::Client(Kind::Other) | First::Server(_) | First::Unclear, _) => {
            conn.tell(Verdict::Dropped, NOT_HTTP, "", "");
            // The client may be gone already; it was refused either way.
            let _ = client.write_all(BAD_REQUEST).await;
            let _ = client.shutdown().await;
        }
        (First::Closed, _) => {}
    }
}

enum First {
    Client(Kind),
    /// The server spoke first, so this is not HTTP.
    Server(BytesMut),
    /// What could become a request line, but did not. Passing it on would let a slow client around the plugins.
    Unclear,
    Closed,
}

/// Who speaks first, and whether a client that does speaks HTTP. With a server at hand there is no hurry before the
/// first byte: the connection may idle. A head that was begun must end in time.
async fn first_bytes(
    client: &mut BoxStream,
    mut server: Option<&mut BoxStream>,
    ahead: &mut BytesMut,
) -> io::Result<First> {
    let mut said = BytesMut::new();
    let patience = sleep(FIRST_BYTES_TIME);
    tokio::pin!(patience);
    loop {
        if let Some(kind) = classify(ahead) {
            return Ok(First::Client(kind));
        }
        let both_silent = ahead.is_empty() && server.is_some();
        let read = tokio::select! {
            read = client.read_buf(ahead) => read?,
            read = read_from(server.as_deref_mut(), &mut said), if both_silent => {
                read?;
                return Ok(First::Server(said));
            }
            () = &mut patience, if !both_silent => return Ok(First::Unclear),
        };
        if both_silent {
            patience.as_mut().reset(Instant::now() + FIRST_BYTES_TIME);
        }
        if read == 0 {
            return Ok(match (ahead.is_empty(), server.is_some()) {
                (true, true) => First::Client(Kind::Other),
                (true, false) => First::Closed,
                (false, _) => First::Unclear,
            });
        }
    }
}

/// Without a stream: never.
async fn read_from(stream: Option<&mut BoxStream>, into: &mut BytesMut) -> io::Result<usize> {
    match stream {
        Some(stream) => stream.read_buf(into).await,
        None => std::future::pending().await,
    }
}

async fn spliced(conn: &Conn, client: BoxStream, server: BoxStream) {
    let judged = conn.judged();
    let policy = match &judged.decision {
        Decision::Allow { policy } => policy.as_str(),
        _ => "",
    };
    conn.tell(Verdict::Forwarded, "", policy, "");
    if let Err(error) = splice(client, server).await {
        tracing::debug!(source = %conn.source, destination = %conn.destination, %error, "a connection broke");
    }
}

pub fn unreachable(conn: &Conn, error: &DialError) {
    let why = weft_certs::explain(error);
    tracing::debug!(source = %conn.source, destination = %conn.destination, why, "the server cannot be reached");
    conn.tell(Verdict::Error, &why, "", "");
}
