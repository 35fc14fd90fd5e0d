//! What `weft status` says of each part: how it works here, and why if that is not the best way.
use super::Appliers;
use crate::{
    api::types::{Condition, MapFill, State},
    config::SourceConfig,
    shared::{Report, Shared},
    sources::WATCH_OF,
};
use weft_datapath::{AttachMode, Encryption};
use weft_model::snapshot::Snapshot;
use weft_proxy_api::flow::ProxyStatus;

/// A map this full deserves a word, in percent.
const NEARLY_FULL: u64 = 90;

pub fn report(appliers: &Appliers, snapshot: &Snapshot, shared: &Shared) -> Report {
    let proxy = shared.proxy.borrow().clone();
    let state = &appliers.state;
    let wireguard_due = state.desired.ipcache.values().any(|info| info.flags & weft_bpf_abi::net::IpInfo::ENCRYPT != 0);
    let conditions = vec![
        sources(snapshot, shared),
        datapath(appliers),
        attach(appliers),
        routing(appliers),
        services(appliers),
        policy(snapshot, appliers),
        layer7(appliers, proxy.status.as_ref(), &proxy.error),
        plugins(proxy.status.as_ref()),
        identity(appliers, proxy.status.as_ref()),
        encryption(shared, proxy.status.as_ref(), wireguard_due),
        mesh(appliers, shared),
    ];
    let status = state.status.as_ref();
    Report {
        ready: snapshot.synced
            && state.kernel.ready
            && !conditions.iter().any(|c| c.name == "attach" && c.state == State::Failed),
        conditions,
        maps: status.map_or_else(Vec::new, |status| {
            let row = |map: &weft_datapath::status::MapFill| MapFill {
                name: map.name.to_owned(),
                entries: map.entries,
                max: u64::from(map.max),
            };
            status.maps.iter().map(row).collect()
        }),
        drops: status.map_or_else(Default::default, |status| {
            status.drops.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect()
        }),
        kernel_events_lost: status.map_or(0, |status| status.lost_events),
    }
}

fn condition(name: &str, state: State, message: impl Into<String>) -> Condition {
    Condition { name: name.to_owned(), state, message: message.into() }
}

fn sources(snapshot: &Snapshot, shared: &Shared) -> Condition {
    let what = match &shared.config.source {
        SourceConfig::Directory { paths } => {
            let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            format!("directory {}", paths.join(", "))
        }
        SourceConfig::Kubernetes { .. } => "kubernetes".to_owned(),
    };
    let broken = snapshot.object_errors.iter().filter(|error| error.origin.starts_with(WATCH_OF)).count();
    if snapshot.synced && broken > 0 {
        let message = format!(
            "{what}: {broken} watches are broken or not served, listed below; what was said last stays in force, and \
             they are tried again"
        );
        return condition("sources", State::Degraded, message);
    }
    match (snapshot.synced, snapshot.object_errors.len()) {
        (false, _) => condition(
            "sources",
            State::Failed,
            format!("{what}: not yet in sync; nothing is changed in the kernel until it is"),
        ),
        (true, 0) => condition("sources", State::Ok, format!("{what}: in sync")),
        (true, errors) => condition(
            "sources",
            State::Degraded,
            format!("{what}: in sync; {errors} objects or files are refused, listed below"),
        ),
    }
}

fn datapath(appliers: &Appliers) -> Condition {
    let kernel = &appliers.state.kernel;
    if let Some(error) = appliers.state.errors.get("status").or(appliers.state.errors.get("audit")) {
        return condition("datapath", State::Failed, error.clone());
    }
    match kernel.failures.first() {
        Some(first) => condition(
            "datapath",
            State::Failed,
            format!(
                "{} entries are not written, the first: {} {}: {}",
                kernel.failed, first.map, first.entry, first.reason
            ),
        ),
        None if !kernel.ready => {
            condition("datapath", State::Failed, "not ready: pods may neither send nor receive yet")
        }
        None => {
            let full = appliers
                .state
                .status
                .iter()
                .flat_map(|s| &s.maps)
                .find(|m| m.entries * 100 >= u64::from(m.max) * NEARLY_FULL);
            match full {
                Some(map) => condition(
                    "datapath",
                    State::Degraded,
                    format!("map {} is nearly full: {} of {}", map.name, map.entries, map.max),
                ),
                None => condition("datapath", State::Ok, "eBPF maps hold what the sources say"),
            }
        }
    }
}

fn attach(appliers: &Appliers) -> Condition {
    if let Some(error) = appliers.state.errors.get("attach") {
        return condition("attach", State::Failed, error.clone());
    }
    match appliers.datapath.attach_mode() {
        AttachMode::Tcx => condition("attach", State::Ok, "tcx and cgroup links, pinned"),
        AttachMode::Clsact => condition(
            "attach",
            State::Degraded,
            "clsact filters: this kernel has no tcx (6.6 and later), so an upgrade replaces programs one by one",
        ),
    }
}

fn routing(appliers: &Appliers) -> Condition {
    let routes = &appliers.state.routes;
    match routes.failures.first() {
        Some((route, reason)) => condition("routing", State::Failed, format!("route {route}: {reason}")),
        None => condition(
            "routing",
            State::Ok,
            format!(
                "native, {} routes to other nodes by {}; host routing by the kernel's routing table; no masquerading",
                appliers.state.desired.routes.len(),
                appliers.devices.join(", ")
            ),
        ),
    }
}

