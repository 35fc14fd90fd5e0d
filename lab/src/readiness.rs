//! Asks an agent, over its socket, whether it is ready.
use futures::future::Either;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{net::UnixStream, sync::watch, time::sleep, time::timeout};

const LOOK: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub ready: bool,
}

/// Looks again and again; `once` becomes true with the first readiness and stays so.
pub async fn follow(socket: PathBuf, view: watch::Sender<View>, once: watch::Sender<bool>) {
    loop {
        let ready = timeout(PATIENCE, status(&socket))
            .await
            .is_ok_and(|status| status.is_ok_and(|status| status["ready"].as_bool().unwrap_or(false)));
        view.send_if_modified(|view| std::mem::replace(&mut view.ready, ready) != ready);
        if ready {
            once.send_if_modified(|once| !std::mem::replace(once, true));
        }
        sleep(LOOK).await;
    }
}

/// What `GET /v1/status` answers.
pub async fn status(socket: &Path) -> io::Result<serde_json::Value> {
    let stream = TokioIo::new(UnixStream::connect(socket).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(io::Error::other)?;
    let request = http::Request::get("/v1/status").header("host", "agent").body(Empty::<Bytes>::new());
    let request = request.map_err(io::Error::other)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let body = response.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
        Ok(serde_json::from_slice(&body)?)
    };
    // The connection is driven until the answer is whole; if it ends before, the answer says so.
    let drive = async {
        let _ = connection.await;
    };
    match futures::future::select(std::pin::pin!(answer), std::pin::pin!(drive)).await {
        Either::Left((answer, _)) => answer,
        Either::Right(((), answer)) => answer.await,
    }
}
