//! The built object, loaded with small maps under a bpffs of its own.
use aya::{Ebpf, EbpfLoader};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};
use weft_bpf_abi::{lb, net, policy};

/// Where the object is, unless `WEFT_BPF_OBJECT` names another.
const DEFAULT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bpfel-unknown-none/release/weft");

/// The path of the object under test.
///
/// # Panics
/// There is none: a test that cannot run fails.
pub fn path() -> PathBuf {
    let path = std::env::var_os("WEFT_BPF_OBJECT").map_or_else(|| PathBuf::from(DEFAULT), PathBuf::from);
    assert!(
        path.is_file(),
        "no BPF object at {}: build it with `cargo xtask build`, or name another in WEFT_BPF_OBJECT",
        path.display()
    );
    path
}

/// A bpffs for the pinned maps, unmounted and removed on drop.
pub struct PinFolder(PathBuf);

impl PinFolder {
    /// # Panics
    /// Without root, since mounting needs it.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("weft-bpf-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        let folder = Self(path);
        mount(Some("bpf"), &folder.0, Some("bpf"), MsFlags::empty(), None::<&str>)
            .expect("bpffs can be mounted: are the tests run as root?");
        folder
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Default for PinFolder {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for PinFolder {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Loads the object; no program is loaded yet.
///
/// # Panics
/// The object cannot be read, or a map cannot be made.
pub fn load(pins: &PinFolder) -> Ebpf {
    let mut loader = EbpfLoader::new();
    // Tests hold a handful of entries each; the full sizes would take seconds to allocate.
    for map in [lb::AFFINITY, lb::REVERSE, policy::CONNTRACK, lb::SERVICES, lb::BACKENDS, net::IPCACHE, policy::POLICY]
    {
        loader.map_max_entries(map, 1024);
    }
    loader.default_map_pin_directory(pins.path()).load_file(path()).expect("the object loads")
}
