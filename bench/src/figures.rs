//! The figures: a line of JSON in a file for each, and one table.
use crate::stats::Comparison;
use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;
use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

#[derive(Serialize)]
struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    baseline: f64,
    ratio: f64,
    /// What `value` and `baseline` are; for the table.
    #[serde(skip)]
    what: String,
}

pub struct Figures {
    folder: PathBuf,
    all: Vec<Figure>,
}

impl Figures {
    /// Fails if the folder cannot be made.
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { folder: folder.to_owned(), all: Vec::new() })
    }

    /// Writes the figure to `NAME.json` at once: what was measured stays, whatever comes later.
    pub fn add(&mut self, name: &'static str, unit: &'static str, compared: Comparison, what: String) -> Result<()> {
        let Comparison { value, baseline, ratio } = compared;
        let figure =
            Figure { name, value: rounded(value), unit, baseline: rounded(baseline), ratio: rounded(ratio), what };
        let path = self.folder.join(format!("{name}.json"));
        let line = format!("{}\n", serde_json::to_string(&figure)?);
        fs::write(&path, line).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("  {name}: {} {unit}, against {}: ratio {}", figure.value, figure.baseline, figure.ratio);
        self.all.push(figure);
        Ok(())
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_preset(NOTHING).set_header(["figure", "value", "baseline", "unit", "ratio", "what"]);
        for figure in &self.all {
            table.add_row([
                figure.name.to_owned(),
                figure.value.to_string(),
                figure.baseline.to_string(),
                figure.unit.to_owned(),
                figure.ratio.to_string(),
                figure.what.clone(),
            ]);
        }
        for index in [1, 2, 4] {
            if let Some(column) = table.column_mut(index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.fmt(f)
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
