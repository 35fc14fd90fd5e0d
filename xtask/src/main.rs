//! The project's own commands: `cargo xtask setup|build|test|bench|demo|deps|kubernetes`.
//!
//! Each module knows one thing: `packages` what the machine needs, `toolchain` which compiler serves which target,
//! `build` what is built and where it lands, `stages` what `test` runs, `demo` the story, `tally` how results are counted, `progress`
//! how a long step is shown.
mod bench;
mod build;
mod demo;
mod deps;
mod packages;
mod progress;
mod stages;
mod tally;
mod toolchain;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Sets up, builds and tests Weft", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need and this machine lacks
    Setup,
    /// Build the kernel programs, the plugins and the binaries
    Build,
    /// Build the Wasm plugins alone, into target/plugins
    Plugins,
    /// Set up, build, and run every test
    Test(stages::Options),
    /// Compare with kube-proxy's rules, Envoy and haproxy, in release builds
    Bench(bench::Options),
    /// Check that no crate depends on what it must not
    Deps,
    /// Tell the whole story on two clusters, step by step
    Demo(demo::Options),
    /// Build the Kubernetes servers for `weft-lab up --source kubernetes` (needs Go 1.24 or later)
    Kubernetes,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup => packages::set_up()?,
        Command::Build => {
            packages::set_up()?;
            build::everything()?;
        }
        Command::Test(options) => return stages::test(&options),
        Command::Bench(options) => return bench::bench(&options),
        Command::Plugins => build::plugins()?,
        Command::Demo(options) => return demo::run(&options),
        Command::Deps => deps::check()?,
        Command::Kubernetes => build::kubernetes()?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The top of the source tree.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where everything that is built lands.
fn target() -> PathBuf {
    root().join("target")
}
