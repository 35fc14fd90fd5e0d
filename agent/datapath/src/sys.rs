//! The few bpf(2) operations that aya does not offer: links opened from their pins, of whatever type.
use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;

/// What a link is attached to, as far as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub program_id: u32,
    /// Cgroup id, interface index or inode of the network namespace; 0: it is gone.
    pub target: u64,
}

/// `link_type` of cgroup links, whose target has 64 bits.
const LINK_TYPE_CGROUP: u32 = 3;

/// `struct bpf_link_info`, its union as one number.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    link_type: u32,
    id: u32,
    program_id: u32,
    padding: u32,
    target: u64,
    rest: [u64; 8],
}

/// Opens what is pinned at the path.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Attr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    let fd = bpf(OBJ_GET, &mut attr)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Replaces the program inside a link, in one step.
pub fn update_link(link: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link: u32,
        program: u32,
        flags: u32,
        old_program: u32,
    }
    let number = |fd: RawFd| u32::try_from(fd).map_err(io::Error::other);
    let mut attr =
        Attr { link: number(link.as_raw_fd())?, program: number(program.as_raw_fd())?, flags: 0, old_program: 0 };
    bpf(LINK_UPDATE, &mut attr).map(drop)
}

/// Detaches at once. A link whose pin is removed goes too, but some time later.
pub fn detach_link(link: &OwnedFd) -> io::Result<()> {
    let mut attr = u32::try_from(link.as_raw_fd()).map_err(io::Error::other)?;
    bpf(LINK_DETACH, &mut attr).map(drop)
}

pub fn link(fd: &OwnedFd) -> io::Result<Link> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut info = LinkInfo::default();
    let fd = u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)?;
    let mut attr = Attr { fd, len: size_of::<LinkInfo>() as u32, info: (&raw mut info) as u64 };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr)?;
    // Other types have a 32-bit target, with the attach type in the other half.
    let target = if info.link_type == LINK_TYPE_CGROUP { info.target } else { u64::from(info.target as u32) };
    Ok(Link { program_id: info.program_id, target })
}

/// Ids of the programs attached to a cgroup or network namespace for one `bpf_attach_type`.
pub fn attached(target: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        target: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        padding: u32,
        rest: [u64; 4],
    }
    let mut ids = [0_u32; 64];
    let target = u32::try_from(target.as_raw_fd()).map_err(io::Error::other)?;
    let mut attr =
        Attr { target, attach_type, ids: ids.as_mut_ptr() as u64, count: ids.len() as u32, ..Default::default() };
    bpf(PROG_QUERY, &mut attr)?;
    Ok(ids.into_iter().take(attr.count as usize).collect())
}

/// Returns once every program that ran when this was called has ended: what it may have read can go.
pub fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // Programs run inside RCU read sections, and this command waits for those (`synchronize_rcu`). Kernels that refuse
    // it (full dynticks) leave a window of microseconds in which a connection may be refused.
    // SAFETY: no pointers.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if done != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "no membarrier");
    }
}

/// The cookie of the calling thread's network namespace; 0 where the kernel (before 5.14) does not tell.
pub fn netns_cookie() -> u64 {
    let Ok(socket) = std::net::UdpSocket::bind("0.0.0.0:0") else { return 0 };
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are to live variables of the sizes given.
    let got = unsafe {
        let value = (&raw mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, value, &raw mut len)
    };
    if got == 0 { cookie } else { 0 }
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<RawFd> {
    // SAFETY: `attr` starts as `union bpf_attr` does for this command, and its size is passed along.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut T, size_of::<T>()) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
