//! `weft check`: loads every kernel program and tries every feature, and says what is missing and what follows.
//! `weft cleanup`: removes what an agent left in the kernel.
use super::{
    Global,
    output::{self, GREEN, RED, colour, print, table},
};
use crate::control::chain;
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use std::path::PathBuf;
use weft_datapath::check::features;

#[derive(clap::Args)]
pub struct Check {
    /// The object with the kernel programs.
    #[arg(long, env = "WEFT_BPF_OBJECT", default_value = "/usr/lib/weft/weft.bpf.o")]
    bpf_object: PathBuf,
    /// Where a bpffs is, or may be mounted, for the trial.
    #[arg(long, default_value = "/run/weft/bpf")]
    bpf_dir: PathBuf,
}

#[derive(clap::Args)]
pub struct Cleanup {
    /// Where the agent's bpffs is.
    #[arg(long, default_value = "/run/weft/bpf")]
    bpf_dir: PathBuf,
}

#[derive(Serialize)]
struct Row {
    feature: String,
    works: bool,
    required: bool,
    detail: String,
}

pub fn run(global: &Global, check: &Check) -> Result<()> {
    let mut rows: Vec<Row> = features()
        .into_iter()
        .map(|feature| Row {
            feature: feature.name.to_owned(),
            works: feature.ok,
            required: feature.required,
            detail: format!("{} {}", feature.detail, feature.remedy).trim_end().to_owned(),
        })
        .collect();
    let object = std::fs::read(&check.bpf_object)
        .with_context(|| format!("cannot read {}: give --bpf-object FILE", check.bpf_object.display()))?;
    let loaded = weft_datapath::check::programs(&object, &check.bpf_dir);
    rows.push(match &loaded {
        Ok(programs) => Row {
            feature: "kernel programs".to_owned(),
            works: true,
            required: true,
            detail: format!(
                "{} programs accepted; the largest took the verifier {} instructions",
                programs.len(),
                programs.iter().map(|(_, instructions)| *instructions).max().unwrap_or(0)
            ),
        },
        Err(error) => Row { feature: "kernel programs".to_owned(), works: false, required: true, detail: chain(error) },
    });
    print(global.output, &rows, |rows| {
        let lines = rows.iter().map(|row| {
            let state = match (row.works, row.required) {
                (true, _) => colour(GREEN, "yes"),
                (false, true) => colour(RED, "NO"),
                (false, false) => "no".to_owned(),
            };
            [row.feature.clone(), state, row.detail.clone()]
        });
        table(["FEATURE", "WORKS", "DETAIL"], lines)
    })?;
    let missing: Vec<&str> = rows.iter().filter(|r| r.required && !r.works).map(|r| r.feature.as_str()).collect();
    if !missing.is_empty() {
        bail!("Weft cannot run here: {} missing", missing.join(", "));
    }
    Ok(())
}

pub async fn cleanup(cleanup: &Cleanup) -> Result<()> {
    let removed = weft_datapath::cleanup::cleanup(&cleanup.bpf_dir).await.context("not everything could be removed")?;
    output::emit(&format!(
        "removed {} links, {} maps, {} filters, {} routes, {} rules",
        removed.links, removed.maps, removed.filters, removed.routes, removed.rules
    ))
}
