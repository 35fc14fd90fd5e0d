//! What the agent writes back to where its objects come from: mesh peers, its node's own facts, the status of policies.
use super::{kube, mesh_peer_object};
use ::kube::Client;
use std::{collections::BTreeMap, fs, io, path::PathBuf};
use weft_model::{
    parse::Kind,
    types::{MeshPeer, ObjectName},
};

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("cannot write {}: may the agent write to that folder?", path.display())]
    File {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error(transparent)]
    Kubernetes(#[from] kube::KubeError),
}

#[derive(Clone)]
pub enum Writer {
    /// The last folder of the directory source.
    Directory(PathBuf),
    Kubernetes(Client),
}

impl Writer {
    /// # Errors
    /// The folder or the API server does not take it.
    pub async fn apply_mesh_peer(&self, peer: &MeshPeer) -> Result<(), WriteError> {
        match self {
            Self::Directory(folder) => {
                let path = peer_file(folder, peer.cluster.as_str());
                let text = serde_norway::to_string(&mesh_peer_object(peer)).unwrap_or_default();
                write_whole(&path, &text).map_err(|cause| WriteError::File { path, cause })
            }
            Self::Kubernetes(client) => Ok(kube::apply_mesh_peer(client, peer).await?),
        }
    }

    /// One that is not there is fine.
    pub async fn delete_mesh_peer(&self, cluster: &str) -> Result<(), WriteError> {
        match self {
            Self::Directory(folder) => {
                let path = peer_file(folder, cluster);
                match fs::remove_file(&path) {
                    Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(WriteError::File { path, cause }),
                    _ => Ok(()),
                }
            }
            Self::Kubernetes(client) => Ok(kube::delete_mesh_peer(client, cluster).await?),
        }
    }

    /// In directory mode there is nothing to write: the other nodes read them from this node's mesh server.
    pub async fn annotate_node(&self, node: &str, annotations: &BTreeMap<String, String>) -> Result<(), WriteError> {
        match self {
            Self::Directory(_) => Ok(()),
            Self::Kubernetes(client) => Ok(kube::annotate_node(client, node, annotations).await?),
        }
    }

    /// In directory mode `weft policy list` and `weft plugin list` alone tell.
    pub async fn verdict(
        &self,
        node: &str,
        kind: Kind,
        name: &ObjectName,
        verdict: &kube::Verdict,
    ) -> Result<(), WriteError> {
        let Self::Kubernetes(client) = self else { return Ok(()) };
        Ok(kube::write_verdict(client, kind, name, node, verdict).await?)
    }
}

fn peer_file(folder: &std::path::Path, cluster: &str) -> PathBuf {
    folder.join(format!("mesh-peer-{cluster}.yaml"))
}

/// A reader never sees half a file: the directory source skips hidden ones.
fn write_whole(path: &std::path::Path, text: &str) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    fs::write(&temporary, text)?;
    fs::rename(temporary, path)
}
