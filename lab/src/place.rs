//! A place where processes run: a network namespace and a cgroup.
use crate::layout::{self, Layout};
use nix::sched::{CloneFlags, setns};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("cannot make the network namespace {name}: is this running as root?")]
    Namespace {
        name: String,
        #[source]
        cause: io::Error,
    },
    #[error("`{command}` failed: {message}")]
    Command { command: String, message: String },
    #[error("cannot make the cgroup {}", path.display())]
    Cgroup {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub netns: String,
    pub cgroup: PathBuf,
}

impl Place {
    /// Of commands that are run on a node.
    pub fn node(layout: &Layout, cluster: &str, node: &str) -> Self {
        Self { netns: layout.node_netns(cluster, node), cgroup: layout.host_cgroup(cluster, node) }
    }

    /// Of a node's agent and proxy.
    pub fn agent(layout: &Layout, cluster: &str, node: &str) -> Self {
        Self { netns: layout.node_netns(cluster, node), cgroup: layout.agent_cgroup(cluster, node) }
    }

    /// Of a cluster's etcd and API server.
    pub fn control_plane(layout: &Layout, cluster: &str) -> Self {
        Self { netns: layout.control_plane_netns(cluster), cgroup: layout.control_plane_cgroup(cluster) }
    }

    /// Makes `command` start in this place.
    pub fn put(&self, command: &mut Command) -> io::Result<()> {
        let netns = File::open(layout::netns_path(&self.netns))?;
        let cgroup = OpenOptions::new().write(true).open(self.cgroup.join("cgroup.procs"))?;
        // SAFETY: between fork and exec only two system calls are made, on descriptors that are open already.
        unsafe {
            command.pre_exec(move || {
                (&cgroup).write_all(b"0")?;
                Ok(setns(&netns, CloneFlags::CLONE_NEWNET)?)
            });
        }
        Ok(())
    }

    /// A command that starts in this place.
    pub fn command(&self, program: &str) -> io::Result<Command> {
        let mut command = Command::new(program);
        self.put(&mut command)?;
        Ok(command)
    }

    /// Runs `work` on a thread of its own inside the network namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let netns = File::open(layout::netns_path(&self.netns))?;
        thread::scope(|scope| {
            let inside = scope.spawn(move || -> io::Result<T> {
                setns(&netns, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            });
            inside.join().map_err(|_| io::Error::other("the work in the namespace panicked"))?
        })
    }
}

/// Makes a namespace with its loopback up; the lab's record of it is written first, so that it is always removed.
pub fn make_netns(layout: &Layout, name: &str) -> Result<(), PlaceError> {
    let failed = |cause| PlaceError::Namespace { name: name.to_owned(), cause };
    fs::create_dir_all(layout.namespaces()).map_err(failed)?;
    File::create(layout.namespaces().join(name)).map_err(failed)?;
    ip(&format!("netns add {name}"))?;
    ip(&format!("-n {name} link set lo up"))
}

/// Removes a namespace and the record of it; one that is gone is no error.
pub fn remove_netns(layout: &Layout, name: &str) {
    if layout::netns_path(name).exists()
        && let Err(error) = ip(&format!("netns del {name}"))
    {
        tracing::warn!(namespace = name, %error, "a network namespace stays behind");
        return;
    }
    // Without the record nothing looks for the namespace again; it is gone.
    let _ = fs::remove_file(layout.namespaces().join(name));
}

/// Runs `ip` with the words of `arguments`.
pub fn ip(arguments: &str) -> Result<(), PlaceError> {
    tool("ip", arguments)
}

/// Runs `program` with the words of `arguments`; what it says on failure is the error.
pub fn tool(program: &str, arguments: &str) -> Result<(), PlaceError> {
    let failed = |message: String| PlaceError::Command { command: format!("{program} {arguments}"), message };
    let output = Command::new(program).args(arguments.split_whitespace()).output();
    let output = output.map_err(|cause| failed(format!("{cause}: is {program} installed?")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

pub fn make_cgroup(path: &Path) -> Result<(), PlaceError> {
    fs::create_dir_all(path).map_err(|cause| PlaceError::Cgroup { path: path.to_owned(), cause })
}

/// Kills every process in the cgroup and below, then removes it. One that is gone is no error.
pub fn remove_cgroup(path: &Path) {
    if !path.exists() {
        return;
    }
    // Kernels before 5.14 have no such file: there the processes have been ended one by one.
    let _ = fs::write(path.join("cgroup.kill"), "1");
    for _ in 0..100 {
        if remove_tree(path).is_ok() {
            return;
        }
        thread::sleep(std::time::Duration::from_millis(20));
    }
    tracing::warn!(cgroup = %path.display(), "a cgroup stays behind: processes in it do not end");
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
