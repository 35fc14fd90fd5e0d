//! Forbidden dependencies, each with its reason. Pure crates stay pure because this fails when one does not.
use crate::toolchain::plain_cargo;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;

struct Rule {
    package: &'static str,
    forbidden: &'static [&'static str],
    why: &'static str,
}

const RUNTIMES: &[&str] = &["tokio", "aya", "kube", "hyper", "wasmtime"];

const RULES: &[Rule] = &[
    Rule { package: "weft-bpf-abi", forbidden: RUNTIMES, why: "kernel programs share it, so it holds layouts only" },
    Rule { package: "weft-bpf-core", forbidden: RUNTIMES, why: "decisions are tested on the host without a kernel" },
    Rule { package: "weft-identity", forbidden: RUNTIMES, why: "a SPIFFE ID is a value; it needs no I/O" },
    Rule { package: "weft-model", forbidden: RUNTIMES, why: "the store is a pure function of events" },
    Rule { package: "weft-clustermesh-core", forbidden: RUNTIMES, why: "merging and liveness take the time as input" },
    Rule {
        package: "weft-proxy-api",
        forbidden: &["aya", "kube", "hyper", "wasmtime"],
        why: "agent and proxy share it, and neither may pull in the other's engine",
    },
    Rule {
        package: "weft-proxy",
        forbidden: &["kube"],
        why: "the proxy gets whole configuration over its socket and never talks to an API server",
    },
    Rule {
        package: "weft-agent",
        forbidden: &["wasmtime"],
        why: "plugins run in the proxy; a plugin must not be able to harm the control plane",
    },
    Rule {
        package: "weft-cni",
        forbidden: &["aya", "kube", "hyper", "wasmtime"],
        why: "it starts once for every pod and has to start fast",
    },
];

/// Fails and names each crate that depends on what it must not, with the way it got there.
pub fn check() -> Result<()> {
    let mut broken = Vec::new();
    for rule in RULES {
        let tree = tree(rule.package)?;
        for forbidden in rule.forbidden.iter().filter(|name| tree.contains(**name)) {
            broken.push(format!(
                "{} must not depend on {forbidden}: {} (see `cargo tree -p {0} -e normal -i {forbidden}`)",
                rule.package, rule.why
            ));
        }
    }
    if !broken.is_empty() {
        bail!("forbidden dependencies:\n  {}", broken.join("\n  "));
    }
    println!("{} crates depend on nothing that they must not", RULES.len());
    Ok(())
}

/// The names of the packages that `package` is linked with.
fn tree(package: &str) -> Result<BTreeSet<String>> {
    let output = plain_cargo()
        .args(["tree", "--locked", "-p", package, "-e", "normal", "--prefix", "none", "-f", "{p}"])
        .output()
        .context("cannot run cargo tree")?;
    if !output.status.success() {
        bail!("cargo tree -p {package}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}
