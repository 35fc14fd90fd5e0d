//! connect() to a service, to its pod, and through kube-proxy's rules; and what many services cost in memory.
use crate::{
    Options,
    client::Client,
    figures::Figures,
    go_on,
    iptables::{self, Variant},
    namespaces::{Row, SERVER, Stand, this},
    process::{Owned, owned, rss_mib},
    scene::{BACKEND_PORT, CLUSTER, NODE, Scene, service_address},
    stats::{Comparison, compare, percentile},
};
use anyhow::{Context, Result, bail};
use std::{
    net::{IpAddr, SocketAddrV4},
    time::{Duration, Instant},
};

const BLOCK: usize = 50;
const BLOCKS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(120);

/// One side: where its loop runs and what it connects to.
struct Side {
    client: Client,
    to: SocketAddrV4,
    samples: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Side {
    fn new(client: Client, to: SocketAddrV4) -> Self {
        Self { client, to, samples: Vec::new(), p50: Vec::new(), p99: Vec::new() }
    }

    fn turn(&mut self) -> Result<()> {
        let samples = self.client.connect(self.to, BLOCK)?;
        self.samples.extend(samples.into_iter().map(|nanos| nanos as f64 / 1000.0));
        Ok(())
    }

    fn end_round(&mut self) -> Result<()> {
        self.p50.push(percentile(&self.samples, 50.0).context("no samples")?);
        self.p99.push(percentile(&self.samples, 99.0).context("no samples")?);
        self.samples.clear();
        Ok(())
    }
}

/// A row of namespaces with kube-proxy's rules, or with none. The server goes before its namespace does.
struct Plain {
    _server: Owned,
    row: Row,
}

pub fn run(options: &Options, figures: &mut Figures) -> Result<()> {
    eprintln!("connect, {} services", options.services);
    let scene = Scene::up()?;
    let lab = &scene.lab;
    let node = lab.node(NODE);
    let memory = || -> Result<(f64, f64)> {
        let pid = |pid: Option<i32>| pid.and_then(|pid| u32::try_from(pid).ok()).context("a daemon does not run");
        Ok((rss_mib(pid(node.agent_pid())?)?, rss_mib(pid(node.proxy_pid())?)?))
    };
    let cluster = lab.cluster(CLUSTER);
    let start = || Client::start(cluster.pod("client").command(&this()?.to_string_lossy()));
    let mut waiting = start()?;
    let IpAddr::V4(backend) = cluster.pod("backend").ip() else { bail!("the pod has no IPv4 address") };
    let backend = SocketAddrV4::new(backend, BACKEND_PORT);
    waiting.wait(backend, PATIENCE)?;

    let before = memory()?;
    let begun = Instant::now();
    scene.add_services(options.services);
    for index in [options.services - 1, options.services / 2, 0] {
        waiting.wait(service_address(index), PATIENCE).with_context(|| format!("service {index} does not answer"))?;
    }
    eprintln!("  from the first file's writing until the services answer: {:.2} s", begun.elapsed().as_secs_f64());
    let middle = service_address(options.services / 2);

    let plain = plain("none")?;
    let mut sides = vec![
        Side::new(start()?, middle),
        Side::new(start()?, backend),
        Side::new(plain_client(&plain)?, SocketAddrV4::new(SERVER, BACKEND_PORT)),
    ];
    let mut rows = vec![plain];
    for variant in [Variant::Legacy, Variant::Nft] {
        let row = self::plain(&variant.to_string())?;
        let begun = Instant::now();
        iptables::load(&row.row, variant, options.services, SocketAddrV4::new(SERVER, BACKEND_PORT))?;
        eprintln!("  {variant} takes the rules in {:.2} s", begun.elapsed().as_secs_f64());
        sides.push(Side::new(plain_client(&row)?, middle));
        rows.push(row);
    }
    for side in &mut sides {
        side.client.wait(side.to, PATIENCE).with_context(|| format!("nothing answers at {}", side.to))?;
    }
    rounds(options.rounds, &mut sides)?;
    let after = memory()?;

    let compared = |ours: &[f64], theirs: &[f64]| compare(ours, theirs).context("no rounds");
    let [service, direct, none, legacy, nft] = &sides[..] else { bail!("a side is missing") };
    let what = "connect() to a service in the middle of the list, against the pod's own address".to_owned();
    figures.add("connect_p50_vs_direct_10k", "us", compared(&service.p50, &direct.p50)?, what.clone())?;
    figures.add("connect_p99_vs_direct_10k", "us", compared(&service.p99, &direct.p99)?, what)?;
    let (of_legacy, of_nft) = (compared(&service.p50, &legacy.p50)?, compared(&service.p50, &nft.p50)?);
    let (faster, slower) = if of_legacy.baseline <= of_nft.baseline {
        (Variant::Legacy, Variant::Nft)
    } else {
        (Variant::Nft, Variant::Legacy)
    };
    let (best, other) = if faster == Variant::Legacy { (of_legacy, of_nft) } else { (of_nft, of_legacy) };
    let rules = |variant| format!("the same, against kube-proxy's rules in {variant}");
    figures.add("connect_p50_vs_iptables_10k", "us", best, rules(faster) + ", the faster variant")?;
    figures.add("connect_p50_vs_other_iptables_10k", "us", other, rules(slower))?;
    let what = "the same, against three namespaces without Weft and without rules".to_owned();
    figures.add("connect_p50_vs_nothing", "us", compared(&service.p50, &none.p50)?, what)?;
    let memory = |before: f64, after: f64| Comparison { value: after, baseline: before, ratio: after / before };
    let what = |daemon| format!("resident memory of {daemon}, against the same process before the services came");
    figures.add("agent_rss_10k_services", "MiB", memory(before.0, after.0), what("the agent"))?;
    figures.add("proxy_rss_10k_services", "MiB", memory(before.1, after.1), what("the proxy"))
}

/// Every side has its turn in every block; each block begins with another side.
fn rounds(rounds: usize, sides: &mut [Side]) -> Result<()> {
    for side in &mut *sides {
        side.turn()?;
        side.samples.clear();
    }
    for _ in 0..rounds {
        for block in 0..BLOCKS {
            go_on()?;
            for turn in 0..sides.len() {
                let index = (block + turn) % sides.len();
                sides[index].turn()?;
            }
        }
        sides.iter_mut().try_for_each(Side::end_round)?;
    }
    Ok(())
}

fn plain(name: &str) -> Result<Plain> {
    let row = Row::new(name)?;
    let mut listen = row.command(Stand::Server, this()?);
    listen.args(["listen", &BACKEND_PORT.to_string()]);
    Ok(Plain { _server: owned(listen)?, row })
}

fn plain_client(plain: &Plain) -> Result<Client> {
    Client::start(plain.row.command(Stand::Client, this()?))
}
