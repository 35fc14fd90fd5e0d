//! The connection to weft-proxy: sends each new configuration, takes in status and flows, connects again for ever.
//! One task, ended by its owner; the proxy goes on with what it last heard.
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::UnixStream,
    sync::watch,
    time,
};
use weft_flows::ring::FlowRing;
use weft_proxy_api::{
    config::ProxyConfig,
    flow::ProxyStatus,
    wire::{self, FromProxy, MAX_LINE, ToProxy, WireError},
};

const RECONNECT: Duration = Duration::from_millis(300);
const ASK_STATUS: Duration = Duration::from_secs(2);

/// What the agent knows of the proxy.
#[derive(Clone, Debug, Default)]
pub struct ProxyState {
    /// `None`: not connected, with the reason in `error`.
    pub status: Option<ProxyStatus>,
    pub error: String,
}

pub struct Link {
    pub socket: PathBuf,
    pub config: watch::Receiver<Option<Arc<ProxyConfig>>>,
    pub state: watch::Sender<ProxyState>,
    pub flows: FlowRing,
}

impl Link {
    pub async fn run(mut self) {
        loop {
            let error = match UnixStream::connect(&self.socket).await {
                Ok(stream) => match self.serve(stream).await {
                    Ok(()) => "the proxy closed the connection".to_owned(),
                    Err(error) => error.to_string(),
                },
                Err(error) => format!("cannot reach weft-proxy at {}: {error}; is it running?", self.socket.display()),
            };
            self.state.send_replace(ProxyState { status: None, error });
            if self.config.has_changed().is_err() {
                return;
            }
            time::sleep(RECONNECT).await;
        }
    }

    async fn serve(&mut self, stream: UnixStream) -> Result<(), WireError> {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::with_capacity(64 << 10, read);
        let mut line = Vec::new();
        let mut ask = time::interval(ASK_STATUS);
        let mut fresh = true;
        loop {
            if fresh {
                fresh = false;
                let config = self.config.borrow_and_update().clone();
                if let Some(config) = config {
                    wire::write(&mut write, &ToProxy::Config(Box::new((*config).clone()))).await?;
                }
            }
            tokio::select! {
                // Not cancelled halfway: `line` keeps what was read.
                read = lines.read_until(b'\n', &mut line) => {
                    if read? == 0 {
                        return Ok(());
                    }
                    if line.last() == Some(&b'\n') {
                        self.take(&line);
                        line.clear();
                    } else if line.len() > MAX_LINE {
                        return Err(WireError::TooLong);
                    }
                }
                changed = self.config.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.config.mark_changed();
                    fresh = true;
                }
                _ = ask.tick() => wire::write(&mut write, &ToProxy::Status).await?,
            }
        }
    }

    fn take(&self, line: &[u8]) {
        match serde_json::from_slice(line) {
            Ok(FromProxy::Status(status)) => {
                self.state.send_replace(ProxyState { status: Some(status), error: String::new() });
            }
            Ok(FromProxy::Flow(flow)) => self.flows.push(*flow),
            Ok(FromProxy::LostFlows(lost)) => self.flows.lose(lost),
            Err(error) => tracing::warn!(%error, "weft-proxy sent something that is no message: versions differ?"),
        }
    }
}
