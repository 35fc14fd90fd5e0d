//! One request: checked, judged by policy and plugins, sent on, answered, and told as a flow.
use super::{
    body::Body,
    head_timer::{Heads, Serving},
    request::{self, host, normalize, wants_upgrade},
    upstream::{Upstream, UpstreamError},
};
use crate::{
    conn::Conn,
    filters::{Exchange, Step},
    state::{Decision, HTTP_POLICY, reason},
    stream::splice,
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
    request::Parts,
    uri::{PathAndQuery, Scheme},
};
use hyper::{
    body::{Body as _, Incoming},
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use std::{rc::Rc, time::Instant};
use weft_plugin_host::{Direction, Headers};
use weft_proxy_api::flow::{HttpFlow, Verdict};

/// What `http-policy` says where simply no rule allows a request.
const NO_RULE: &str = "http-policy: denied";

/// Of one client's connection.
pub struct Context {
    pub conn: Rc<Conn>,
    pub upstream: Upstream,
    pub heads: Heads,
}

/// Ends the connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("a plugin closed the connection")]
pub struct Closed;

/// What a flow tells of a request; cheap copies of what the request had.
struct Asked {
    begin: Instant,
    method: Method,
    uri: Uri,
    host: Option<HeaderValue>,
    version: Version,
}

/// How a request ended.
struct Told<'a> {
    verdict: Verdict,
    reason: &'a str,
    policy: &'a str,
    plugin: &'a str,
    status: u16,
}

impl Context {
    /// The client's connection is over.
    pub fn finished(&self, error: Option<hyper::Error>) {
        let Some(error) = error else { return };
        if error.is_parse() {
            self.conn.tell(Verdict::Dropped, "malformed HTTP", "", "");
        }
        tracing::debug!(source = %self.conn.source, %error, "an HTTP connection broke");
    }

    fn tell(&self, asked: &Asked, told: &Told<'_>) {
        self.conn.tell_request(told.verdict, told.reason, told.policy, told.plugin, || asked.flow(told.status));
    }

    /// The answer to a request that does not go on.
    fn refuse(&self, asked: &Asked, told: &Told<'_>, body: &'static str) -> Response<Body> {
        self.tell(asked, told);
        let status = StatusCode::from_u16(told.status).unwrap_or(StatusCode::FORBIDDEN);
        answer(status, HeaderMap::new(), Bytes::from_static(body.as_bytes()))
    }

    /// The answer that the plugins' word comes to; `Continue` has none.
    fn stopped(&self, asked: &Asked, step: Step, policy: &str) -> Result<Response<Body>, Closed> {
        match step {
            Step::Respond { response, plugin } => {
                let denied = response.status.is_client_error() || response.status.is_server_error();
                let reason = match (denied, plugin.as_str()) {
                    (false, _) => "",
                    (true, HTTP_POLICY) if response.details == NO_RULE => reason::POLICY,
                    (true, _) if response.details.is_empty() => "refused by a plugin",
                    (true, _) => response.details.as_str(),
                };
                let verdict = if denied { Verdict::Dropped } else { Verdict::Forwarded };
                let status = response.status.as_u16();
                self.tell(asked, &Told { verdict, reason, policy, plugin: &plugin, status });
                let mut headers = response.headers.clone();
                if let Some(code) = response.grpc_status {
                    headers.insert("grpc-status", code.into());
                }
                Ok(answer(response.status, headers, response.body))
            }
            Step::Close { plugin } => {
                let reason = "closed by a plugin";
                self.tell(asked, &Told { verdict: Verdict::Dropped, reason, policy, plugin: &plugin, status: 0 });
                Err(Closed)
            }
            Step::Failed { plugin, reason } => {
                let reason = format!("plugin {plugin}: {reason}");
                let told = Told { verdict: Verdict::Dropped, reason: &reason, policy, plugin: &plugin, status: 503 };
                Ok(self.refuse(asked, &told, "Service unavailable\n"))
            }
            Step::Continue => Ok(answer(StatusCode::INTERNAL_SERVER_ERROR, HeaderMap::new(), Bytes::new())),
        }
    }
}

impl Asked {
    fn flow(&self, status: u16) -> HttpFlow {
        let host = match self.uri.authority() {
            Some(authority) => authority.as_str(),
            None => self.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default(),
        };
        HttpFlow {
            method: self.method.to_string(),
            path: self.uri.path_and_query().map_or("/", PathAndQuery::as_str).to_owned(),
            host: host.to_owned(),
            status,
            protocol: protocol(self.version).to_owned(),
            duration_us: self.begin.elapsed().as_micros() as u64,
        }
    }
}

/// Serves one request.
pub async fn respond(context: Rc<Context>, request: Request<Incoming>) -> Result<Response<Body>, Closed> {
    let serving = context.heads.begin();
    let (parts, body) = request.into_parts();
    let mut response = judge(&context, parts, body).await?;
    hold(&mut response, serving);
    Ok(response)
}

