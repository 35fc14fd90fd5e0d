//! What this kernel can do, found out by trying.
use crate::{
    error::DatapathError,
    load::{AttachMode, Datapath},
};
use aya::{
    Btf,
    maps::MapType,
    programs::{ProgramType, SchedClassifier, TcAttachType},
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};
use serde::Serialize;
use std::{error::Error, fs, path::Path};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Feature {
    pub name: &'static str,
    pub ok: bool,
    /// Without it Weft does not run; else it falls back.
    pub required: bool,
    /// What was seen.
    pub detail: String,
    /// What to do, or what is used instead. Empty where all is well.
    pub remedy: &'static str,
}

/// Every kernel feature that Weft uses, each tried for real. Needs root.
pub fn features() -> Vec<Feature> {
    let probe = |name, tried: Result<bool, String>, required, remedy| {
        let detail = match &tried {
            Ok(true) => "works".to_owned(),
            Ok(false) => "this kernel does not have it".to_owned(),
            Err(error) => error.clone(),
        };
        let ok = tried == Ok(true);
        Feature { name, ok, required, detail, remedy: if ok { "" } else { remedy } }
    };
    let program = |kind| is_program_supported(kind).map_err(|error| chain(&error));
    let map = |kind| is_map_supported(kind).map_err(|error| chain(&error));
    let set_retval = is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval);
    vec![
        probe(
            "socket load balancing (cgroup sock_addr)",
            program(ProgramType::CgroupSockAddr),
            true,
            "use a kernel with CONFIG_CGROUP_BPF",
        ),
        probe(
            "refusal of connections with an error code (bpf_set_retval)",
            set_retval.map_err(|error| chain(&error)),
            true,
            "use kernel 5.18 or later",
        ),
        probe(
            "packet programs (sched_cls)",
            program(ProgramType::SchedClassifier),
            true,
            "use a kernel with CONFIG_NET_CLS_BPF",
        ),
        probe(
            "tcx links",
            Ok(has_tcx()),
            false,
            "kernel 6.6 or later has them; filters of the clsact qdisc are used instead",
        ),
        probe("sk_lookup", program(ProgramType::SkLookup), true, "use kernel 5.9 or later"),
        probe("ring buffer", map(MapType::RingBuf), true, "use kernel 5.8 or later"),
        probe("LPM trie", map(MapType::LpmTrie), true, "use kernel 4.20 or later"),
        probe("socket map", map(MapType::SockMap), true, "use a kernel with CONFIG_BPF_STREAM_PARSER"),
        probe(
            "type information (BTF)",
            Btf::from_sys_fs().map(|_| true).map_err(|error| chain(&error)),
            false,
            "build the kernel with CONFIG_DEBUG_INFO_BTF to see types in dumps",
        ),
        probe(
            "WireGuard in the kernel",
            Ok(has_wireguard()),
            false,
            "the WireGuard device of weft-proxy is used instead",
        ),
    ]
}

/// Loads every program of the object on this kernel, under a folder of its own that is removed again. Nothing is
/// attached. Returns the instructions that the verifier walked, by program.
pub fn programs(object: &[u8], bpf_dir: &Path) -> Result<Vec<(String, u32)>, DatapathError> {
    crate::bpffs::ensure_mounted(bpf_dir)?;
    let trial = bpf_dir.join(format!("check-{}", std::process::id()));
    let loaded = Datapath::load_as(object, &trial, AttachMode::detect());
    let verified = loaded.map(|datapath| datapath.verified.into_iter().collect());
    match fs::remove_dir_all(&trial) {
        Err(cause) if verified.is_ok() => Err(DatapathError::Pins { path: trial, cause }),
        _ => verified,
    }
}

/// The query is refused where the hook is unknown.
pub(crate) fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

/// Built in or loaded, or a module that the kernel loads when asked for.
fn has_wireguard() -> bool {
    if Path::new("/sys/module/wireguard").exists() {
        return true;
    }
    let Ok(release) = fs::read_to_string("/proc/sys/kernel/osrelease") else { return false };
    let modules = Path::new("/lib/modules").join(release.trim());
    ["modules.dep", "modules.builtin"]
        .iter()
        .filter_map(|list| fs::read_to_string(modules.join(list)).ok())
        .any(|list| list.contains("/wireguard.ko"))
}

/// The error and its causes on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
