//! Removes a lab, also one whose supervisor was killed. Everything here may have been done in part before.
use crate::{
    layout::{self, Layout},
    place,
};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::Signal,
};
use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How long a supervisor may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(15);

/// Ends the lab's supervisor, if it runs, and removes what there is of the lab.
pub fn take_down(layout: &Layout) {
    if let Ok(Some(record)) = layout.read_record() {
        record.supervisor.signal(Signal::SIGTERM);
        let begun = Instant::now();
        while record.supervisor.alive() {
            if begun.elapsed() > PATIENCE {
                record.supervisor.signal(Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
    remove(layout);
}

/// Removes processes, namespaces, mounts, cgroups and files, in this order: each holds the next.
pub fn remove(layout: &Layout) {
    // The supervisor is not in the cgroup.
    place::remove_cgroup(layout.cgroup());
    if let Ok(entries) = fs::read_dir(layout.namespaces()) {
        for entry in entries.flatten() {
            place::remove_netns(layout, &entry.file_name().to_string_lossy());
        }
    }
    for mount in mounts_below(layout.runtime()) {
        if let Err(error) = umount2(&mount, MntFlags::MNT_DETACH) {
            tracing::warn!(mount = %mount.display(), %error, "a mount stays behind");
        }
    }
    if let Err(error) = fs::remove_dir_all(layout.runtime())
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(folder = %layout.runtime().display(), %error, "a folder stays behind");
    }
}

/// Removes every lab whose supervisor is dead; says their names.
pub fn sweep(runtime_dir: &Path) -> Vec<String> {
    let mut removed = Vec::new();
    for name in layout::labs(runtime_dir) {
        let Ok(layout) = Layout::new(runtime_dir, &name) else { continue };
        // A lab without a record has only just begun, or was never one of ours.
        if let Ok(Some(record)) = layout.read_record()
            && !record.supervisor.alive()
        {
            remove(&layout);
            removed.push(name);
        }
    }
    removed
}

/// The innermost first.
fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(folder)).collect();
    below.reverse();
    below
}
