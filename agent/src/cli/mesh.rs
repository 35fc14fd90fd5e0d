//! `weft mesh`: join clusters, see how they are, part them.
use super::{
    Global, client,
    contexts::{self, Context},
    output::{GREEN, RED, YELLOW, colour, emit, or_dash, print, table},
};
use crate::api::types::MeshStatus;
use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use http::Method;
use std::time::{Duration, Instant};
use weft_clustermesh_core::connect::ConnectInfo;

#[derive(Subcommand)]
pub enum MeshCommand {
    /// Checks that this cluster can be read by others, and says where.
    Enable,
    /// Joins two clusters: each learns where the other is and whose certificates to trust. No private key moves.
    Connect {
        /// Cluster to join with the one that --context names.
        #[arg(long, value_name = "CONTEXT")]
        destination_context: String,
        /// How long to wait for both sides to be in sync, in seconds.
        #[arg(long, default_value_t = 20)]
        wait: u64,
    },
    /// Parts from a cluster. Works also when the other side is dead.
    Disconnect {
        /// The other cluster; its side is changed too if it answers.
        #[arg(long, value_name = "CONTEXT")]
        destination_context: String,
    },
    /// Each connected cluster, its age, and what is synced.
    Status,
}

const POLL: Duration = Duration::from_millis(200);

pub async fn run(global: &Global, command: MeshCommand) -> Result<()> {
    let context = contexts::chosen(global)?;
    match command {
        MeshCommand::Enable => enable(&context).await,
        MeshCommand::Connect { destination_context, wait } => {
            let destination = contexts::named(global, &destination_context)?;
            connect(&context, &destination, Duration::from_secs(wait)).await
        }
        MeshCommand::Disconnect { destination_context } => disconnect(global, &context, &destination_context).await,
        MeshCommand::Status => status(global, &context).await,
    }
}

async fn enable(context: &Context) -> Result<()> {
    let info = info(context).await?;
    emit(&format!(
        "cluster {} (id {}, trust domain {}) can be read at {}",
        info.cluster,
        info.cluster_id,
        info.trust_domain,
        info.endpoints.join(", ")
    ))
}

/// What a cluster says of itself, with the mesh servers of all its agents.
async fn info(context: &Context) -> Result<ConnectInfo> {
    let mut all: Vec<ConnectInfo> = client::every(context, "/v1/mesh/connect-info").await?;
    let endpoints: Vec<String> = all.iter_mut().flat_map(|info| std::mem::take(&mut info.endpoints)).collect();
    let mut info = all.into_iter().next().context("no agent answered")?;
    if endpoints.is_empty() {
        bail!(
            "cluster {} has no mesh server: set mesh.listen in the configuration of at least one of its agents",
            info.cluster
        );
    }
    info.endpoints = endpoints;
    Ok(info)
}

async fn connect(context: &Context, destination: &Context, wait: Duration) -> Result<()> {
    let (ours, theirs) = (info(context).await?, info(destination).await?);
    ours.check(&theirs)?;
    add(context, &theirs).await.with_context(|| format!("cluster {}", ours.cluster))?;
    add(destination, &ours).await.with_context(|| format!("cluster {}", theirs.cluster))?;
    emit(&format!("{} {} and {} trust and read each other", colour(GREEN, "✔"), ours.cluster, theirs.cluster))?;
    for (side, other) in [(context, &theirs), (destination, &ours)] {
        let other = other.cluster.to_string();
        let took = await_peer(side, &other, wait).await?;
        emit(&format!("{} {} is in sync with {other} ({:.1} s)", colour(GREEN, "✔"), side.name, took.as_secs_f64()))?;
    }
    Ok(())
}

async fn add(context: &Context, info: &ConnectInfo) -> Result<()> {
    client::any(context, Method::POST, "/v1/mesh/peers", Some(info)).await
}

/// Waits until every agent of the cluster has all of `peer`.
async fn await_peer(context: &Context, peer: &str, wait: Duration) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let all: Vec<MeshStatus> = client::every(context, "/v1/mesh").await?;
        let missing = all.iter().find_map(|agent| match agent.peers.iter().find(|p| p.cluster == peer) {
            Some(found) if found.synced && found.state == "connected" => None,
            Some(found) => Some(format!("{}: {} {}", agent.node, found.state, found.error)),
            None => Some(format!("{} has not heard of it", agent.node)),
        });
        match missing {
            None => return Ok(start.elapsed()),
            Some(why) if start.elapsed() > wait => {
                bail!(
                    "{} is connected, but not in sync with {peer} after {} s: {why}. See `weft --context {} mesh status`",
                    context.name,
                    wait.as_secs(),
                    context.name
                )
            }
            Some(_) => tokio::time::sleep(POLL).await,
        }
    }
}

async fn disconnect(global: &Global, context: &Context, other: &str) -> Result<()> {
    let ours: MeshStatus = client::any(context, Method::GET, "/v1/mesh", None::<&()>).await?;
    if !ours.peers.iter().any(|peer| peer.cluster == other) {
        bail!("{} is not connected to {other}. See `weft --context {} mesh status`", context.name, context.name);
    }
    remove(context, other).await?;
    emit(&format!("{} {} has parted from {other}", colour(GREEN, "✔"), ours.cluster))?;
    let there = match contexts::named(global, other) {
        Ok(destination) => remove(&destination, &ours.cluster).await,
        Err(error) => Err(error),
    };
    match there {
        Ok(()) => emit(&format!("{} {other} has parted from {}", colour(GREEN, "✔"), ours.cluster)),
        Err(error) => emit(&format!(
            "{} {other} was not told ({error:#}): run `weft --context {other} mesh disconnect --destination-context {}` there when it is back",
            colour(YELLOW, "!"),
            ours.cluster
        )),
    }
}

async fn remove(context: &Context, cluster: &str) -> Result<()> {
    client::any(context, Method::DELETE, &format!("/v1/mesh/peers/{cluster}"), None::<&()>).await
}

async fn status(global: &Global, context: &Context) -> Result<()> {
    let all: Vec<MeshStatus> = client::every(context, "/v1/mesh").await?;
    print(global.output, &all, |all| {
        let rows = all.iter().flat_map(|agent| {
            agent.peers.iter().map(|peer| {
                let state = match peer.state.as_str() {
                    "connected" => colour(GREEN, "connected"),
                    other => colour(RED, other),
                };
                [
                    agent.node.clone(),
                    format!("{} (id {})", peer.cluster, peer.cluster_id),
                    state,
                    peer.heartbeat_age_s.map_or("never".to_owned(), |age| format!("{age:.1} s ago")),
                    if peer.synced { "yes" } else { "no" }.to_owned(),
                    format!("{} services, {} nodes, {} endpoints", peer.services, peer.nodes, peer.endpoints),
                    or_dash(peer.endpoint.clone()),
                    or_dash(peer.error.clone()),
                ]
            })
        });
        table(["NODE", "CLUSTER", "STATE", "HEARTBEAT", "SYNCED", "HAS", "SERVER", "ERROR"], rows)
    })
}
