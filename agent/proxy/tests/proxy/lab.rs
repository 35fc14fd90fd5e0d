//! Proxies, agents, servers and clients on loopback. Every test has addresses of its own, so they run side by side.
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use std::{
    convert::Infallible,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, SystemTime},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream, UnixStream, unix::OwnedWriteHalf},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use weft_certs::{ClusterCa, SpiffeId, TrustDomain};
use weft_model::{
    policy::{EndpointPolicy, HttpRule, Peers, Rule},
    types::{ObjectName, PluginPhase, WasmPlugin},
};
use weft_proxy::{
    app::{App, Settings},
    capture::listeners::{Listener, Role},
};
use weft_proxy_api::{
    config::{PluginConfig, ProxyConfig, Svid, WorkloadInfo},
    flow::{Flow, ProxyStatus},
    wire::{self, FromProxy, ToProxy},
};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// Addresses of one test: a /24 of 127.0.0.0/8.
pub struct Net(u8, u8);

impl Net {
    pub fn new() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        Self(10 + (std::process::id() % 200) as u8, NEXT.fetch_add(1, Ordering::Relaxed))
    }
    pub fn ip(&self, last: u8) -> IpAddr {
        Ipv4Addr::new(127, self.0, self.1, last).into()
    }
}

pub struct Node {
    pub app: App,
    pub dir: TempDir,
    pub captured: SocketAddr,
    pub socket: PathBuf,
}

impl Node {
    /// A proxy whose one listener gets connections that were meant for `original`.
    pub async fn start(role: Role, listen: SocketAddr, original: Option<SocketAddr>) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), role, listen, original).await
    }

    pub async fn start_in(dir: TempDir, role: Role, listen: SocketAddr, original: Option<SocketAddr>) -> Self {
        let socket = std::net::TcpListener::bind(listen).unwrap();
        socket.set_nonblocking(true).unwrap();
        let captured = socket.local_addr().unwrap();
        let listeners = Some(vec![Listener { role, socket, original }]);
        let app = App::start(settings(&dir, listeners)).await.unwrap();
        Self { app, socket: dir.path().join("proxy.sock"), dir, captured }
    }

    pub async fn agent(&self, config: ProxyConfig) -> Agent {
        let mut agent = self.watch().await;
        agent.configure(config).await;
        agent
    }

    /// Listens, without a configuration.
    pub async fn watch(&self) -> Agent {
        Agent::connect(&self.socket).await
    }
}

pub fn settings(dir: &TempDir, listeners: Option<Vec<Listener>>) -> Settings {
    Settings {
        socket: dir.path().join("proxy.sock"),
        state_dir: dir.path().join("state"),
        plugin_cache: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("plugins"),
        metrics: "127.0.0.1:0".parse().unwrap(),
        workers: 1,
        listeners,
    }
}

/// The agent's side of the socket.
pub struct Agent {
    to: OwnedWriteHalf,
    statuses: mpsc::UnboundedReceiver<ProxyStatus>,
    flows: mpsc::UnboundedReceiver<Flow>,
    pub status: ProxyStatus,
    _reader: JoinSet<()>,
}

impl Agent {
    async fn connect(socket: &std::path::Path) -> Self {
        let (from, to) = UnixStream::connect(socket).await.unwrap().into_split();
        let (tell_status, statuses) = mpsc::unbounded_channel();
        let (tell_flow, flows) = mpsc::unbounded_channel();
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            let mut from = BufReader::new(from);
            while let Ok(Some(message)) = wire::read(&mut from).await {
                match message {
                    FromProxy::Status(status) => drop(tell_status.send(status)),
                    FromProxy::Flow(flow) => drop(tell_flow.send(*flow)),
                    FromProxy::LostFlows(_) => {}
                }
            }
        });
        let mut agent = Self { to, statuses, flows, status: ProxyStatus::default(), _reader: reader };
        agent.next_status().await;
        agent
    }

    pub async fn send(&mut self, message: &ToProxy) {
        wire::write(&mut self.to, message).await.unwrap();
        self.next_status().await;
    }

    pub async fn send_raw(&mut self, line: &[u8]) {
        self.to.write_all(line).await.unwrap();
        self.next_status().await;
    }

    pub async fn configure(&mut self, config: ProxyConfig) {
        self.send(&ToProxy::Config(Box::new(config))).await;
    }

    async fn next_status(&mut self) {
        self.status = timeout(PATIENCE, self.statuses.recv()).await.expect("no status").unwrap();
    }

    /// The next flow.
    pub async fn flow(&mut self) -> Flow {
        timeout(PATIENCE, self.flows.recv()).await.expect("no flow").unwrap()
    }
}

