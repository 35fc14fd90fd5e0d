//! Readiness probes, as a kubelet makes them: HTTP and TCP from the node, commands inside the pod.
use crate::place::Place;
use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::util::intstr::IntOrString};
use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

/// A probe whose fields are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    check: Check,
    pub delay: Duration,
    pub period: Duration,
    timeout: Duration,
    successes: u32,
    failures: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Check {
    Http { port: u16, path: String, headers: Vec<(String, String)> },
    Tcp { port: u16 },
    Exec { command: Vec<String> },
}

/// Whether a pod is ready by the outcomes so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    ready: bool,
    /// How many outcomes in a row were unlike `ready`.
    against: u32,
}

impl Probe {
    /// `None`: the container has no readiness probe.
    pub fn of(container: &core::Container) -> Result<Option<Self>, String> {
        let Some(probe) = &container.readiness_probe else { return Ok(None) };
        let check = if let Some(http) = &probe.http_get {
            let headers = http.http_headers.iter().flatten();
            Check::Http {
                port: port(&http.port, container)?,
                path: http.path.clone().unwrap_or_else(|| "/".to_owned()),
                headers: headers.map(|header| (header.name.clone(), header.value.clone())).collect(),
            }
        } else if let Some(tcp) = &probe.tcp_socket {
            Check::Tcp { port: port(&tcp.port, container)? }
        } else if let Some(exec) = &probe.exec {
            Check::Exec { command: exec.command.clone().unwrap_or_default() }
        } else {
            return Err("readinessProbe: want one of httpGet, tcpSocket, exec".to_owned());
        };
        let seconds = |value: Option<i32>, default: u32| {
            Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default.into()))
        };
        let times = |value: Option<i32>, default| value.and_then(|value| u32::try_from(value).ok()).unwrap_or(default);
        Ok(Some(Self {
            check,
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            successes: times(probe.success_threshold, 1).max(1),
            failures: times(probe.failure_threshold, 3).max(1),
        }))
    }

    /// Blocks for up to the probe's time-out.
    pub fn passes(&self, ip: IpAddr, node: &Place, pod: &Place) -> bool {
        match &self.check {
            Check::Tcp { port } => {
                let address = SocketAddr::new(ip, *port);
                let connect = || TcpStream::connect_timeout(&address, self.timeout).is_ok();
                node.run(connect).unwrap_or(false)
            }
            Check::Http { port, path, headers } => {
                let address = SocketAddr::new(ip, *port);
                let status = node.run(|| http_status(address, path, headers, self.timeout));
                matches!(status, Ok(Some(200..=399)))
            }
            Check::Exec { command } => self.exec(command, pod).unwrap_or(false),
        }
    }

    fn exec(&self, command: &[String], pod: &Place) -> std::io::Result<bool> {
        let Some((program, arguments)) = command.split_first() else { return Ok(false) };
        let mut command = pod.command(program)?;
        let mut child =
            command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status.success());
            }
            if begun.elapsed() > self.timeout {
                child.kill()?;
                child.wait()?;
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Readiness {
    /// Takes one outcome in; returns whether the pod is ready.
    pub fn observe(&mut self, probe: &Probe, passed: bool) -> bool {
        if passed == self.ready {
            self.against = 0;
            return self.ready;
        }
        self.against += 1;
        let enough = if passed { probe.successes } else { probe.failures };
        if self.against >= enough {
            *self = Self { ready: passed, against: 0 };
        }
        self.ready
    }
}

fn port(port: &IntOrString, container: &core::Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = |port: &&core::ContainerPort| port.name.as_ref() == Some(name);
            container.ports.iter().flatten().find(named).map(|port| port.container_port)
        }
    };
    let number = number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0);
    number.ok_or_else(|| format!("readinessProbe: port {port:?} is neither a port nor the name of one"))
}

fn http_status(address: SocketAddr, path: &str, headers: &[(String, String)], timeout: Duration) -> Option<u16> {
    let mut stream = TcpStream::connect_timeout(&address, timeout).ok()?;
    stream.set_read_timeout(Some(timeout)).ok()?;
    stream.set_write_timeout(Some(timeout)).ok()?;
    let mut request =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: weft-lab-probe\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut line = [0; 12];
    stream.read_exact(&mut line).ok()?;
    std::str::from_utf8(&line).ok()?.strip_prefix("HTTP/1.")?.get(2..)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(text: &str) -> Result<Option<Probe>, String> {
        Probe::of(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn thresholds_decide_when_readiness_changes() {
        let probe = probe(r#"{"name": "a", "readinessProbe": {"tcpSocket": {"port": 80}, "failureThreshold": 2}}"#);
        let probe = probe.unwrap().unwrap();
        let mut readiness = Readiness::default();
        let outcomes = [true, false, true, false, false, false, true].map(|passed| readiness.observe(&probe, passed));
        assert_eq!(outcomes, [true, true, true, true, false, false, true]);
    }

    #[test]
    fn a_port_may_be_a_name() {
        let named = r#"{"name": "a", "ports": [{"name": "http", "containerPort": 8080}],
                        "readinessProbe": {"httpGet": {"port": "http", "path": "/healthz"}}}"#;
        let check = Check::Http { port: 8080, path: "/healthz".into(), headers: Vec::new() };
        assert_eq!(probe(named).unwrap().unwrap().check, check);
        assert!(probe(&named.replace("\"port\": \"http\"", "\"port\": \"other\"")).unwrap_err().contains("other"));
        assert!(probe(r#"{"name": "a", "readinessProbe": {}}"#).unwrap_err().contains("httpGet"));
        assert_eq!(probe(r#"{"name": "a"}"#).unwrap(), None);
    }
}