fn services(appliers: &Appliers) -> Condition {
    let desired = &appliers.state.desired;
    match desired.conflicts.first() {
        Some(conflict) => condition(
            "services",
            State::Degraded,
            format!("{} is claimed by {} and {}: the first has it", conflict.frontend, conflict.kept, conflict.ignored),
        ),
        None => condition(
            "services",
            State::Ok,
            format!("{} frontends by socket load balancing; no iptables, no kube-proxy", desired.services.len()),
        ),
    }
}

fn policy(snapshot: &Snapshot, appliers: &Appliers) -> Condition {
    let bad = |word: &str| snapshot.policy_status.iter().filter(|status| status.state.starts_with(word)).count();
    let (rejected, ignored) = (bad("rejected"), bad("ignored"));
    let isolated = &appliers.state.kernel.isolated;
    let unknown = &appliers.state.desired.unknown_endpoints;
    if !isolated.is_empty() {
        return condition(
            "policy",
            State::Failed,
            format!("{} pods are cut off: their policy does not fit into the map", isolated.len()),
        );
    }
    if rejected + ignored > 0 {
        return condition(
            "policy",
            State::Degraded,
            format!(
                "{rejected} policies are rejected (their pods fail closed), {ignored} ignored: see `weft policy list`"
            ),
        );
    }
    if let Some(pod) = unknown.first() {
        return condition(
            "policy",
            State::Degraded,
            format!(
                "{} connected pods are named by no source and may neither send nor receive, the first: {pod}",
                unknown.len()
            ),
        );
    }
    condition(
        "policy",
        State::Ok,
        format!("{} policies enforced at the pods' interfaces", snapshot.policy_status.len()),
    )
}

fn layer7(appliers: &Appliers, proxy: Option<&ProxyStatus>, error: &str) -> Condition {
    match proxy {
        None => condition("proxy", State::Failed, format!("{error}; connections that need it are dropped")),
        Some(proxy) => match proxy.config_errors.first() {
            Some(error) => condition("proxy", State::Failed, error.clone()),
            None if !appliers.state.proxy_heard => {
                condition("proxy", State::Failed, "it has not yet taken this agent's configuration")
            }
            None => condition("proxy", State::Ok, format!("process {}, {} connections", proxy.pid, proxy.connections)),
        },
    }
}

fn plugins(proxy: Option<&ProxyStatus>) -> Condition {
    let Some(proxy) = proxy else { return condition("plugins", State::Failed, "not known: the proxy does not answer") };
    match proxy.plugins.iter().find(|plugin| plugin.state.starts_with("failed")) {
        Some(plugin) => condition("plugins", State::Failed, format!("{}: {}", plugin.name, plugin.state)),
        None => condition("plugins", State::Ok, format!("{} in wasmtime", proxy.plugins.len())),
    }
}

fn identity(appliers: &Appliers, proxy: Option<&ProxyStatus>) -> Condition {
    if let Some(error) = appliers.state.errors.get("svids") {
        return condition("identity", State::Failed, error.clone());
    }
    let left = proxy.and_then(|proxy| proxy.svid_seconds_left);
    let rest = left.map_or_else(String::new, |left| format!("; the first SVID in use ends in {} h", left / 3600));
    condition("identity", State::Ok, format!("embedded CA of the cluster, X.509-SVIDs of 24 h{rest}"))
}

fn encryption(shared: &Shared, proxy: Option<&ProxyStatus>, due: bool) -> Condition {
    if shared.config.encryption.mode == Encryption::Off {
        return condition("encryption", State::Off, "off by the settings");
    }
    let mode = serde_json::to_value(shared.config.encryption.mode).ok();
    let mode = mode.and_then(|mode| mode.as_str().map(str::to_owned)).unwrap_or_default();
    match proxy.and_then(|proxy| proxy.wireguard.as_ref()) {
        Some(device) if device.state.starts_with("running") => {
            let up = device.peers.iter().filter(|peer| peer.handshake_age_s.is_some()).count();
            let message = format!(
                "WireGuard by boringtun on {} ({mode}; this agent does not use the kernel's), {} peers, {up} with a session; {}",
                device.interface,
                device.peers.len(),
                device.state,
            );
            condition("encryption", State::Ok, message)
        }
        Some(device) => {
            condition("encryption", State::Failed, format!("{}; what is due for encryption is dropped", device.state))
        }
        None if due => condition(
            "encryption",
            State::Failed,
            "the proxy has no WireGuard device yet; what is due for encryption is dropped",
        ),
        None => condition("encryption", State::Ok, format!("WireGuard ({mode}): no other region is known")),
    }
}

fn mesh(appliers: &Appliers, shared: &Shared) -> Condition {
    if let Some(error) = appliers.state.errors.get("mesh") {
        return condition("mesh", State::Failed, error.clone());
    }
    let peers = shared.mesh.peers();
    let away: Vec<String> = peers
        .iter()
        .filter(|peer| peer.state != "connected" || !peer.synced)
        .map(|peer| format!("{} is {} {}", peer.cluster, peer.state, peer.error).trim_end().to_owned())
        .collect();
    match (peers.len(), away.is_empty()) {
        (0, _) => condition("mesh", State::Off, "no cluster is connected"),
        (count, true) => condition("mesh", State::Ok, format!("{count} clusters connected and in sync")),
        (_, false) => condition("mesh", State::Degraded, away.join("; ")),
    }
}
