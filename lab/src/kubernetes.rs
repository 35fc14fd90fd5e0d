//! A cluster's API server, as the lab's kubelet sees it.
use crate::{
    layout::Layout,
    pods::{PodKey, PodReport, Pods},
    report::node_manifest,
    spec::{ClusterSpec, NodeSpec},
};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions},
    config::{KubeConfigOptions, Kubeconfig},
    discovery::{Discovery, Scope},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::watch, time::sleep};

const MANAGER: &str = "weft-lab";
const RETRY: Duration = Duration::from_millis(500);
/// How often an object is offered whose kind or namespace may only just be made.
const OFFERS: usize = 60;

#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    #[error("cannot read {}", path.display())]
    Kubeconfig {
        path: PathBuf,
        #[source]
        cause: Box<kube::config::KubeconfigError>,
    },
    #[error("the API server does not answer as it should")]
    Api(#[from] kube::Error),
    #[error("the API server does not know kind {kind} in {version}")]
    UnknownKind { kind: String, version: String },
    #[error("{kind} {name} was not taken by the API server")]
    Refused {
        kind: String,
        name: String,
        #[source]
        cause: Box<Self>,
    },
}

#[derive(Clone)]
pub struct ApiServer {
    client: Client,
}

impl ApiServer {
    /// As the lab's administrator.
    pub async fn connect(layout: &Layout, cluster: &str) -> Result<Self, KubernetesError> {
        let path = layout.kubeconfig(cluster);
        let failed = |cause| KubernetesError::Kubeconfig { path: path.clone(), cause: Box::new(cause) };
        let kubeconfig = Kubeconfig::read_from(&path).map_err(failed)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)?;
        Ok(Self { client: Client::try_from(config)? })
    }

    /// True once it serves requests and the namespace `default` is there.
    pub async fn ready(&self) -> bool {
        let request = http::Request::get("/readyz").body(Vec::new());
        let Ok(request) = request else { return false };
        let serves = self.client.request_text(request).await.is_ok();
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(self.client.clone());
        serves && namespaces.get_opt("default").await.is_ok_and(|found| found.is_some())
    }

    pub async fn register(&self, cluster: &ClusterSpec) -> Result<(), KubernetesError> {
        for node in &cluster.nodes {
            self.register_node(node).await?;
        }
        Ok(())
    }

    async fn register_node(&self, node: &NodeSpec) -> Result<(), KubernetesError> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let mut manifest = node_manifest(node);
        let status = json!({"status": manifest["status"].take()});
        nodes.patch(&node.name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&manifest)).await?;
        // Not applied but merged: server-side apply refuses two addresses of one type.
        nodes.patch_status(&node.name, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    }

    /// Offers objects in their order; one whose kind or namespace does not exist yet is offered again.
    pub async fn apply(&self, objects: Vec<Value>) -> Result<(), KubernetesError> {
        for object in objects {
            let mut last = None;
            for _ in 0..OFFERS {
                last = self.apply_one(&object).await.err();
                if last.as_ref().is_none_or(is_final) {
                    break;
                }
                sleep(RETRY).await;
            }
            if let Some(error) = last {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
                return Err(KubernetesError::Refused { kind, name, cause: Box::new(error) });
            }
        }
        Ok(())
    }

    async fn apply_one(&self, object: &Value) -> Result<(), KubernetesError> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let name = text(&object["metadata"]["name"]);
        let group = version.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
        let discovery = Discovery::new(self.client.clone()).filter(&[group.as_str()]).run().await?;
        let kinds = discovery.groups().flat_map(|group| group.recommended_resources());
        let mut kinds = kinds.filter(|(resource, _)| resource.kind == kind && resource.api_version == version);
        let (resource, capabilities) =
            kinds.next().ok_or(KubernetesError::UnknownKind { kind, version: version.clone() })?;
        let api: Api<DynamicObject> = match capabilities.scope {
            Scope::Cluster => Api::all_with(self.client.clone(), &resource),
            Scope::Namespaced => {
                let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
                Api::namespaced_with(self.client.clone(), namespace, &resource)
            }
        };
        let apply = PatchParams::apply(MANAGER).force();
        api.patch(&name, &apply, &Patch::Apply(object)).await?;
        Ok(())
    }

    pub async fn report(&self, report: &PodReport) -> Result<(), KubernetesError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &report.key.namespace);
        let status = json!({"status": report.status()});
        match pods.patch_status(&report.key.name, &PatchParams::default(), &Patch::Merge(status)).await {
            Err(error) if !is_gone(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Lets a pod go that has been deleted; a later one of the same name is not touched.
    pub async fn forget(&self, key: &PodKey, uid: Option<&str>) -> Result<(), KubernetesError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let preconditions = Preconditions { uid: uid.map(str::to_owned), resource_version: None };
        let now = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }.grace_period(0);
        match pods.delete(&key.name, &now).await {
            Err(error) if !is_gone(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn bind(&self, key: &PodKey, node: &str) -> Result<(), KubernetesError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let target =
            ObjectReference { kind: Some("Node".into()), name: Some(node.into()), ..ObjectReference::default() };
        let mut binding = Binding { target, ..Binding::default() };
        binding.metadata.name = Some(key.name.clone());
        let _: k8s_openapi::apimachinery::pkg::apis::meta::v1::Status =
            pods.create_subresource("binding", &key.name, &PostParams::default(), &binding).await?;
        Ok(())
    }

    /// Publishes the pods that are bound to a node, and binds those that are not, round robin over the nodes.
    pub async fn follow(self, nodes: Vec<String>, publish: watch::Sender<Pods>) {
        let mut turn = 0;
        let mut known: BTreeMap<PodKey, Arc<Pod>> = BTreeMap::new();
        let mut fresh: Option<BTreeMap<PodKey, Arc<Pod>>> = None;
        let all: Api<Pod> = Api::all(self.client.clone());
        let mut events = std::pin::pin!(watcher(all, watcher::Config::default()).default_backoff());
        loop {
            let event = match events.try_next().await {
                Ok(Some(event)) => event,
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%error, "the watch of pods broke; it is taken up again");
                    continue;
                }
            };
            match event {
                watcher::Event::Init => fresh = Some(BTreeMap::new()),
                watcher::Event::InitApply(pod) => {
                    if let (Some(key), Some(list)) = (key_of(&pod), &mut fresh) {
                        list.insert(key, Arc::new(pod));
                    }
                }
                watcher::Event::InitDone => known = fresh.take().unwrap_or_default(),
                watcher::Event::Apply(pod) => drop(key_of(&pod).map(|key| known.insert(key, Arc::new(pod)))),
                watcher::Event::Delete(pod) => drop(key_of(&pod).map(|key| known.remove(&key))),
            }
            let bound = |pod: &Arc<Pod>| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
            for (key, _) in known.iter().filter(|(_, pod)| !bound(pod)) {
                let node = &nodes[turn % nodes.len()];
                turn += 1;
                if let Err(error) = self.bind(key, node).await {
                    tracing::debug!(pod = %key, %error, "a pod was not bound; its next event tries again");
                }
            }
            let pods: Pods =
                known.iter().filter(|(_, pod)| bound(pod)).map(|(key, pod)| (key.clone(), pod.clone())).collect();
            if publish.is_closed() {
                return;
            }
            publish.send_if_modified(|old| {
                let changed = *old != pods;
                *old = pods;
                changed
            });
        }
    }
}

fn key_of(pod: &Pod) -> Option<PodKey> {
    Some(PodKey { namespace: pod.metadata.namespace.clone()?, name: pod.metadata.name.clone()? })
}

/// The object itself is wrong: offering it again does not help.
fn is_final(error: &KubernetesError) -> bool {
    matches!(error, KubernetesError::Api(kube::Error::Api(status)) if status.code == 400 || status.code == 422)
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 || status.code == 409)
}
