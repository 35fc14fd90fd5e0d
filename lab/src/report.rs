//! Where reports of pods and nodes go: to files that the agents read, or to an API server; and to the lab's own board.
use crate::{
    kubernetes::ApiServer,
    layout::write_atomically,
    pods::{PodKey, PodReport},
    spec::NodeSpec,
};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::sleep;

const RETRY: Duration = Duration::from_secs(1);

/// The latest report of each pod of a cluster. Bounded by the number of pods.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<BTreeMap<PodKey, PodReport>>>);

#[derive(Clone)]
pub enum Sink {
    /// A folder of manifests.
    Folder(PathBuf),
    Kubernetes(ApiServer),
}

#[derive(Clone)]
pub struct Reporter {
    pub sink: Sink,
    pub board: Board,
}

impl Board {
    pub fn reports(&self) -> Vec<PodReport> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn put(&self, report: PodReport) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(report.key.clone(), report);
    }

    fn take(&self, key: &PodKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

impl Reporter {
    /// False: it has to be said again.
    pub async fn publish(&self, pod: &Pod, report: &PodReport) -> bool {
        self.board.put(report.clone());
        let written = match &self.sink {
            Sink::Folder(folder) => write_pod(folder, pod, report).map_err(|error| error.to_string()),
            Sink::Kubernetes(server) => server.report(report).await.map_err(|error| error.to_string()),
        };
        if let Err(error) = &written {
            tracing::warn!(pod = %report.key, error, "the pod's state was not reported; it will be said again");
        }
        written.is_ok()
    }

    /// The pod is gone. Says so to an API server until it hears: nobody else lets the object go.
    pub async fn remove(&self, key: &PodKey, uid: Option<&str>) {
        self.board.take(key);
        match &self.sink {
            Sink::Folder(folder) => match fs::remove_file(pod_file(folder, key)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(pod = %key, %error, "the pod's end was not reported");
                }
                _ => {}
            },
            Sink::Kubernetes(server) => {
                while let Err(error) = server.forget(key, uid).await {
                    tracing::warn!(pod = %key, %error, "the pod's end was not reported; it will be said again");
                    sleep(RETRY).await;
                }
            }
        }
    }
}

/// The Node object, as a kubelet registers it.
pub fn node_manifest(node: &NodeSpec) -> Value {
    let internal = node.addresses().into_iter().map(|address| json!({"type": "InternalIP", "address": address}));
    let mut addresses: Vec<Value> = internal.collect();
    addresses.push(json!({"type": "Hostname", "address": node.name}));
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": node.labels()},
        "spec": {"podCIDR": node.pod_cidr, "podCIDRs": node.pod_cidrs()},
        "status": {
            "addresses": addresses,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    })
}

pub fn write_node(folder: &Path, node: &NodeSpec) -> io::Result<()> {
    write_manifest(&folder.join(format!("node-{}.yaml", node.name)), &node_manifest(node))
}

fn write_pod(folder: &Path, pod: &Pod, report: &PodReport) -> io::Result<()> {
    write_manifest(&pod_file(folder, &report.key), &report.manifest(pod)?)
}

fn write_manifest(path: &Path, manifest: &Value) -> io::Result<()> {
    let text = serde_norway::to_string(manifest).map_err(io::Error::other)?;
    // Equal content is no change: nobody is to be woken by it.
    if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    write_atomically(path, text.as_bytes())
}

fn pod_file(folder: &Path, key: &PodKey) -> PathBuf {
    folder.join(format!("pod-{}_{}.yaml", key.namespace, key.name))
}
