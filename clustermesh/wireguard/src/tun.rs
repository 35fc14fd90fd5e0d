//! The TUN device: super-packets in both directions, and an interface that outlives the process.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{c_uint, c_ulong};

use crate::Error;

const PATH: &str = "/dev/net/tun";
/// From `linux/if_tun.h`; libc lacks the USO ones.
const TUN_F_CSUM: c_uint = 0x01;
const TUN_F_TSO4: c_uint = 0x02;
const TUN_F_TSO6: c_uint = 0x04;
const TUN_F_TSO_ECN: c_uint = 0x08;
const TUN_F_USO4: c_uint = 0x20;
const TUN_F_USO6: c_uint = 0x40;

pub(crate) struct Tun {
    file: File,
    pub(crate) tcp_offload: bool,
    pub(crate) udp_offload: bool,
}

impl Tun {
    /// Attaches to the interface, creating it where there is none, in the calling thread's network namespace.
    pub(crate) fn attach(name: &str) -> Result<Self, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(PATH)
            .map_err(Error::NoTun)?;
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['/', ' ', '%']) {
            return Err(Error::InterfaceName { name: name.to_owned() });
        }
        // SAFETY: an all-zero ifreq is a valid value of it.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        let attach = |cause: io::Error| match cause.raw_os_error() {
            Some(libc::EBUSY) => Error::InterfaceBusy { name: name.to_owned() },
            Some(libc::EINVAL) => Error::InterfaceKind { name: name.to_owned() },
            _ => Error::Attach { name: name.to_owned(), cause },
        };
        // SAFETY: the request outlives the call, and the file is an open TUN descriptor.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as c_ulong, &raw mut request) })
            .map_err(attach)?;

        let set = |operation: c_ulong, value: c_uint| {
            // SAFETY: these operations take their argument by value.
            check(unsafe { libc::ioctl(file.as_raw_fd(), operation, c_ulong::from(value)) })
        };
        set(libc::TUNSETPERSIST as c_ulong, 1).map_err(|cause| Error::Attach { name: name.to_owned(), cause })?;
        let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
        let offload = libc::TUNSETOFFLOAD as c_ulong;
        let udp_offload = set(offload, tcp | TUN_F_USO4 | TUN_F_USO6).is_ok();
        let tcp_offload = udp_offload || set(offload, tcp).is_ok();
        if !tcp_offload {
            // What a former process set must not stay.
            set(offload, 0).map_err(|cause| Error::Attach { name: name.to_owned(), cause })?;
        }
        Ok(Self { file, tcp_offload, udp_offload })
    }

    /// One packet with its vnet header; `WouldBlock` where none waits.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// One packet with its vnet header, in parts.
    pub(crate) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        (&self.file).write_vectored(parts).map(drop)
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
