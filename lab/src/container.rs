//! A container: a real process in the pod's namespace and cgroup, started again by the pod's restart policy.
use crate::{
    place::Place,
    pods::{ContainerReport, PodKey},
    probe::{Probe, Readiness},
};
use k8s_openapi::api::core::v1 as core;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    fs::OpenOptions,
    io,
    net::IpAddr,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    process::{Child, Command},
    sync::watch,
    time::{sleep, timeout},
};

const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
const STEADY: Duration = Duration::from_secs(10);

/// What all containers of a pod share.
#[derive(Clone, Debug)]
pub struct Surroundings {
    pub pod: PodKey,
    pub node: String,
    pub ips: Vec<IpAddr>,
    pub service_account: String,
    pub place: Place,
    pub node_place: Place,
    pub log: PathBuf,
    /// Where the lab's own binaries are: first in the path.
    pub binaries: PathBuf,
    pub restart: Restart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    Always,
    OnFailure,
    Never,
}

/// What the containers of a pod shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Run,
    /// The cluster has lost its power: be gone, without a word.
    Dark,
    /// End, with this much time to do it in.
    End {
        grace: Duration,
    },
}

/// A container whose fields are checked.
#[derive(Clone, Debug)]
pub struct Container {
    pub name: String,
    words: Vec<String>,
    folder: Option<String>,
    environment: Vec<(String, String)>,
    probe: Option<Probe>,
}

impl Restart {
    pub fn of(spec: &core::PodSpec) -> Self {
        match spec.restart_policy.as_deref() {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }
}

impl Container {
    pub fn of(container: &core::Container, around: &Surroundings) -> Result<Self, String> {
        let name = container.name.clone();
        let mut environment = vec![
            ("POD_NAME".to_owned(), around.pod.name.clone()),
            ("POD_NAMESPACE".to_owned(), around.pod.namespace.clone()),
            ("POD_IP".to_owned(), around.ips.first().map(ToString::to_string).unwrap_or_default()),
            ("NODE_NAME".to_owned(), around.node.clone()),
        ];
        for variable in container.env.iter().flatten() {
            let value = value_of(variable, around).map_err(|error| format!("container {name}: {error}"))?;
            environment.push((variable.name.clone(), expand(&value, &environment)));
        }
        let words = [&container.command, &container.args].into_iter().flatten().flatten();
        let words: Vec<String> = words.map(|word| expand(word, &environment)).collect();
        if container.command.iter().flatten().next().is_none() {
            return Err(format!("container {name} has no command: the lab runs processes, not images"));
        }
        let probe = Probe::of(container).map_err(|error| format!("container {name}: {error}"))?;
        Ok(Self { name, words, folder: container.working_dir.clone(), environment, probe })
    }

    /// Keeps the container as the policy says until the wish is `End`, or until it is not to be started again.
    pub async fn run(
        self,
        around: Arc<Surroundings>,
        mut wish: watch::Receiver<Wish>,
        publish: watch::Sender<ContainerReport>,
    ) {
        let mut wait = FIRST_WAIT;
        loop {
            // The sender is the pod's own task: when it is gone, so is the wish to run.
            let Ok(now) = wish.wait_for(|wish| *wish != Wish::Dark).await.map(|wish| *wish) else { return };
            if now != Wish::Run {
                return;
            }
            let begun = Instant::now();
            let code = match self.spawn(&around) {
                Err(error) => {
                    tracing::warn!(pod = %around.pod, container = self.name, %error, "a container does not start");
                    127
                }
                Ok(mut child) => {
                    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
                    publish.send_modify(|report| (report.pid, report.ready) = (pid, self.probe.is_none()));
                    let watched = async {
                        tokio::select! {
                            status = child.wait() => status.ok(),
                            () = self.watch_readiness(&around, &publish) => None,
                            _ = wish.wait_for(|wish| *wish != Wish::Run) => None,
                        }
                    };
                    let status = match watched.await {
                        Some(status) => status,
                        None => end(&mut child, &mut wish).await,
                    };
                    exit_code(status)
                }
            };
            publish.send_modify(|report| (report.pid, report.ready) = (None, false));
            if *wish.borrow() == Wish::Dark {
                continue;
            }
            let again = match around.restart {
                Restart::Always => true,
                Restart::OnFailure => code != 0,
                Restart::Never => false,
            };
            if !again || *wish.borrow() != Wish::Run {
                publish.send_modify(|report| report.exit = Some(code));
                return;
            }
            if begun.elapsed() > STEADY {
                wait = FIRST_WAIT;
            }
            // A new wish ends the wait, too.
            let _ = timeout(wait, wish.wait_for(|wish| *wish != Wish::Run)).await;
            wait = (wait * 2).min(LONGEST_WAIT);
            publish.send_modify(|report| report.restarts += 1);
        }
    }

