//! The demo's lab as a user's shell sees it: commands that are shown as they are run.
use crate::{root, target};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    io::{BufRead, BufReader, IsTerminal},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

const LAB: &str = "demo";
const POLL: Duration = Duration::from_millis(100);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From here on Ctrl-C ends the story at its next step, and the lab is taken down.
pub fn catch_interrupts() {
    extern "C" fn note(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    // SAFETY: the handler does nothing but store to an atomic.
    unsafe { libc::signal(libc::SIGINT, note as *const () as libc::sighandler_t) };
}

pub struct Scene {
    folder: PathBuf,
}

/// Load that runs beside a step.
pub struct Load(Child);

/// What a load saw.
pub struct LoadResult {
    pub ok: u64,
    pub failed: u64,
    pub detail: serde_json::Value,
}

impl Scene {
    pub fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Shows a command line and runs it; a failure is an error with what it printed.
    pub fn run(&self, line: &str) -> Result<String> {
        let output = self.attempt(line)?;
        if !output.status.success() {
            bail!("`{line}` failed: {}{}", text(&output.stdout), text(&output.stderr));
        }
        Ok(text(&output.stdout))
    }

    /// Shows a command line and runs it, whatever comes of it.
    pub fn attempt(&self, line: &str) -> Result<Output> {
        println!("    {} {line}", dim("$"));
        self.quiet(line)
    }

    /// Runs a command line without showing it.
    pub fn quiet(&self, line: &str) -> Result<Output> {
        if INTERRUPTED.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        self.shell(line).stdin(Stdio::null()).output().with_context(|| format!("cannot run `{line}`"))
    }

    /// Runs `line` until what it prints satisfies `wanted`.
    pub fn until(&self, line: &str, patience: Duration, wanted: impl Fn(&str) -> bool) -> Result<(String, Duration)> {
        println!("    {} {line}", dim("$"));
        let started = Instant::now();
        loop {
            let output = self.quiet(line)?;
            let said = text(&output.stdout);
            if wanted(&said) {
                return Ok((said, started.elapsed()));
            }
            if started.elapsed() > patience {
                bail!("not within {} s: `{line}` says {said}{}", patience.as_secs(), text(&output.stderr));
            }
            thread::sleep(POLL);
        }
    }

    /// Starts requests from a pod, some on connections that stay, some on new ones; returns once they run.
    pub fn load(&self, pod: &str, url: &str, seconds: u64) -> Result<Load> {
        let line = format!("weft-lab exec {pod} -- weft-lab load --url {url} --rate 50 --kept 2 --seconds {seconds}");
        println!("    {} {line} &", dim("$"));
        let child =
            self.shell(&line).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start load")?;
        thread::sleep(Duration::from_millis(500));
        Ok(Load(child))
    }

    /// Starts a capture on the link between the regions.
    pub fn capture(&self, file: &Path) -> Result<Child> {
        let netns = format!("weft-{LAB}-fabric");
        let line = format!("ip netns exec {netns} tcpdump -i east-west -n -U -Z root -w {}", file.display());
        println!("    {} {line} &", dim("$"));
        let mut child = self.shell(&format!("exec {line}")).stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let errors = child.stderr.take().context("tcpdump's messages")?;
        let mut lines = BufReader::new(errors).lines().map_while(Result::ok);
        if !lines.by_ref().any(|line| line.contains("listening on")) {
            bail!("tcpdump does not start: is it installed?");
        }
        thread::spawn(move || lines.for_each(drop));
        Ok(child)
    }

    /// Replaces text in a file of the lab's folder, as an editor would.
    pub fn edit(&self, file: &str, from: &str, to: &str) -> Result<()> {
        let path = self.folder.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if !text.contains(from) {
            bail!("{} does not contain {from:?}", path.display());
        }
        self.write(file, &text.replace(from, to))
    }

    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.folder.join(file);
        let name = path.file_name().context("a file name")?.to_string_lossy().into_owned();
        let temporary = path.with_file_name(format!(".{name}"));
        fs::write(&temporary, text)?;
        Ok(fs::rename(&temporary, &path)?)
    }

    pub fn take_down(&self) -> Result<()> {
        INTERRUPTED.store(false, Ordering::Relaxed);
        let output = self.quiet(&format!("weft-lab down --name {LAB}"))?;
        let said = text(&output.stderr) + &text(&output.stdout);
        if output.status.success() || said.contains("No lab") || said.contains("no lab") {
            Ok(())
        } else {
            bail!("{said}")
        }
    }

    pub fn next_steps(&self) -> Vec<String> {
        vec![
            format!("export PATH={}:$PATH WEFT_LAB={LAB}", binaries().display()),
            "weft --context east status".to_owned(),
            "weft --context east observe --follow".to_owned(),
            "weft-lab exec east/frontend -- curl -i http://10.96.0.10/api/users/42".to_owned(),
            format!("$EDITOR {}    # followed live", self.folder.join("east/policies.yaml").display()),
            "weft-lab kill agent east/east-1     # and nothing fails".to_owned(),
            "cargo xtask demo --down".to_owned(),
        ]
    }

    fn shell(&self, line: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("sh");
        command.args(["-c", line]).current_dir(root());
        command.env("PATH", format!("{}:{path}", binaries().display()));
        // Other labs may run.
        command.env("WEFT_LAB", LAB);
        command.env("WEFT_CONTEXTS", format!("/run/weft-lab/{LAB}/contexts.yaml"));
        command
    }
}

impl Load {
    pub fn finish(self) -> Result<LoadResult> {
        let output = self.0.wait_with_output()?;
        let detail: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("the load generator says nothing that can be read")?;
        let count = |field: &str| -> u64 {
            ["new_connections", "kept_connections"]
                .iter()
                .filter_map(|kind| detail.get(kind)?.get(field)?.as_u64())
                .sum()
        };
        Ok(LoadResult { ok: count("ok"), failed: count("failed"), detail })
    }
}

impl LoadResult {
    /// # Errors
    /// A request failed, or none ran.
    pub fn without_failure(self) -> Result<u64> {
        if self.failed > 0 || self.ok == 0 {
            bail!("{} of {} requests failed: {}", self.failed, self.failed + self.ok, self.detail);
        }
        Ok(self.ok)
    }
}

fn binaries() -> PathBuf {
    target().join("debug")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn saw(what: impl AsRef<str>) {
    for line in what.as_ref().lines().filter(|line| !line.trim().is_empty()) {
        println!("      {line}");
    }
}

pub fn tick() -> String {
    colour("32", "✔")
}
pub fn cross() -> String {
    colour("31", "✘")
}
pub fn dim(text: &str) -> String {
    colour("2", text)
}
pub fn bold(text: &str) -> String {
    colour("1", text)
}

fn colour(code: &str, text: &str) -> String {
    let plain = !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some();
    if plain { text.to_owned() } else { format!("\x1b[{code}m{text}\x1b[0m") }
}
