//! What is built and where it lands, all under `target/`.
use crate::{
    progress, root, target,
    toolchain::{self, plain_cargo},
};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const KUBERNETES: &str = "v1.34.4";

/// Kernel programs, plugins, binaries.
pub fn everything() -> Result<()> {
    eprintln!("Build");
    kernel_programs()?;
    plugins()?;
    binaries()
}

/// `target/bpfel-unknown-none/release/weft`
pub fn kernel_programs() -> Result<()> {
    let toolchain = toolchain::for_bpf().context("no compiler for the kernel programs: run `cargo xtask setup`")?;
    progress::must("build kernel programs", toolchain::bpf_cargo(&toolchain).args(["-p", "weft-bpf-programs"]))?;
    Ok(())
}

/// `target/plugins/NAME.wasm`, where NAME is the plugin's folder.
pub fn plugins() -> Result<()> {
    let toolchain = toolchain::for_wasm().context("no compiler for the plugins: run `cargo xtask setup`")?;
    let out = target().join("plugins");
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    for plugin in plugin_folders() {
        let name = plugin.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let cargo_out = target().join("wasm");
        let mut cargo = toolchain::wasm_cargo(&toolchain);
        cargo.env("CARGO_TARGET_DIR", &cargo_out).arg("--manifest-path").arg(plugin.join("Cargo.toml"));
        progress::must(&format!("build plugin {name}"), &mut cargo)?;
        let module = cargo_out.join(toolchain::WASM_TARGET).join("release").join(format!("{}.wasm", library(&plugin)?));
        install(&module, &out.join(format!("{name}.wasm")))?;
    }
    Ok(())
}

/// Every plugin that we ship or show, in the order of their paths.
pub fn plugin_folders() -> Vec<PathBuf> {
    let mut folders = vec![root().join("plugins/http-policy"), root().join("plugins/spiffe-authz")];
    if let Ok(entries) = fs::read_dir(root().join("examples/plugins")) {
        folders.extend(entries.flatten().map(|entry| entry.path()));
    }
    folders.retain(|folder| folder.join("Cargo.toml").exists());
    folders.sort();
    folders
}

/// `target/debug/{weft,weft-agent,weft-proxy,weft-cni,weft-lab}`
pub fn binaries() -> Result<()> {
    let packages = ["weft-agent", "weft-proxy", "weft-cni", "weft-lab"];
    let mut cargo = plain_cargo();
    cargo.args(["build", "--bins"]);
    for package in packages {
        cargo.args(["-p", package]);
    }
    progress::must("build binaries", &mut cargo)?;
    Ok(())
}

/// `target/kubernetes/{kube-apiserver,kube-controller-manager,kubectl}`
pub fn kubernetes() -> Result<()> {
    toolchain::go()?;
    let module = root().join("lab/kubernetes");
    let out = target().join("kubernetes");
    let stamp = out.join(".built");
    let sum = fs::read_to_string(module.join("go.sum")).context("cannot read lab/kubernetes/go.sum")?;
    let wanted = format!("{KUBERNETES}\n{sum}");
    let programs = ["kube-apiserver", "kube-controller-manager", "kubectl"];
    let there = programs.iter().all(|name| out.join(name).exists());
    if there && fs::read_to_string(&stamp).is_ok_and(|built| built == wanted) {
        eprintln!("  ok   kube-apiserver, kube-controller-manager and kubectl {KUBERNETES} are built");
        return Ok(());
    }
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let version = format!("-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES}");
    let mut go = Command::new("go");
    go.current_dir(&module).env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=readonly");
    go.args(["build", "-buildvcs=false", "-trimpath", "-ldflags", &version, "-o"]).arg(&out);
    for program in programs {
        go.arg(format!("k8s.io/kubernetes/cmd/{program}"));
    }
    progress::must("build Kubernetes servers (about 7 minutes the first time)", &mut go)?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

/// The name of the plugin's library, as its file has it.
fn library(plugin: &Path) -> Result<String> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        manifest_path: PathBuf,
        targets: Vec<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        crate_types: Vec<String>,
    }
    let manifest = plugin.join("Cargo.toml");
    let output = plain_cargo()
        .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
        .arg(&manifest)
        .output()?;
    let metadata: Metadata = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("cargo metadata cannot read {}", manifest.display()))?;
    let package = metadata.packages.into_iter().find(|package| package.manifest_path == manifest);
    let targets = package.map(|package| package.targets).unwrap_or_default();
    let library = targets.into_iter().find(|target| target.crate_types.iter().any(|kind| kind == "cdylib"));
    let library = library.with_context(|| format!("{}: want [lib] with crate-type cdylib", manifest.display()))?;
    Ok(library.name.replace('-', "_"))
}

/// Copies by rename, so that a reader never sees half a module.
fn install(from: &Path, to: &Path) -> Result<()> {
    let partial = to.with_extension("partial");
    fs::copy(from, &partial).with_context(|| format!("cannot copy {}", from.display()))?;
    fs::rename(&partial, to).with_context(|| format!("cannot write {}", to.display()))
}
