//! `weft observe`: the flows of all nodes of a cluster, in the order of time.
use super::{
    Global, Output, client,
    contexts::{self, AgentAddress},
    output::{self, colour, emit},
};
use anyhow::{Context as _, Result};
use futures::future::join_all;
use http::Method;
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use weft_flows::{event::now_ms, filter::FlowFilter};
use weft_proxy_api::flow::{Flow, Peer, Verdict};

#[derive(clap::Args)]
pub struct Observe {
    /// Go on with new flows as they come.
    #[arg(short, long)]
    follow: bool,
    /// How many past flows of each node.
    #[arg(long, default_value_t = 20)]
    last: usize,
    /// Pod on either side: `pod` or `namespace/pod`, or a beginning of it.
    #[arg(long)]
    pod: Option<String>,
    #[arg(long)]
    from_pod: Option<String>,
    #[arg(long)]
    to_pod: Option<String>,
    #[arg(short, long)]
    namespace: Option<String>,
    /// forwarded, dropped, redirected or error.
    #[arg(long, value_parser = verdict)]
    verdict: Option<Verdict>,
    /// TCP, UDP, …
    #[arg(long)]
    protocol: Option<String>,
    #[arg(long)]
    port: Option<u16>,
    /// HTTP requests only.
    #[arg(long)]
    http: bool,
    #[arg(long)]
    http_method: Option<String>,
    /// A beginning of the path.
    #[arg(long)]
    http_path: Option<String>,
    #[arg(long)]
    http_status: Option<u16>,
    /// Deciding policy, `namespace/name`.
    #[arg(long)]
    policy: Option<String>,
    /// Not older than this many seconds.
    #[arg(long, value_name = "SECONDS")]
    since: Option<u64>,
}

fn verdict(text: &str) -> Result<Verdict, String> {
    match text.to_ascii_lowercase().as_str() {
        "forwarded" => Ok(Verdict::Forwarded),
        "dropped" | "denied" => Ok(Verdict::Dropped),
        "redirected" => Ok(Verdict::Redirected),
        "error" => Ok(Verdict::Error),
        _ => Err("want forwarded, dropped, redirected or error".to_owned()),
    }
}

pub async fn run(global: &Global, args: Observe) -> Result<()> {
    let context = contexts::chosen(global)?;
    let filter = FlowFilter {
        pod: args.pod,
        from_pod: args.from_pod,
        to_pod: args.to_pod,
        namespace: args.namespace,
        verdict: args.verdict,
        protocol: args.protocol,
        port: args.port,
        http: args.http,
        http_method: args.http_method,
        http_path: args.http_path,
        http_status: args.http_status,
        policy: args.policy,
        since_ms: args.since.map(|seconds| now_ms().saturating_sub(seconds * 1000)),
    };
    let path = format!("/v1/flows?last={}&follow={}", args.last, args.follow);
    let (found, mut flows) = mpsc::channel(1024);
    let readers = context.agents.iter().map(|agent| read(agent, &path, &filter, found.clone()));
    let readers = join_all(readers);
    drop(found);
    if args.follow {
        let print_all = async {
            while let Some(flow) = flows.recv().await {
                print(global.output, &flow)?;
            }
            anyhow::Ok(())
        };
        let (ends, printed) = tokio::join!(readers, print_all);
        printed?;
        return first_error(ends);
    }
    let mut all = Vec::new();
    let collect = async {
        while let Some(flow) = flows.recv().await {
            all.push(flow);
        }
    };
    let (ends, ()) = tokio::join!(readers, collect);
    all.sort_by_key(|flow| flow.time_ms);
    for flow in &all {
        print(global.output, flow)?;
    }
    if all.is_empty() {
        first_error(ends)?;
        eprintln!("no flows match");
    }
    Ok(())
}

fn first_error(ends: Vec<Result<()>>) -> Result<()> {
    ends.into_iter().collect()
}

async fn read(agent: &AgentAddress, path: &str, filter: &FlowFilter, found: mpsc::Sender<Flow>) -> Result<()> {
    let response = client::open(agent, Method::POST, path, Some(filter)).await?;
    let mut body = response.into_body();
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("the agent broke off")?.into_data() else { continue };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let flow = serde_json::from_slice(&line).context("the agent's flow is not what this version expects")?;
            if found.send(flow).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn print(format: Output, flow: &Flow) -> Result<()> {
    match format {
        Output::Json => emit(&serde_json::to_string(flow)?),
        Output::Yaml => emit(&format!("---\n{}", serde_norway::to_string(flow)?.trim_end())),
        Output::Table => emit(&line(flow)),
    }
}

fn line(flow: &Flow) -> String {
    let seconds = flow.time_ms / 1000;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let verdict = match flow.verdict {
        Verdict::Forwarded => colour(output::GREEN, "FORWARDED"),
        Verdict::Redirected => colour(output::YELLOW, "REDIRECTED"),
        Verdict::Dropped => colour(output::RED, "DROPPED"),
        Verdict::Error => colour(output::RED, "ERROR"),
    };
    let mut text = format!(
        "{hour:02}:{minute:02}:{second:02}.{:03} {} -> {} {} {} {verdict}",
        flow.time_ms % 1000,
        peer(&flow.source),
        peer(&flow.destination),
        flow.direction,
        flow.protocol,
    );
    if let Some(http) = &flow.http {
        text += &format!(
            " {} {} {} -> {} ({:.1} ms)",
            http.protocol,
            http.method,
            http.path,
            http.status,
            http.duration_us as f64 / 1000.0
        );
    }
    for (name, value) in [
        ("policy", flow.policy.as_str()),
        ("plugin", &flow.plugin),
        ("reason", &flow.drop_reason),
        ("peer", flow.peer_spiffe_id.as_deref().unwrap_or_default()),
    ] {
        if !value.is_empty() {
            text += &format!(" {name}={value}");
        }
    }
    text
}

fn peer(peer: &Peer) -> String {
    match (peer.pod.as_str(), peer.cluster.as_str()) {
        ("", _) => peer.address.to_string(),
        (pod, "") => format!("{pod}({})", peer.address),
        (pod, cluster) => format!("{cluster}/{pod}({})", peer.address),
    }
}
