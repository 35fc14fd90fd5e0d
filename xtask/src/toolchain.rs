//! Which compiler serves which target: rustup's where it has the target's library or sources, else Debian's.
use crate::root;
use anyhow::{Result, bail};
use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

pub const BPF_TARGET: &str = "bpfel-unknown-none";
pub const WASM_TARGET: &str = "wasm32-unknown-unknown";
/// Debian's compiler: a complete toolchain of its own beside rustup's.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_WASM_LINKER: &str = "wasm-ld-22";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The compiler in use has the target's library.
    Target,
    /// rustup's nightly with rust-src: the library is built from source.
    Nightly,
    /// Debian's `rustc-web`, from its packaged library or sources.
    Debian,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Target => "the default toolchain, which has the target",
            Self::Nightly => "rustup's nightly with rust-src",
            Self::Debian => "Debian's rustc (rustc-web)",
        })
    }
}

/// For the kernel programs. `None`: Debian's packages have to be installed first.
pub fn for_bpf() -> Option<Toolchain> {
    if sysroot(Command::new("rustc").arg("+nightly")).is_some_and(|at| has_sources(&at)) {
        return Some(Toolchain::Nightly);
    }
    debian_has(BPF_TARGET).then_some(Toolchain::Debian)
}

/// For the plugins. `None`: Debian's packages have to be installed first.
pub fn for_wasm() -> Option<Toolchain> {
    if sysroot(&mut Command::new("rustc")).is_some_and(|at| has_target(&at, WASM_TARGET)) {
        return Some(Toolchain::Target);
    }
    if sysroot(Command::new("rustc").arg("+nightly")).is_some_and(|at| has_sources(&at)) {
        return Some(Toolchain::Nightly);
    }
    let debian = sysroot(&mut Command::new(DEBIAN_RUSTC)).is_some_and(|at| has_sources(&at));
    debian.then_some(Toolchain::Debian)
}

/// `cargo build` of the kernel programs; the caller adds the package.
pub fn bpf_cargo(toolchain: &Toolchain) -> Command {
    let arch = format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH);
    let flags = ["-Clinker=bpf-linker", "-Cdebuginfo=2", "-Clink-arg=--btf", &arch].join("\u{1f}");
    let mut cargo = cargo(toolchain);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags).args(["build", "--release", "--target", BPF_TARGET]);
    if *toolchain != Toolchain::Debian {
        cargo.arg("-Zbuild-std=core");
    }
    cargo
}

/// `cargo build` of a plugin; the caller adds the manifest.
pub fn wasm_cargo(toolchain: &Toolchain) -> Command {
    let mut cargo = cargo(toolchain);
    cargo.args(["build", "--release", "--target", WASM_TARGET]);
    if *toolchain == Toolchain::Debian {
        cargo.env("RUSTFLAGS", format!("-Clinker={DEBIAN_WASM_LINKER}"));
    }
    if *toolchain != Toolchain::Target {
        cargo.arg("-Zbuild-std=std,panic_abort");
    }
    cargo
}

/// The version of Go, if it is one that builds Kubernetes (1.24 or later).
pub fn go() -> Result<(u32, u32)> {
    const WANT: (u32, u32) = (1, 24);
    let Ok(output) = Command::new("go").arg("version").output() else { bail!("Go 1.24 or later is not installed") };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match parse_go(&text) {
        Some(version) if version >= WANT => Ok(version),
        Some((major, minor)) => bail!("Go 1.24 or later is not installed (found {major}.{minor})"),
        None => bail!("Go 1.24 or later is not installed (`go version` says {text:?})"),
    }
}

/// Plain cargo in the source tree, free of what the cargo that runs us has set.
pub fn plain_cargo() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root());
    for name in ["RUSTC", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_MANIFEST_DIR", "CARGO_TARGET_DIR"] {
        cargo.env_remove(name);
    }
    cargo
}

fn cargo(toolchain: &Toolchain) -> Command {
    let mut cargo = plain_cargo();
    match toolchain {
        Toolchain::Target => {}
        Toolchain::Nightly => {
            cargo.env_remove("CARGO").env("RUSTUP_TOOLCHAIN", "nightly");
        }
        Toolchain::Debian => {
            // Debian's compiler is a stable one: building the library from source has to be unlocked.
            cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
        }
    }
    cargo
}

fn debian_has(target: &str) -> bool {
    sysroot(&mut Command::new(DEBIAN_RUSTC)).is_some_and(|at| has_target(&at, target))
}

/// `rustc` must be the bare compiler, or rustup's with a toolchain named.
fn sysroot(rustc: &mut Command) -> Option<PathBuf> {
    let output = rustc.args(["--print", "sysroot"]).env_remove("RUSTUP_TOOLCHAIN").output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

fn has_target(sysroot: &Path, target: &str) -> bool {
    let folder = sysroot.join("lib/rustlib").join(target).join("lib");
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore"))
}

fn has_sources(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
}

fn parse_go(text: &str) -> Option<(u32, u32)> {
    let version = text.split_whitespace().find_map(|word| word.strip_prefix("go").filter(|rest| rest.contains('.')))?;
    let mut parts = version.split('.').map(|part| part.chars().take_while(char::is_ascii_digit).collect::<String>());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_go_is_read_from_what_it_prints() {
        assert_eq!(parse_go("go version go1.26.8 linux/amd64\n"), Some((1, 26)));
        assert_eq!(parse_go("go version go1.24rc1 linux/amd64\n"), Some((1, 24)));
        assert_eq!(parse_go("command not found"), None);
    }
}
