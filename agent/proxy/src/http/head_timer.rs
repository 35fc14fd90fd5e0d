//! Limits how long a client may take to send the head of a request, without limiting how long a connection idles.
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// Counts heads: odd while a request is being served.
#[derive(Clone, Default)]
pub struct Heads(Arc<AtomicU64>);

impl Heads {
    /// A whole head was read; until the guard is dropped no other is expected.
    pub fn begin(&self) -> Serving {
        self.0.fetch_add(1, Relaxed);
        Serving(self.0.clone())
    }
}

pub struct Serving(Arc<AtomicU64>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// A stream whose reads fail when a head was begun and does not end in time. For connections that serve one request at
/// a time.
pub struct HeadTimer<S> {
    stream: S,
    heads: Heads,
    limit: Duration,
    /// The value of `heads` when the first byte of an unfinished head came.
    begun: Option<u64>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> HeadTimer<S> {
    pub fn new(stream: S, heads: Heads, limit: Duration) -> Self {
        Self { stream, heads, limit, begun: None, timer: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeadTimer<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let now = this.heads.0.load(Relaxed);
        if this.begun.is_some_and(|begun| begun != now) {
            this.begun = None;
            this.timer = None;
        }
        let before = buf.filled().len();
        if let Poll::Ready(done) = Pin::new(&mut this.stream).poll_read(cx, buf) {
            if now.is_multiple_of(2) && buf.filled().len() > before {
                this.begun.get_or_insert(now);
            }
            return Poll::Ready(done);
        }
        if this.begun.is_none() {
            return Poll::Pending;
        }
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep(this.limit)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeadTimer<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::timeout,
    };

    const LIMIT: Duration = Duration::from_millis(40);

    #[tokio::test]
    async fn an_idle_connection_may_wait_but_an_unfinished_head_may_not() {
        let (mut client, server) = duplex(64);
        let heads = Heads::default();
        let mut server = HeadTimer::new(server, heads.clone(), LIMIT);
        let mut buf = [0; 16];
        assert!(timeout(LIMIT * 3, server.read(&mut buf)).await.is_err(), "idle");
        client.write_all(b"GET / HT").await.unwrap();
        assert_eq!(server.read(&mut buf).await.unwrap(), 8);
        drop(heads.begin());
        assert!(timeout(LIMIT * 3, server.read(&mut buf)).await.is_err(), "served, and idle again");
        client.write_all(b"GET").await.unwrap();
        assert_eq!(server.read(&mut buf).await.unwrap(), 3);
        assert_eq!(server.read(&mut buf).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
