//! Messages on the unix socket, one JSON value a line.
use crate::{
    config::ProxyConfig,
    flow::{Flow, ProxyStatus},
};
use serde::{Deserialize, Serialize};

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
