//! The CA's two files: created whole or not at all, by one process at a time, and refused where others could read them.
use super::{CERTIFICATE_FILE, CaError, KEY_FILE};
use nix::fcntl::{Flock, FlockArg};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

const LOCK_FILE: &str = ".lock";

/// Key and certificate as PEM. A key that a crash has left without its certificate gets one.
pub(super) fn load_or_create(
    dir: &Path,
    make_key: impl FnOnce() -> Result<String, CaError>,
    make_certificate: impl FnOnce(&str) -> Result<String, CaError>,
) -> Result<(String, String), CaError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed(dir, "created"))?;
    private(dir, 0o700, 0o022)?;
    let lock = dir.join(LOCK_FILE);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock)
        .map_err(failed(&lock, "opened"))?;
    let _held = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| failed(&lock, "locked")(io::Error::from(errno)))?;

    let (key_path, certificate_path) = (dir.join(KEY_FILE), dir.join(CERTIFICATE_FILE));
    let certificate = read(&certificate_path)?;
    let key = match read(&key_path)? {
        Some(pem) => {
            private(&key_path, 0o600, 0o177)?;
            pem
        }
        None if certificate.is_some() => return Err(CaError::KeyMissing { path: certificate_path }),
        None => {
            let pem = make_key()?;
            write(dir, &key_path, &pem, 0o600)?;
            pem
        }
    };
    let certificate = match certificate {
        Some(pem) => pem,
        None => {
            let pem = make_certificate(&key)?;
            write(dir, &certificate_path, &pem, 0o644)?;
            pem
        }
    };
    Ok((key, certificate))
}

fn private(path: &Path, wanted: u32, forbidden: u32) -> Result<(), CaError> {
    let mode = fs::metadata(path).map_err(failed(path, "read"))?.mode() & 0o7777;
    if mode & forbidden == 0 { Ok(()) } else { Err(CaError::Permissions { path: path.to_owned(), mode, wanted }) }
}

fn read(path: &Path) -> Result<Option<String>, CaError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, "read")(error)),
    }
}

/// Under the lock, so the name of the file in the making is free or a crash's remains.
fn write(dir: &Path, path: &Path, text: &str, mode: u32) -> Result<(), CaError> {
    let draft = path.with_extension(format!("{}.new", path.extension().and_then(|e| e.to_str()).unwrap_or("pem")));
    let result = (|| {
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(dir)?.sync_all()
    })();
    result.map_err(failed(path, "written"))
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> CaError {
    let path = path.to_owned();
    move |cause| CaError::File { path, action, cause }
}
