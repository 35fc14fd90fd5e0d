//! Removes all that a node's agents left in the kernel, of every version, whether they ended well or not.
use crate::{
    attach::{INTERFACE_PROGRAMS, interface_of, unpin},
    error::DatapathError,
    routing::Router,
};
use aya::programs::tc;
use serde::Serialize;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What was found and removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    pub links: usize,
    pub maps: usize,
    pub filters: usize,
    pub routes: usize,
    pub rules: usize,
}

/// Detaches every program, removes the pinned maps, and the routes and rules. Must run in the node's network
/// namespace. Nothing left is no error.
pub async fn cleanup(bpf_dir: &Path) -> Result<Removed, DatapathError> {
    let mut removed = Removed { filters: remove_filters(), ..Removed::default() };
    for version in versions(bpf_dir) {
        removed.links += entries(&version.join("links"));
        removed.maps += entries(&version.join("maps"));
        remove_version(&version)?;
    }
    (removed.routes, removed.rules) = Router::new()?.remove_all().await?;
    Ok(removed)
}

/// Links first: a program without its maps' content would refuse everything.
pub(crate) fn remove_version(dir: &Path) -> Result<(), DatapathError> {
    for link in fs::read_dir(dir.join("links")).into_iter().flatten().flatten() {
        unpin(&link.path())?;
    }
    fs::remove_dir_all(dir).map_err(|cause| DatapathError::Pins { path: dir.into(), cause })
}

/// Folders of the versions that have been here.
pub(crate) fn versions(bpf_dir: &Path) -> Vec<PathBuf> {
    let Ok(dir) = fs::read_dir(bpf_dir) else { return Vec::new() };
    let is_version = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix('v'));
        name.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    dir.filter_map(|entry| Some(entry.ok()?.path())).filter(is_version).collect()
}

/// Those of clsact mode, on every interface of the namespace.
fn remove_filters() -> usize {
    let Ok(interfaces) = nix::net::if_::if_nameindex() else { return 0 };
    let names: Vec<String> = interfaces.iter().filter_map(|i| i.name().to_str().ok().map(str::to_owned)).collect();
    let on = names.iter().flat_map(|name| INTERFACE_PROGRAMS.map(|(program, hook)| (name, program, hook)));
    on.filter(|(interface, program, hook)| tc::qdisc_detach_program(interface, *hook, program).is_ok()).count()
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Interfaces that any version's links are on.
pub fn interfaces(bpf_dir: &Path) -> Vec<String> {
    let links = versions(bpf_dir).into_iter().filter_map(|version| fs::read_dir(version.join("links")).ok());
    links.flatten().filter_map(|entry| interface_of(&entry.ok()?.file_name())).collect()
}