    fn spawn(&self, around: &Surroundings) -> io::Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(&around.log)?;
        let mut path = around.binaries.as_os_str().to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()));
        // The program is looked for in the path that it will get.
        let mut command = Command::new("env");
        command.args(["--", &self.words[0]]).args(&self.words[1..]);
        command.env("PATH", path).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0).kill_on_drop(true);
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        around.place.put(command.as_std_mut())?;
        command.spawn()
    }

    async fn watch_readiness(&self, around: &Arc<Surroundings>, publish: &watch::Sender<ContainerReport>) {
        let Some(probe) = &self.probe else { return std::future::pending().await };
        let Some(ip) = around.ips.first().copied() else { return std::future::pending().await };
        sleep(probe.delay).await;
        let mut readiness = Readiness::default();
        loop {
            let (once, around) = (probe.clone(), around.clone());
            let outcome = tokio::task::spawn_blocking(move || once.passes(ip, &around.node_place, &around.place)).await;
            let ready = readiness.observe(probe, outcome.unwrap_or(false));
            publish.send_if_modified(|report| std::mem::replace(&mut report.ready, ready) != ready);
            // Until it is ready for the first time nothing is gained by waiting long.
            sleep(if ready { probe.period } else { probe.period.min(Duration::from_secs(1)) }).await;
        }
    }
}

/// Ends a process group: politely where there is a grace, and for sure.
async fn end(child: &mut Child, wish: &mut watch::Receiver<Wish>) -> ExitStatus {
    let signal = |child: &Child, signal| {
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It has not been waited for, so the number is still its own.
            let _ = killpg(Pid::from_raw(pid), signal);
        }
    };
    let now = *wish.borrow();
    if let Wish::End { grace } = now {
        signal(child, Signal::SIGTERM);
        if let Ok(Ok(status)) = timeout(grace, child.wait()).await {
            return status;
        }
    }
    signal(child, Signal::SIGKILL);
    child.wait().await.unwrap_or_default()
}

fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

fn value_of(variable: &core::EnvVar, around: &Surroundings) -> Result<String, String> {
    let Some(source) = &variable.value_from else { return Ok(variable.value.clone().unwrap_or_default()) };
    let field = source.field_ref.as_ref().map(|field| field.field_path.as_str());
    match field {
        Some("metadata.name") => Ok(around.pod.name.clone()),
        Some("metadata.namespace") => Ok(around.pod.namespace.clone()),
        Some("spec.nodeName") => Ok(around.node.clone()),
        Some("spec.serviceAccountName") => Ok(around.service_account.clone()),
        Some("status.podIP") => Ok(around.ips.first().map(ToString::to_string).unwrap_or_default()),
        Some(other) => Err(format!("env {}: fieldRef {other} is not supported", variable.name)),
        None => Err(format!("env {}: of valueFrom the lab knows fieldRef only", variable.name)),
    }
}

/// `$(NAME)` becomes the variable's value; `$$` is a dollar; an unknown name stays as it is.
fn expand(text: &str, environment: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let name = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        match name.and_then(|(name, after)| {
            let known = environment.iter().rev().find(|(known, _)| known == name)?;
            Some((&known.1, after))
        }) {
            Some((value, after)) => {
                out.push_str(value);
                rest = after;
            }
            None => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_expanded_as_kubernetes_does() {
        let environment = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "two".to_owned())];
        for (text, expanded) in
            [("$(A)-$(B)", "1-two"), ("$$(A)", "$(A)"), ("$(C) $A", "$(C) $A"), ("cost: $", "cost: $"), ("$(A", "$(A")]
        {
            assert_eq!(expand(text, &environment), expanded);
        }
    }
}
