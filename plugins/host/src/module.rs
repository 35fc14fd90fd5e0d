//! A compiled plugin module: checked, linked, ready to be instantiated.
use crate::{engine::Engine, error::LoadError, state::HostState};
use sha2::{Digest, Sha256};
use std::{fs, path::Path, sync::Arc};
use tracing::warn;
use wasmtime::{ExternType, InstancePre, Store};

/// Cheap to clone, and shared by all threads.
#[derive(Clone)]
pub struct Module {
    inner: Arc<Inner>,
}

struct Inner {
    sha256: String,
    abi: Abi,
    instance_pre: InstancePre<HostState>,
}

/// Which ABI the module announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    V0_1_0,
    V0_2_0,
    V0_2_1,
}

const MARKER: &str = "proxy_abi_version_";

impl Module {
    /// Reads and compiles a module; `expected_sha256` is hex, `None` or empty: any. Slow: seconds for large modules.
    pub fn from_file(
        engine: &Engine,
        name: &str,
        path: &Path,
        expected_sha256: Option<&str>,
    ) -> Result<Self, LoadError> {
        let read = |cause| LoadError::Read { plugin: name.to_owned(), path: path.to_owned(), cause };
        let size = fs::metadata(path).map_err(read)?.len();
        check_size(engine, name, size)?;
        Self::compile(engine, name, &fs::read(path).map_err(read)?, expected_sha256)
    }

    /// Compiles a module, or takes its code from the engine's cache.
    pub fn compile(
        engine: &Engine,
        name: &str,
        bytes: &[u8],
        expected_sha256: Option<&str>,
    ) -> Result<Self, LoadError> {
        let plugin = || name.to_owned();
        check_size(engine, name, bytes.len() as u64)?;
        let sha256 = hex(&Sha256::digest(bytes));
        let expected = expected_sha256.map(|hash| hash.trim().trim_start_matches("sha256:").to_ascii_lowercase());
        if let Some(expected) = expected.filter(|hash| !hash.is_empty() && *hash != sha256) {
            return Err(LoadError::WrongHash { plugin: plugin(), expected, actual: sha256 });
        }
        check_kind(name, bytes)?;
        let module = match engine.cache().and_then(|cache| cache.load(engine.wasm(), &sha256)) {
            Some(module) => module,
            None => {
                let module = wasmtime::Module::from_binary(engine.wasm(), bytes)
                    .map_err(|cause| LoadError::Invalid { plugin: plugin(), cause })?;
                if let Some(cache) = engine.cache() {
                    cache.store(&sha256, &module);
                }
                module
            }
        };
        let abi = announced_abi(name, &module)?;
        check_exports(name, &module)?;
        check_imports(engine, name, &module)?;
        let instance_pre =
            engine.linker().instantiate_pre(&module).map_err(|cause| LoadError::Invalid { plugin: plugin(), cause })?;
        Ok(Self { inner: Arc::new(Inner { sha256, abi, instance_pre }) })
    }

    /// Hex, lower case.
    pub fn sha256(&self) -> &str {
        &self.inner.sha256
    }

    pub fn abi(&self) -> Abi {
        self.inner.abi
    }

    pub(crate) fn instance_pre(&self) -> &InstancePre<HostState> {
        &self.inner.instance_pre
    }
}

fn check_size(engine: &Engine, name: &str, size: u64) -> Result<(), LoadError> {
    let limit = engine.module_bytes();
    if size > limit { Err(LoadError::TooLarge { plugin: name.to_owned(), size, limit }) } else { Ok(()) }
}

fn check_kind(name: &str, bytes: &[u8]) -> Result<(), LoadError> {
    let hint = match bytes {
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => return Ok(()),
        [0, b'a', b's', b'm', _, 0, 1, 0, ..] => "it is a component; Proxy-Wasm plugins are core modules",
        [0, b'a', b's', b'm', ..] => "it is of an unknown version of WebAssembly, or cut short",
        [0x1f, 0x8b, ..] => "it is compressed with gzip; unpack it first",
        [0x7f, b'E', b'L', b'F', ..] => "it is a program for Linux; build it for a wasm32 target",
        [b'(', ..] => "it is WebAssembly text; assemble it first",
        [] => "the file is empty",
        _ => "the file does not begin like one",
    };
    Err(LoadError::NotWasm { plugin: name.to_owned(), hint })
}

fn announced_abi(name: &str, module: &wasmtime::Module) -> Result<Abi, LoadError> {
    let mut found = None;
    for export in module.exports() {
        let Some(version) = export.name().strip_prefix(MARKER) else { continue };
        let abi = match version {
            "0_1_0" => Abi::V0_1_0,
            "0_2_0" => Abi::V0_2_0,
            "0_2_1" => Abi::V0_2_1,
            "0_2_100" => {
                warn!(plugin = name, "the module speaks a vendor's ABI 0.2.100; it is run as 0.2.1");
                Abi::V0_2_1
            }
            _ => {
                let found = export.name().to_owned();
                return Err(LoadError::UnsupportedAbi { plugin: name.to_owned(), found });
            }
        };
        found = Some(abi);
    }
    found.ok_or_else(|| {
        let from_go = module.exports().any(|export| export.name() == "_start" || export.name() == "run_main")
            || module.imports().any(|import| import.module() == "gojs");
        let hint = if from_go {
            ". A Go plugin must be built with -buildmode=c-shared (Go 1.24 or later) and the maintained Proxy-Wasm SDK"
        } else {
            ""
        };
        LoadError::NoAbi { plugin: name.to_owned(), hint }
    })
}

fn check_exports(name: &str, module: &wasmtime::Module) -> Result<(), LoadError> {
    let missing = |what| LoadError::MissingExport { plugin: name.to_owned(), what };
    if !matches!(module.get_export("memory"), Some(ExternType::Memory(_))) {
        return Err(missing("its memory as \"memory\""));
    }
    if module.get_export("malloc").is_none() && module.get_export("proxy_on_memory_allocate").is_none() {
        return Err(missing("malloc or proxy_on_memory_allocate"));
    }
    Ok(())
}

fn check_imports(engine: &Engine, name: &str, module: &wasmtime::Module) -> Result<(), LoadError> {
    let mut store = Store::new(engine.wasm(), HostState::detached());
    let mut imports: Vec<String> = module
        .imports()
        .filter(|import| engine.linker().get_by_import(&mut store, import).is_none())
        .map(|import| format!("{}.{}", import.module(), import.name()))
        .collect();
    if imports.is_empty() {
        return Ok(());
    }
    imports.sort();
    imports.dedup();
    Err(LoadError::MissingImports { plugin: name.to_owned(), imports })
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}
