//! A daemon of a node that is started again when it ends, until it is told to stay down.
use crate::place::Place;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::OpenOptions,
    io,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::sleep,
};

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A daemon that has run for this long is taken to have started well.
const STEADY: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct Program {
    pub path: PathBuf,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// `None`: the supervisor's own namespace and cgroup.
    pub place: Option<Place>,
    pub log: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Send a signal; if the daemon ends it is started again.
    Signal(Signal),
    /// Send a signal and do not start it again.
    Stop(Signal),
    Start,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub pid: Option<i32>,
    /// How often it was started again.
    pub restarts: u32,
    /// Why it does not run, where it should.
    pub trouble: Option<String>,
}

/// The daemon ends with this.
#[derive(Debug)]
pub struct Daemon {
    orders: mpsc::Sender<Order>,
    state: watch::Receiver<State>,
    task: JoinHandle<()>,
}

impl Daemon {
    pub fn start(program: Program) -> Self {
        let (orders, inbox) = mpsc::channel(8);
        let (publish, state) = watch::channel(State::default());
        let task = tokio::spawn(keep(program, inbox, publish));
        Self { orders, state, task }
    }

    pub async fn order(&self, order: Order) {
        // The task ends only with this value.
        let _ = self.orders.send(order).await;
    }

    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Program {
    fn spawn(&self) -> io::Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0).kill_on_drop(true);
        if let Some(place) = &self.place {
            place.put(command.as_std_mut())?;
        }
        command.spawn()
    }
}

async fn keep(program: Program, mut inbox: mpsc::Receiver<Order>, publish: watch::Sender<State>) {
    let mut wanted = true;
    let mut wait = FIRST_WAIT;
    loop {
        if !wanted {
            match inbox.recv().await {
                Some(Order::Start) => wanted = true,
                Some(_) => continue,
                None => return,
            }
        }
        let begun = Instant::now();
        let trouble = match program.spawn() {
            Err(error) => format!("cannot start {}: {error}", program.path.display()),
            Ok(mut child) => {
                let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
                publish.send_modify(|state| (state.pid, state.trouble) = (pid, None));
                let ended = attend(&mut child, &mut inbox, &mut wanted).await;
                let Some(ended) = ended else { return };
                ended
            }
        };
        if begun.elapsed() > STEADY {
            wait = FIRST_WAIT;
        }
        publish.send_modify(|state| (state.pid, state.trouble) = (None, wanted.then_some(trouble)));
        if wanted {
            sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
            publish.send_modify(|state| state.restarts += 1);
        } else {
            wait = FIRST_WAIT;
        }
    }
}

/// Carries out orders until the daemon ends; says how it ended. `None`: nobody wants it any more.
async fn attend(child: &mut Child, inbox: &mut mpsc::Receiver<Order>, wanted: &mut bool) -> Option<String> {
    loop {
        let order = tokio::select! {
            ended = child.wait() => {
                return Some(ended.map_or_else(|error| error.to_string(), |status| status.to_string()));
            }
            order = inbox.recv() => order?,
        };
        let signal = match order {
            Order::Start => {
                *wanted = true;
                continue;
            }
            Order::Signal(signal) => signal,
            Order::Stop(signal) => {
                *wanted = false;
                signal
            }
        };
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It has not been waited for, so the number is still its own.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    async fn reached(daemon: &Daemon, what: impl Fn(&State) -> bool) -> State {
        let mut state = daemon.state.clone();
        let wait = timeout(Duration::from_secs(10), state.wait_for(|state| what(state)));
        wait.await.expect("within 10 s").expect("the daemon is kept").clone()
    }

    fn sleeper(log: &tempfile::NamedTempFile) -> Program {
        Program {
            path: "sleep".into(),
            arguments: vec!["1000".into()],
            environment: Vec::new(),
            place: None,
            log: log.path().into(),
        }
    }

    #[tokio::test]
    async fn a_killed_daemon_comes_back_and_a_stopped_one_stays_down() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let daemon = Daemon::start(sleeper(&log));
        let first = reached(&daemon, |state| state.pid.is_some()).await.pid;
        daemon.order(Order::Signal(Signal::SIGKILL)).await;
        let second = reached(&daemon, |state| state.pid.is_some() && state.pid != first).await;
        assert_eq!(second.restarts, 1);
        daemon.order(Order::Stop(Signal::SIGTERM)).await;
        let down = reached(&daemon, |state| state.pid.is_none()).await;
        assert_eq!(down.trouble, None);
        daemon.order(Order::Start).await;
        reached(&daemon, |state| state.pid.is_some()).await;
    }

    #[tokio::test]
    async fn a_daemon_that_cannot_start_says_why() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let daemon = Daemon::start(Program { path: "/no/such/program".into(), ..sleeper(&log) });
        let state = reached(&daemon, |state| state.trouble.is_some()).await;
        assert!(state.trouble.unwrap().contains("/no/such/program"));
    }
}
