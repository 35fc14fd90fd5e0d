//! What a callback of a plugin comes to.
use crate::error::Fault;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};

/// Of an HTTP callback.
#[derive(Debug)]
pub enum Outcome {
    /// Go on with the (perhaps changed) headers, body chunk or trailers.
    Continue,
    /// Wait: the host keeps what was handed in. After headers or trailers, and after the last body chunk, wait for
    /// `HttpStream::resumed`; after any other body chunk hand in the next one, the host gathers them.
    Pause,
    /// Answer the client with this, and send nothing on.
    Respond(LocalResponse),
    /// End the stream without an answer.
    Close,
    /// The plugin failed; what is done with the stream is its failure policy's choice. What was handed in is
    /// given back, perhaps with changes that the plugin made before it failed.
    Fault(Fault),
}

/// An answer made by a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// For logs: why.
    pub details: String,
    /// A gRPC client gets this in its trailers.
    pub grpc_status: Option<u32>,
}

/// Of a TCP callback.
#[derive(Debug, PartialEq, Eq)]
pub enum TcpOutcome {
    Continue,
    /// Wait for `TcpStream::resumed`; data that was handed in stays with the host.
    Pause,
    /// Close the connection. From `new_connection`: refuse it.
    Close,
    Fault(Fault),
}
