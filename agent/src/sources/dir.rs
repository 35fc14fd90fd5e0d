//! Kubernetes YAML in folders, followed live. A file that cannot be read keeps what it last said; the others go on.
use super::DIRECTORY;
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
use weft_model::store::Event;

/// Editors write a file in several steps; several files are often written together.
const SETTLE: Duration = Duration::from_millis(30);
/// Also without a notification: folders on some file systems give none, and a folder may appear later.
const RESCAN: Duration = Duration::from_secs(2);

/// Follows the folders until the channel closes. The position of a folder is the layer of its objects.
pub async fn follow(paths: Vec<PathBuf>, events: Sender<Event>) {
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
            if events.send(Event::Synced { source: DIRECTORY.to_owned() }).await.is_err() {
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
    /// Folders that could not be listed.
    missing: BTreeSet<PathBuf>,
}

struct Seen {
    layer: u32,
    stamp: Stamp,
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
        Self { paths, files: BTreeMap::new(), missing: BTreeSet::new() }
    }

    /// Events for all that is new, different or gone since the last scan.
    fn scan(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut present = BTreeSet::new();
        for (layer, folder) in (0..).zip(self.paths.clone()) {
            match yaml_files(&folder) {
                Ok(files) => {
                    if self.missing.remove(&folder) {
                        events.push(problem(&folder, None));
                    }
                    for file in files {
                        self.read(layer, &file, &mut events);
                        present.insert(file);
                    }
                }
                Err(error) => {
                    let message = format!("cannot read the folder: {error}; what it said last stays in force");
                    if self.missing.insert(folder.clone()) {
                        events.push(problem(&folder, Some(message)));
                    }
                    present.extend(self.files.keys().filter(|file| file.starts_with(&folder)).cloned());
                }
            }
        }
        let gone: Vec<PathBuf> = self.files.keys().filter(|file| !present.contains(*file)).cloned().collect();
        for path in gone {
            if let Some(seen) = self.files.remove(&path) {
                events.push(file(seen.layer, &path, vec![]));
                events.push(problem(&path, None));
            }
        }
        events
    }

    fn read(&mut self, layer: u32, path: &Path, events: &mut Vec<Event>) {
        // The stamp is taken before the content: a change in between is seen at the next scan.
        let Ok(stamp) = Stamp::of(path) else { return };
        if self.files.get(path).is_some_and(|seen| seen.stamp == stamp) {
            return;
        }
        self.files.insert(path.to_owned(), Seen { layer, stamp });
        match fs::read_to_string(path)
            .map_err(|error| format!("cannot read the file: {error}"))
            .and_then(|text| parse(&text))
        {
            Ok(objects) => {
                events.push(file(layer, path, objects));
                events.push(problem(path, None));
            }
            Err(message) => {
                events.push(problem(path, Some(format!("{message}; what this file said before stays in force"))));
            }
        }
    }
}

fn file(layer: u32, path: &Path, objects: Vec<Value>) -> Event {
    Event::File { source: DIRECTORY.to_owned(), layer, path: path.display().to_string(), objects }
}

fn problem(path: &Path, message: Option<String>) -> Event {
    Event::Problem { source: DIRECTORY.to_owned(), origin: path.display().to_string(), message }
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

/// The objects of a multi-document file. After a syntax error nobody can say what follows, so the whole file is refused.
fn parse(text: &str) -> Result<Vec<Value>, String> {
    let mut objects = Vec::new();
    for (number, document) in (1..).zip(serde_norway::Deserializer::from_str(text)) {
        match Value::deserialize(document) {
            Ok(mut value) => {
                default_namespaces(&mut value);
                objects.push(value);
            }
            Err(error) => return Err(format!("document {number} is not valid YAML: {error}")),
        }
    }
    Ok(objects)
}

fn default_namespaces(value: &mut Value) {
    match value.get_mut("items") {
        Some(Value::Array(items)) => items.iter_mut().for_each(default_namespace),
        _ => default_namespace(value),
    }
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

    fn told(events: &[Event]) -> Vec<String> {
        events
            .iter()
            .filter_map(|event| match event {
                Event::File { objects, layer, .. } => Some(format!("{} objects in layer {layer}", objects.len())),
                Event::Problem { message: Some(message), .. } => Some(message.clone()),
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
        assert_eq!(told(&folders.scan()), ["2 objects in layer 0"]);
        assert!(told(&folders.scan()).is_empty());
        fs::write(&file, POD).unwrap();
        assert_eq!(told(&folders.scan()), ["1 objects in layer 0"]);
        fs::remove_file(&file).unwrap();
        assert_eq!(told(&folders.scan()), ["0 objects in layer 0"]);
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
        assert!(told(&folders.scan()).is_empty(), "told once");
    }

    #[test]
    fn objects_without_a_namespace_are_in_default() {
        let objects = parse(&format!("{POD}---\napiVersion: v1\nkind: Node\nmetadata: {{name: n}}\n")).unwrap();
        assert_eq!(objects[0]["metadata"]["namespace"], "default");
        assert!(objects[1]["metadata"].get("namespace").is_none());
    }
}
