//! A Kubernetes API server, by watches. A lost watch is resumed where it ended; lists are paged and spread in time.
use super::{KUBERNETES, WATCH_OF};
use crate::control::chain;
use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Config,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    sync::mpsc::{self, Sender, error::SendError},
    task::JoinSet,
    time,
};
use weft_model::{
    parse::{Kind, ObjectKey},
    store::Event,
    types::{MeshPeer, ObjectName},
};

/// Owns the fields that agents write.
const MANAGER: &str = "weft";

/// How long a watch may fail at the start before its errors are told; an API server that is starting is no news.
const FIRST_ERROR_AFTER: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    #[error("cannot use the kubeconfig {}: is the path right, and the context there?", path.display())]
    Kubeconfig {
        path: PathBuf,
        #[source]
        cause: KubeconfigError,
    },
    #[error("no API server to talk to: give source.kubernetes.kubeconfig, or run as a pod with a service account")]
    Infer(#[source] Box<kube::config::InferConfigError>),
    #[error("cannot make a client for the API server")]
    Client(#[source] Box<kube::Error>),
    #[error("the API server refuses to write {object}: does the agent's role allow it, and are the CRDs installed?")]
    Write {
        object: String,
        #[source]
        cause: Box<kube::Error>,
    },
}

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub condition: Condition,
    /// What does not work on this node alone.
    pub failure: Option<String>,
}

/// A condition of an object's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub name: &'static str,
    pub holds: bool,
    /// One word, for programs.
    pub reason: &'static str,
    pub message: String,
}

pub async fn client(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Client, KubeError> {
    let config = match kubeconfig {
        Some(path) => {
            let wrong = |cause| KubeError::Kubeconfig { path: path.to_owned(), cause };
            let file = Kubeconfig::read_from(path).map_err(wrong)?;
            let options = KubeConfigOptions { context: context.map(str::to_owned), ..Default::default() };
            Config::from_custom_kubeconfig(file, &options).await.map_err(wrong)?
        }
        None => Config::infer().await.map_err(|cause| KubeError::Infer(Box::new(cause)))?,
    };
    Client::try_from(config).map_err(|cause| KubeError::Client(Box::new(cause)))
}

/// Kinds of CRDs that need not be installed.
const OPTIONAL: [Kind; 4] =
    [Kind::CiliumNetworkPolicy, Kind::CiliumClusterwideNetworkPolicy, Kind::WasmPlugin, Kind::MeshPeer];

fn resource(kind: Kind) -> ApiResource {
    let (group, version) = kind.api_version().split_once('/').unwrap_or(("", kind.api_version()));
    let gvk = GroupVersionKind::gvk(group, version, kind.name());
    match kind {
        Kind::CiliumNetworkPolicy => ApiResource::from_gvk_with_plural(&gvk, "ciliumnetworkpolicies"),
        Kind::CiliumClusterwideNetworkPolicy => {
            ApiResource::from_gvk_with_plural(&gvk, "ciliumclusterwidenetworkpolicies")
        }
        Kind::NetworkPolicy => ApiResource::from_gvk_with_plural(&gvk, "networkpolicies"),
        _ => ApiResource::from_gvk(&gvk),
    }
}

/// Watches all kinds until the channel closes. `Synced` is told once every kind has delivered its first list.
pub async fn follow(client: Client, events: Sender<Event>) {
    let (synced, mut syncs) = mpsc::channel(Kind::ALL.len());
    let mut watches = JoinSet::new();
    for kind in Kind::ALL {
        watches.spawn(watch(client.clone(), kind, events.clone(), synced.clone()));
    }
    drop(synced);
    for _ in Kind::ALL {
        if syncs.recv().await.is_none() {
            return;
        }
    }
    if events.send(Event::Synced { source: KUBERNETES.to_owned() }).await.is_ok() {
        events.closed().await;
    }
}

async fn watch(client: Client, kind: Kind, events: Sender<Event>, synced: Sender<()>) -> Result<(), SendError<Event>> {
    let resource = resource(kind);
    let origin = format!("{WATCH_OF}{}", resource.plural);
    let source = || KUBERNETES.to_owned();
    let mut synced = Some(synced);
    let mut present: Option<BTreeSet<ObjectName>> = None;
    let mut failing = false;
    let started = time::Instant::now();
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let stream = watcher(api, watcher::Config::default()).default_backoff();
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                if std::mem::take(&mut failing) {
                    events.send(Event::Problem { source: source(), origin: origin.clone(), message: None }).await?;
                }
                match event {
                    watcher::Event::Init => present = Some(BTreeSet::new()),
                    watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                        if let Some(present) = &mut present {
                            present.insert(name_of(&object));
                        }
                        if let Some(object) = as_value(object, kind, &resource) {
                            events.send(Event::Upsert { source: source(), object }).await?;
                        }
                    }
                    watcher::Event::Delete(object) => {
                        let key = ObjectKey { kind, name: name_of(&object) };
                        events.send(Event::Delete { source: source(), key }).await?;
                    }
                    watcher::Event::InitDone => {
                        // What was deleted while nobody watched is not told by the API: it is what the list lacks.
                        let present = present.take().unwrap_or_default();
                        events.send(Event::Relisted { source: source(), kind, present }).await?;
                        if let Some(synced) = synced.take() {
                            let _ = synced.send(()).await;
                        }
                    }
                }
            }
            Err(error) => {
                let missing = is_missing(&error);
                if missing
                    && OPTIONAL.contains(&kind)
                    && let Some(synced) = synced.take()
                {
                    let _ = synced.send(()).await;
                }
                if !failing && (started.elapsed() > FIRST_ERROR_AFTER || missing) {
                    failing = true;
                    let message = match missing {
                        true => format!("{} is not installed: kubectl apply -f deploy/crds", resource.plural),
                        false => {
                            format!("{}; what it said last stays in force, and it is tried again", chain(&error))
                        }
                    };
                    let message = Some(message);
                    events.send(Event::Problem { source: source(), origin: origin.clone(), message }).await?;
                }
            }
        }
    }
    Ok(())
}

