//! A folder of compiled modules, so that a restart does not compile them again.
use sha2::{Digest, Sha256};
use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use tracing::{debug, warn};
use wasmtime::Module;

/// Entries are named by the module's hash and by all that its code depends on: the engine's version and settings and
/// the processor's features.
pub struct CodeCache {
    folder: PathBuf,
    compatibility: u64,
}

const DIGEST: usize = 32;

impl CodeCache {
    /// `None`: the folder cannot be had, or others could write to it; modules are compiled each time then.
    pub fn open(folder: PathBuf, engine: &wasmtime::Engine) -> Option<Self> {
        if let Err(cause) = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder) {
            warn!(folder = %folder.display(), %cause, "no cache of compiled plugins: the folder cannot be made");
            return None;
        }
        if !only_ours(&folder) {
            warn!(folder = %folder.display(), "no cache of compiled plugins: the folder must be our own, with mode 0700");
            return None;
        }
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Some(Self { folder, compatibility: hasher.finish() })
    }

    /// The compiled module, if it is there and nobody else can have written it.
    pub fn load(&self, engine: &wasmtime::Engine, sha256: &str) -> Option<Module> {
        let file = self.file(sha256);
        if !file.exists() || !only_ours(&self.folder) || !only_ours(&file) {
            return None;
        }
        let bytes = fs::read(&file).ok()?;
        let (digest, code) = bytes.split_at_checked(DIGEST)?;
        if Sha256::digest(code).as_slice() != digest {
            warn!(file = %file.display(), "a compiled plugin is damaged; it is compiled again");
            return None;
        }
        // SAFETY: `deserialize` trusts its input to be what `serialize` made. The file and its folder belong to this
        // user and nobody else can write to them (checked just now), and the digest tells that it was written whole.
        match unsafe { Module::deserialize(engine, code) } {
            Ok(module) => Some(module),
            Err(cause) => {
                debug!(file = %file.display(), %cause, "a compiled plugin cannot be used");
                None
            }
        }
    }

    /// Failures only cost time at the next start.
    pub fn store(&self, sha256: &str, module: &Module) {
        if let Err(cause) = self.try_store(sha256, module) {
            warn!(folder = %self.folder.display(), %cause, "a compiled plugin cannot be kept");
        }
    }

    fn try_store(&self, sha256: &str, module: &Module) -> Result<(), wasmtime::Error> {
        let code = module.serialize()?;
        let file = self.file(sha256);
        let draft = file.with_extension(format!("{}.tmp", std::process::id()));
        let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        out.write_all(&Sha256::digest(&code))?;
        out.write_all(&code)?;
        fs::rename(&draft, &file)?;
        Ok(())
    }

    fn file(&self, sha256: &str) -> PathBuf {
        self.folder.join(format!("{sha256}-{:016x}.cwasm", self.compatibility))
    }
}

/// A file or folder, not a link, that only this user can write.
fn only_ours(path: &Path) -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    let me = unsafe { libc::geteuid() };
    fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_symlink() && meta.uid() == me && meta.mode() & 0o077 == 0)
}
