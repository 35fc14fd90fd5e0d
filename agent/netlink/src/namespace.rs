//! Running code inside another network namespace.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::Error;

/// Runs `work` on a thread of its own inside `namespace` (an open `/proc/PID/ns/net` or a bind mount of one). Sockets
/// and netlink connections opened there stay in that namespace.
pub fn within<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Namespace(errno.into()))?;
                Ok(work())
            })
            .join()
            .unwrap_or_else(|_| Err(Error::Namespace(io::Error::other("the thread inside the namespace panicked"))))
    })
}
