//! The pods that the CNI plugin has connected on this node: kept on disk, so that a restarted agent knows them at once.
use crate::api::types::NewEndpoint;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};
use weft_datapath::plan::{LocalEndpoint, LocalEndpoints};
use weft_model::types::ObjectName;

#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("cannot keep the endpoint in {}: is the disk full, or the folder not writable?", path.display())]
    Keep {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("container id {0:?} is not one: want letters, digits, '-', '_' and '.'")]
    ContainerId(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// In the kernel's maps; never 0, not given again while the endpoint lives.
    pub id: u32,
    pub ifindex: u32,
    pub created: NewEndpoint,
}

impl Endpoint {
    pub fn pod(&self) -> ObjectName {
        ObjectName::new(&self.created.namespace, &self.created.pod)
    }
}

/// By container id.
#[derive(Clone, Default)]
pub struct EndpointTable {
    folder: PathBuf,
    held: BTreeMap<String, Endpoint>,
}

impl EndpointTable {
    /// Reads what an earlier agent kept. A file that cannot be read is named in the second part and left alone.
    pub fn restore(folder: PathBuf) -> Result<(Self, Vec<String>), EndpointError> {
        let keep = |cause| EndpointError::Keep { path: folder.clone(), cause };
        fs::create_dir_all(&folder).map_err(keep)?;
        let (mut held, mut bad) = (BTreeMap::new(), Vec::new());
        for entry in fs::read_dir(&folder).map_err(keep)?.flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let parsed = fs::read(&path)
                .map_err(|error| error.to_string())
                .and_then(|bytes| serde_json::from_slice::<Endpoint>(&bytes).map_err(|error| error.to_string()));
            match parsed {
                Ok(endpoint) => drop(held.insert(endpoint.created.container_id.clone(), endpoint)),
                Err(error) => bad.push(format!("{}: {error}", path.display())),
            }
        }
        Ok((Self { folder, held }, bad))
    }

    /// Adds or replaces; the same container keeps its id.
    pub fn add(&mut self, created: NewEndpoint, ifindex: u32) -> Result<&Endpoint, EndpointError> {
        let key = created.container_id.clone();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if key.is_empty() || key.starts_with('.') || !key.chars().all(plain) {
            return Err(EndpointError::ContainerId(key));
        }
        let id = match self.held.get(&key) {
            Some(endpoint) => endpoint.id,
            None => self.free_id(),
        };
        let endpoint = Endpoint { id, ifindex, created };
        let path = self.file(&key);
        let temporary = path.with_extension("tmp");
        serde_json::to_vec(&endpoint)
            .map_err(io::Error::other)
            .and_then(|bytes| fs::write(&temporary, bytes))
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(|cause| EndpointError::Keep { path, cause })?;
        self.held.insert(key.clone(), endpoint);
        Ok(&self.held[&key])
    }

    /// `None`: there is none.
    pub fn remove(&mut self, container_id: &str) -> Option<Endpoint> {
        let endpoint = self.held.remove(container_id)?;
        let _ = fs::remove_file(self.file(container_id));
        Some(endpoint)
    }

    pub fn get(&self, container_id: &str) -> Option<&Endpoint> {
        self.held.get(container_id)
    }

    pub fn all(&self) -> impl Iterator<Item = &Endpoint> {
        self.held.values()
    }

    /// By pod; of two containers of one pod (a restarted sandbox) the younger counts.
    pub fn local(&self) -> LocalEndpoints {
        let mut by_age: Vec<&Endpoint> = self.held.values().collect();
        by_age.sort_by_key(|endpoint| endpoint.id);
        by_age
            .into_iter()
            .map(|endpoint| {
                let addresses = endpoint.created.addresses.clone();
                (endpoint.pod(), LocalEndpoint { id: endpoint.id, ifindex: endpoint.ifindex, addresses })
            })
            .collect()
    }

    fn free_id(&self) -> u32 {
        self.held.values().map(|endpoint| endpoint.id).max().unwrap_or(0) + 1
    }

    fn file(&self, container_id: &str) -> PathBuf {
        self.folder.join(format!("{container_id}.json"))
    }
}

/// Containers that the CNI plugin deleted while no agent ran: their marks, which are removed when taken.
pub fn take_tombstones(cni_dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(cni_dir.join("deleted")) else { return vec![] };
    entries
        .flatten()
        .filter_map(|entry| {
            fs::remove_file(entry.path()).ok()?;
            entry.file_name().into_string().ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(id: &str) -> NewEndpoint {
        NewEndpoint {
            container_id: id.into(),
            namespace: "shop".into(),
            pod: format!("pod-{id}"),
            interface: "weft1".into(),
            addresses: vec!["10.1.0.2".parse().unwrap()],
            netns: String::new(),
            mac: String::new(),
        }
    }

    #[test]
    fn endpoints_outlive_the_agent_under_their_ids() {
        let folder = tempfile::tempdir().unwrap();
        let (mut table, _) = EndpointTable::restore(folder.path().join("e")).unwrap();
        let (a, b) = (table.add(new("a"), 7).unwrap().id, table.add(new("b"), 8).unwrap().id);
        assert_ne!(a, b);
        table.remove("a");
        let (mut again, bad) = EndpointTable::restore(folder.path().join("e")).unwrap();
        assert!(bad.is_empty());
        assert_eq!(again.all().map(|e| (e.id, e.ifindex)).collect::<Vec<_>>(), [(b, 8)]);
        assert_eq!(again.add(new("b"), 9).unwrap().id, b, "the same container keeps its id");
    }

    #[test]
    fn a_container_id_cannot_leave_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (mut table, _) = EndpointTable::restore(folder.path().into()).unwrap();
        for id in ["../x", "", "a/b", ".hidden"] {
            assert!(table.add(new(id), 1).is_err(), "{id}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_and_the_others_count() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("x.json"), "{").unwrap();
        let (table, bad) = EndpointTable::restore(folder.path().into()).unwrap();
        assert_eq!((table.all().count(), bad.len()), (0, 1));
    }
}