fn is_missing(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status)) => status.code == 404,
        watcher::Error::WatchError(status) => status.code == 404,
        _ => false,
    }
}

fn name_of(object: &DynamicObject) -> ObjectName {
    ObjectName::new(
        object.metadata.namespace.clone().unwrap_or_default(),
        object.metadata.name.clone().unwrap_or_default(),
    )
}

/// The object with the fields that a list leaves out, and without those that only cost memory.
fn as_value(object: DynamicObject, kind: Kind, resource: &ApiResource) -> Option<Value> {
    let mut value = serde_json::to_value(object).ok()?;
    value["apiVersion"] = json!(resource.api_version);
    value["kind"] = json!(resource.kind);
    if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
        metadata.remove("managedFields");
    }
    if OPTIONAL.contains(&kind) {
        // Only agents write it: their own words are no news.
        value.as_object_mut().map(|object| object.remove("status"));
    }
    Some(value)
}

/// Publishes what only this node knows, as annotations of its Node object.
pub async fn annotate_node(
    client: &Client,
    node: &str,
    annotations: &BTreeMap<String, String>,
) -> Result<(), KubeError> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource(Kind::Node));
    let patch = json!({ "metadata": { "annotations": annotations } });
    let write = api.patch(node, &PatchParams::default(), &Patch::Merge(&patch)).await;
    written(write, || format!("the annotations of Node {node}"))
}

/// Creates or replaces a `MeshPeer`.
pub async fn apply_mesh_peer(client: &Client, peer: &MeshPeer) -> Result<(), KubeError> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource(Kind::MeshPeer));
    let name = peer.cluster.as_str();
    let object = super::mesh_peer_object(peer);
    let write = api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object)).await;
    written(write, || format!("MeshPeer {name}"))
}

/// Deletes a `MeshPeer`; one that is not there is fine.
pub async fn delete_mesh_peer(client: &Client, name: &str) -> Result<(), KubeError> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource(Kind::MeshPeer));
    match api.delete(name, &Default::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => written(other, || format!("MeshPeer {name}")),
    }
}

