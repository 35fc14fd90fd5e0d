//! What `cargo xtask test` runs, in order. Every stage runs even when one before it failed; the end says which did.
use crate::{
    build, packages, progress, root, tally,
    tally::Tally,
    target,
    toolchain::{self, plain_cargo},
};
use anyhow::Result;
use clap::Args;
use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

#[derive(Args)]
pub struct Options {
    /// Run only the stages whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// Something that is not run, and why. Only what stands here may be skipped.
struct Skip {
    name: &'static str,
    reason: String,
}

struct Report {
    name: String,
    tally: Tally,
    took: Duration,
    notes: Vec<String>,
}

struct Run {
    only: Option<String>,
    reports: Vec<Report>,
    skips: Vec<Skip>,
}

/// End-to-end tests that need the Kubernetes servers.
const KUBERNETES_TESTS: &str = "kubernetes";

/// Sets up, builds, tests; the exit code says whether all that ran passed.
pub fn test(options: &Options) -> Result<ExitCode> {
    let started = Instant::now();
    packages::set_up()?;
    let mut run = Run { only: options.only.clone(), reports: Vec::new(), skips: Vec::new() };
    // What the later stages run is built first: without it their failures would only say that it is missing.
    build::everything()?;
    eprintln!("Test");
    run.format();
    run.lint();
    run.dependencies();
    run.unit();
    run.plugins();
    run.kernel();
    run.end_to_end();
    Ok(run.conclude(started.elapsed()))
}

impl Run {
    fn format(&mut self) {
        self.whole("format", plain_cargo().args(["fmt", "--all", "--check"]));
        for plugin in build::plugin_folders() {
            let name = format!("format {}", name_of(&plugin));
            self.whole(&name, plain_cargo().args(["fmt", "--check", "--manifest-path"]).arg(plugin.join("Cargo.toml")));
        }
    }

    fn lint(&mut self) {
        let mut clippy = plain_cargo();
        clippy.args(["clippy", "--workspace", "--exclude", "weft-bpf-programs", "--all-targets"]);
        self.whole("lint", clippy.args(["--", "-D", "warnings"]));
        let deny = Command::new("cargo").args(["deny", "--version"]).output();
        if deny.is_ok_and(|output| output.status.success()) && root().join("deny.toml").exists() {
            self.whole("licences", plain_cargo().args(["deny", "check", "licenses"]));
        } else if self.wanted("licences") {
            self.skips.push(Skip { name: "licences", reason: "cargo-deny is not installed".into() });
        }
    }

    fn dependencies(&mut self) {
        self.whole("dependencies", plain_cargo().args(["xtask", "deps"]));
    }

    fn unit(&mut self) {
        let mut tests = plain_cargo();
        tests.args(["test", "--no-fail-fast", "--workspace", "--lib", "--bins", "--tests"]);
        for package in ["weft-bpf-programs", "weft-bpf-tests", "weft-lab"] {
            tests.args(["--exclude", package]);
        }
        self.counted("unit tests", &mut tests);
        self.counted("lab unit tests", plain_cargo().args(["test", "-p", "weft-lab", "--lib", "--bins"]));
    }

    fn plugins(&mut self) {
        for plugin in build::plugin_folders() {
            let mut tests = plain_cargo();
            tests.env("CARGO_TARGET_DIR", target().join("plugin-tests"));
            tests.args(["test", "--no-fail-fast", "--manifest-path"]).arg(plugin.join("Cargo.toml"));
            self.counted(&format!("plugin {}", name_of(&plugin)), &mut tests);
        }
    }

    fn kernel(&mut self) {
        let mut tests = plain_cargo();
        tests.args(["test", "--no-fail-fast", "-p", "weft-bpf-tests", "--", "--test-threads=2"]);
        self.counted("kernel programs", &mut tests);
    }

    fn end_to_end(&mut self) {
        for name in end_to_end_tests() {
            let stage = format!("end to end: {name}");
            if name.starts_with(KUBERNETES_TESTS) && self.wanted(&stage) {
                match toolchain::go() {
                    Err(reason) => {
                        self.skips.push(Skip { name: "end to end: kubernetes", reason: reason.to_string() });
                        continue;
                    }
                    Ok(_) => {
                        if let Err(error) = build::kubernetes() {
                            self.reports.push(failed("build Kubernetes servers", &error.to_string()));
                            continue;
                        }
                    }
                }
            }
            let mut tests = plain_cargo();
            tests.args(["test", "--no-fail-fast", "-p", "weft-lab", "--test", &name, "--", "--test-threads=1"]);
            self.counted(&stage, &mut tests);
        }
    }

    fn wanted(&self, stage: &str) -> bool {
        self.only.as_ref().is_none_or(|only| stage.contains(only.as_str()))
    }

    /// A stage that passes or fails as a whole.
    fn whole(&mut self, name: &str, command: &mut Command) {
        self.stage(name, command, |_, succeeded| if succeeded { Tally::PASSED } else { Tally::FAILED });
    }

    /// A stage of libtest's, counted by test.
    fn counted(&mut self, name: &str, command: &mut Command) {
        self.stage(name, command, Tally::of_cargo_test);
    }

    fn stage(&mut self, name: &str, command: &mut Command, count: fn(&str, bool) -> Tally) {
        if !self.wanted(name) {
            return;
        }
        let report = match progress::watch(name, command) {
            Err(error) => failed(name, &format!("{error:#}")),
            Ok(finished) => {
                let succeeded = finished.status.success();
                let mut notes = Vec::new();
                if !succeeded {
                    eprintln!("{}", progress::tail(&finished.output));
                    let names = tally::named(&finished.output, "FAILED");
                    notes.extend(names.into_iter().map(|test| format!("failed: {test}")));
                    notes.push(format!("log: {}", finished.log.display()));
                }
                let ignored = tally::named(&finished.output, "ignored");
                notes.extend(ignored.into_iter().map(|test| format!("ignored: {test}")));
                Report { name: name.into(), tally: count(&finished.output, succeeded), took: finished.took, notes }
            }
        };
        self.reports.push(report);
    }

    fn conclude(self, took: Duration) -> ExitCode {
        let mut total = Tally::default();
        println!("\n{:<44} {:>7} {:>7} {:>8} {:>8}", "stage", "passed", "failed", "skipped", "seconds");
        for Report { name, tally, took, notes } in &self.reports {
            total.add(*tally);
            let Tally { passed, failed, skipped } = tally;
            println!("{name:<44} {passed:>7} {failed:>7} {skipped:>8} {:>8.1}", took.as_secs_f64());
            notes.iter().for_each(|note| println!("    {note}"));
        }
        total.skipped += self.skips.len();
        if !self.skips.is_empty() {
            println!("\nNot run:");
            self.skips.iter().for_each(|skip| println!("  {}: {}", skip.name, skip.reason));
        }
        println!("\nIn {:.0} s", took.as_secs_f64());
        println!("{total}");
        if total.failed == 0 && total.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn failed(name: &str, why: &str) -> Report {
    Report { name: name.into(), tally: Tally::FAILED, took: Duration::ZERO, notes: vec![why.into()] }
}

/// The end-to-end test programs: the files and folders in `lab/tests`.
fn end_to_end_tests() -> Vec<String> {
    let Ok(entries) = fs::read_dir(root().join("lab/tests")) else { return Vec::new() };
    let is_test = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "rs") || path.join("main.rs").exists();
    let paths = entries.flatten().map(|entry| entry.path()).filter(is_test);
    let mut names: Vec<String> =
        paths.filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned())).collect();
    names.sort();
    names
}

fn name_of(folder: &std::path::Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
