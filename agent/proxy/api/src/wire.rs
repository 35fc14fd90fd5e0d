//! Messages on the unix socket, one JSON value a line, and how both ends read and write them.
use crate::{
    config::ProxyConfig,
    flow::{Flow, ProxyStatus},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Agent to proxy.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ToProxy {
    Config(Box<ProxyConfig>),
    /// Answered by `FromProxy::Status`.
    Status,
}

/// Proxy to agent. On a new connection the proxy sends its status first, then the flows that it kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FromProxy {
    Status(ProxyStatus),
    Flow(Box<Flow>),
    /// Flows lost because nobody read them.
    LostFlows(u64),
}

/// The longest line that either side accepts.
pub const MAX_LINE: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the connection between agent and proxy broke")]
    Io(#[from] io::Error),
    #[error("a message of more than {MAX_LINE} bytes")]
    TooLong,
    /// The line was consumed: the next one can be read.
    #[error("not a message of this version: are agent and proxy of the same release?")]
    Json(#[source] serde_json::Error),
}

/// The next message; `None` at the end of the stream. Not cancel safe: own the reader in one task.
pub async fn read<T: DeserializeOwned>(from: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<T>, WireError> {
    let mut line = Vec::new();
    let read = from.take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line).await?;
    if read == 0 {
        return Ok(None);
    }
    if line.len() > MAX_LINE {
        return Err(WireError::TooLong);
    }
    serde_json::from_slice(&line).map(Some).map_err(WireError::Json)
}

/// Writes one message; does not flush.
pub async fn write<T: Serialize>(to: &mut (impl AsyncWrite + Unpin), message: &T) -> Result<(), WireError> {
    let mut line = serde_json::to_vec(message).map_err(WireError::Json)?;
    line.push(b'\n');
    Ok(to.write_all(&line).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::BufReader;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn a_message_reads_back_as_written_and_a_bad_line_costs_only_itself() {
        block_on(async {
            let mut bytes = Vec::new();
            write(&mut bytes, &FromProxy::LostFlows(7)).await.unwrap();
            bytes.extend_from_slice(b"{\"nonsense\":1}\n");
            write(&mut bytes, &FromProxy::LostFlows(8)).await.unwrap();
            let mut reader = BufReader::new(&bytes[..]);
            assert!(matches!(read(&mut reader).await, Ok(Some(FromProxy::LostFlows(7)))));
            assert!(matches!(read::<FromProxy>(&mut reader).await, Err(WireError::Json(_))));
            assert!(matches!(read(&mut reader).await, Ok(Some(FromProxy::LostFlows(8)))));
            assert!(matches!(read::<FromProxy>(&mut reader).await, Ok(None)));
        });
    }
}
