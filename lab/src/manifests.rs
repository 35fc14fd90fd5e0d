//! The Pods in a cluster's folder of manifests, followed as the files change.
use crate::pods::{PodKey, Pods};
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{sync::watch, time::sleep};

/// Folders are small and local: looking is cheaper than being right about every editor's way to save.
const LOOK: Duration = Duration::from_millis(150);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
}

struct File {
    stamp: Stamp,
    pods: BTreeMap<PodKey, Arc<Pod>>,
    trouble: Option<String>,
}

/// What the folder held when it was last looked at. A file that cannot be read keeps the Pods it had.
#[derive(Default)]
pub struct Manifests {
    files: BTreeMap<PathBuf, File>,
}

impl Manifests {
    /// Looks at the folder; true if anything changed.
    pub fn look(&mut self, folder: &Path) -> io::Result<bool> {
        let mut found = BTreeMap::new();
        collect(folder, &mut found)?;
        let before = self.files.len();
        self.files.retain(|path, _| found.contains_key(path));
        let mut changed = self.files.len() != before;
        for (path, stamp) in found {
            if self.files.get(&path).is_some_and(|file| file.stamp == stamp) {
                continue;
            }
            changed = true;
            let file = self.files.remove(&path);
            let old = file.map(|file| file.pods).unwrap_or_default();
            let file = match fs::read_to_string(&path).map_err(|error| error.to_string()).and_then(|text| pods(&text)) {
                Ok(pods) => File { stamp, pods, trouble: None },
                Err(error) => File { stamp, pods: old, trouble: Some(format!("{}: {error}", path.display())) },
            };
            self.files.insert(path, file);
        }
        Ok(changed)
    }

    pub fn pods(&self) -> Pods {
        self.files.values().flat_map(|file| file.pods.clone()).collect()
    }

    /// Files that cannot be read, and why.
    pub fn troubles(&self) -> Vec<String> {
        self.files.values().filter_map(|file| file.trouble.clone()).collect()
    }
}

/// Publishes the folder's Pods whenever they change, until nobody listens.
pub async fn follow(folder: PathBuf, publish: watch::Sender<Pods>) {
    let mut manifests = Manifests::default();
    while !publish.is_closed() {
        match manifests.look(&folder) {
            Ok(true) => {
                for trouble in manifests.troubles() {
                    tracing::warn!(%trouble, "a manifest is broken: its pods stay as they were");
                }
                let pods = manifests.pods();
                publish.send_if_modified(|old| {
                    let changed = *old != pods;
                    *old = pods;
                    changed
                });
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(folder = %folder.display(), %error, "cannot read the folder of manifests"),
        }
        sleep(LOOK).await;
    }
}

/// Every document of the folder's files, in the order of their paths.
pub fn documents(folder: &Path) -> io::Result<Vec<serde_json::Value>> {
    let mut found = BTreeMap::new();
    collect(folder, &mut found)?;
    let mut documents = Vec::new();
    for path in found.keys() {
        let text = fs::read_to_string(path)?;
        let parsed = values(&text).map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
        documents.extend(parsed);
    }
    Ok(documents)
}

fn collect(folder: &Path, found: &mut BTreeMap<PathBuf, Stamp>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        // It may be gone between the listing and the look.
        let Ok(about) = fs::metadata(&path) else { continue };
        if about.is_dir() && !hidden {
            collect(&path, found)?;
        } else if !hidden && path.extension().is_some_and(|kind| kind == "yaml" || kind == "yml") {
            found.insert(path, Stamp { modified: about.modified().ok(), length: about.len() });
        }
    }
    Ok(())
}

fn pods(text: &str) -> Result<BTreeMap<PodKey, Arc<Pod>>, String> {
    let mut pods = BTreeMap::new();
    for value in values(text)? {
        if value["kind"] == "Pod" && value["apiVersion"] == "v1" {
            let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let mut pod: Pod = serde_json::from_value(value).map_err(|error| format!("Pod {name}: {error}"))?;
            if name.is_empty() {
                return Err("a Pod has no metadata.name".to_owned());
            }
            let namespace = pod.metadata.namespace.get_or_insert_with(|| "default".to_owned()).clone();
            pods.insert(PodKey { namespace, name }, Arc::new(pod));
        }
    }
    Ok(pods)
}

/// The documents of a text, empty ones left out.
pub fn values(text: &str) -> Result<Vec<serde_json::Value>, String> {
    let documents = serde_norway::Deserializer::from_str(text).map(serde_json::Value::deserialize);
    let values: Result<Vec<_>, _> = documents.collect();
    Ok(values.map_err(|error| error.to_string())?.into_iter().filter(|value| !value.is_null()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\nspec: {containers: []}\n";

    #[test]
    fn pods_come_go_and_survive_a_broken_edit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shop.yaml");
        let mut manifests = Manifests::default();
        fs::write(&path, format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\n---\n{POD}")).unwrap();
        assert!(manifests.look(folder.path()).unwrap());
        let names = |manifests: &Manifests| manifests.pods().keys().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(&manifests), ["shop/a"]);
        assert!(!manifests.look(folder.path()).unwrap());

        fs::write(&path, format!("{POD}  broken: [")).unwrap();
        assert!(manifests.look(folder.path()).unwrap());
        assert_eq!(names(&manifests), ["shop/a"]);
        assert!(manifests.troubles()[0].contains("shop.yaml"), "{:?}", manifests.troubles());

        fs::remove_file(&path).unwrap();
        assert!(manifests.look(folder.path()).unwrap());
        assert!(manifests.pods().is_empty());
    }
}