/// Writes what became of an object to its status. All agents say the same of the condition, so it is one field owner's;
/// what fails on one node alone is an entry of that node's, which goes when the failure does.
pub async fn write_verdict(
    client: &Client,
    kind: Kind,
    name: &ObjectName,
    node: &str,
    verdict: &Verdict,
) -> Result<(), KubeError> {
    let resource = resource(kind);
    let api: Api<DynamicObject> = match name.namespace.as_str() {
        "" => Api::all_with(client.clone(), &resource),
        namespace => Api::namespaced_with(client.clone(), namespace, &resource),
    };
    let told = || format!("the status of {} {name}", kind.name());
    let known = match api.get(&name.name).await {
        Ok(object) => object.data.get("status").cloned().unwrap_or_default(),
        // It was deleted meanwhile.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(error) => return written::<()>(Err(error), told),
    };
    let apply = |manager: String, status: Value| {
        let patch = json!({
            "apiVersion": resource.api_version, "kind": resource.kind,
            "metadata": { "name": name.name }, "status": status,
        });
        let api = &api;
        async move {
            let parameters = PatchParams::apply(&manager).force();
            match api.patch_status(&name.name, &parameters, &Patch::Apply(&patch)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                other => written(other, told),
            }
        }
    };
    if let Some(condition) = changed_condition(&known, &verdict.condition) {
        apply(MANAGER.to_owned(), json!({ "conditions": [condition] })).await?;
    }
    if failure_of(&known, node) != verdict.failure.as_deref() {
        let failures = verdict.failure.iter().map(|message| json!({ "node": node, "message": message }));
        apply(format!("{MANAGER}-{node}"), json!({ "failures": failures.collect::<Vec<_>>() })).await?;
    }
    Ok(())
}

/// The condition as it has to be written; `None`: it is there already.
fn changed_condition(status: &Value, wanted: &Condition) -> Option<Value> {
    let conditions = status.get("conditions").and_then(Value::as_array);
    let old = conditions.into_iter().flatten().find(|condition| condition["type"] == wanted.name);
    let holds = if wanted.holds { "True" } else { "False" };
    let mut since = Value::Null;
    if let Some(old) = old
        && old["status"] == holds
    {
        if old["message"] == wanted.message && old["reason"] == wanted.reason {
            return None;
        }
        since = old["lastTransitionTime"].clone();
    }
    if since.is_null() {
        since = json!(Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    }
    Some(json!({
        "type": wanted.name, "status": holds, "reason": wanted.reason, "message": wanted.message,
        "lastTransitionTime": since,
    }))
}

/// What this node said of the object before.
fn failure_of<'a>(status: &'a Value, node: &str) -> Option<&'a str> {
    let failures = status.get("failures")?.as_array()?;
    failures.iter().find(|failure| failure["node"] == node)?["message"].as_str()
}

fn written<T>(write: kube::Result<T>, object: impl FnOnce() -> String) -> Result<(), KubeError> {
    write.map(drop).map_err(|cause| KubeError::Write { object: object(), cause: Box::new(cause) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(holds: bool, message: &str) -> Condition {
        Condition {
            name: "Valid",
            holds,
            reason: if holds { "Accepted" } else { "Unsupported" },
            message: message.into(),
        }
    }

    #[test]
    fn a_condition_is_written_once_and_keeps_its_time_until_it_turns() {
        let first = changed_condition(&Value::Null, &condition(false, "a is not supported")).unwrap();
        let mut status = json!({ "conditions": [{"type": "Other", "status": "True"}, first] });
        status["conditions"][1]["lastTransitionTime"] = json!("2020-01-01T00:00:00Z");
        assert_eq!(changed_condition(&status, &condition(false, "a is not supported")), None);
        let reworded = changed_condition(&status, &condition(false, "b is not supported")).unwrap();
        assert_eq!(reworded["lastTransitionTime"], "2020-01-01T00:00:00Z");
        let turned = changed_condition(&status, &condition(true, "enforced")).unwrap();
        assert_ne!(turned["lastTransitionTime"], "2020-01-01T00:00:00Z");
    }

    #[test]
    fn a_node_finds_only_its_own_failure() {
        let status = json!({ "failures": [{"node": "a", "message": "no file"}] });
        assert_eq!((failure_of(&status, "a"), failure_of(&status, "b")), (Some("no file"), None));
        assert_eq!(failure_of(&Value::Null, "a"), None);
    }
}
