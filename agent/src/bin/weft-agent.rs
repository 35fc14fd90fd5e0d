use anyhow::{Context, Result};
use clap::Parser;
use std::{io::IsTerminal, path::PathBuf, process::ExitCode};
use tracing_subscriber::EnvFilter;
use weft_agent::{app::App, config::Config};

/// The control side of a Weft node: may be stopped, upgraded or killed at any time.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Settings, in YAML.
    #[arg(long, env = "WEFT_CONFIG", default_value = "/etc/weft/agent.yaml")]
    config: PathBuf,
    /// Log as JSON lines.
    #[arg(long)]
    log_json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    init_logs(args.log_json);
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let config = Config::load(&args.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    runtime.block_on(async { App::start(config).await?.until_shutdown().await })
}

fn init_logs(json: bool) {
    let filter = EnvFilter::try_from_env("WEFT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    if json { logs.json().init() } else { logs.init() }
}
