//! `weft check`: loads every kernel program and tries every feature, and says what is missing and what follows.
//! `weft cleanup`: removes what an agent left in the kernel.
use super::{
    Global,
    output::{GREEN, RED, colour, print, table},
};
use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use std::path::PathBuf;
use weft_datapath::check::features;

#[derive(clap::Args)]
pub struct Check {
    /// The object with the kernel programs.
    #[arg(long, env = "WEFT_BPF_OBJECT", default_value = "/usr/lib/weft/weft.bpf.o")]
    bpf_object: PathBuf,
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
    let object = std::fs::read(&check.bpf_object)
        .with_context(|| format!("cannot read {}: give --bpf-object FILE", check.bpf_object.display()))?;
    let rows: Vec<Row> = features(&object)
        .into_iter()
        .map(|feature| Row { feature: feature.name, works: feature.works, required: feature.required, detail: feature.detail })
        .collect();
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
    weft_datapath::cleanup(&cleanup.bpf_dir).await.context("not everything could be removed")
}
