//! Which agents a context means. A context is a cluster: a name and the sockets of its agents.
use super::Global;
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};

const LABS: &str = "/run/weft-lab";
const DEFAULT_SOCKET: &str = "/run/weft/agent.sock";

#[derive(Clone, Debug, Deserialize)]
pub struct Context {
    pub name: String,
    pub agents: Vec<AgentAddress>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct AgentAddress {
    pub node: String,
    pub socket: PathBuf,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    contexts: Vec<Context>,
}

/// The context that the flags name, or the only one there is.
pub fn chosen(global: &Global) -> Result<Context> {
    if let Some(socket) = &global.socket {
        return Ok(single(socket));
    }
    let known = all(global)?;
    match (&global.context, &known[..]) {
        (Some(name), _) => find(known, name),
        (None, [_]) => Ok(known.into_iter().next().context("one context")?),
        (None, []) if Path::new(DEFAULT_SOCKET).exists() => Ok(single(Path::new(DEFAULT_SOCKET))),
        (None, []) => bail!(
            "no agent to ask: {DEFAULT_SOCKET} is not there, and no contexts file names one. Give --socket PATH, or start a lab with `weft-lab up`"
        ),
        (None, _) => bail!("which cluster? Give --context with one of: {}", names(&known)),
    }
}

/// A context by name, for commands that take more than one.
pub fn named(global: &Global, name: &str) -> Result<Context> {
    find(all(global)?, name)
}

fn find(known: Vec<Context>, name: &str) -> Result<Context> {
    let names = names(&known);
    let found: Vec<Context> = known.into_iter().filter(|context| context.name == name).collect();
    match found.len() {
        0 if names.is_empty() => {
            bail!("context {name:?} does not exist: no contexts file was found. Give --contexts FILE")
        }
        0 => bail!("context {name:?} does not exist. There are: {names}"),
        1 => Ok(found.into_iter().next().context("one context")?),
        _ => bail!("context {name:?} is in several labs: give --contexts /run/weft-lab/LAB/contexts.yaml"),
    }
}

fn names(contexts: &[Context]) -> String {
    contexts.iter().map(|context| context.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn single(socket: &Path) -> Context {
    let agent = AgentAddress { node: String::new(), socket: socket.to_owned() };
    Context { name: String::new(), agents: vec![agent] }
}

fn all(global: &Global) -> Result<Vec<Context>> {
    if let Some(file) = &global.contexts {
        return read(file);
    }
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config/weft/contexts.yaml"));
    let mut files: Vec<PathBuf> = home.into_iter().filter(|file| file.exists()).collect();
    if let Ok(labs) = std::fs::read_dir(LABS) {
        files.extend(labs.flatten().map(|lab| lab.path().join("contexts.yaml")).filter(|file| file.exists()));
    }
    let mut contexts = Vec::new();
    for file in files {
        contexts.extend(read(&file)?);
    }
    Ok(contexts)
}

fn read(file: &Path) -> Result<Vec<Context>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read the contexts file {}", file.display()))?;
    let parsed: File = serde_norway::from_str(&text).with_context(|| {
        format!("{} is not a contexts file: want `contexts: [{{name, agents: [{{node, socket}}]}}]`", file.display())
    })?;
    Ok(parsed.contexts)
}
