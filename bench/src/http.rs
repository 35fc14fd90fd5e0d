//! Processor time of a proxy for each HTTP request, and requests a second, by wrk.
use crate::{
    Options,
    figures::Figures,
    go_on,
    process::cpu_seconds,
    rivals::Rival,
    scene::{CLUSTER, HTTP_PORT, NODE, Scene},
    stats::compare,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

const CONNECTIONS: &str = "-c16";
const ALLOWED: &str = "/api/users/42";
const DENIED: &str = "/admin/delete";
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

/// One side: a client, what it calls, and which process is watched meanwhile.
struct Side<'a> {
    name: &'static str,
    command: Box<dyn Fn(&str) -> Command + 'a>,
    address: String,
    proxy: Option<u32>,
    /// It has the rule, so that the other request is refused.
    ruled: bool,
    /// Microseconds of the proxy's processor time for a request, by round.
    cpu: Vec<f64>,
    /// Requests a second, by round.
    rate: Vec<f64>,
}

pub fn run(options: &Options, figures: &mut Figures) -> Result<()> {
    eprintln!("HTTP, {} rounds of {} s", options.http_rounds, options.http_seconds);
    let scene = Scene::up()?;
    let cluster = scene.lab.cluster(CLUSTER);
    let pid = scene.lab.node(NODE).proxy_pid().and_then(|pid| u32::try_from(pid).ok());
    let pid = pid.context("the proxy does not run")?;
    let (envoy, haproxy) = (Rival::envoy(&options.envoy)?, Rival::haproxy()?);
    let weft = |name, pod: &str, proxy, ruled| Side {
        name,
        command: Box::new(move |program: &str| cluster.pod("client").command(program)),
        address: format!("{}:{HTTP_PORT}", cluster.pod(pod).ip()),
        proxy,
        ruled,
        cpu: Vec::new(),
        rate: Vec::new(),
    };
    let mut sides = [
        weft("weft", "api", Some(pid), true),
        weft("weft without http-policy", "plugged", Some(pid), false),
        weft("no proxy", "plain", None, false),
        rival("envoy", &envoy),
        rival("haproxy", &haproxy),
    ];
    for side in &sides {
        side.check()?;
    }
    for round in 0..options.http_rounds {
        for turn in 0..sides.len() {
            go_on()?;
            let index = (round + turn) % sides.len();
            sides[index].turn(options.http_seconds)?;
        }
    }
    let [policy, without, none, envoy, haproxy] = &sides;
    for (name, theirs, what) in [
        ("http_policy_cpu_vs_envoy_rbac", envoy, "Envoy 1.40 with its RBAC filter"),
        ("http_policy_cpu_vs_haproxy", haproxy, "haproxy with the same rule"),
        ("http_policy_cpu_vs_no_policy", without, "the same proxy with a plugin that looks at nothing"),
    ] {
        let what = format!("proxy CPU per request with http-policy, against {what}");
        figures.add(name, "us/request", compare(&policy.cpu, &theirs.cpu).context("no rounds")?, what)?;
    }
    for (name, theirs, what) in [
        ("http_policy_rps_vs_envoy_rbac", envoy, "Envoy"),
        ("http_policy_rps_vs_haproxy", haproxy, "haproxy"),
        ("http_policy_rps_vs_no_policy", without, "a plugin that looks at nothing"),
        ("http_policy_rps_vs_no_proxy", none, "a pod without L7 policy"),
    ] {
        let what = format!("requests a second with http-policy, against {what}");
        figures.add(name, "requests/s", compare(&policy.rate, &theirs.rate).context("no rounds")?, what)?;
    }
    Ok(())
}

fn rival<'a>(name: &'static str, rival: &'a Rival) -> Side<'a> {
    Side {
        name,
        command: Box::new(move |program: &str| rival.client(program)),
        address: rival.address(),
        proxy: Some(rival.pid()),
        ruled: true,
        cpu: Vec::new(),
        rate: Vec::new(),
    }
}

impl Side<'_> {
    /// What is allowed is answered, and what is not is refused: else the figures would compare nothing.
    fn check(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let (allowed, denied) = (self.status(ALLOWED)?, self.status(DENIED)?);
            let wanted = if self.ruled { "403" } else { "200" };
            if (allowed.as_str(), denied.as_str()) == ("200", wanted) {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "{}: answers {allowed} and {denied}, not 200 and {wanted}", self.name);
            thread::sleep(LOOK);
        }
    }

    fn status(&self, path: &str) -> Result<String> {
        let mut curl = (self.command)("curl");
        curl.args(["-s", "-o", "/dev/null", "--max-time", "2", "-w", "%{http_code}", &self.url(path)]);
        Ok(String::from_utf8_lossy(&curl.output().context("cannot run curl")?.stdout).into_owned())
    }

    fn turn(&mut self, seconds: u32) -> Result<()> {
        let used = || self.proxy.map(cpu_seconds).transpose();
        let before = used()?;
        let mut wrk = (self.command)("wrk");
        wrk.args(["-t1", CONNECTIONS, &format!("-d{seconds}s"), &self.url(ALLOWED)]);
        let output = wrk.output().context("cannot run wrk")?;
        let after = used()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(Load { requests, rate }) = load(&text) else {
            bail!("{}: wrk says: {text}{}", self.name, String::from_utf8_lossy(&output.stderr));
        };
        self.rate.push(rate);
        if let (Some(before), Some(after)) = (before, after) {
            self.cpu.push((after - before) / requests * 1e6);
        }
        eprintln!("  {:<26}{rate:>8.0} requests/s {:>8.1} us", self.name, self.cpu.last().unwrap_or(&0.0));
        Ok(())
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

#[derive(Debug, PartialEq)]
struct Load {
    requests: f64,
    rate: f64,
}

/// From what wrk prints; `None` if any request failed, or there was none.
fn load(text: &str) -> Option<Load> {
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return None;
    }
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())?;
    let rate = text.lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok())?;
    (requests > 0.0).then_some(Load { requests, rate })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRK: &str = "Running 4s test @ http://10.1.1.1:8080/
  1 threads and 16 connections
  83012 requests in 4.00s, 10.53MB read
Requests/sec:  20751.43
Transfer/sec:      2.63MB
";

    #[test]
    fn requests_are_read_from_wrk_unless_any_failed() {
        assert_eq!(load(WRK), Some(Load { requests: 83012.0, rate: 20751.43 }));
        assert_eq!(load(&format!("{WRK}  Non-2xx or 3xx responses: 7\n")), None);
        assert_eq!(load("unable to connect"), None);
    }
}