fn hold(response: &mut Response<Body>, serving: Serving) {
    // After an upgrade there are no more heads on this connection.
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.body_mut().hold(serving);
    }
}

async fn judge(context: &Rc<Context>, mut parts: Parts, body: Incoming) -> Result<Response<Body>, Closed> {
    let asked = Asked {
        begin: Instant::now(),
        method: parts.method.clone(),
        uri: parts.uri.clone(),
        host: parts.headers.get(header::HOST).cloned(),
        version: parts.version,
    };
    if let Err(bad) = normalize(&mut parts) {
        let status = if bad == request::BadRequest::Connect { 405 } else { 400 };
        let told = Told { verdict: Verdict::Dropped, reason: &bad.to_string(), policy: "", plugin: "", status };
        return Ok(context.refuse(&asked, &told, "Bad request\n"));
    }
    let judged = context.conn.judged();
    let mut policy = match &judged.decision {
        Decision::Deny { reason, policy } => {
            let status = judged.view.generation.compiled.deny_status;
            let told = Told { verdict: Verdict::Dropped, reason, policy, plugin: "", status };
            return Ok(context.refuse(&asked, &told, "Access denied\n"));
        }
        Decision::Allow { policy } => policy.clone(),
        Decision::Http { .. } => String::new(),
    };
    let by = if matches!(judged.decision, Decision::Http { .. }) { HTTP_POLICY } else { "" };
    let exchange = match Exchange::begin(&context.conn, &judged, protocol(parts.version)) {
        Ok(exchange) => exchange,
        Err(step) => return context.stopped(&asked, *step, &policy),
    };
    let upgrade = parts.extensions.remove::<OnUpgrade>().filter(|_| wants_upgrade(&parts));
    if !exchange.is_empty() {
        let mut headers = Headers::take_request(&mut parts, Scheme::HTTP);
        match exchange.request_headers(&mut headers, body.is_end_stream(), &mut policy).await {
            Step::Continue => {}
            step => return context.stopped(&asked, step, &policy),
        }
        if headers.put_request(&mut parts).is_err() {
            let reason = "a plugin left a request that is not valid HTTP";
            let told = Told { verdict: Verdict::Dropped, reason, policy: &policy, plugin: "", status: 503 };
            return Ok(context.refuse(&asked, &told, "Service unavailable\n"));
        }
    }
    tracing::trace!(host = host(&parts), path = parts.uri.path(), "a request goes on");
    let body = if body.is_end_stream() { Body::empty() } else { exchange.body(Direction::Request, body) };
    let sent = context.upstream.send(Request::from_parts(parts, body)).await;
    if let Some(step) = exchange.take_end() {
        return context.stopped(&asked, step, &policy);
    }
    let (mut parts, body) = match sent {
        Ok(response) => response.into_parts(),
        Err(error) => return Ok(failed(context, &asked, &error, &policy)),
    };
    if !exchange.is_empty() {
        let mut headers = Headers::take_response(&mut parts);
        match exchange.response_headers(&mut headers, body.is_end_stream()).await {
            Step::Continue => headers.put_response(&mut parts),
            step => return context.stopped(&asked, step, &policy),
        }
    }
    let status = parts.status.as_u16();
    context.tell(&asked, &Told { verdict: Verdict::Forwarded, reason: "", policy: &policy, plugin: by, status });
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        if let (Some(client), Some(server)) = (upgrade, parts.extensions.remove::<OnUpgrade>()) {
            context.conn.worker.tasks.spawn_local(tunnel(client, server));
        }
        return Ok(Response::from_parts(parts, Body::empty()));
    }
    let body = if body.is_end_stream() { Body::from(body) } else { exchange.body(Direction::Response, body) };
    Ok(Response::from_parts(parts, body))
}

fn failed(context: &Context, asked: &Asked, error: &UpstreamError, policy: &str) -> Response<Body> {
    let why = weft_certs::explain(error);
    let status = error.status().as_u16();
    let told = Told { verdict: Verdict::Error, reason: &why, policy, plugin: "", status };
    context.refuse(asked, &told, "The server cannot be reached\n")
}

/// After an upgrade: bytes, both ways.
async fn tunnel(client: OnUpgrade, server: OnUpgrade) {
    let both: Result<(Upgraded, Upgraded), hyper::Error> = async { Ok((client.await?, server.await?)) }.await;
    let done = match both {
        Ok((client, server)) => splice(TokioIo::new(client), TokioIo::new(server)).await,
        Err(error) => return tracing::debug!(%error, "an upgrade failed"),
    };
    if let Err(error) = done {
        tracing::debug!(%error, "an upgraded connection broke");
    }
}

fn answer(status: StatusCode, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response.headers_mut().entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain"));
    response
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}
