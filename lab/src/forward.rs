//! Takes connections on this machine's loopback and carries them into a place.
use crate::place::Place;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpStream as StdStream},
    time::Duration,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

const PATIENCE: Duration = Duration::from_secs(5);
/// A lab has a handful of clients.
const MOST_CONNECTIONS: usize = 256;

/// It forwards until it is dropped.
pub struct Forwarder {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Forwarder {
    pub async fn start(place: Place, to: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        Ok(Self { address, task: tokio::spawn(forward(listener, place, to)) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(listener: TcpListener, place: Place, to: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MOST_CONNECTIONS => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(carry(stream, place.clone(), to));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(mut near: TcpStream, place: Place, to: SocketAddr) {
    let connect = tokio::task::spawn_blocking(move || {
        place.run(|| StdStream::connect_timeout(&to, PATIENCE)).and_then(|connected| connected)
    });
    let far = connect.await.map_err(io::Error::other).and_then(|connected| connected);
    let far = far.and_then(|far| far.set_nonblocking(true).and_then(|()| TcpStream::from_std(far)));
    match far {
        // Either side may end the connection at any time; the other hears of it.
        Ok(mut far) => drop(copy_bidirectional(&mut near, &mut far).await),
        Err(error) => tracing::debug!(%to, %error, "a forwarded connection was not made"),
    }
}
