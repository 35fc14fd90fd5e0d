//! Connections: accepted up to a limit, secured, and only then seen by the services.
use std::{
    collections::BTreeSet,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch as level},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server;
use weft_certs::TrustDomain;

/// The trust domains whose connections may go on. `None`: no word yet.
pub(super) type Connected = Option<BTreeSet<TrustDomain>>;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After an error that is not of one connection, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs until the other end of `streams` is gone.
pub(super) async fn accept(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    connections: usize,
    connected: level::Receiver<Connected>,
    streams: mpsc::Sender<io::Result<MeshStream>>,
) {
    let acceptor = TlsAcceptor::from(tls);
    let limit = Arc::new(Semaphore::new(connections));
    let mut handshakes = JoinSet::new();
    while !streams.is_closed() {
        while handshakes.try_join_next().is_some() {}
        let Ok(permit) = limit.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the mesh server");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (acceptor, streams, connected) = (acceptor.clone(), streams.clone(), connected.clone());
        handshakes.spawn(async move {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, secure(acceptor, stream)).await {
                Ok(Ok(stream)) => {
                    let parted = Box::pin(parted(trust_domain(&stream), connected));
                    drop(streams.send(Ok(MeshStream { stream, parted, _permit: permit })).await);
                }
                Ok(Err(error)) => {
                    tracing::info!(%peer, error = weft_certs::explain(&error), "refused a connection to the mesh server");
                }
                Err(_) => tracing::debug!(%peer, "no handshake in time"),
            }
        });
    }
}

/// Without Nagle: each page of a list would wait for an acknowledgement.
async fn secure(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    acceptor.accept(stream).await
}

/// Of the peer, whom the handshake has verified.
fn trust_domain(stream: &TlsStream<TcpStream>) -> Option<TrustDomain> {
    let certificates = stream.get_ref().1.peer_certificates()?;
    Some(weft_certs::peer_spiffe_id(certificates).ok()?.trust_domain().clone())
}

/// Ends when the peer's cluster is no longer connected.
async fn parted(domain: Option<TrustDomain>, mut connected: level::Receiver<Connected>) {
    let is_parted = |known: &Connected| known.as_ref().is_some_and(|k| domain.as_ref().is_none_or(|d| !k.contains(d)));
    if connected.wait_for(is_parted).await.is_err() {
        std::future::pending().await // the server itself is ending
    }
}

/// A secured connection that counts against the limit as long as it lives.
pub(super) struct MeshStream {
    stream: TlsStream<TcpStream>,
    parted: Pin<Box<dyn Future<Output = ()> + Send>>,
    _permit: OwnedSemaphorePermit,
}

impl server::Connected for MeshStream {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for MeshStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.parted.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "its cluster was disconnected")));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for MeshStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
