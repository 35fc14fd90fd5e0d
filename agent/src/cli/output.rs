//! Tables for people, JSON or YAML for programs.
use super::Output;
use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde::Serialize;
use std::io::{IsTerminal, Write};

/// Prints `data` in the chosen form; `table` is asked only for people.
pub fn print<T: Serialize>(output: Output, data: &T, table: impl FnOnce(&T) -> String) -> Result<()> {
    let text = match output {
        Output::Table => table(data),
        Output::Json => serde_json::to_string_pretty(data)?,
        Output::Yaml => serde_norway::to_string(data)?,
    };
    emit(text.trim_end())
}

/// Writes a line; a reader that has gone away (`| head`) ends the command without an error.
pub fn emit(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// A table as kubectl prints it.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    let mut empty = true;
    for row in rows {
        empty = false;
        table.add_row(row);
    }
    if empty { "none".to_owned() } else { table.trim_fmt() }
}

pub fn or_dash(text: impl Into<String>) -> String {
    let text = text.into();
    if text.is_empty() { "-".to_owned() } else { text }
}

/// Colour only where a person looks, and not if NO_COLOR asks for none.
pub fn colour(code: &str, text: &str) -> String {
    if std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}
pub const GREEN: &str = "32";
pub const YELLOW: &str = "33";
pub const RED: &str = "31";
