//! HTTP/1.1 over an agent's unix socket.
use super::contexts::{AgentAddress, Context};
use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use crate::api::types::ApiError;

/// Asks one agent.
pub async fn call<T: DeserializeOwned>(
    agent: &AgentAddress,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<T> {
    let response = open(agent, method, path, body).await?;
    let status = response.status();
    let bytes = response.into_body().collect().await.context("the agent broke off its answer")?.to_bytes();
    if !status.is_success() {
        let said = serde_json::from_slice::<ApiError>(&bytes).map(|e| e.error);
        return Err(anyhow!(said.unwrap_or_else(|_| format!("the agent answers {status}"))));
    }
    let bytes = if bytes.is_empty() { Bytes::from_static(b"null") } else { bytes };
    serde_json::from_slice(&bytes).context("the agent's answer is not what this version of weft expects")
}

pub async fn get<T: DeserializeOwned>(agent: &AgentAddress, path: &str) -> Result<T> {
    call(agent, Method::GET, path, None::<&()>).await
}

/// The answer as it comes.
pub async fn open(
    agent: &AgentAddress,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<http::Response<Incoming>> {
    let unreachable = || format!("no agent answers at {}: is weft-agent running there?", agent.socket.display());
    let stream = UnixStream::connect(&agent.socket).await.with_context(unreachable)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.with_context(unreachable)?;
    // Ends with the answer's body, or with the process.
    tokio::spawn(connection);
    let bytes = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "weft-agent")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(bytes)))?;
    sender.send_request(request).await.with_context(unreachable)
}

/// Asks the first agent of the context that answers.
pub async fn any<T: DeserializeOwned>(
    context: &Context,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<T> {
    let mut last = None;
    for agent in &context.agents {
        if UnixStream::connect(&agent.socket).await.is_ok() {
            return call(agent, method, path, body).await;
        }
        last = Some(agent);
    }
    match last {
        Some(agent) => {
            bail!("no agent of {} answers, {} neither: is weft-agent running?", context.name, agent.socket.display())
        }
        None => bail!("context {} names no agents", context.name),
    }
}

/// Asks every agent of the context. Those that do not answer are named on standard error; all silent is an error.
pub async fn every<T: DeserializeOwned>(context: &Context, path: &str) -> Result<Vec<T>> {
    let (mut answers, mut failed) = (Vec::new(), None);
    for agent in &context.agents {
        match get(agent, path).await {
            Ok(answer) => answers.push(answer),
            Err(error) => {
                eprintln!("{}: {error:#}", agent.node);
                failed = Some(error);
            }
        }
    }
    match (answers.is_empty(), failed) {
        (true, Some(error)) => Err(error),
        _ => Ok(answers),
    }
}
