//! Loads the kernel programs and opens the maps they share with the agent. Maps are pinned under the version of their
//! layout, so that they, and what they hold, outlive this process.
use crate::{
    bpffs,
    error::DatapathError,
    plan::Desired,
    reconcile::{
        Report, Tables,
        kernel::{Cell, Hash, Trie},
        services::ServiceTables,
        table::{KernelMap, Key, Table},
    },
    sys,
};
use aya::{
    Ebpf, EbpfLoader,
    maps::Map,
    programs::{Program, ProgramError},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use weft_bpf_abi::{VERSION, lb, net, policy};

/// How programs hang on interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// Links, replaced in one step (kernel 6.6 and later).
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

impl AttachMode {
    /// What this kernel has.
    pub fn detect() -> Self {
        if crate::check::has_tcx() { Self::Tcx } else { Self::Clsact }
    }
}

/// The programs, loaded, and the maps, open. One per node; belongs to one thread at a time.
pub struct Datapath {
    pub(crate) root: PathBuf,
    pub(crate) bpf: Ebpf,
    pub(crate) mode: AttachMode,
    /// How many instructions the verifier walked, by program.
    pub(crate) verified: BTreeMap<String, u32>,
    tables: Tables,
}

impl Datapath {
    /// Loads the object's programs, which the kernel verifies, and creates the maps or opens those of a predecessor.
    /// Nothing is attached yet. `bpf_dir` becomes a BPF file system if it is not on one.
    pub fn load(object: &[u8], bpf_dir: &Path) -> Result<Self, DatapathError> {
        Self::load_as(object, bpf_dir, AttachMode::detect())
    }

    /// With the attach mode chosen by the caller.
    pub fn load_as(object: &[u8], bpf_dir: &Path, mode: AttachMode) -> Result<Self, DatapathError> {
        bpffs::ensure_mounted(bpf_dir)?;
        let root = version_dir(bpf_dir);
        for dir in [map_dir(bpf_dir), root.join("links")] {
            fs::create_dir_all(&dir).map_err(|cause| DatapathError::Pins { path: dir, cause })?;
        }
        let mut bpf = EbpfLoader::new()
            .default_map_pin_directory(map_dir(bpf_dir))
            .load(object)
            .map_err(|cause| DatapathError::Object(Box::new(cause)))?;
        let verified = load_programs(&mut bpf)?;
        let tables = open_tables(&mut bpf)?;
        Ok(Self { root, bpf, mode, verified, tables })
    }

    /// Makes the maps hold the plan. Blocks for some milliseconds when backends are replaced: call it where that hurts
    /// nobody. Nothing is written where nothing differs; call again to retry what failed.
    pub fn reconcile(&mut self, desired: &Desired) -> Report {
        self.tables.reconcile(desired)
    }

    /// Reads every map again. Returns how many entries differ from what was written; the next pass mends them.
    pub fn audit(&mut self) -> Result<usize, DatapathError> {
        Ok(self.tables.audit()?)
    }

    /// The programs let traffic pass.
    pub fn ready(&self) -> bool {
        self.tables.ready()
    }

    pub fn attach_mode(&self) -> AttachMode {
        self.mode
    }

    /// Where the maps are pinned; weft-proxy finds `LISTENERS` there.
    pub fn map_dir(&self) -> PathBuf {
        self.root.join("maps")
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }
}

/// `<bpf_dir>/v<VERSION>`: maps of another layout are never reused.
pub(crate) fn version_dir(bpf_dir: &Path) -> PathBuf {
    bpf_dir.join(format!("v{VERSION}"))
}

/// Where the maps of a node are pinned.
pub fn map_dir(bpf_dir: &Path) -> PathBuf {
    version_dir(bpf_dir).join("maps")
}

fn load_programs(bpf: &mut Ebpf) -> Result<BTreeMap<String, u32>, DatapathError> {
    let mut verified = BTreeMap::new();
    for (name, program) in bpf.programs_mut() {
        let refused = |cause| DatapathError::Load { program: name.to_owned(), cause: Box::new(cause) };
        match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            Program::SkLookup(program) => program.load(),
            _ => Err(ProgramError::UnexpectedProgramType),
        }
        .map_err(refused)?;
        let info = program.info().map_err(refused)?;
        verified.insert(name.to_owned(), info.verified_instruction_count().unwrap_or(0));
    }
    Ok(verified)
}

fn open_tables(bpf: &mut Ebpf) -> Result<Tables, DatapathError> {
    Ok(Tables {
        services: ServiceTables::new(
            open(bpf, lb::SERVICES, Hash)?,
            open(bpf, lb::BACKENDS, Hash)?,
            open(bpf, lb::MEMBERS, Hash)?,
            Box::new(sys::wait_for_programs),
        ),
        node_addresses: open(bpf, lb::NODE_ADDRESSES, Hash)?,
        ipcache: open(bpf, net::IPCACHE, Trie)?,
        endpoints: open(bpf, net::ENDPOINTS, Hash)?,
        policy: open(bpf, policy::POLICY, Trie)?,
        auth_destinations: open(bpf, net::AUTH_DESTINATIONS, Hash)?,
        epoch: open(bpf, policy::POLICY_EPOCH, Cell)?,
        node_config: open(bpf, net::NODE_CONFIG, Cell)?,
        netns_cookie: sys::netns_cookie(),
    })
}

/// Takes a map out of the object, as the type that `wrap` makes of it.
fn open<M, W, K, V>(bpf: &mut Ebpf, name: &'static str, wrap: fn(M) -> W) -> Result<Table<K, V>, DatapathError>
where
    M: TryFrom<Map>,
    W: KernelMap<K, V> + 'static,
    K: Key,
    V: Copy + PartialEq,
{
    let map = bpf.take_map(name).ok_or(DatapathError::MissingMap(name))?;
    let map = M::try_from(map).map_err(|_| DatapathError::MissingMap(name))?;
    Ok(Table::open(name, Box::new(wrap(map)))?)
}
