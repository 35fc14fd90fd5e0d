//! TCP and TLS under a session.
use hyper_util::rt::TokioIo;
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{codegen::Service, transport::Uri};

/// The alert that ended a connection: HTTP would only say that it was closed.
pub(super) type Refusal = Arc<OnceLock<String>>;

/// TCP, and TLS over it where it is configured. The peer is judged by its SPIFFE ID, so the name is only what TLS must have.
pub(super) struct Connector {
    pub address: String,
    pub tls: Option<Arc<rustls::ClientConfig>>,
    pub refusal: Refusal,
}

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (address, tls, refusal) = (self.address.clone(), self.tls.clone(), self.refusal.clone());
        Box::pin(async move {
            let tcp = TcpStream::connect(&address).await?;
            tcp.set_nodelay(true)?;
            let Some(tls) = tls else { return Ok(TokioIo::new(Box::new(tcp) as Box<dyn Stream>)) };
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let name = rustls::pki_types::ServerName::try_from(host).map_err(io::Error::other)?;
            let stream = TlsConnector::from(tls).connect(name, tcp).await?;
            let stream = Listening { stream, refusal };
            Ok(TokioIo::new(Box::new(stream) as Box<dyn Stream>))
        })
    }
}

/// Keeps the first TLS alert of the other side.
struct Listening {
    stream: TlsStream<TcpStream>,
    refusal: Refusal,
}

impl AsyncRead for Listening {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &result
            && let Some(rustls::Error::AlertReceived(_)) = error.get_ref().and_then(|error| error.downcast_ref())
        {
            self.refusal.get_or_init(|| error.to_string());
        }
        result
    }
}

impl AsyncWrite for Listening {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
