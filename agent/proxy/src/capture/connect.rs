//! Connections under a foreign source address, marked so that the kernel programs leave them alone.
use socket2::{Domain, SockRef, Socket, Type};
use std::{io, net::SocketAddr, os::fd::AsRawFd, time::Duration};
use tokio::net::{TcpSocket, TcpStream};
use weft_bpf_abi::mark;

pub const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Dead peers are noticed after about two minutes of silence.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Connects to `to` under the address of `from`: with its port where that is free, with another where this node already
/// uses the same pair of addresses. Port 0: any.
pub async fn connect_as(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let connected = tokio::time::timeout(CONNECT_TIME, async {
        match connect_from(from, to).await {
            Err(e) if matches!(e.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {
                connect_from(SocketAddr::new(from.ip(), 0), to).await
            }
            done => done,
        }
    });
    let stream = connected.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    prepare(&stream)?;
    Ok(stream)
}

/// No delay, and keep-alive probes so that a vanished peer does not hold a connection for ever.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 6))
}

/// Ends a connection by a reset, so that the client sees a refusal and not an end of data.
pub fn reset(stream: TcpStream) {
    if let Err(error) = SockRef::from(&stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "cannot reset a connection; it is closed instead");
    }
}

async fn connect_from(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = transparent_socket(to)?;
    socket.set_reuse_address(true)?;
    // Without this, binding to port 0 takes a port for all destinations, and 28,000 connections exhaust a client.
    set_option(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT)?;
    socket.bind(&from.into())?;
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

/// Non-blocking, of the family of `address`, may use foreign addresses, marked `PROXY`.
pub fn transparent_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT)?;
        }
    }
    socket.set_mark(mark::PROXY)?;
    Ok(socket)
}

fn set_option(socket: &Socket, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `on` lives through the call, and its size is the one given.
    let rc = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), size_of_val(&on) as libc::socklen_t)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn the_server_sees_the_client_address_in_both_families() {
        for (from, listen) in [("127.0.0.9:0", "127.0.0.1:0"), ("[::1]:0", "[::1]:0")] {
            let listener = TcpListener::bind(listen).await.unwrap();
            let from: SocketAddr = from.parse().unwrap();
            let stream = connect_as(from, listener.local_addr().unwrap()).await.unwrap();
            let (_, peer) = listener.accept().await.unwrap();
            assert_eq!((peer.ip(), peer), (from.ip(), stream.local_addr().unwrap()));
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_replaced_by_another() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let first = connect_as("127.0.0.9:0".parse().unwrap(), to).await.unwrap().into_std().unwrap();
        let from = first.local_addr().unwrap();
        let second = connect_as(from, to).await.unwrap();
        assert_eq!(second.local_addr().unwrap().ip(), from.ip());
        assert_ne!(second.local_addr().unwrap().port(), from.port());
    }
}
