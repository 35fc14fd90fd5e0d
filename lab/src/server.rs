//! What example pods serve: HTTP with a few paths to write policies for, and echoes over TCP and UDP.
//!
//! `GET /` and every unknown path answer 200 with who serves and whom it sees; `/healthz` answers 200 until the file
//! named by `--unready-file` exists, or the server is told to end. After SIGTERM it serves for a while yet: the news
//! that it goes away takes its time to reach its clients.
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::{Map, Value, json};
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream, UdpSocket},
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::sleep,
};

const MOST_BODY: usize = 1 << 20;
const MOST_CONNECTIONS: usize = 4096;
/// `GET /bytes/N` answers with at most this many.
const MOST_BYTES: usize = 256 << 20;
const CHUNK: [u8; 16 * 1024] = [b'w'; 16 * 1024];

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Serve HTTP/1.1, and HTTP/2 with prior knowledge, on this port
    #[arg(long, value_name = "PORT")]
    http: Vec<u16>,
    /// Echo TCP on this port, after a line with the server's name and the client's address
    #[arg(long, value_name = "PORT")]
    tcp: Vec<u16>,
    /// Echo UDP on this port, with the server's name before it
    #[arg(long, value_name = "PORT")]
    udp: Vec<u16>,
    /// The name in every answer
    #[arg(long, env = "POD_NAME", default_value = "server")]
    name: String,
    /// While this file exists /healthz answers 503
    #[arg(long, value_name = "FILE")]
    unready_file: Option<PathBuf>,
    /// How long to serve on after SIGTERM, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    drain: f64,
}

struct Server {
    name: String,
    unready_file: Option<PathBuf>,
    ending: AtomicBool,
}

/// Serves until SIGTERM and the drain time after it. Fails if a port is taken.
pub async fn serve(options: Options) -> io::Result<()> {
    let drain = Duration::try_from_secs_f64(options.drain).map_err(io::Error::other)?;
    let server = Server { name: options.name, unready_file: options.unready_file, ending: AtomicBool::new(false) };
    let server = Arc::new(server);
    let mut tasks = JoinSet::new();
    for port in options.http {
        tasks.spawn(accept(listen(port)?, server.clone(), http_connection));
    }
    for port in options.tcp {
        tasks.spawn(accept(listen(port)?, server.clone(), echo_connection));
    }
    for port in options.udp {
        let socket = UdpSocket::bind(everywhere(port)).await?;
        tasks.spawn(echo_datagrams(socket, server.clone()));
    }
    signal(SignalKind::terminate())?.recv().await;
    server.ending.store(true, Ordering::Relaxed);
    sleep(drain).await;
    Ok(())
}

/// Both families; a machine without IPv6 has one.
fn everywhere(port: u16) -> SocketAddr {
    let v6 = std::fs::exists("/proc/sys/net/ipv6").unwrap_or(false);
    if v6 { SocketAddr::from(([0u16; 8], port)) } else { SocketAddr::from(([0u8; 4], port)) }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(everywhere(port))
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on port {port}: {error}")))?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn accept<F>(listener: TcpListener, server: Arc<Server>, attend: fn(TcpStream, SocketAddr, Arc<Server>) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MOST_CONNECTIONS => {
                if let Ok((stream, peer)) = accepted {
                    connections.spawn(attend(stream, plain(peer), server.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn http_connection(stream: TcpStream, peer: SocketAddr, server: Arc<Server>) {
    // Answers are small: none is to wait for another.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(server.answer(request, peer).await) }
    });
    // A client may break off at any time; that is its affair.
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

async fn echo_connection(mut stream: TcpStream, peer: SocketAddr, server: Arc<Server>) {
    let greeting = format!("{} {peer}\n", server.name);
    let (mut read, mut write) = stream.split();
    if write.write_all(greeting.as_bytes()).await.is_ok() {
        let _ = tokio::io::copy(&mut read, &mut write).await;
    }
}

async fn echo_datagrams(socket: UdpSocket, server: Arc<Server>) {
    let mut buffer = vec![0; 65536];
    loop {
        // Errors belong to earlier datagrams: a client's port that was closed.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let answer = [server.name.as_bytes(), b" ", &buffer[..length]].concat();
        let _ = socket.send_to(&answer, peer).await;
    }
}

impl Server {
    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let Ok(body) = Limited::new(body, MOST_BODY).collect().await else {
            return reply(StatusCode::PAYLOAD_TOO_LARGE, &json!({"error": "the body has more than 1 MiB"}));
        };
        let body = body.to_bytes();
        let path = head.uri.path();
        if path == "/healthz" {
            let ready =
                !self.ending.load(Ordering::Relaxed) && !self.unready_file.as_ref().is_some_and(|file| file.exists());
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            return reply(status, &json!({"server": self.name, "ready": ready}));
        }
        if let Some(length) = path.strip_prefix("/bytes/").and_then(|length| length.parse::<usize>().ok()) {
            let length = length.min(MOST_BYTES);
            return Response::new(Full::new(CHUNK.iter().copied().cycle().take(length).collect::<Vec<u8>>().into()));
        }
        let mut answer = json!({
            "server": self.name,
            "peer": peer.to_string(),
            "method": head.method.as_str(),
            "path": path,
            "version": format!("{:?}", head.version),
            "headers": headers(&head.headers),
        });
        if let Some(user) = path.strip_prefix("/api/users/") {
            answer["user"] = json!({"id": user, "name": format!("user {user}")});
        }
        if path == "/api/login" {
            answer["session"] = json!("open");
        }
        if !body.is_empty() {
            answer["body"] = json!(String::from_utf8_lossy(&body));
        }
        reply(StatusCode::OK, &answer)
    }
}

fn reply(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(format!("{body}\n").into()));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn headers(headers: &HeaderMap) -> Value {
    let text = |value: &http::HeaderValue| Value::String(String::from_utf8_lossy(value.as_bytes()).into_owned());
    headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect::<Map<_, _>>().into()
}

/// An IPv4 client of a socket for both families is shown as what it is.
fn plain(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}
