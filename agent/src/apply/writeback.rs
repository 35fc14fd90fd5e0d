//! Writes the node's facts, and what became of policies and plugins, to the API server; what it does not take is tried
//! again.
use crate::{
    control::chain,
    sources::{
        kube::{Condition, Verdict},
        writer::Writer,
    },
};
use std::{collections::BTreeMap, time::Duration};
use tokio::{sync::watch, time};
use weft_model::{parse::Kind, policy::PolicyStatus, snapshot::Snapshot, types::ObjectName};
use weft_proxy_api::flow::ProxyStatus;

const RETRY: Duration = Duration::from_secs(5);

/// What should be written, whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBack {
    pub annotations: BTreeMap<String, String>,
    pub verdicts: BTreeMap<(Kind, ObjectName), Verdict>,
}

/// Runs until the sender is gone.
pub async fn write_back(node: String, writer: Writer, mut wanted: watch::Receiver<WriteBack>) {
    let mut written = WriteBack::default();
    loop {
        let now = wanted.borrow_and_update().clone();
        let complete = write(&node, &writer, &now, &mut written).await;
        let changed = if complete {
            wanted.changed().await
        } else {
            time::timeout(RETRY, wanted.changed()).await.unwrap_or(Ok(()))
        };
        if changed.is_err() {
            return;
        }
    }
}

async fn write(node: &str, writer: &Writer, wanted: &WriteBack, written: &mut WriteBack) -> bool {
    let mut complete = true;
    if wanted.annotations != written.annotations {
        match writer.annotate_node(node, &wanted.annotations).await {
            Ok(()) => written.annotations.clone_from(&wanted.annotations),
            Err(error) => {
                tracing::warn!(error = chain(&error), "other nodes cannot learn this node's WireGuard key");
                complete = false;
            }
        }
    }
    written.verdicts.retain(|object, _| wanted.verdicts.contains_key(object));
    for (object, verdict) in &wanted.verdicts {
        let (kind, name) = object;
        if written.verdicts.get(object) == Some(verdict) {
            continue;
        }
        match writer.verdict(node, *kind, name, verdict).await {
            Ok(()) => drop(written.verdicts.insert(object.clone(), verdict.clone())),
            Err(error) => {
                tracing::warn!(kind = kind.name(), %name, error = chain(&error), "cannot write the object's status");
                complete = false;
            }
        }
    }
    complete
}

/// What is to be said of each policy and plugin.
pub fn verdicts(snapshot: &Snapshot, proxy: Option<&ProxyStatus>) -> BTreeMap<(Kind, ObjectName), Verdict> {
    let mut verdicts: BTreeMap<_, _> = snapshot.policy_status.iter().filter_map(policy).collect();
    for plugin in &snapshot.plugins {
        let own = plugin.name.to_string();
        let state = proxy.and_then(|proxy| proxy.plugins.iter().find(|one| one.name == own)).map(|one| &one.state);
        let condition = Condition {
            name: "Accepted",
            holds: true,
            reason: "Accepted",
            message: "attached to the pods that it selects".to_owned(),
        };
        let failure = state.and_then(|state| state.strip_prefix("failed: ")).map(str::to_owned);
        verdicts.insert((Kind::WasmPlugin, plugin.name.clone()), Verdict { condition, failure });
    }
    let prefix = format!("{} ", Kind::WasmPlugin.name());
    for error in &snapshot.object_errors {
        let Some(name) = error.object.strip_prefix(&prefix) else { continue };
        let condition = Condition { name: "Accepted", holds: false, reason: "Invalid", message: error.message.clone() };
        verdicts.insert((Kind::WasmPlugin, object_name(name)), Verdict { condition, failure: None });
    }
    verdicts
}

fn policy(status: &PolicyStatus) -> Option<((Kind, ObjectName), Verdict)> {
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == status.kind)?;
    // Kubernetes' own NetworkPolicy has no status to write to.
    if kind == Kind::NetworkPolicy {
        return None;
    }
    let holds = !status.state.starts_with("rejected") && !status.state.starts_with("ignored");
    let reason = if holds { "Accepted" } else { "Unsupported" };
    let condition = Condition { name: "Valid", holds, reason, message: status.state.clone() };
    Some(((kind, object_name(&status.name)), Verdict { condition, failure: None }))
}

fn object_name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap_or(("", text));
    ObjectName::new(namespace, name)
}
