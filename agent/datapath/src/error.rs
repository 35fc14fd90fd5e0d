//! What can go wrong between the agent and the kernel, and what to do about it.
use aya::{EbpfError, maps::MapError, programs::ProgramError};
use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    #[error("cannot mount a BPF file system at {path}: run as root, or mount it with `mount -t bpf bpf {path}`")]
    Mount {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("cannot use {path} for pinned maps and links: it must be on a BPF file system and writable")]
    Pins {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error(
        "cannot read the object with the kernel programs, or create its maps: was it built by `cargo xtask build`?"
    )]
    Object(#[source] Box<EbpfError>),
    #[error("the object has no program {0}: build it again with `cargo xtask build`")]
    MissingProgram(&'static str),
    #[error("the object has no map {0} of the expected shape: build it again with `cargo xtask build`")]
    MissingMap(&'static str),
    #[error("the kernel refuses program {program}: `weft check` names what this kernel lacks")]
    Load {
        program: String,
        #[source]
        cause: Box<ProgramError>,
    },
    #[error("cannot attach {program} to {target}: does it exist, and is another program there that allows no second?")]
    Attach {
        program: String,
        target: String,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("there is no {target} to attach to: check the agent's settings")]
    Target {
        target: String,
        #[source]
        cause: io::Error,
    },
    #[error("cannot read map {map}: `weft cleanup` and a restart of the agent create it anew")]
    Map {
        map: &'static str,
        #[source]
        cause: Box<MapError>,
    },
    #[error("cannot read the tables: `weft cleanup` and a restart of the agent create them anew")]
    Table(#[from] crate::reconcile::table::Refusal),
    #[error("cannot set {name} to {value}: is /proc/sys writable here? By hand: `sysctl -w {name}={value}`")]
    Sysctl {
        name: String,
        value: &'static str,
        #[source]
        cause: io::Error,
    },
    #[error("cannot talk to the kernel's routing: the agent needs CAP_NET_ADMIN in the node's network namespace")]
    Netlink(#[source] io::Error),
    #[error("cannot change {what}: the agent needs CAP_NET_ADMIN in the node's network namespace")]
    Route {
        what: String,
        #[source]
        cause: Box<rtnetlink::Error>,
    },
}
