//! `weft-lab`: clusters out of network namespaces.
use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::{
    io::IsTerminal,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};
use weft_lab::{
    control::{self, LabStatus, Reply, Request},
    dial,
    layout::{self, DEFAULT_RUNTIME_DIR, Layout, ProcessId, Source},
    load,
    place::Place,
    server,
    start::{self, Options},
};

#[derive(Parser)]
#[command(name = "weft-lab", version, about = "Clusters out of network namespaces, on this machine alone")]
struct Arguments {
    /// Where labs keep their files
    #[arg(long, global = true, default_value = DEFAULT_RUNTIME_DIR, value_name = "FOLDER")]
    runtime_dir: PathBuf,
    /// Which lab, where there are several; the name of its folder if not given to `up`
    #[arg(long, global = true, env = "WEFT_LAB")]
    name: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a lab up, and return when everything in it is ready
    Up {
        /// Holds lab.yaml, and a folder of manifests for each cluster
        folder: PathBuf,
        #[arg(long, value_enum, default_value = "directory")]
        source: Source,
        /// How long to wait, in seconds
        #[arg(long, default_value_t = 120)]
        timeout: u64,
    },
    /// Run a command in a pod: CLUSTER/POD or CLUSTER/NAMESPACE/POD
    Exec {
        pod: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run a command on a node: CLUSTER/NODE
    Node {
        node: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Show what runs
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Kill a node's agent or proxy; the lab starts it again
    Kill {
        #[arg(value_parser = ["agent", "proxy"])]
        daemon: String,
        /// CLUSTER/NODE
        node: String,
    },
    /// Switch a whole cluster off or on
    Power {
        cluster: String,
        #[arg(value_parser = ["off", "on"])]
        state: String,
    },
    /// End a lab and remove every trace of it
    Down,
    /// Serve HTTP, TCP and UDP, for pods
    Serve(server::Options),
    /// Make HTTP requests at a rate, and print counts as JSON
    Load(load::Options),
    /// Call an echo server over TCP or UDP, and print as JSON what the socket saw
    Dial(dial::Options),
    /// Own a running lab
    #[command(hide = true)]
    Supervise {
        #[arg(long)]
        owner: Option<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !matches!(arguments.command, Command::Serve(_) | Command::Load(_) | Command::Dial(_) | Command::Supervise { .. })
    {
        // A reader that has seen enough ends a command of a few lines, as it does with other tools.
        // SAFETY: no handler is set, only the default one.
        let _ = unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    }
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let Arguments { runtime_dir, name, command } = arguments;
    match command {
        Command::Up { folder, source, timeout } => up(runtime_dir, name, folder, source, Duration::from_secs(timeout))?,
        Command::Exec { pod, command } => {
            let layout = chosen(&runtime_dir, name)?;
            let (cluster, pod) = pod.split_once('/').context("want CLUSTER/POD or CLUSTER/NAMESPACE/POD")?;
            let report = weft_lab::find_pod(&status(&layout)?, cluster, pod).map_err(anyhow::Error::msg)?;
            return enter(&weft_lab::pod_place(&layout, cluster, &report), &command);
        }
        Command::Node { node, command } => {
            let layout = chosen(&runtime_dir, name)?;
            let (cluster, node) = node.split_once('/').context("want CLUSTER/NODE")?;
            return enter(&Place::node(&layout, cluster, node), &command);
        }
        Command::Status { json } => show(&runtime_dir, name, json)?,
        Command::Kill { daemon, node } => {
            let (cluster, node) = node.split_once('/').context("want CLUSTER/NODE")?;
            let role = if daemon == "agent" { control::Role::Agent } else { control::Role::Proxy };
            let (cluster, node) = (cluster.to_owned(), node.to_owned());
            let request = Request::Daemon { cluster, node, role, action: control::Action::Kill };
            done(&chosen(&runtime_dir, name)?, &request)?;
        }
        Command::Power { cluster, state } => {
            done(&chosen(&runtime_dir, name)?, &Request::Power { cluster, on: state == "on" })?;
        }
        Command::Down => {
            let layout = chosen(&runtime_dir, name)?;
            weft_lab::take_down(&layout);
            println!("Lab {} is gone.", layout.name());
        }
        Command::Serve(options) => runtime()?.block_on(server::serve(options))?,
        Command::Load(options) => {
            let summary = runtime()?.block_on(load::run(options))?;
            println!("{}", serde_json::to_string(&summary)?);
        }
        Command::Dial(options) => println!("{}", serde_json::to_string(&dial::run(&options)?)?),
        Command::Supervise { owner } => supervise(&runtime_dir, name, owner)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up(runtime_dir: PathBuf, name: Option<String>, folder: PathBuf, source: Source, patience: Duration) -> Result<()> {
    let begun = Instant::now();
    let name = name.unwrap_or_else(|| start::default_name(&folder));
    catch_interrupts()?;
    for left in weft_lab::sweep(&runtime_dir) {
        eprintln!("Removed what was left of lab {left}.");
    }
    let program = std::env::current_exe()?;
    let options = Options { folder, name, source, runtime_dir, owner: None, program };
    let layout = start::begin(&options)?;
    let terminal = std::io::stderr().is_terminal();
    let mut told = Vec::new();
    let mut tell = |waiting: &[String]| {
        if told != waiting {
            told = waiting.to_vec();
            if terminal {
                eprint!("\r\x1b[2K{} s: {}", begun.elapsed().as_secs(), waiting.first().map_or("", String::as_str));
            }
        }
        !INTERRUPTED.load(Ordering::Relaxed)
    };
    let ready = start::until_ready(&layout, patience, &mut tell);
    if terminal {
        eprint!("\r\x1b[2K");
    }
    if let Err(error) = ready {
        let log = std::fs::read_to_string(layout.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        weft_lab::take_down(&layout);
        return Err(error).context("the lab was taken down again");
    }
    let record = layout.read_record()?.context("the lab is gone")?;
    println!("Lab {} is up ({:.1} s).", layout.name(), begun.elapsed().as_secs_f64());
    print_status(&status(&layout)?);
    println!("\nTry:");
    for cluster in &record.spec.clusters {
        println!("  weft --context {} status", cluster.name);
        if source == Source::Kubernetes {
            println!("  kubectl --kubeconfig {} get pods -A", layout.kubeconfig(&cluster.name).display());
        }
    }
    if let Some((cluster, node)) = record.spec.clusters.first().and_then(|one| Some((one, one.nodes.first()?))) {
        println!("  weft-lab node {}/{} -- ip route", cluster.name, node.name);
    }
    println!("  weft-lab down --name {}", layout.name());
    Ok(())
}

/// Becomes the command: its input, output and exit code are the caller's.
fn enter(place: &Place, command: &[String]) -> Result<ExitCode> {
    let (program, arguments) = command.split_first().context("want a command after --")?;
    let mut command = place.command(program).with_context(|| format!("cannot enter {}", place.netns))?;
    if let Some(folder) = std::env::current_exe()?.parent() {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", folder.display()));
    }
    // Comes back only if it failed.
    Err(command.args(arguments).exec()).with_context(|| format!("cannot run {program}"))
}

fn show(runtime_dir: &Path, name: Option<String>, json: bool) -> Result<()> {
    let names = name.map_or_else(|| layout::labs(runtime_dir), |name| vec![name]);
    if names.is_empty() && !json {
        println!("No lab is up.");
    }
    for name in names {
        let layout = Layout::new(runtime_dir, &name)?;
        match status(&layout) {
            Ok(status) if json => println!("{}", serde_json::to_string_pretty(&status)?),
            Ok(status) => {
                println!("Lab {name}:");
                print_status(&status);
            }
            Err(error) => println!("Lab {name}: {error:#}; `weft-lab down --name {name}` removes what is left"),
        }
    }
    Ok(())
}

fn print_status(status: &LabStatus) {
    for cluster in &status.clusters {
        let power = if cluster.power { "" } else { " (off)" };
        println!("cluster {}{power}", cluster.name);
        for node in &cluster.nodes {
            let state = if node.ready { "ready" } else { "not ready" };
            println!("  node {:<28} {state:<10} agent restarts: {}", node.name, node.agent.restarts);
        }
        for pod in &cluster.pods {
            let state = if pod.ready { "ready".to_owned() } else { format!("{:?}", pod.phase) };
            let ips: Vec<String> = pod.ips.iter().map(ToString::to_string).collect();
            let message = pod.message.as_deref().unwrap_or_default();
            println!(
                "  pod  {:<28} {state:<10} {:<12} {} {message}",
                pod.key.to_string(),
                pod.host.node,
                ips.join(",")
            );
        }
    }
}

fn status(layout: &Layout) -> Result<LabStatus> {
    match control::ask(layout, &Request::Status) {
        Ok(Reply::Status(status)) => Ok(status),
        Ok(other) => bail!("unexpected answer {other:?}"),
        Err(_) => bail!("its supervisor does not answer"),
    }
}

fn done(layout: &Layout, request: &Request) -> Result<()> {
    match control::ask(layout, request).context("the lab's supervisor does not answer")? {
        Reply::Refused(why) => bail!(why),
        _ => Ok(()),
    }
}

/// The lab that is named, or the only one there is.
fn chosen(runtime_dir: &Path, name: Option<String>) -> Result<Layout> {
    let names = layout::labs(runtime_dir);
    let name = match (name, &names[..]) {
        (Some(name), _) if names.contains(&name) => name,
        (Some(name), _) => bail!("there is no lab {name}"),
        (None, [only]) => only.clone(),
        (None, []) => bail!("no lab is up: `weft-lab up FOLDER` brings one up"),
        (None, several) => bail!("which lab? Give --name with one of: {}", several.join(", ")),
    };
    Ok(Layout::new(runtime_dir, &name)?)
}

fn supervise(runtime_dir: &Path, name: Option<String>, owner: Option<String>) -> Result<()> {
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info,kube_client=off".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    let layout = Layout::new(runtime_dir, &name.context("--name is missing")?)?;
    let record = layout.read_record()?.context("the lab has no record")?;
    let owner = owner.map(|owner| parse_owner(&owner)).transpose()?;
    runtime()?.block_on(weft_lab::supervise(layout, record, owner))
}

fn parse_owner(text: &str) -> Result<ProcessId> {
    let (pid, started) = text.split_once(':').context("--owner: want PID:START")?;
    Ok(ProcessId { pid: pid.parse()?, started: started.parse()? })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The first Ctrl-C ends the wait, and the lab is taken down in order.
fn catch_interrupts() -> Result<()> {
    extern "C" fn note(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { sigaction(signal, &action)? };
    }
    Ok(())
}
