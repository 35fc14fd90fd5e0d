//! Bodies on their way through: as they came, made here, or filtered by plugins.
use super::head_timer::Serving;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Filters a body frame by frame.
pub trait Filter: Unpin {
    fn poll_frame(&mut self, body: &mut Incoming, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>>;
}

pub struct Body {
    source: Source,
    /// Held until the answer has been sent.
    serving: Option<Serving>,
}

enum Source {
    Fixed(Option<Bytes>),
    Incoming(Incoming),
    Filtered(Incoming, Box<dyn Filter>),
}

impl Body {
    pub fn empty() -> Self {
        Self { source: Source::Fixed(None), serving: None }
    }

    pub fn filtered(body: Incoming, filter: Box<dyn Filter>) -> Self {
        Self { source: Source::Filtered(body, filter), serving: None }
    }

    pub fn hold(&mut self, serving: Serving) {
        self.serving = Some(serving);
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { source: Source::Fixed((!bytes.is_empty()).then_some(bytes)), serving: None }
    }
}

impl From<Incoming> for Body {
    fn from(body: Incoming) -> Self {
        Self { source: Source::Incoming(body), serving: None }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = match &mut self.source {
            Source::Fixed(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Source::Incoming(body) => ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map_err(Error::from)),
            Source::Filtered(body, filter) => ready!(filter.poll_frame(body, cx)),
        };
        if frame.is_none() {
            self.serving = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Fixed(bytes) => bytes.is_none(),
            Source::Incoming(body) => body.is_end_stream(),
            Source::Filtered(..) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Fixed(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Source::Incoming(body) => body.size_hint(),
            Source::Filtered(..) => SizeHint::default(),
        }
    }
}
