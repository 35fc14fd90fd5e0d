//! The numbers of security identities, kept on disk: a restarted agent gives none to somebody else, so the maps that
//! outlived it stay right while its sources are read again.
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};
use weft_model::{snapshot::Snapshot, types::SecurityIdentity};

pub struct IdentityFile {
    path: PathBuf,
    kept: BTreeMap<u32, SecurityIdentity>,
}

impl IdentityFile {
    /// With what an earlier run kept. A file that cannot be read counts as empty: then numbers are given anew, and the
    /// maps are rewritten to match.
    pub fn restore(dir: &Path) -> (Self, Vec<SecurityIdentity>) {
        let path = dir.join("identities.json");
        let read = fs::read(&path).and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::other));
        let known: Vec<SecurityIdentity> = match read {
            Ok(known) => known,
            Err(error) if error.kind() == io::ErrorKind::NotFound => vec![],
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "identities are numbered anew");
                vec![]
            }
        };
        let kept = known.iter().map(|identity| (identity.id, identity.clone())).collect();
        (Self { path, kept }, known)
    }

    pub fn keep(&mut self, snapshot: &Snapshot) {
        if self.kept == snapshot.identities {
            return;
        }
        let all: Vec<&SecurityIdentity> = snapshot.identities.values().collect();
        let temporary = self.path.with_extension("tmp");
        let written = serde_json::to_vec(&all)
            .map_err(io::Error::other)
            .and_then(|bytes| fs::write(&temporary, bytes))
            .and_then(|()| fs::rename(&temporary, &self.path));
        match written {
            Ok(()) => self.kept.clone_from(&snapshot.identities),
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "identities are not kept for a restart"),
        }
    }
}
