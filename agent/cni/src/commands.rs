//! The commands of the spec.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::agent::{Agent, Endpoint};
use crate::attachment::{self, Attachment};
use crate::config::{NetworkConfig, VERSIONS};
use crate::error::Error;
use crate::lease::Leases;
use crate::request::{ContainerId, Environment};
use crate::result::AddResult;

/// Runs the command that the environment names; what it prints, if anything.
pub fn run(environment: &Environment, input: &str) -> Result<Option<String>, Error> {
    match environment.command()? {
        "VERSION" => Ok(Some(version())),
        "ADD" => add(environment, &NetworkConfig::parse(input)?).map(Some),
        "DEL" => delete(&environment.container_id()?, &NetworkConfig::parse(input)?).map(|()| None),
        "CHECK" => check(environment, &NetworkConfig::parse(input)?).map(|()| None),
        "GC" => collect_garbage(&NetworkConfig::parse(input)?).map(|()| None),
        "STATUS" => status(&NetworkConfig::parse(input)?).map(|()| None),
        command => Err(Error::Command { command: command.to_owned() }),
    }
}

fn version() -> String {
    json!({ "cniVersion": VERSIONS[VERSIONS.len() - 1], "supportedVersions": VERSIONS }).to_string()
}

fn add(environment: &Environment, config: &NetworkConfig) -> Result<String, Error> {
    let container = environment.container_id()?;
    let interface = environment.interface()?;
    let pod = environment.pod()?;
    let path = environment.namespace()?;
    let netns = open_namespace(&path)?;
    let (addresses, is_new) = Leases::open(&config.data_dir)?.allocate(&container, &config.pod_cidrs)?;
    let attachment = Attachment::new(&container, interface, addresses, config.mtu, config.route_mtu());
    let agent = Agent { socket: &config.agent_socket };
    let endpoint = Endpoint {
        container_id: container.as_str(),
        namespace: &pod.namespace,
        pod: &pod.name,
        interface: &attachment.host_interface,
        addresses: &attachment.addresses,
        netns: &path,
        mac: attachment.pod_mac.to_string(),
    };
    let steps = || {
        attachment.create(&netns)?;
        forget_tombstone(&config.data_dir, &container)?;
        // Only now, with the policy in force, may the pod's packets flow.
        agent.add(&endpoint)?;
        attachment.open()
    };
    if let Err(error) = steps() {
        undo(&container, config, &error, is_new);
        return Err(error);
    }
    let result = AddResult::new(&config.cni_version, &attachment, &path);
    serde_json::to_string(&result).map_err(Error::Decode)
}

/// Removes what a failed ADD has made. The failure is reported, not what goes wrong here: the runtime sends DEL too.
fn undo(container: &ContainerId, config: &NetworkConfig, error: &Error, release: bool) {
    // An interface in the pod that was there before is no reason to touch anything but the lease.
    let _ = attachment::remove(container);
    if !matches!(error, Error::AgentDown { cause, .. } if is_absent(cause)) {
        let _ = Agent { socket: &config.agent_socket }.remove(container);
    }
    if release {
        let _ = Leases::open(&config.data_dir).and_then(|mut leases| leases.release(container));
    }
}

/// Nobody has heard the request.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// DEL needs neither the pod's namespace nor the agent, and may come twice.
fn delete(container: &ContainerId, config: &NetworkConfig) -> Result<(), Error> {
    attachment::remove(container)?;
    let agent = Agent { socket: &config.agent_socket };
    if agent.remove(container).is_err() {
        leave_tombstone(&config.data_dir, container)?;
    }
    // Last: the address must not be given to another pod before the agent, or the tombstone, knows.
    Leases::open(&config.data_dir)?.release(container)
}

fn check(environment: &Environment, config: &NetworkConfig) -> Result<(), Error> {
    let container = environment.container_id()?;
    let interface = environment.interface()?;
    let netns = open_namespace(&environment.namespace()?)?;
    let addresses = Leases::open(&config.data_dir)?.of(&container).map(<[_]>::to_vec);
    let Some(addresses) = addresses else {
        return Err(Error::Check { problem: "it has no addresses".to_owned() });
    };
    Attachment::new(&container, interface, addresses, config.mtu, config.route_mtu()).check(&netns)?;
    Agent { socket: &config.agent_socket }.check(&container)
}

/// Removes what belongs to containers that the runtime does not know any more.
fn collect_garbage(config: &NetworkConfig) -> Result<(), Error> {
    let Some(valid) = &config.valid_attachments else {
        let problem = "is missing: the runtime must list what is in use".to_owned();
        return Err(Error::Config { field: "cni.dev/valid-attachments", problem });
    };
    let known = Leases::open(&config.data_dir)?.containers();
    let is_valid = |container: &ContainerId| valid.iter().any(|valid| valid.container_id == container.as_str());
    known.iter().filter(|container| !is_valid(container)).try_for_each(|container| delete(container, config))
}

fn status(config: &NetworkConfig) -> Result<(), Error> {
    Agent { socket: &config.agent_socket }.probe()
}

fn open_namespace(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|cause| Error::Namespace { path: path.to_owned(), cause })
}

/// The agent reads these when it starts: endpoints that went away without it.
fn tombstone(data_dir: &Path, container: &ContainerId) -> PathBuf {
    data_dir.join("deleted").join(container.as_str())
}

fn leave_tombstone(data_dir: &Path, container: &ContainerId) -> Result<(), Error> {
    let path = tombstone(data_dir, container);
    let write = || {
        fs::create_dir_all(data_dir.join("deleted"))?;
        fs::write(&path, "")
    };
    write().map_err(|cause| Error::State { action: "write", path: path.clone(), cause })
}

fn forget_tombstone(data_dir: &Path, container: &ContainerId) -> Result<(), Error> {
    let path = tombstone(data_dir, container);
    match fs::remove_file(&path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::State { action: "remove", path, cause }),
        _ => Ok(()),
    }
}
