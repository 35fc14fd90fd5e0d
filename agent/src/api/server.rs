//! Routes of the API.
use super::{
    metrics, rows,
    types::{ApiError, NewEndpoint},
};
use crate::{control::Command, shared::Shared};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use serde::Deserialize;
use std::{convert::Infallible, io, os::unix::fs::PermissionsExt, path::Path as FilePath, sync::Arc};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{broadcast::error::RecvError, mpsc, oneshot},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use weft_clustermesh_core::connect::ConnectInfo;
use weft_flows::filter::FlowFilter;
use weft_proxy_api::flow::Flow;

type App = State<Arc<Shared>>;

/// What may wait for one reader of flows.
const FLOWS_IN_FLIGHT: usize = 256;
const MOST_PAST_FLOWS: usize = 100_000;

/// Serves the unix socket until the token is cancelled. A socket that a dead agent left is replaced.
///
/// # Errors
/// The folder cannot be written, or another agent serves this socket.
pub fn bind(socket: &FilePath) -> io::Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        let message =
            format!("another weft-agent serves {}: stop it, or give this one its own runtimeDir", socket.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
    }
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

pub async fn serve(listener: UnixListener, shared: Arc<Shared>, stop: CancellationToken) -> io::Result<()> {
    let routes = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services", get(services))
        .route("/v1/endpoints", get(endpoints).post(add_endpoint))
        .route("/v1/endpoints/{id}", get(endpoint).delete(remove_endpoint))
        .route("/v1/identities", get(identities))
        .route("/v1/policies", get(policies))
        .route("/v1/plugins", get(plugins))
        .route("/v1/flows", post(flows))
        .route("/v1/mesh", get(mesh))
        .route("/v1/mesh/connect-info", get(connect_info))
        .route("/v1/mesh/peers", post(add_peer))
        .route("/v1/mesh/peers/{cluster}", delete(remove_peer))
        .with_state(shared);
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

pub async fn serve_metrics(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) -> io::Result<()> {
    let text = |State(shared): App| async move { metrics::text(&shared) };
    let healthy = |State(shared): App| async move {
        if rows::ready(&shared) { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
    };
    let routes = Router::new().route("/metrics", get(text)).route("/healthz", get(healthy)).with_state(shared);
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn status(State(shared): App) -> Response {
    Json(rows::status(&shared)).into_response()
}
async fn services(State(shared): App) -> Response {
    Json(rows::services(&shared)).into_response()
}
async fn endpoints(State(shared): App) -> Response {
    Json(rows::endpoints(&shared)).into_response()
}
async fn identities(State(shared): App) -> Response {
    Json(rows::identities(&shared)).into_response()
}
async fn policies(State(shared): App) -> Response {
    Json(rows::policies(&shared)).into_response()
}
async fn plugins(State(shared): App) -> Response {
    Json(rows::plugins(&shared)).into_response()
}
async fn mesh(State(shared): App) -> Response {
    Json(rows::mesh(&shared)).into_response()
}
async fn connect_info(State(shared): App) -> Response {
    Json(rows::connect_info(&shared)).into_response()
}

async fn endpoint(State(shared): App, Path(id): Path<String>) -> Response {
    match shared.endpoints.load().get(&id) {
        Some(endpoint) => Json(&endpoint.created).into_response(),
        None => refuse(StatusCode::NOT_FOUND, format!("no endpoint of container {id}: call the CNI plugin with ADD")),
    }
}

async fn add_endpoint(State(shared): App, Json(new): Json<NewEndpoint>) -> Response {
    command(&shared, |done| Command::AddEndpoint(new, done)).await
}

async fn remove_endpoint(State(shared): App, Path(id): Path<String>) -> Response {
    command(&shared, |done| Command::RemoveEndpoint(id, done)).await
}

async fn add_peer(State(shared): App, Json(info): Json<ConnectInfo>) -> Response {
    command(&shared, |done| Command::AddPeer(info, done)).await
}

async fn remove_peer(State(shared): App, Path(cluster): Path<String>) -> Response {
    command(&shared, |done| Command::RemovePeer(cluster, done)).await
}

/// Hands a command to the control loop and waits for what came of it.
async fn command(shared: &Shared, make: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Command) -> Response {
    let (done, result) = oneshot::channel();
    if shared.commands.send(make(done)).await.is_err() {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping: try again".to_owned());
    }
    match result.await {
        Ok(Ok(())) => StatusCode::NO_CONTENT.into_response(),
        Ok(Err(error)) => refuse(StatusCode::CONFLICT, error),
        Err(_) => refuse(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping: try again".to_owned()),
    }
}

fn refuse(status: StatusCode, error: String) -> Response {
    (status, Json(ApiError { error })).into_response()
}

#[derive(Deserialize)]
struct Which {
    #[serde(default)]
    last: usize,
    #[serde(default)]
    follow: bool,
}

async fn flows(State(shared): App, Query(which): Query<Which>, Json(filter): Json<FlowFilter>) -> Response {
    // Subscribed before the past is read: a flow in between is seen, if twice then once too often rather than never.
    let mut new = shared.flows.follow();
    let past = shared.flows.last(which.last.min(MOST_PAST_FLOWS), |flow| filter.matches(flow));
    let (send, lines) = mpsc::channel::<Result<Bytes, Infallible>>(FLOWS_IN_FLIGHT);
    // Ends when the reader goes away.
    tokio::spawn(async move {
        for flow in past {
            if send.send(Ok(line(&flow))).await.is_err() {
                return;
            }
        }
        if !which.follow {
            return;
        }
        loop {
            let flow = tokio::select! {
                flow = new.recv() => flow,
                () = send.closed() => return,
            };
            match flow {
                Ok(flow) if filter.matches(&flow) => {
                    if send.send(Ok(line(&flow))).await.is_err() {
                        return;
                    }
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    });
    Body::from_stream(ReceiverStream::new(lines)).into_response()
}

fn line(flow: &Flow) -> Bytes {
    let mut line = serde_json::to_vec(flow).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
