//! The node's proxy process.
use anyhow::{Context, Result};
use clap::Parser;
use std::{io::IsTerminal, net::SocketAddr, path::PathBuf};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use weft_proxy::app::{App, Settings};

/// Weft's node proxy: L7 policy, mutual TLS, plugins and WireGuard. Runs in the node's network namespace.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Unix socket to serve the agent on.
    #[arg(long, default_value = "/run/weft/proxy.sock")]
    socket: PathBuf,
    /// Folder for the last configuration and compiled plugins.
    #[arg(long, default_value = "/var/lib/weft/proxy")]
    state_dir: PathBuf,
    /// Address for Prometheus.
    #[arg(long, default_value = "127.0.0.1:9965")]
    metrics: SocketAddr,
    /// Worker threads; one for each processor by default.
    #[arg(long)]
    workers: Option<usize>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let settings = Settings {
        socket: arguments.socket,
        plugin_cache: arguments.state_dir.join("plugins"),
        state_dir: arguments.state_dir,
        metrics: arguments.metrics,
        workers: arguments.workers.unwrap_or(processors),
        listeners: None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(run(settings))
}

async fn run(settings: Settings) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let app = App::start(settings).await?;
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    tracing::info!("draining");
    app.drain().await;
    Ok(())
}
