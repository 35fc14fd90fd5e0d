//! The `weft` command: asks agents over their sockets and prints tables for people, JSON or YAML for programs.
mod check;
mod client;
mod contexts;
mod lists;
mod mesh;
mod observe;
mod output;
mod status;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Parser)]
#[command(name = "weft", version, about = "Asks and steers the agents of a Weft mesh", propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args, Clone)]
pub struct Global {
    /// Cluster to ask, by its name in the contexts file.
    #[arg(long, global = true, env = "WEFT_CONTEXT")]
    context: Option<String>,
    /// Contexts file. By default ~/.config/weft/contexts.yaml, then those of running labs.
    #[arg(long, global = true, env = "WEFT_CONTEXTS", value_name = "FILE")]
    contexts: Option<PathBuf>,
    /// An agent's socket, instead of a context.
    #[arg(long, global = true, env = "WEFT_SOCKET", value_name = "PATH", conflicts_with = "context")]
    socket: Option<PathBuf>,
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
    Yaml,
}

#[derive(Subcommand)]
enum Command {
    /// What works, what fell back and why.
    Status,
    /// Services with their frontends and backends.
    #[command(subcommand)]
    Service(List),
    /// Pods of the cluster's nodes, as the kernel programs know them.
    #[command(subcommand)]
    Endpoint(List),
    /// Security identities, local to each node.
    #[command(subcommand)]
    Identity(List),
    /// Policies and what became of them.
    #[command(subcommand)]
    Policy(List),
    /// Wasm plugins in the proxies.
    #[command(subcommand)]
    Plugin(List),
    /// Other clusters.
    #[command(subcommand)]
    Mesh(mesh::MeshCommand),
    /// Recent connections and requests: who, to whom, what was decided and why.
    Observe(observe::Observe),
    /// Does this machine have what Weft needs? Loads each kernel program to find out.
    Check(check::Check),
    /// Versions of this command and of the agents.
    Version,
    /// Shell completion, to be sourced.
    Completion { shell: clap_complete::Shell },
    /// Removes what an agent left in the kernel of this node: links, maps, routes.
    Cleanup(check::Cleanup),
}

#[derive(Subcommand)]
enum List {
    /// One line each.
    List,
}

pub async fn run(cli: Cli) -> Result<()> {
    let global = &cli.global;
    match cli.command {
        Command::Status => status::run(global).await,
        Command::Service(List::List) => lists::services(global).await,
        Command::Endpoint(List::List) => lists::endpoints(global).await,
        Command::Identity(List::List) => lists::identities(global).await,
        Command::Policy(List::List) => lists::policies(global).await,
        Command::Plugin(List::List) => lists::plugins(global).await,
        Command::Mesh(command) => mesh::run(global, command).await,
        Command::Observe(observe) => observe::run(global, observe).await,
        Command::Check(check) => check::run(global, &check),
        Command::Version => status::version(global).await,
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "weft", &mut std::io::stdout());
            Ok(())
        }
        Command::Cleanup(cleanup) => check::cleanup(&cleanup).await,
    }
}
