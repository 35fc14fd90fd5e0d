//! One TCP connection, as a plugin follows it.
use crate::{
    abi::{buffer, half},
    headers::Headers,
    imports::length,
    outcome::TcpOutcome,
    plugin::Plugin,
    properties::Properties,
    state::Waiting,
    stream::{Direction, Lent, Settled, Stream},
};
use bytes::Bytes;
use std::{
    future::poll_fn,
    task::{Context, Poll},
};

/// Ends its context in the plugin when it is dropped, or before by `finish`.
pub struct TcpStream {
    stream: Stream,
}

/// Who closed a connection, by its number in the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedBy {
    Unknown = 0,
    Proxy = 1,
    Peer = 2,
}

impl TcpStream {
    pub(crate) fn new(plugin: &Plugin, properties: Box<dyn Properties>) -> Self {
        Self { stream: Stream::new(plugin, properties) }
    }

    /// A client connected. `Close`: the plugin refuses it.
    pub fn new_connection(&mut self) -> TcpOutcome {
        let lent = Lent { headers: &mut Headers::default(), body: &mut Bytes::new() };
        outcome(self.stream.run("proxy_on_new_connection", half::DOWNSTREAM, Waiting::Connection, lent, |live, id| {
            live.exports.new_connection.as_ref().map(|function| function.call(&mut live.store, id)).transpose()
        }))
    }

    /// Bytes from the client; after `Continue`, `data` is what to send on.
    pub fn downstream_data(&mut self, data: &mut Bytes, end_of_stream: bool) -> TcpOutcome {
        self.data("proxy_on_downstream_data", buffer::DOWNSTREAM_DATA, data, end_of_stream)
    }

    /// Bytes from the server; after `Continue`, `data` is what to send on.
    pub fn upstream_data(&mut self, data: &mut Bytes, end_of_stream: bool) -> TcpOutcome {
        self.data("proxy_on_upstream_data", buffer::UPSTREAM_DATA, data, end_of_stream)
    }

    pub fn downstream_closed(&mut self, by: ClosedBy) {
        self.stream.notify("proxy_on_downstream_connection_close", |live, id| match &live.exports.downstream_close {
            Some(close) => close.call(&mut live.store, (id, by as u32)),
            None => Ok(()),
        });
    }

    pub fn upstream_closed(&mut self, by: ClosedBy) {
        self.stream.notify("proxy_on_upstream_connection_close", |live, id| match &live.exports.upstream_close {
            Some(close) => close.call(&mut live.store, (id, by as u32)),
            None => Ok(()),
        });
    }

    /// Ready once the plugin lets a paused direction go on; data that was held back is put into `data`.
    pub fn poll_resumed(
        &mut self,
        context: &mut Context<'_>,
        direction: Direction,
        data: &mut Bytes,
    ) -> Poll<TcpOutcome> {
        let lent = Lent { headers: &mut Headers::default(), body: data };
        self.stream.poll_resumed(context, direction.tcp_half(), lent).map(outcome)
    }

    /// `poll_resumed`, to be awaited.
    pub async fn resumed(&mut self, direction: Direction, data: &mut Bytes) -> TcpOutcome {
        poll_fn(|context| self.poll_resumed(context, direction, data)).await
    }

    /// A value that the plugin set for this connection.
    pub fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        self.stream.property(path)
    }

    /// The connection is over: the plugin logs it and forgets it.
    pub fn finish(&mut self) {
        self.stream.finish();
    }

    fn data(&mut self, callback: &'static str, buffer: usize, data: &mut Bytes, end: bool) -> TcpOutcome {
        let gathered = self.stream.buffered(buffer);
        let size = gathered + data.len();
        if gathered > 0 && size > self.stream.body_limit() {
            return TcpOutcome::Close;
        }
        let half = if buffer == buffer::DOWNSTREAM_DATA { half::DOWNSTREAM } else { half::UPSTREAM };
        let lent = Lent { headers: &mut Headers::default(), body: data };
        outcome(self.stream.run(callback, half, Waiting::Buffer(buffer), lent, |live, id| {
            let function = match buffer {
                buffer::DOWNSTREAM_DATA => &live.exports.downstream_data,
                _ => &live.exports.upstream_data,
            };
            let call = (id, length(size), end.into());
            function.as_ref().map(|function| function.call(&mut live.store, call)).transpose()
        }))
    }
}

fn outcome(settled: Settled) -> TcpOutcome {
    match settled {
        Settled::Continue => TcpOutcome::Continue,
        Settled::Pause => TcpOutcome::Pause,
        // An answer makes no sense on TCP, but it does mean that the plugin does not want the connection.
        Settled::Close | Settled::Respond(_) => TcpOutcome::Close,
        Settled::Fault(fault) => TcpOutcome::Fault(fault),
    }
}
