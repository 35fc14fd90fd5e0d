//! What the machine needs besides Rust, and how it gets it. Only what is missing is installed, and said first.
use crate::{progress, root, toolchain};
use anyhow::{Context, Result, bail};
use std::{collections::BTreeSet, path::Path, process::Command};

const BPF_LINKER: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";

/// Debian package and why it is needed. Those of the toolchains follow apart: they may be had from rustup.
const PACKAGES: &[(&str, &str)] = &[
    ("build-essential", "linking"),
    ("pkg-config", "building"),
    ("protobuf-compiler", "the etcd and Hubble APIs"),
    ("iproute2", "the lab's network namespaces"),
    ("iptables", "the test that no rule exists, and the benchmark against kube-proxy's"),
    ("nftables", "the test that no rule exists"),
    ("tcpdump", "captures on the lab's links"),
    ("curl", "clients in the lab's pods"),
    ("etcd-server", "the lab's Kubernetes clusters"),
    ("etcd-client", "tests of the mesh server with a foreign client"),
    ("procps", "the sysctls of the lab and the tests"),
    ("wrk", "benchmarks"),
    ("haproxy", "benchmarks"),
    ("python3-venv", "Envoy for the benchmarks"),
];
const LINKER_PACKAGES: &[(&str, &str)] = &[
    ("llvm-22-dev", "bpf-linker"),
    ("clang-22", "bpf-linker"),
    ("libpolly-22-dev", "bpf-linker"),
    ("zlib1g-dev", "bpf-linker"),
    ("libzstd-dev", "bpf-linker"),
];
const DEBIAN_RUST: &[(&str, &str)] = &[
    ("rustc-web", "compiling for BPF and Wasm"),
    ("cargo-web", "compiling for BPF and Wasm"),
    ("libstd-rust-web-dev", "compiling for BPF and Wasm"),
    ("libstd-rust-web-dev-bpf", "compiling for BPF"),
    ("rust-web-src", "compiling for Wasm"),
    ("lld-22", "linking Wasm"),
];

/// Makes the machine ready; does nothing on one that is.
pub fn set_up() -> Result<()> {
    eprintln!("Set-up");
    let linker = bpf_linker_version();
    let mut wanted: Vec<(&str, &str)> = PACKAGES.to_vec();
    if linker.is_none() {
        wanted.extend(LINKER_PACKAGES);
    }
    if toolchain::for_bpf().is_none() || toolchain::for_wasm().is_none() {
        wanted.extend(DEBIAN_RUST);
    }
    install_debian(&missing(&wanted))?;
    match linker {
        Some(version) => eprintln!("  ok   bpf-linker {version} is installed"),
        None => install_bpf_linker()?,
    }
    let rustup = "or with rustup: `rustup toolchain install nightly --component rust-src` and \
                  `rustup target add wasm32-unknown-unknown`";
    let Some(bpf) = toolchain::for_bpf() else {
        bail!(
            "no compiler for {}: install Debian's rustc-web and libstd-rust-web-dev-bpf, {rustup}",
            toolchain::BPF_TARGET
        )
    };
    let Some(wasm) = toolchain::for_wasm() else {
        bail!("no compiler for {}: install Debian's rustc-web and rust-web-src, {rustup}", toolchain::WASM_TARGET)
    };
    eprintln!("  ok   kernel programs are built by {bpf}");
    eprintln!("  ok   plugins are built by {wasm}");
    Ok(())
}

/// The version of the bpf-linker in the path, if it is one that links our programs.
fn bpf_linker_version() -> Option<String> {
    let output = Command::new("bpf-linker").arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().last()?.to_owned();
    let minor: u32 = version.split('.').nth(1)?.parse().ok()?;
    (version.starts_with("0.") && minor >= 13).then_some(version)
}

fn install_bpf_linker() -> Result<()> {
    if !Path::new(LLVM).exists() {
        bail!("bpf-linker needs LLVM 22 at {LLVM}: install llvm-22-dev, or a bpf-linker {BPF_LINKER} of your own");
    }
    eprintln!("  installing bpf-linker {BPF_LINKER} with cargo (about two minutes)");
    let mut cargo = toolchain::plain_cargo();
    cargo
        .env("LLVM_PREFIX", LLVM)
        .env("LIBRARY_PATH", format!("{LLVM}/lib"))
        .args(["install", "bpf-linker", "--version", BPF_LINKER])
        .args(["--no-default-features", "--features", "llvm-22"]);
    progress::must("install bpf-linker", &mut cargo)?;
    Ok(())
}

fn missing(wanted: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let installed = installed_packages();
    wanted.iter().filter(|(name, _)| !installed.contains(*name)).copied().collect()
}

fn installed_packages() -> BTreeSet<String> {
    let query = Command::new("dpkg-query").args(["-W", "-f", "${Package} ${db:Status-Status}\n"]).output();
    let Ok(output) = query else { return BTreeSet::new() };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| line.strip_suffix(" installed")).map(str::to_owned).collect()
}

fn install_debian(packages: &[(&str, &str)]) -> Result<()> {
    if packages.is_empty() {
        eprintln!("  ok   every Debian package is installed");
        return Ok(());
    }
    let names: Vec<&str> = packages.iter().map(|(name, _)| *name).collect();
    eprintln!("  installing {} Debian packages:", packages.len());
    for (name, why) in packages {
        eprintln!("       {name}: {why}");
    }
    if Command::new("apt-get").arg("--version").output().is_err() {
        bail!("this machine has no apt-get; install by hand what gives: {}", names.join(" "));
    }
    // SAFETY: takes no argument and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        bail!("installing packages needs root; run as root, or first: apt-get install {}", names.join(" "));
    }
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.current_dir(root()).env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-y"]).args(arguments);
        apt
    };
    progress::must("apt-get update", &mut apt(&["update"]))?;
    let mut install = apt(&["install", "--no-install-recommends"]);
    install.args(&names);
    progress::must("apt-get install", &mut install)
        .context("are Debian 12's main and security archives among apt's sources?")?;
    Ok(())
}
