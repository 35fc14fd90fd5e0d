//! Steady HTTP load with counts: some connections that stay, and new ones at a rate. Any failure is counted by its text.
use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};

/// Different texts of failures that are kept; further ones only count.
const MOST_TEXTS: usize = 16;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// http://HOST:PORT/PATH
    #[arg(long)]
    url: Uri,
    /// Requests a second on new connections
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// Connections that stay, with ten requests a second each
    #[arg(long, default_value_t = 2)]
    kept: usize,
    /// How long
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How long one request may take, its connection included, in seconds
    #[arg(long, default_value_t = 5.0)]
    patience: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub ok: u64,
    pub failed: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Requests on connections that were made for them.
    pub new_connections: Counts,
    /// Requests on connections that stay; one that is lost is a failure, and is made again.
    pub kept_connections: Counts,
    pub statuses: BTreeMap<u16, u64>,
    /// By the name that the server gives in its answer.
    pub servers: BTreeMap<String, u64>,
    pub errors: BTreeMap<String, u64>,
}

#[derive(Clone)]
struct Run {
    url: Uri,
    address: String,
    patience: Duration,
    end: Instant,
    summary: Arc<Mutex<Summary>>,
}

#[derive(Clone, Copy)]
enum Kind {
    New,
    Kept,
}

/// Fails only if the URL cannot be used; failed requests are in the summary.
pub async fn run(options: Options) -> io::Result<Summary> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {what}", options.url));
    let host = options.url.host().ok_or_else(|| invalid("want http://HOST:PORT/PATH"))?;
    let seconds = |value: f64| Duration::try_from_secs_f64(value).map_err(io::Error::other);
    let run = Run {
        address: format!("{host}:{}", options.url.port_u16().unwrap_or(80)),
        url: options.url.clone(),
        patience: seconds(options.patience)?,
        end: Instant::now() + seconds(options.seconds)?,
        summary: Arc::default(),
    };
    let mut tasks = JoinSet::new();
    for _ in 0..options.kept {
        tasks.spawn(run.clone().keep());
    }
    if options.rate > 0.0 {
        let mut ticks = interval(seconds(1.0 / options.rate)?);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while Instant::now() < run.end {
            ticks.tick().await;
            let run = run.clone();
            tasks.spawn(async move {
                let outcome = run.timed(async { run.request(&mut run.connect().await?).await }).await;
                run.count(Kind::New, outcome);
            });
            while tasks.try_join_next().is_some() {}
        }
    } else {
        sleep_until(run.end.into()).await;
    }
    while tasks.join_next().await.is_some() {}
    let summary = run.summary.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(summary.clone())
}

impl Run {
    async fn keep(self) {
        let mut ticks = interval(Duration::from_millis(100));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connection = None;
        while Instant::now() < self.end {
            ticks.tick().await;
            let mut sender = match connection.take() {
                Some(sender) => sender,
                None => match self.timed(self.connect()).await {
                    Ok(sender) => sender,
                    Err(error) => {
                        self.count(Kind::Kept, Err(error));
                        continue;
                    }
                },
            };
            let outcome = self.timed(self.request(&mut sender)).await;
            if outcome.is_ok() {
                connection = Some(sender);
            }
            self.count(Kind::Kept, outcome);
        }
    }

    async fn timed<T>(&self, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        timeout(self.patience, work).await.unwrap_or_else(|_| Err("timed out".to_owned()))
    }

    async fn connect(&self) -> Result<Connection, String> {
        let stream = TcpStream::connect(&self.address).await.map_err(|error| format!("connect: {error}"))?;
        let _ = stream.set_nodelay(true);
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| format!("handshake: {error}"))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // The request on it says what is wrong.
            let _ = connection.await;
        });
        Ok(Connection { sender, _driver: driver })
    }

    async fn request(&self, connection: &mut Connection) -> Result<(u16, Option<String>), String> {
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(path).header("host", &self.address).header("user-agent", "weft-lab-load");
        let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
        let text = |error: hyper::Error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("request: {error}{cause}")
        };
        connection.sender.ready().await.map_err(text)?;
        let response = connection.sender.send_request(request).await.map_err(text)?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(text)?.to_bytes();
        let server =
            serde_json::from_slice::<Value>(&body).ok().and_then(|body| Some(body["server"].as_str()?.to_owned()));
        Ok((status, server))
    }

    fn count(&self, kind: Kind, outcome: Result<(u16, Option<String>), String>) {
        let mut summary = self.summary.lock().unwrap_or_else(PoisonError::into_inner);
        let ok = matches!(outcome, Ok((200..=399, _)));
        let counts = match kind {
            Kind::New => &mut summary.new_connections,
            Kind::Kept => &mut summary.kept_connections,
        };
        if ok {
            counts.ok += 1;
        } else {
            counts.failed += 1;
        }
        match outcome {
            Ok((status, server)) => {
                *summary.statuses.entry(status).or_default() += 1;
                if let Some(server) = server {
                    *summary.servers.entry(server).or_default() += 1;
                }
            }
            Err(error) => {
                let known = summary.errors.len() < MOST_TEXTS || summary.errors.contains_key(&error);
                let error = if known { error } else { "other".to_owned() };
                *summary.errors.entry(error).or_default() += 1;
            }
        }
    }
}

/// One that stays open as long as this value.
struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    _driver: JoinSet<()>,
}
