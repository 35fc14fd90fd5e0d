//! What the mesh told, kept on disk. Remote clusters and other nodes never hold up a start, so without this a restarted
//! agent would take their addresses, tunnels and backends out of the kernel until they are heard again: their pods'
//! traffic would leave in plain text, and services that only they serve would refuse.
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use weft_model::{
    store::NodeFacts,
    types::{ClusterName, MeshPeer, RemoteCluster},
};

/// Remote endpoints may change many times a second; the disk is told this often.
const WRITE_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    clusters: BTreeMap<ClusterName, RemoteCluster>,
    nodes: BTreeMap<String, NodeFacts>,
}

/// The file of one agent. Whether what is in it still counts is for the sources to say: a cluster by its `MeshPeer`, a
/// node by its object.
pub struct MeshMemory {
    path: PathBuf,
    known: Known,
    /// Not yet on disk.
    changed: bool,
    written: Option<Instant>,
}

impl MeshMemory {
    /// With what an earlier run kept. A file that cannot be read counts as empty.
    pub fn restore(dir: &Path) -> Self {
        let path = dir.join("mesh.json");
        let read = fs::read(&path).and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::other));
        let known = match read {
            Ok(known) => known,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Known::default(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "other clusters are not known until they are heard");
                Known::default()
            }
        };
        Self { path, known, changed: false, written: None }
    }

    /// The cluster as it was last heard, if it is still the one that the peer object names.
    pub fn cluster(&self, peer: &MeshPeer) -> Option<&RemoteCluster> {
        let known = self.known.clusters.get(&peer.cluster)?;
        (known.id == peer.cluster_id && known.trust_domain == peer.trust_domain).then_some(known)
    }

    pub fn node(&self, name: &str) -> Option<&NodeFacts> {
        self.known.nodes.get(name)
    }

    pub fn cluster_told(&mut self, cluster: &RemoteCluster) {
        self.known.clusters.insert(cluster.name.clone(), cluster.clone());
        self.changed = true;
    }

    pub fn node_told(&mut self, name: &str, facts: Option<&NodeFacts>) {
        self.changed |= match facts {
            Some(facts) => self.known.nodes.insert(name.to_owned(), facts.clone()).as_ref() != Some(facts),
            None => self.known.nodes.remove(name).is_some(),
        };
    }

    /// Forgets those that the sources, once in sync, do not name.
    pub fn keep_only(&mut self, cluster: impl Fn(&ClusterName) -> bool, node: impl Fn(&str) -> bool) {
        let before = (self.known.clusters.len(), self.known.nodes.len());
        self.known.clusters.retain(|name, _| cluster(name));
        self.known.nodes.retain(|name, _| node(name));
        self.changed |= before != (self.known.clusters.len(), self.known.nodes.len());
    }

    /// Writes what has changed, unless that was just done: then a later call does.
    pub fn save(&mut self, now: Instant) {
        let just_now = self.written.is_some_and(|at| now.saturating_duration_since(at) < WRITE_EVERY);
        if !self.changed || just_now {
            return;
        }
        self.written = Some(now);
        let temporary = self.path.with_extension("tmp");
        let written = serde_json::to_vec(&self.known)
            .map_err(io::Error::other)
            .and_then(|bytes| fs::write(&temporary, bytes))
            .and_then(|()| fs::rename(&temporary, &self.path));
        match written {
            Ok(()) => self.changed = false,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "what other clusters told is not kept for a restart");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;
    use weft_model::types::{ObjectName, RemoteService};

    fn west() -> RemoteCluster {
        let service = RemoteService { shared: true, backends: vec![] };
        RemoteCluster {
            name: "west".to_owned().try_into().unwrap(),
            id: 2,
            trust_domain: "west.test".parse().unwrap(),
            alive: true,
            services: BTreeMap::from([(ObjectName::new("shop", "catalog"), service)]),
            nodes: BTreeMap::new(),
            workloads: vec![],
            auth_destinations: vec![(IpAddr::from([10, 2, 0, 5]), 8080)],
            hbone: true,
        }
    }

    fn peer(id: u32) -> MeshPeer {
        MeshPeer {
            cluster: west().name,
            cluster_id: id,
            trust_domain: west().trust_domain,
            trust_bundle: String::new(),
            endpoints: vec![],
        }
    }

    fn facts() -> NodeFacts {
        NodeFacts { wireguard_key: "key".into(), wireguard_port: 51871 }
    }

    #[test]
    fn what_the_mesh_told_outlives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = MeshMemory::restore(dir.path());
        memory.cluster_told(&west());
        memory.node_told("east-2", Some(&facts()));
        memory.save(Instant::now());
        let memory = MeshMemory::restore(dir.path());
        assert_eq!(memory.cluster(&peer(2)), Some(&west()));
        assert_eq!(memory.node("east-2"), Some(&facts()));
        assert_eq!(memory.cluster(&peer(3)), None, "connected anew under another id");
    }

    #[test]
    fn what_the_sources_no_longer_name_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = MeshMemory::restore(dir.path());
        memory.cluster_told(&west());
        memory.node_told("east-2", Some(&facts()));
        memory.keep_only(|_| false, |node| node == "east-2");
        memory.save(Instant::now());
        let memory = MeshMemory::restore(dir.path());
        assert_eq!(memory.cluster(&peer(2)), None);
        assert_eq!(memory.node("east-2"), Some(&facts()));
    }

    #[test]
    fn a_broken_file_counts_as_empty() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mesh.json"), "{").unwrap();
        assert_eq!(MeshMemory::restore(dir.path()).cluster(&peer(2)), None);
    }
}