pub fn id(account: &str) -> SpiffeId {
    format!("spiffe://east.example/ns/shop/sa/{account}").parse().unwrap()
}

pub fn domain() -> TrustDomain {
    "east.example".parse().unwrap()
}

pub fn workload(address: IpAddr, account: &str, identity: u32, local: bool) -> WorkloadInfo {
    WorkloadInfo {
        addresses: vec![address],
        pod: ObjectName::new("shop", account),
        cluster: "east".to_owned().try_into().unwrap(),
        spiffe_id: id(account),
        identity,
        labels: [].into(),
        local,
        hbone: true,
    }
}

pub const FRONTEND: u32 = 300;
pub const API: u32 = 301;

/// A frontend and an API pod with these addresses; no policy, the built-in plugins.
pub fn config(frontend: IpAddr, api: IpAddr) -> ProxyConfig {
    ProxyConfig {
        version: 1,
        node: "n1".into(),
        cluster: "east".to_owned().try_into().unwrap(),
        trust_domain: domain(),
        map_dir: PathBuf::new(),
        workloads: vec![workload(frontend, "frontend", FRONTEND, true), workload(api, "api", API, true)],
        identities: vec![],
        policies: [].into(),
        auth_destinations: vec![],
        svids: vec![],
        trust_bundles: [].into(),
        plugins: ["http-policy", "spiffe-authz"].map(built_in).into(),
        deny_status: 403,
        wireguard: None,
    }
}

/// Lets the frontend in, on the conditions given.
pub fn policy(http: Option<Vec<HttpRule>>, auth_required: bool) -> EndpointPolicy {
    EndpointPolicy {
        enforce_ingress: true,
        ingress: vec![Rule {
            policy: "shop/api-rules".into(),
            deny: false,
            peers: Peers::Identities(vec![FRONTEND]),
            ports: vec![],
            http,
            auth_required,
        }],
        ..EndpointPolicy::default()
    }
}

pub fn get(path: &str) -> Option<Vec<HttpRule>> {
    Some(vec![HttpRule { method: Some("GET".into()), path: Some(path.into()), ..HttpRule::default() }])
}

fn built_in(name: &str) -> PluginConfig {
    let module = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../target/plugins/{name}.wasm"));
    assert!(module.exists(), "{} is not built: run `cargo xtask build`", module.display());
    plugin(name, module, None)
}

pub fn plugin(name: &str, module: PathBuf, targets: Option<Vec<IpAddr>>) -> PluginConfig {
    PluginConfig {
        plugin: WasmPlugin {
            name: ObjectName::new("shop", name),
            selector: [].into(),
            url: String::new(),
            sha256: String::new(),
            phase: PluginPhase::Authz,
            priority: 0,
            plugin_config: serde_json::Value::Null,
            fail_open: false,
            ports: vec![],
            env: [].into(),
        },
        module,
        targets,
    }
}

/// A Proxy-Wasm module whose callback for request headers has this body, without its end.
pub fn module(on_request_headers: &[u8]) -> Vec<u8> {
    let section = |id: u8, content: Vec<u8>| [vec![id, content.len() as u8], content].concat();
    let export = |name: &str, kind: u8, index: u8| [&[name.len() as u8], name.as_bytes(), &[kind, index]].concat();
    let function = |body: &[u8]| [&[body.len() as u8 + 2, 0], body, &[0x0b]].concat();
    const I32: u8 = 0x7f;
    let types = vec![3, 0x60, 0, 0, 0x60, 1, I32, 1, I32, 0x60, 3, I32, I32, I32, 1, I32];
    let exports = [
        vec![4],
        export("memory", 2, 0),
        export("proxy_abi_version_0_2_1", 0, 0),
        export("malloc", 0, 1),
        export("proxy_on_request_headers", 0, 2),
    ]
    .concat();
    let code = [vec![3], function(&[]), function(&[0x41, 0x10]), function(on_request_headers)].concat();
    let sections = [
        section(1, types),
        section(3, vec![3, 0, 1, 2]),
        section(5, vec![1, 0, 1]),
        section(7, exports),
        section(10, code),
    ];
    [b"\0asm\x01\0\0\0".to_vec(), sections.concat()].concat()
}

