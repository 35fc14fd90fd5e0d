//! Benchmarks of Weft on the lab, each against what it replaces, both in one run and in turns.
//!
//! | module | knows |
//! | --- | --- |
//! | `connect`, `http` | the two benchmarks |
//! | `scene`, `iptables`, `rivals` | the lab's folder; kube-proxy's rules; Envoy and haproxy |
//! | `namespaces`, `process` | three namespaces in a row; processes, their time and memory |
//! | `client`, `servers` | what runs in the pods: the loop that connects, and who answers |
//! | `stats`, `figures` | medians and ratios; JSON lines and the table |
mod client;
mod connect;
mod figures;
mod http;
mod iptables;
mod namespaces;
mod process;
mod rivals;
mod scene;
mod servers;
mod stats;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use figures::Figures;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::{
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

#[derive(Parser)]
#[command(name = "weft-bench", about = "Compares Weft with what it replaces", disable_help_subcommand = true)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    inside: Option<Inside>,
}

#[derive(clap::Args)]
pub struct Options {
    /// Run one benchmark only
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// How many services there are
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u16).range(10..=60_000))]
    services: u16,
    /// How often the sides of the connect benchmark take turns
    #[arg(long, default_value_t = 31)]
    rounds: usize,
    /// How often the sides of the HTTP benchmark take turns
    #[arg(long, default_value_t = 7)]
    http_rounds: usize,
    /// How long one turn of the HTTP benchmark is, in seconds
    #[arg(long, default_value_t = 4)]
    http_seconds: u32,
    /// The Envoy to compare with
    #[arg(long, default_value = "target/bench/envoy/site/envoy/_bin/envoy")]
    envoy: PathBuf,
    /// Where the figures are written, a file for each
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Connect,
    Http,
}

/// What runs in pods and namespaces.
#[derive(Subcommand)]
enum Inside {
    /// Take connections and drop them
    #[command(hide = true)]
    Listen { port: u16 },
    /// Answer every HTTP/1.1 request with the same 200
    #[command(hide = true)]
    Serve { port: u16 },
    /// Connect as standard input says
    #[command(hide = true)]
    Connect,
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let Arguments { options, inside } = Arguments::parse();
    let done = match inside {
        Some(Inside::Listen { port }) => servers::listen(port),
        Some(Inside::Serve { port }) => servers::serve(port),
        Some(Inside::Connect) => client::obey(),
        None => run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    // SAFETY: there is no other thread yet. One worker, as the proxies that it is compared with have.
    unsafe { std::env::set_var("WEFT_PROXY_WORKERS", "1") };
    let noted = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { sigaction(signal, &noted) }?;
    }
    namespaces::sweep();
    let mut figures = Figures::new(&options.out)?;
    if options.only != Some(Part::Http) {
        connect::run(options, &mut figures)?;
    }
    if options.only != Some(Part::Connect) {
        http::run(options, &mut figures)?;
    }
    println!("\n{figures}");
    Ok(())
}

extern "C" fn note(_: nix::libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Asked between turns: an interrupted run ends by its ordinary way out, which cleans up.
fn go_on() -> Result<()> {
    anyhow::ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}
