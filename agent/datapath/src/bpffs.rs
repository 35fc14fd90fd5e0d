//! The BPF file system that pins live on.
use crate::error::DatapathError;
use nix::{mount::MsFlags, sys::statfs};
use std::{fs, io, path::Path};

/// Mounts one at the folder unless it is on one already.
pub fn ensure_mounted(path: &Path) -> Result<(), DatapathError> {
    let fail = |cause: io::Error| DatapathError::Mount { path: path.into(), cause };
    fs::create_dir_all(path).map_err(fail)?;
    let on_bpffs = || statfs::statfs(path).map(|fs| fs.filesystem_type() == statfs::BPF_FS_MAGIC);
    if on_bpffs().map_err(|errno| fail(errno.into()))? {
        return Ok(());
    }
    nix::mount::mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|errno| fail(errno.into()))
}
