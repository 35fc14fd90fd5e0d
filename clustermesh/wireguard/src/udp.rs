//! The outer sockets, one for each family: marked, never fragmenting, with segmentation offload where the kernel has it.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, SndBufForce, UdpGroSegment};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Error;

const SOCKET_BUFFER: usize = 7 << 20;
/// A full interface queue holds up sending this long before packets are given up.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);
const MAX_SEGMENTS: usize = 64;
/// The longest UDP payload over IPv4.
const MAX_BATCH: usize = 65_507;

pub(crate) struct Udp {
    v4: Socket,
    /// `None`: the kernel has no IPv6.
    v6: Option<Socket>,
    port: u16,
    segmentation: AtomicBool,
    pub(crate) receive_offload: bool,
}

/// How a run of datagrams went.
#[derive(Default)]
pub(crate) struct Sent {
    pub(crate) too_big: u64,
    pub(crate) failed: u64,
}

/// What was received at once: one datagram, or equal ones behind each other.
pub(crate) struct Received {
    pub(crate) from: SocketAddr,
    pub(crate) length: usize,
    /// All but the last have this length.
    pub(crate) segment: usize,
}

impl Udp {
    /// Binds in the calling thread's network namespace.
    pub(crate) fn bind(port: u16, mark: u32) -> Result<Self, Error> {
        let failed = |cause: io::Error| Error::Bind { port, cause };
        let v4 = open(Domain::IPV4, mark).map_err(failed)?;
        v4.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).map_err(failed)?;
        let port = v4.local_addr().map_err(failed)?.as_socket().map_or(port, |address| address.port());
        let v6 = match open(Domain::IPV6, mark) {
            Ok(socket) => {
                socket.set_only_v6(true).map_err(failed)?;
                match socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into()) {
                    Ok(()) => Some(socket),
                    // IPv6 is switched off by sysctl.
                    Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => None,
                    Err(error) => return Err(failed(error)),
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(failed(error)),
        };
        let receive_offload = [Some(&v4), v6.as_ref()]
            .into_iter()
            .flatten()
            .all(|socket| setsockopt(socket, UdpGroSegment, &true).is_ok());
        Ok(Self { v4, v6, port, segmentation: AtomicBool::new(true), receive_offload })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn send_offload(&self) -> bool {
        self.segmentation.load(Ordering::Relaxed)
    }

    pub(crate) fn sockets(&self) -> impl Iterator<Item = &Socket> {
        [Some(&self.v4), self.v6.as_ref()].into_iter().flatten()
    }

    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets().map(|socket| socket.as_fd())
    }

    /// Sends the datagrams at `ranges`, which lie behind each other in `bytes`.
    pub(crate) fn send(&self, to: SocketAddr, bytes: &[u8], ranges: &[Range<usize>]) -> Sent {
        let mut sent = Sent::default();
        let mut rest = ranges;
        while !rest.is_empty() {
            let (run, others) = rest.split_at(self.run_length(rest));
            self.send_run(to, bytes, run, &mut sent);
            rest = others;
        }
        sent
    }

    /// How many of the first datagrams can go in one call: equal ones, and one shorter at the end.
    fn run_length(&self, ranges: &[Range<usize>]) -> usize {
        let size = ranges[0].len();
        if !self.send_offload() {
            return 1;
        }
        let mut total = size;
        let mut count = 1;
        while count < ranges.len().min(MAX_SEGMENTS) {
            let next = &ranges[count];
            let behind = next.start == ranges[count - 1].end;
            if !behind || next.len() > size || total + next.len() > MAX_BATCH {
                break;
            }
            total += next.len();
            count += 1;
            if next.len() < size {
                break;
            }
        }
        count
    }

    fn send_run(&self, to: SocketAddr, bytes: &[u8], run: &[Range<usize>], sent: &mut Sent) {
        let whole = &bytes[run[0].start..run[run.len() - 1].end];
        let result =
            if run.len() > 1 { self.transmit(to, whole, Some(run[0].len())) } else { self.transmit(to, whole, None) };
        match result {
            Ok(()) => {}
            Err(Errno::EMSGSIZE) if run.len() == 1 => sent.too_big += 1,
            Err(errno @ (Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE)) if run.len() > 1 => {
                // EIO: the network device computes no checksums, so the kernel cannot segment, ever. The others may be
                // of this path alone.
                if errno == Errno::EIO {
                    tracing::info!("the network device takes no UDP segmentation offload");
                    self.segmentation.store(false, Ordering::Relaxed);
                }
                for single in run {
                    self.send_run(to, bytes, std::slice::from_ref(single), sent);
                }
            }
            Err(errno) => {
                tracing::debug!(%to, %errno, datagrams = run.len(), "sending failed");
                sent.failed += run.len() as u64;
            }
        }
    }

    fn transmit(&self, to: SocketAddr, bytes: &[u8], segment: Option<usize>) -> Result<(), Errno> {
        let socket = match (to, &self.v6) {
            (SocketAddr::V4(_), _) => &self.v4,
            (SocketAddr::V6(_), Some(v6)) => v6,
            (SocketAddr::V6(_), None) => return Err(Errno::EAFNOSUPPORT),
        };
        // At most 65,507 bytes are sent at once.
        let segment = segment.map(|size| size as u16);
        let control: Vec<_> = segment.iter().map(ControlMessage::UdpGsoSegments).collect();
        let address = SockaddrStorage::from(to);
        loop {
            let result =
                sendmsg(socket.as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::empty(), Some(&address));
            match result {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// What the kernel knows of the path's MTU, in bytes.
    pub(crate) fn path_mtu(to: SocketAddr) -> io::Result<usize> {
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
        socket.connect(&to.into())?;
        let (level, option) = match to {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
        };
        let mut mtu: libc::c_int = 0;
        let mut size = size_of_val(&mtu) as libc::socklen_t;
        // SAFETY: the value is an int that outlives the call, and its size is given.
        let result =
            unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut mtu).cast(), &raw mut size) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(usize::try_from(mtu).unwrap_or(0)) }
    }

    /// Receives what waits at `socket`, without waiting. `None`: nothing does.
    pub(crate) fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        let mut control = nix::cmsg_space!(i32);
        let mut parts = [IoSliceMut::new(buffer)];
        let message =
            recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT);
        let message = match message {
            Ok(message) => message,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let length = message.bytes;
        let segment = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok().filter(|size| *size > 0),
            _ => None,
        });
        let from = message.address.and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into())))
        });
        let from = from.ok_or_else(|| io::Error::other("a datagram without a source address"))?;
        Ok(Some(Received { from, length, segment: segment.unwrap_or(length.max(1)) }))
    }
}

fn open(domain: Domain, mark: u32) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    // Beyond the system's limit with CAP_NET_ADMIN, else up to it.
    if setsockopt(&socket, RcvBufForce, &SOCKET_BUFFER).is_err() {
        socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    }
    if setsockopt(&socket, SndBufForce, &SOCKET_BUFFER).is_err() {
        socket.set_send_buffer_size(SOCKET_BUFFER)?;
    }
    let (level, option, value) = if domain == Domain::IPV4 {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
    };
    // SAFETY: the value is an int that outlives the call, and its size is given.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), size_of_val(&value) as u32)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}
