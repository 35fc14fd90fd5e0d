//! One HTTP request and its response, as a plugin follows them.
use crate::{
    abi::{buffer, half, map},
    exports::Exports,
    headers::Headers,
    imports::length,
    outcome::{LocalResponse, Outcome},
    plugin::Plugin,
    properties::Properties,
    state::Waiting,
    stream::{Direction, Lent, Settled, Stream},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use std::{
    future::poll_fn,
    task::{Context, Poll},
};

/// Ends its context in the plugin when it is dropped, or before by `finish`. Once a callback ended with a fault, all
/// later ones end with the same.
pub struct HttpStream {
    stream: Stream,
}

impl HttpStream {
    pub(crate) fn new(plugin: &Plugin, properties: Box<dyn Properties>) -> Self {
        Self { stream: Stream::new(plugin, properties) }
    }

    /// `end_of_stream`: there is no body.
    pub fn request_headers(&mut self, headers: &mut Headers, end_of_stream: bool) -> Outcome {
        self.headers("proxy_on_request_headers", map::REQUEST_HEADERS, headers, end_of_stream)
    }

    /// A chunk of the body; `end_of_stream` with the last one, unless trailers follow. After `Continue`, `chunk` is what
    /// to send on: this and all that was gathered, as the plugin left it.
    pub fn request_body(&mut self, chunk: &mut Bytes, end_of_stream: bool) -> Outcome {
        self.body("proxy_on_request_body", buffer::REQUEST_BODY, chunk, end_of_stream)
    }

    pub fn request_trailers(&mut self, trailers: &mut Headers) -> Outcome {
        self.trailers("proxy_on_request_trailers", map::REQUEST_TRAILERS, trailers)
    }

    /// As `request_headers`.
    pub fn response_headers(&mut self, headers: &mut Headers, end_of_stream: bool) -> Outcome {
        self.headers("proxy_on_response_headers", map::RESPONSE_HEADERS, headers, end_of_stream)
    }

    /// As `request_body`.
    pub fn response_body(&mut self, chunk: &mut Bytes, end_of_stream: bool) -> Outcome {
        self.body("proxy_on_response_body", buffer::RESPONSE_BODY, chunk, end_of_stream)
    }

    pub fn response_trailers(&mut self, trailers: &mut Headers) -> Outcome {
        self.trailers("proxy_on_response_trailers", map::RESPONSE_TRAILERS, trailers)
    }

    /// Ready once the plugin lets a paused direction go on. What was held back is put into `headers` (or trailers) or
    /// `body`; the other stays as it is.
    pub fn poll_resumed(
        &mut self,
        context: &mut Context<'_>,
        direction: Direction,
        headers: &mut Headers,
        body: &mut Bytes,
    ) -> Poll<Outcome> {
        self.stream.poll_resumed(context, direction.http_half(), Lent { headers, body }).map(outcome)
    }

    /// `poll_resumed`, to be awaited.
    pub async fn resumed(&mut self, direction: Direction, headers: &mut Headers, body: &mut Bytes) -> Outcome {
        poll_fn(|context| self.poll_resumed(context, direction, headers, body)).await
    }

    /// A value that the plugin set for this stream.
    pub fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        self.stream.property(path)
    }

    /// Keeps a copy of the request's headers, to be read in later callbacks.
    pub fn retain_request(&mut self, headers: &Headers) {
        self.stream.edit(|state| state.maps[map::REQUEST_HEADERS] = Some(headers.clone()));
    }

    /// Keeps a copy of the response's headers, to be read in later callbacks.
    pub fn retain_response(&mut self, headers: &Headers) {
        self.stream.edit(|state| state.maps[map::RESPONSE_HEADERS] = Some(headers.clone()));
    }

    /// The exchange is over: the plugin logs it and forgets it.
    pub fn finish(&mut self) {
        self.stream.finish();
    }

    fn headers(&mut self, callback: &'static str, map: usize, headers: &mut Headers, end: bool) -> Outcome {
        let count = length(headers.len());
        let lent = Lent { headers, body: &mut Bytes::new() };
        outcome(self.stream.run(callback, half_of(map), Waiting::Map(map), lent, |live, id| {
            let function = match map {
                map::REQUEST_HEADERS => &live.exports.request_headers,
                _ => &live.exports.response_headers,
            };
            function.as_ref().map(|function| function.call(&mut live.store, id, count, end)).transpose()
        }))
    }

    fn trailers(&mut self, callback: &'static str, map: usize, trailers: &mut Headers) -> Outcome {
        let count = length(trailers.len());
        let lent = Lent { headers: trailers, body: &mut Bytes::new() };
        outcome(self.stream.run(callback, half_of(map), Waiting::Map(map), lent, |live, id| {
            let function = match map {
                map::REQUEST_TRAILERS => &live.exports.request_trailers,
                _ => &live.exports.response_trailers,
            };
            function.as_ref().map(|function| function.call(&mut live.store, (id, count))).transpose()
        }))
    }

    fn body(&mut self, callback: &'static str, buffer: usize, chunk: &mut Bytes, end: bool) -> Outcome {
        let gathered = self.stream.buffered(buffer);
        let size = gathered + chunk.len();
        if gathered > 0 && size > self.stream.body_limit() {
            return Outcome::Respond(too_large(buffer));
        }
        let half = if buffer == buffer::REQUEST_BODY { half::REQUEST } else { half::RESPONSE };
        let lent = Lent { headers: &mut Headers::default(), body: chunk };
        outcome(self.stream.run(callback, half, Waiting::Buffer(buffer), lent, |live, id| {
            let Exports { request_body, response_body, .. } = &live.exports;
            let function = if buffer == buffer::REQUEST_BODY { request_body } else { response_body };
            let call = (id, length(size), end.into());
            function.as_ref().map(|function| function.call(&mut live.store, call)).transpose()
        }))
    }
}

fn half_of(map: usize) -> usize {
    if map <= map::REQUEST_TRAILERS { half::REQUEST } else { half::RESPONSE }
}

fn outcome(settled: Settled) -> Outcome {
    match settled {
        Settled::Continue => Outcome::Continue,
        Settled::Pause => Outcome::Pause,
        Settled::Respond(response) => Outcome::Respond(response),
        Settled::Close => Outcome::Close,
        Settled::Fault(fault) => Outcome::Fault(fault),
    }
}

/// The plugin gathers more of a body than its limit.
fn too_large(buffer: usize) -> LocalResponse {
    let (status, body) = if buffer == buffer::REQUEST_BODY {
        (StatusCode::PAYLOAD_TOO_LARGE, "Payload too large\n")
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, "Response too large\n")
    };
    LocalResponse {
        status,
        headers: HeaderMap::new(),
        body: Bytes::from_static(body.as_bytes()),
        details: "the body is longer than a plugin may gather".to_owned(),
        grpc_status: None,
    }
}
