//! `weft status` and `weft version`.
use super::{
    Global, client, contexts,
    output::{self, colour, print, table},
};
use crate::api::types::{State, Status};
use anyhow::Result;

pub async fn run(global: &Global) -> Result<()> {
    let context = contexts::chosen(global)?;
    let all: Vec<Status> = client::every(&context, "/v1/status").await?;
    print(global.output, &all, |all| all.iter().map(one).collect::<Vec<_>>().join("\n\n"))?;
    if all.iter().any(|status| !status.ready || status.conditions.iter().any(|c| c.state == State::Failed)) {
        anyhow::bail!("something does not work: see FAILED above");
    }
    Ok(())
}

fn one(status: &Status) -> String {
    let ready = if status.ready { colour(output::GREEN, "ready") } else { colour(output::RED, "not ready") };
    let mut text = format!(
        "{} of cluster {} (id {}, trust domain {}), weft {}: {ready}\n",
        status.node, status.cluster, status.cluster_id, status.trust_domain, status.version
    );
    let rows = status.conditions.iter().map(|condition| {
        let state = match condition.state {
            State::Ok => colour(output::GREEN, "OK"),
            State::Degraded => colour(output::YELLOW, "DEGRADED"),
            State::Failed => colour(output::RED, "FAILED"),
            State::Off => "OFF".to_owned(),
        };
        [format!("  {}", condition.name), state, condition.message.clone()]
    });
    text += &table(["  PART", "STATE", "HOW, AND WHY"], rows);
    let fullest = status.maps.iter().map(|map| [format!("  {}", map.name), format!("{} of {}", map.entries, map.max)]);
    text += &format!("\n\n{}", table(["  MAP", "ENTRIES"], fullest));
    let drops: Vec<String> = status.drops.iter().filter(|(_, n)| **n > 0).map(|(r, n)| format!("{r} {n}")).collect();
    text += &format!("\n\n  Dropped: {}", if drops.is_empty() { "nothing".to_owned() } else { drops.join(", ") });
    text += &format!("\n  Flows: {} seen, {} lost", status.flows_seen, status.flows_lost);
    for error in &status.object_errors {
        let about = [&error.origin, &error.object, &error.message].map(String::as_str);
        let about: Vec<&str> = about.into_iter().filter(|part| !part.is_empty()).collect();
        text += &format!("\n  {} {}", colour(output::RED, "!"), about.join(": "));
    }
    text
}

pub async fn version(global: &Global) -> Result<()> {
    let mut rows = vec![["weft".to_owned(), "-".to_owned(), env!("CARGO_PKG_VERSION").to_owned()]];
    if let Ok(context) = contexts::chosen(global) {
        let all: Vec<Status> = client::every(&context, "/v1/status").await.unwrap_or_default();
        rows.extend(all.into_iter().map(|status| ["weft-agent".to_owned(), status.node, status.version]));
    }
    print(global.output, &rows, |rows| table(["COMPONENT", "NODE", "VERSION"], rows.clone()))
}
