//! Kubernetes YAML in folders, followed live. A file that cannot be read keeps what it last said; the others go on.
use super::{ObjectKey, SourceEvent};
use notify::{RecursiveMode, Watcher};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    sync::mpsc::{self, Sender},
    time,
};
use weft_model::snapshot::ObjectError;

/// Editors write a file in several steps; several files are often written together.
const SETTLE: Duration = Duration::from_millis(30);
/// Also without a notification: folders on some file systems give none, and a folder may appear later.
const RESCAN: Duration = Duration::from_secs(2);

/// Follows the folders until the channel closes. The position of a folder is the layer of its objects.
pub async fn follow(paths: Vec<PathBuf>, events: Sender<SourceEvent>) {
    let (wake, mut woken) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |_: notify::Result<notify::Event>| {
        // Full: a rescan is due anyway.
        let _ = wake.try_send(());
    })
    .inspect_err(|error| tracing::warn!(%error, "no notifications of file changes: folders are read every 2 s"))
    .ok();
    let mut watched = BTreeSet::new();
    let mut folders = Folders::new(paths.clone());
    let mut synced = false;
    loop {
        for path in &paths {
            if let Some(watcher) = &mut watcher
                && path.is_dir()
                && !watched.contains(path)
                && watcher.watch(path, RecursiveMode::Recursive).is_ok()
            {
                watched.insert(path.clone());
            }
        }
        for event in folders.scan() {
            if events.send(event).await.is_err() {
                return;
            }
        }
        if !synced {
            synced = true;
            if events.send(SourceEvent::Synced).await.is_err() {
                return;
            }
        }
        tokio::select! {
            _ = time::sleep(RESCAN) => {}
            Some(()) = woken.recv() => {
                time::sleep(SETTLE).await;
                while woken.try_recv().is_ok() {}
            }
            () = events.closed() => return,
        }
    }
}

/// What was last read, and how to tell that it changed.
struct Folders {
    paths: Vec<PathBuf>,
    files: BTreeMap<PathBuf, Seen>,
}

struct Seen {
    layer: u32,
    stamp: Stamp,
    objects: BTreeMap<ObjectKey, Value>,
}

#[derive(PartialEq, Eq, Clone, Copy)]
struct Stamp {
    inode: u64,
    len: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self { inode: meta.ino(), len: meta.len(), changed: (meta.ctime(), meta.ctime_nsec()) })
    }
}

impl Folders {
    fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, files: BTreeMap::new() }
    }

    /// Events for all that is new, different or gone since the last scan.
    fn scan(&mut self) -> Vec<SourceEvent> {
        let mut events = Vec::new();
        let mut present = BTreeSet::new();
        for (layer, folder) in (0..).zip(self.paths.clone()) {
            match yaml_files(&folder) {
                Ok(files) => {
                    events.push(SourceEvent::Errors { origin: folder.display().to_string(), errors: vec![] });
                    for file in files {
                        self.read(layer, &file, &mut events);
                        present.insert(file);
                    }
                }
                Err(error) => {
                    let origin = folder.display().to_string();
                    let message = format!("cannot read the folder: {error}; what it said last stays in force");
                    let errors = vec![ObjectError { origin: origin.clone(), object: String::new(), message }];
                    events.push(SourceEvent::Errors { origin, errors });
                    present.extend(self.files.keys().filter(|file| file.starts_with(&folder)).cloned());
                }
            }
        }
        let gone: Vec<PathBuf> = self.files.keys().filter(|file| !present.contains(*file)).cloned().collect();
        for file in gone {
            if let Some(seen) = self.files.remove(&file) {
                let origin = file.display().to_string();
                events.push(SourceEvent::Errors { origin: origin.clone(), errors: vec![] });
                events.extend(
                    seen.objects
                        .into_keys()
                        .map(|key| SourceEvent::Delete { layer: seen.layer, origin: origin.clone(), key }),
                );
            }
        }
        events
    }

    fn read(&mut self, layer: u32, file: &Path, events: &mut Vec<SourceEvent>) {
        // The stamp is taken before the content: a change in between is seen at the next scan.
        let Ok(stamp) = Stamp::of(file) else { return };
        if self.files.get(file).is_some_and(|seen| seen.stamp == stamp) {
            return;
        }
        let origin = file.display().to_string();
        let (objects, errors, whole) = match fs::read_to_string(file) {
            Ok(text) => parse(&text, &origin),
            Err(error) => {
                let message = format!("cannot read the file: {error}");
                (vec![], vec![ObjectError { origin: origin.clone(), object: String::new(), message }], false)
            }
        };
        let seen = self.files.entry(file.to_owned()).or_insert_with(|| Seen { layer, stamp, objects: BTreeMap::new() });
        seen.stamp = stamp;
        let mut now = BTreeMap::new();
        for object in objects {
            if let Some(key) = ObjectKey::of(&object) {
                now.insert(key, object);
            }
        }
        if whole {
            let gone: Vec<ObjectKey> = seen.objects.keys().filter(|key| !now.contains_key(*key)).cloned().collect();
            for key in gone {
                seen.objects.remove(&key);
                events.push(SourceEvent::Delete { layer, origin: origin.clone(), key });
            }
        }
        for (key, object) in now {
            if seen.objects.get(&key) != Some(&object) {
                let told = Box::new(object.clone());
                events.push(SourceEvent::Upsert { layer, origin: origin.clone(), object: told });
                seen.objects.insert(key, object);
            }
        }
        events.push(SourceEvent::Errors { origin, errors });
    }
}

