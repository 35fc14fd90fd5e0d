//! Writes the node's facts and the state of policies to the API server; what it does not take is tried again.
use crate::{control::chain, sources::writer::Writer};
use std::{collections::BTreeMap, time::Duration};
use tokio::{sync::watch, time};
use weft_model::parse::Kind;

const RETRY: Duration = Duration::from_secs(5);

/// What should be written, whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBack {
    pub annotations: BTreeMap<String, String>,
    /// State by kind and name.
    pub policies: BTreeMap<(String, String), String>,
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
    written.policies.retain(|policy, _| wanted.policies.contains_key(policy));
    for (policy, state) in &wanted.policies {
        let (kind, name) = policy;
        let Some(kind) = Kind::ALL.into_iter().find(|known| known.name() == kind) else { continue };
        // Kubernetes' own NetworkPolicy has no status to write to.
        if kind == Kind::NetworkPolicy || written.policies.get(policy) == Some(state) {
            continue;
        }
        match writer.policy_status(kind, name, state).await {
            Ok(()) => drop(written.policies.insert(policy.clone(), state.clone())),
            Err(error) => {
                tracing::warn!(policy = name, error = chain(&error), "cannot write the policy's status");
                complete = false;
            }
        }
    }
    complete
}
