//! The node's WireGuard key: made once, kept across restarts and reboots, so that peers need not learn a new one.
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use weft_wireguard::PrivateKey;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot keep the WireGuard key at {}: is stateDir writable?", path.display())]
    File {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{} is not a WireGuard key (32 bytes in base64): restore it, or remove it to make a new one", path.display())]
    Invalid { path: PathBuf },
}

/// The private key, read from `dir`, or made there.
pub fn load_or_create(dir: &Path) -> Result<PrivateKey, KeyError> {
    let path = dir.join("wireguard.key");
    let failed = |cause| KeyError::File { path: path.clone(), cause };
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| KeyError::Invalid { path }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = PrivateKey::generate();
            fs::create_dir_all(dir).map_err(failed)?;
            // Written whole under another name first: an agent killed here leaves no half key.
            let temporary = path.with_extension("new");
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&temporary).map_err(failed)?;
            file.write_all(key.to_base64().as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
            fs::rename(&temporary, &path).map_err(failed)?;
            Ok(key)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_is_made_once_and_only_root_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let key = load_or_create(dir.path()).unwrap();
        assert_eq!(load_or_create(dir.path()).unwrap().to_base64(), key.to_base64());
        let mode = fs::metadata(dir.path().join("wireguard.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_is_refused_rather_than_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("wireguard.key"), "short").unwrap();
        assert!(matches!(load_or_create(dir.path()), Err(KeyError::Invalid { .. })));
    }
}
