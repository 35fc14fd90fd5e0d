//! A body on its way through the plugins, frame by frame.
use super::exchange::{Exchange, Step};
use crate::http::body::{Error, Filter};
use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming};
use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};
use weft_plugin_host::{Direction, Headers, Outcome};

/// A plugin ended the exchange; what it said is kept in the exchange.
#[derive(Debug, thiserror::Error)]
#[error("a plugin ended the exchange")]
struct Ended;

pub struct BodyFilter {
    exchange: Rc<Exchange>,
    direction: Direction,
    state: State,
    /// They go on after the body.
    trailers: Option<Frame<Bytes>>,
}

enum State {
    Reading,
    /// The plugin at this place holds back the end of the body.
    Held {
        place: usize,
    },
    /// The whole body has been handed in; trailers may follow.
    Done,
}

impl BodyFilter {
    pub fn new(exchange: Rc<Exchange>, direction: Direction) -> Self {
        Self { exchange, direction, state: State::Reading, trailers: None }
    }

    /// The plugin at the `place` on the way: requests pass first to last, responses last to first.
    fn index(&self, place: usize) -> Option<usize> {
        let count = self.exchange.len();
        match self.direction {
            Direction::Request => (place < count).then_some(place),
            Direction::Response => count.checked_sub(place + 1),
        }
    }

    /// Hands a chunk to the plugins from `place` on. `None`: held back.
    fn pass(&mut self, mut place: usize, chunk: &mut Bytes, end: bool) -> Result<Option<()>, Error> {
        while let Some(index) = self.index(place) {
            let direction = self.direction;
            let outcome = self.exchange.call(index, |stream| match direction {
                Direction::Request => stream.request_body(chunk, end),
                Direction::Response => stream.response_body(chunk, end),
            });
            if matches!(outcome, Outcome::Pause) {
                if end {
                    self.state = State::Held { place };
                }
                return Ok(None);
            }
            if self.goes_on(index, outcome)? {
                place += 1;
            }
        }
        if end {
            self.state = State::Done;
        }
        Ok(Some(()))
    }

    /// `false`: the plugin failed open and is gone from its place.
    fn goes_on(&self, index: usize, outcome: Outcome) -> Result<bool, Error> {
        match self.exchange.settle(index, outcome) {
            Some(Step::Continue) => Ok(true),
            None => Ok(false),
            Some(step) => {
                self.exchange.ended.replace(Some(step));
                Err(Ended.into())
            }
        }
    }

    fn trailers(&self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, Error> {
        let Ok(fields) = frame.into_trailers() else { return Err(Ended.into()) };
        let mut headers = Headers::trailers(fields);
        let mut place = 0;
        while let Some(index) = self.index(place) {
            let outcome = self.exchange.call(index, |stream| match self.direction {
                Direction::Request => stream.request_trailers(&mut headers),
                Direction::Response => stream.response_trailers(&mut headers),
            });
            if self.goes_on(index, outcome)? {
                place += 1;
            }
        }
        Ok(Frame::trailers(headers.fields))
    }

    fn poll_held(&mut self, place: usize, cx: &mut Context<'_>) -> Poll<Result<Bytes, Error>> {
        let mut chunk = Bytes::new();
        let Some(index) = self.index(place) else { return Poll::Ready(Err(Ended.into())) };
        let outcome = {
            let mut active = self.exchange.active.borrow_mut();
            let Some(active) = active.get_mut(index) else { return Poll::Ready(Err(Ended.into())) };
            ready!(active.stream.poll_resumed(cx, self.direction, &mut Headers::default(), &mut chunk))
        };
        let next = if self.goes_on(index, outcome)? { place + 1 } else { place };
        self.pass(next, &mut chunk, true)?;
        Poll::Ready(Ok(chunk))
    }
}

impl Filter for BodyFilter {
    fn poll_frame(&mut self, body: &mut Incoming, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            match self.state {
                State::Held { place } => {
                    let chunk = ready!(self.poll_held(place, cx))?;
                    if matches!(self.state, State::Done) && !chunk.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(chunk))));
                    }
                }
                State::Done => {
                    if let Some(trailers) = self.trailers.take() {
                        return Poll::Ready(Some(self.trailers(trailers)));
                    }
                    return match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                        Some(frame) => Poll::Ready(Some(frame.map_err(Error::from))),
                        None => Poll::Ready(None),
                    };
                }
                State::Reading => {
                    let next = ready!(Pin::new(&mut *body).poll_frame(cx)).transpose()?;
                    let mut end = next.is_none() || body.is_end_stream();
                    let mut chunk = match next.unwrap_or_else(|| Frame::data(Bytes::new())).into_data() {
                        Ok(chunk) => chunk,
                        // Plugins that gather a body until its end get to see the end here too.
                        Err(trailers) => {
                            self.trailers = Some(trailers);
                            end = true;
                            Bytes::new()
                        }
                    };
                    if self.pass(0, &mut chunk, end)?.is_some() && !chunk.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(chunk))));
                    }
                }
            }
        }
    }
}