/// `unreachable`
pub const TRAP: &[u8] = &[0x00];
/// `loop (br 0) end; unreachable`
pub const LOOP: &[u8] = &[0x03, 0x40, 0x0c, 0x00, 0x0b, 0x00];
/// `i32.const 0`: continue.
pub const PASS: &[u8] = &[0x41, 0x00];

/// A CA with its folder.
pub struct Ca {
    pub ca: ClusterCa,
    _dir: TempDir,
}

impl Ca {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { ca: ClusterCa::load_or_create(dir.path(), &domain()).unwrap(), _dir: dir }
    }

    pub fn svid(&self, account: &str) -> Svid {
        let svid = self.ca.issue(&id(account), Duration::from_secs(3600), SystemTime::now()).unwrap();
        Svid {
            spiffe_id: svid.spiffe_id,
            certificates: svid.certificates_pem,
            private_key: svid.private_key_pem,
            not_after: svid.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(),
        }
    }

    /// Gives a configuration certificates for these workloads.
    pub fn equip(&self, config: &mut ProxyConfig, accounts: &[&str]) {
        config.svids = accounts.iter().map(|account| self.svid(account)).collect();
        config.trust_bundles = [(domain(), self.ca.bundle_pem().to_owned())].into();
    }
}

/// A server task that ends with the test.
pub struct Server {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Answers with the request's body; headers tell the peer's address and the path.
    pub async fn http(ip: IpAddr) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut tasks = JoinSet::new();
            loop {
                let (stream, peer) = listener.accept().await.unwrap();
                let service = service_fn(move |request: Request<Incoming>| answer(request, peer));
                tasks.spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, task }
    }

    /// Speaks first: says who connected. Then echoes.
    pub async fn tcp(ip: IpAddr) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut tasks = JoinSet::new();
            loop {
                let (mut stream, peer) = listener.accept().await.unwrap();
                tasks.spawn(async move {
                    let _ = stream.write_all(format!("{}\n", peer.ip()).as_bytes()).await;
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                    let _ = to.shutdown().await;
                });
            }
        });
        Self { address, task }
    }
}

async fn answer(mut request: Request<Incoming>, peer: SocketAddr) -> Result<Response<Full<Bytes>>, Infallible> {
    let response = Response::builder()
        .header("x-peer", peer.ip().to_string())
        .header("x-path", request.uri().path())
        .header("x-version", format!("{:?}", request.version()));
    if request.headers().contains_key("upgrade") {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let (mut from, mut to) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
        let response = response.status(101).header("connection", "upgrade").header("upgrade", "echo");
        return Ok(response.body(Full::default()).unwrap());
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    Ok(response.body(Full::from(body)).unwrap())
}

/// Connects from an address.
pub async fn connect(from: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from, 0)).unwrap();
    socket.connect(to).await.unwrap()
}

/// A connection that is reset at once, perhaps before `connect` returns.
pub async fn refused(from: IpAddr, to: SocketAddr) -> bool {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from, 0)).unwrap();
    let answer = match socket.connect(SocketAddr::new(to.ip(), to.port())).await {
        Ok(mut stream) => say(&mut stream, "").await,
        Err(error) => Err(error),
    };
    answer.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

/// Writes, and reads to the end.
pub async fn say(stream: &mut TcpStream, text: &str) -> std::io::Result<String> {
    stream.write_all(text.as_bytes()).await?;
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("no end of the answer")?;
    Ok(answer)
}

/// A request on a kept HTTP/1.1 connection: status, `x-peer`, body.
pub struct Client {
    pub stream: TcpStream,
}

impl Client {
    pub async fn new(from: IpAddr, to: SocketAddr) -> Self {
        Self { stream: connect(from, to).await }
    }

    pub async fn request(&mut self, method: &str, path: &str) -> (u16, String) {
        self.raw(&format!("{method} {path} HTTP/1.1\r\nHost: api.shop\r\n\r\n")).await
    }

    /// Status and the whole answer, read by its Content-Length.
    pub async fn raw(&mut self, text: &str) -> (u16, String) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
        self.answer().await
    }

    pub async fn answer(&mut self) -> (u16, String) {
        let mut answer = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&answer).to_lowercase();
            if let Some(head) = text.find("\r\n\r\n") {
                let length = text[..head]
                    .split("content-length: ")
                    .nth(1)
                    .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse::<usize>().unwrap());
                if answer.len() >= head + 4 + length {
                    let status = text[9..12].parse().unwrap();
                    return (status, String::from_utf8_lossy(&answer).into_owned());
                }
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut answer)).await.expect("no answer").unwrap();
            assert!(read > 0, "the connection ended: {text}");
        }
    }
}
