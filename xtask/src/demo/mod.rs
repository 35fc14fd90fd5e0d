//! `cargo xtask demo`: the whole story on two clusters, told step by step, each step with the command that a user would
//! type, what was seen, and a tick. It fails at the first step that does not hold, and names it.
mod scene;
mod story;

use crate::{build, packages, root, target};
use anyhow::{Context, Result};
use scene::Scene;
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

#[derive(clap::Args)]
pub struct Options {
    /// Leave everything running, and say what to try next
    #[arg(long, conflicts_with = "down")]
    keep: bool,
    /// Remove every trace of a demo that was kept
    #[arg(long)]
    down: bool,
}

const EXAMPLE: &str = "examples/two-clusters";

pub fn run(options: &Options) -> Result<ExitCode> {
    if options.down {
        Scene::at(folder()).take_down()?;
        let _ = fs::remove_dir_all(folder());
        println!("The demo is gone.");
        return Ok(ExitCode::SUCCESS);
    }
    packages::set_up()?;
    build::everything()?;
    // A copy: the story edits its files.
    let folder = folder();
    let _ = fs::remove_dir_all(&folder);
    copy(&root().join(EXAMPLE), &folder)?;
    scene::catch_interrupts();
    let scene = Scene::at(folder);
    let started = Instant::now();
    let told = story::tell(&scene);
    let seconds = started.elapsed().as_secs_f64();
    if options.keep && told.is_ok() {
        println!("\nEverything is left running. In this shell:\n");
        for line in scene.next_steps() {
            println!("  {line}");
        }
    } else {
        scene.take_down().context("the demo's lab could not be taken down: run `cargo xtask demo --down`")?;
    }
    match told {
        Ok(steps) => {
            println!("\n{} {steps} of {steps} steps in {seconds:.0} s.", scene::tick());
            Ok(ExitCode::SUCCESS)
        }
        Err(failed) => {
            eprintln!("\n{} step {}, \"{}\", failed: {:#}", scene::cross(), failed.number, failed.title, failed.error);
            Ok(ExitCode::FAILURE)
        }
    }
}

fn folder() -> PathBuf {
    target().join("demo")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
