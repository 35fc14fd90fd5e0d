//! Brings a lab up: checks its folder, starts its supervisor, waits until everything is ready.
use crate::{
    cleanup,
    control::{self, LabStatus, Reply, Request},
    layout::{Layout, ProcessId, Record, Source},
    spec::{Spec, SpecError},
};
use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const LOOK: Duration = Duration::from_millis(100);
/// `weft-<name>-…` and socket paths have to stay short enough.
const NAME: usize = 40;

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("the lab's name {name:?}: want 1 to {NAME} of a-z, 0-9 and '-'")]
    Name { name: String },
    #[error("lab {name} is up already: end it with `weft-lab down --name {name}`, or give another --name")]
    Running { name: String },
    #[error("cannot start the lab")]
    System(#[from] io::Error),
    #[error("the lab's folder {} has no folder {cluster} with that cluster's manifests", folder.display())]
    NoManifests { folder: PathBuf, cluster: String },
    #[error("the lab cannot come up: {message}")]
    Failed { message: String },
    #[error("the lab is not ready after {} s:\n  {}", waited.as_secs(), waiting.join("\n  "))]
    Slow { waited: Duration, waiting: Vec<String> },
}

#[derive(Clone, Debug)]
pub struct Options {
    pub folder: PathBuf,
    pub name: String,
    pub source: Source,
    pub runtime_dir: PathBuf,
    /// The lab ends when this process does.
    pub owner: Option<ProcessId>,
    /// The program with the hidden subcommand `supervise`.
    pub program: PathBuf,
}

/// The name of a lab that is given none: its folder's.
pub fn default_name(folder: &Path) -> String {
    let name = folder.canonicalize().unwrap_or(folder.to_owned());
    name.file_name().unwrap_or_default().to_string_lossy().to_lowercase()
}

/// Starts the supervisor; what a dead one left is removed first.
pub fn begin(options: &Options) -> Result<Layout, StartError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let name = options.name.clone();
    if !(1..=NAME).contains(&name.len()) || !name.chars().all(plain) {
        return Err(StartError::Name { name });
    }
    let folder = options.folder.canonicalize().unwrap_or_else(|_| options.folder.clone());
    let spec = Spec::load(&folder)?;
    for cluster in &spec.clusters {
        if !folder.join(&cluster.name).is_dir() {
            return Err(StartError::NoManifests { folder, cluster: cluster.name.clone() });
        }
    }
    let layout = Layout::new(&options.runtime_dir, &name)?;
    if layout.read_record()?.is_some_and(|record| record.supervisor.alive()) {
        return Err(StartError::Running { name });
    }
    cleanup::sweep(&options.runtime_dir);
    cleanup::remove(&layout);
    fs::create_dir_all(layout.runtime())?;
    let log = OpenOptions::new().create(true).append(true).open(layout.log())?;
    let record = Record { supervisor: ProcessId::current()?, folder, source: options.source, spec };
    layout.write_record(&record)?;
    let mut supervisor = Command::new(&options.program);
    supervisor.arg("supervise").arg("--name").arg(&name).arg("--runtime-dir").arg(&options.runtime_dir);
    if let Some(owner) = options.owner {
        supervisor.arg("--owner").arg(format!("{}:{}", owner.pid, owner.started));
    }
    supervisor.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    let child = supervisor.spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    // Nobody waits for it here: it is meant to outlive this process, and its end is seen in /proc.
    let supervisor = ProcessId::of(pid).ok_or_else(|| io::Error::other("the supervisor ended at once"))?;
    layout.write_record(&Record { supervisor, ..record })?;
    thread::spawn(move || {
        let mut child = child;
        child.wait()
    });
    Ok(layout)
}

/// Waits until the lab is ready; `tell` hears what it waits for whenever that changes, and may end the wait.
pub fn until_ready(
    layout: &Layout,
    patience: Duration,
    tell: &mut dyn FnMut(&[String]) -> bool,
) -> Result<LabStatus, StartError> {
    let begun = Instant::now();
    let mut told = Vec::new();
    loop {
        let status = match control::ask(layout, &Request::Status) {
            Ok(Reply::Status(status)) => status,
            _ => LabStatus::default(),
        };
        if let Some(message) = status.failed {
            return Err(StartError::Failed { message });
        }
        if status.ready {
            return Ok(status);
        }
        if layout.read_record()?.is_none_or(|record| !record.supervisor.alive()) {
            return Err(StartError::Failed {
                message: format!("its supervisor ended; see {}", layout.log().display()),
            });
        }
        let mut waiting = status.waiting_for();
        if waiting.is_empty() {
            waiting.push("the nodes are being made".to_owned());
        }
        if begun.elapsed() > patience {
            return Err(StartError::Slow { waited: begun.elapsed(), waiting });
        }
        if waiting != told {
            told = waiting;
        }
        if !tell(&told) {
            return Err(StartError::Failed { message: "interrupted".to_owned() });
        }
        thread::sleep(LOOK);
    }
}
