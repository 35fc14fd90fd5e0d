//! One client call at a time, told as the client's own socket saw it: for pods that have no other tools.
use serde::{Deserialize, Serialize};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

const TEXT: &[u8] = b"hello";

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum How {
    Tcp,
    /// A connected socket
    Udp,
    /// The address goes with each datagram
    UdpUnconnected,
}

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    #[arg(value_enum)]
    how: How,
    /// ADDRESS:PORT of an echo server, such as `weft-lab serve` has
    to: SocketAddr,
    /// Calls, each on a socket of its own
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// How long to wait for an answer, in seconds
    #[arg(long, default_value_t = 3.0)]
    patience: f64,
}

/// What came of one call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The name that the server gives itself.
    pub server: Option<String>,
    /// What getpeername(2) says.
    pub peer: Option<SocketAddr>,
    /// Whom recvmsg(2) names as the sender of the answer (UDP).
    pub from: Option<SocketAddr>,
    /// The kind of error, as `ConnectionRefused`.
    pub error: Option<String>,
}

/// Makes the calls one after the other. Failed calls are in the result; a bad patience is an error.
pub fn run(options: &Options) -> io::Result<Vec<Call>> {
    let patience = Duration::try_from_secs_f64(options.patience).map_err(io::Error::other)?;
    let call = |_| {
        let mut call = Call::default();
        let done = match options.how {
            How::Tcp => tcp(options.to, patience, &mut call),
            How::Udp => udp(options.to, patience, &mut call),
            How::UdpUnconnected => udp_unconnected(options.to, patience, &mut call),
        };
        call.error = done.err().map(|error| format!("{:?}", error.kind()));
        call
    };
    Ok((0..options.count).map(call).collect())
}

fn tcp(to: SocketAddr, patience: Duration, call: &mut Call) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    call.peer = Some(stream.peer_addr()?);
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(TEXT)?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" && answer.len() < 256 {
        stream.read_exact(&mut byte)?;
        answer.extend(byte);
    }
    call.server = name_of(&answer);
    Ok(())
}

fn udp(to: SocketAddr, patience: Duration, call: &mut Call) -> io::Result<()> {
    let socket = socket(to, patience)?;
    socket.connect(to)?;
    call.peer = Some(socket.peer_addr()?);
    socket.send(TEXT)?;
    receive(&socket, call)
}

fn udp_unconnected(to: SocketAddr, patience: Duration, call: &mut Call) -> io::Result<()> {
    let socket = socket(to, patience)?;
    socket.send_to(TEXT, to)?;
    receive(&socket, call)
}

fn socket(to: SocketAddr, patience: Duration) -> io::Result<UdpSocket> {
    let any = if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(patience))?;
    Ok(socket)
}

fn receive(socket: &UdpSocket, call: &mut Call) -> io::Result<()> {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer)?;
    call.from = Some(from);
    call.server = name_of(&buffer[..length]);
    Ok(())
}

/// Servers give their name first.
fn name_of(answer: &[u8]) -> Option<String> {
    String::from_utf8_lossy(answer).split_whitespace().next().map(str::to_owned)
}
