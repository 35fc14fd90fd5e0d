//! Takes HBONE for the pods of this node: each tunnel as the workload that it was dialled for.
use super::{
    CONNECTION_WINDOW, FRAME, HANDSHAKE_TIME, HEADER_LIST, PING, PING_TIME, STREAMS, WINDOW, client::baggage, forwarded,
};
use crate::{
    conn::Conn,
    filters::{TunnelProperties, admit},
    http::{body::Body, serve::Local},
    serve,
    state::{Decision, reason},
    stream::BoxStream,
    worker::{Open, Worker},
};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, net::SocketAddr, pin::pin, rc::Rc, sync::Arc};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use weft_identity::SpiffeId;
use weft_proxy_api::{config::WorkloadInfo, flow::Verdict};

const NO_IDENTITY: &str = "no valid SPIFFE identity";
const OTHER_IDENTITY: &str = "the peer's SPIFFE ID is not that of the workload at its address";

/// A tunnel with a proved peer.
struct Tunnel {
    worker: Rc<Worker>,
    /// Where it comes from.
    client: SocketAddr,
    destination: SocketAddr,
    peer: SpiffeId,
    workload: Arc<WorkloadInfo>,
}

/// A connection to port 15008 of a local pod.
pub async fn handle(worker: Rc<Worker>, stream: BoxStream, client: SocketAddr, destination: SocketAddr) {
    let conn = Conn::new(worker.clone(), true, client, destination, None);
    let refuse = |why: &str| {
        tracing::debug!(%client, %destination, why, "a tunnel is refused");
        conn.tell(Verdict::Dropped, why, "", "");
    };
    let view = worker.view();
    let compiled = &view.generation.compiled;
    let Some(workload) = compiled.identities.workload(destination.ip()).filter(|w| w.local).cloned() else {
        return refuse(reason::NOT_OURS);
    };
    let tls = match view.generation.credentials.server(&workload.spiffe_id) {
        Ok(tls) => tls,
        Err(error) => return refuse(&weft_certs::explain(&error)),
    };
    let stream = match timeout(HANDSHAKE_TIME, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return refuse(&format!("{NO_IDENTITY}: {}", weft_certs::explain(&error))),
        Err(_) => return refuse(&format!("{NO_IDENTITY}: no handshake in time")),
    };
    let peer = match weft_certs::peer_spiffe_id(stream.get_ref().1.peer_certificates().unwrap_or_default()) {
        Ok(peer) => peer,
        Err(error) => return refuse(&format!("{NO_IDENTITY}: {}", weft_certs::explain(&error))),
    };
    let properties = TunnelProperties {
        id: conn.id,
        node: compiled.node.clone(),
        source: client,
        destination,
        peer: peer.clone(),
        expected: compiled.identities.workload(client.ip()).map(|w| w.spiffe_id.clone()),
    };
    if let Err(why) = admit(&view, properties).await {
        let conn = Conn::new(worker, true, client, destination, Some(peer));
        tracing::debug!(%client, %destination, why, "a tunnel is refused");
        return conn.tell(Verdict::Dropped, &why, "", crate::state::SPIFFE_AUTHZ);
    }
    drop(view);
    let _open = Open::new(&worker.shared.metrics.hbone_server);
    let stop = worker.shared.stop.clone();
    let tunnel = Rc::new(Tunnel { worker, client, destination, peer, workload });
    let service = service_fn(move |request| {
        let tunnel = tunnel.clone();
        async move { Ok::<_, Infallible>(tunnel.connect(request).await) }
    });
    let connection = http2::Builder::new(Local)
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_LIST)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING_TIME)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let done = tokio::select! {
        done = connection.as_mut() => done,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = done {
        tracing::debug!(%client, %error, "a tunnel broke");
    }
}

impl Tunnel {
    /// Answers one CONNECT; the connection in it is served from then on.
    async fn connect(&self, mut request: Request<Incoming>) -> Response<Body> {
        let destination = forwarded::destination(request.uri().authority());
        let Some(destination) = destination.filter(|d| d.ip() == self.destination.ip()) else {
            return answer(StatusCode::BAD_REQUEST);
        };
        if request.method() != Method::CONNECT {
            return answer(StatusCode::BAD_REQUEST);
        }
        let view = self.worker.view();
        let compiled = &view.generation.compiled;
        let is_peer = |w: &Arc<WorkloadInfo>| w.spiffe_id == self.peer;
        // A peer's word on where the connection comes from counts only for workloads of its own identity.
        let source = forwarded::source(request.headers())
            .filter(|source| {
                source.ip() == self.client.ip() || compiled.identities.workload(source.ip()).is_some_and(is_peer)
            })
            .unwrap_or(SocketAddr::new(self.client.ip(), 0));
        let conn = Conn::new(self.worker.clone(), true, source, destination, Some(self.peer.clone()));
        let judged = conn.judged();
        if judged.source.workload.as_ref().is_some_and(|w| !is_peer(w)) {
            conn.tell(Verdict::Dropped, OTHER_IDENTITY, "", "");
            return answer(StatusCode::UNAUTHORIZED);
        }
        if !view.generation.credentials.trust_domains().contains(self.peer.trust_domain()) {
            conn.tell(Verdict::Dropped, "the peer's trust domain is no longer trusted", "", "");
            return answer(StatusCode::UNAUTHORIZED);
        }
        if let Decision::Deny { reason, policy } = &judged.decision {
            let unknown = *reason == reason::PLAIN_TEXT;
            let reason = if unknown { OTHER_IDENTITY } else { reason };
            conn.tell(Verdict::Dropped, reason, policy, "");
            return answer(StatusCode::UNAUTHORIZED);
        }
        let ready = match serve::ready(&conn).await {
            Ok(ready) => ready,
            Err(error) => {
                serve::unreachable(&conn, &error);
                return answer(StatusCode::SERVICE_UNAVAILABLE);
            }
        };
        let upgrade = hyper::upgrade::on(&mut request);
        self.worker.tasks.spawn_local(async move {
            match upgrade.await {
                Ok(stream) => serve::serve(Rc::new(conn), ready, Box::new(TokioIo::new(stream))).await,
                Err(error) => tracing::debug!(%error, "a tunnelled connection did not begin"),
            }
        });
        let mut response = answer(StatusCode::OK);
        if let Ok(value) = HeaderValue::from_str(&baggage(&self.workload)) {
            response.headers_mut().insert("baggage", value);
        }
        response
    }
}

fn answer(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
