//! Runs a long step: its output goes to a log, the terminal sees one line that moves, a file or pipe sees plain lines.
use crate::target;
use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, IsTerminal, Read, Write},
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// How often a step that runs on says so where nobody sees the moving line.
const STILL_RUNNING: Duration = Duration::from_secs(30);
const SPINNER: [&str; 4] = ["|", "/", "-", "\\"];
const TAIL: usize = 60;

/// What a finished step left.
pub struct Finished {
    pub status: ExitStatus,
    pub output: String,
    pub log: PathBuf,
    pub took: Duration,
}

/// Runs `command` to its end, whatever that is; both its streams are in the log and in `Finished::output`.
pub fn watch(title: &str, command: &mut Command) -> Result<Finished> {
    let log = log_path(title)?;
    let mut file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    writeln!(file, "$ {command:?}")?;
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{title}: cannot run {:?}", command.get_program()))?;
    let (sender, lines) = mpsc::channel::<String>();
    let readers: Vec<_> = [
        child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
        child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
    ]
    .into_iter()
    .flatten()
    .map(|pipe| {
        let sender = sender.clone();
        thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
            }
        })
    })
    .collect();
    drop(sender);

    let mut view = View::new(title, started);
    let mut output = String::new();
    loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => {
                writeln!(file, "{line}")?;
                view.last = line.trim().to_owned();
                output.push_str(&line);
                output.push('\n');
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        view.tick();
    }
    for reader in readers {
        let _ = reader.join();
    }
    let status = child.wait()?;
    let took = started.elapsed();
    view.finish(status.success(), took);
    Ok(Finished { status, output, log, took })
}

/// As [`watch`], for a step without which nothing can go on: a failure shows the end of its log.
pub fn must(title: &str, command: &mut Command) -> Result<Finished> {
    let finished = watch(title, command)?;
    if !finished.status.success() {
        eprintln!("{}", tail(&finished.output));
        bail!("{title} failed ({}); the whole log is {}", finished.status, finished.log.display());
    }
    Ok(finished)
}

/// The end of a log: what a person reads first.
pub fn tail(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

fn log_path(title: &str) -> Result<PathBuf> {
    let folder = target().join("xtask");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    Ok(folder.join(format!("{}.log", title.chars().map(plain).collect::<String>())))
}

struct View<'a> {
    title: &'a str,
    started: Instant,
    spoken: Instant,
    terminal: bool,
    turns: usize,
    last: String,
}

impl<'a> View<'a> {
    fn new(title: &'a str, started: Instant) -> Self {
        let terminal = std::io::stderr().is_terminal();
        if !terminal {
            eprintln!("  ... {title}");
        }
        Self { title, started, spoken: started, terminal, turns: 0, last: String::new() }
    }

    fn tick(&mut self) {
        let wait = if self.terminal { Duration::from_millis(150) } else { STILL_RUNNING };
        if self.spoken.elapsed() < wait {
            return;
        }
        self.spoken = Instant::now();
        self.turns += 1;
        let seconds = self.started.elapsed().as_secs();
        let last: String = self.last.chars().filter(|c| !c.is_control()).take(60).collect();
        if self.terminal {
            let turn = SPINNER[self.turns % SPINNER.len()];
            eprint!("\r\x1b[2K  {turn} {} ({seconds} s) {last}", self.title);
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("  ... {} ({seconds} s) {last}", self.title);
        }
    }

    fn finish(&self, ok: bool, took: Duration) {
        let clear = if self.terminal { "\r\x1b[2K" } else { "" };
        let mark = if ok { "ok  " } else { "FAIL" };
        eprintln!("{clear}  {mark} {} ({:.1} s)", self.title, took.as_secs_f64());
    }
}