fn yaml_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            let extension = path.extension().and_then(|e| e.to_str());
            if hidden {
                continue;
            } else if path.is_dir() {
                folders.push(path);
            } else if matches!(extension, Some("yaml" | "yml" | "json")) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The objects of a multi-document file, what is wrong with it, and whether it was read to its end: after a syntax
/// error nobody can say what follows, so what the file said before stays.
fn parse(text: &str, origin: &str) -> (Vec<Value>, Vec<ObjectError>, bool) {
    let (mut objects, mut errors) = (Vec::new(), Vec::new());
    for (number, document) in (1..).zip(serde_norway::Deserializer::from_str(text)) {
        let at = format!("{origin} (document {number})");
        let value = match Value::deserialize(document) {
            Ok(value) => value,
            Err(error) => {
                let message = format!("not valid YAML: {error}; what this file said before stays in force");
                errors.push(ObjectError { origin: at, object: String::new(), message });
                return (objects, errors, false);
            }
        };
        let items = match value {
            Value::Null => continue,
            Value::Object(mut list) if list.get("kind").is_some_and(|kind| kind == "List") => {
                match list.remove("items") {
                    Some(Value::Array(items)) => items,
                    _ => vec![],
                }
            }
            other => vec![other],
        };
        for mut item in items {
            default_namespace(&mut item);
            if ObjectKey::of(&item).is_some() {
                objects.push(item);
            } else {
                let message = "not a Kubernetes object: it needs apiVersion, kind and metadata.name".to_owned();
                errors.push(ObjectError { origin: at.clone(), object: String::new(), message });
            }
        }
    }
    (objects, errors, true)
}

/// As kubectl does: without a namespace, namespaced objects are in `default`.
fn default_namespace(object: &mut Value) {
    const CLUSTER_SCOPED: [&str; 4] = ["Namespace", "Node", "CiliumClusterwideNetworkPolicy", "MeshPeer"];
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(Value::Object(metadata)) = object.get_mut("metadata")
        && !CLUSTER_SCOPED.contains(&kind.as_str())
    {
        metadata.entry("namespace").or_insert_with(|| Value::String("default".to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";

    fn told(events: &[SourceEvent]) -> Vec<String> {
        events
            .iter()
            .filter_map(|event| match event {
                SourceEvent::Upsert { object, layer, .. } => Some(format!("+{}@{layer}", object["metadata"]["name"])),
                SourceEvent::Delete { key, .. } => Some(format!("-{}/{}", key.namespace, key.name)),
                SourceEvent::Errors { errors, .. } if !errors.is_empty() => Some(format!("!{}", errors[0].message)),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn only_changes_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        fs::write(&file, format!("{POD}---\n{}", POD.replace("a}", "b}"))).unwrap();
        let mut folders = Folders::new(vec![folder.path().to_owned()]);
        assert_eq!(told(&folders.scan()), ["+\"a\"@0", "+\"b\"@0"]);
        assert!(told(&folders.scan()).is_empty());
        fs::write(&file, POD).unwrap();
        assert_eq!(told(&folders.scan()), ["-default/b"]);
        fs::remove_file(&file).unwrap();
        assert_eq!(told(&folders.scan()), ["-default/a"]);
    }

    #[test]
    fn a_broken_file_keeps_what_it_said_and_names_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        fs::write(&file, POD).unwrap();
        let mut folders = Folders::new(vec![folder.path().to_owned()]);
        folders.scan();
        fs::write(&file, "apiVersion: v1\nkind: [Pod\n").unwrap();
        let events = told(&folders.scan());
        assert!(events.len() == 1 && events[0].contains("line"), "{events:?}");
        fs::write(&file, POD).unwrap();
        assert!(told(&folders.scan()).is_empty(), "the object was never gone");
    }

    #[test]
    fn a_document_that_is_no_object_is_named_and_the_others_count() {
        let (objects, errors, whole) = parse(&format!("{POD}---\nfoo: bar\n---\n"), "a.yaml");
        assert_eq!((objects.len(), errors.len(), whole), (1, 1, true));
        assert_eq!(errors[0].origin, "a.yaml (document 2)");
    }
}
