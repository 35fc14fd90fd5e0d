//! What the data path is doing now, for `weft status` and metrics.
use crate::{
    error::DatapathError,
    load::{AttachMode, Datapath},
    sys,
};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray},
};
use serde::Serialize;
use std::{collections::BTreeMap, path::Path};
use weft_bpf_abi::{
    event::{DROPS, LOST_EVENTS, Reason},
    lb::{
        AFFINITY, AFFINITY_MAX, Affinity, AffinityKey, BACKENDS, BACKENDS_MAX, Frontend, MEMBERS, MEMBERS_MAX,
        NODE_ADDRESSES, NODE_ADDRESSES_MAX, REVERSE, REVERSE_MAX, ReverseKey, SERVICES, SERVICES_MAX,
    },
    net::{AUTH_DESTINATIONS, AUTH_DESTINATIONS_MAX, ENDPOINTS, ENDPOINTS_MAX, IPCACHE, IPCACHE_MAX},
    policy::{CONNTRACK, CONNTRACK_MAX, Conn, ConnKey, POLICY, POLICY_MAX},
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The programs let traffic pass.
    pub ready: bool,
    pub attach_mode: AttachMode,
    pub maps: Vec<MapFill>,
    pub programs: Vec<ProgramStatus>,
    pub links: Vec<LinkStatus>,
    /// Packets and refused connections since the maps were made, by reason; those that never happened are left out.
    pub drops: BTreeMap<&'static str, u64>,
    pub lost_events: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MapFill {
    pub name: &'static str,
    pub entries: u64,
    pub max: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramStatus {
    pub name: String,
    pub id: u32,
    /// How many instructions the verifier walked; 0: the kernel does not tell.
    pub verified_instructions: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkStatus {
    /// `PROGRAM`, or `PROGRAM-INTERFACE`.
    pub name: String,
    pub program_id: u32,
    /// False: its interface, cgroup or namespace is gone.
    pub attached: bool,
}

impl Datapath {
    /// Counts what is in the maps: some 100 ms where connection tables are full.
    pub fn status(&self) -> Result<Status, DatapathError> {
        let maps = self.map_dir();
        let (drops, lost_events) = counters(&maps)?;
        Ok(Status {
            ready: self.ready(),
            attach_mode: self.attach_mode(),
            maps: self.fill(&maps)?,
            programs: self.program_status(),
            links: self.link_status(),
            drops,
            lost_events,
        })
    }

    fn fill(&self, maps: &Path) -> Result<Vec<MapFill>, DatapathError> {
        let tables = self.tables();
        let fill = |name, entries: usize, max| MapFill { name, entries: entries as u64, max };
        Ok(vec![
            fill(SERVICES, tables.services.services.known().len(), SERVICES_MAX),
            fill(BACKENDS, tables.services.backends.known().len(), BACKENDS_MAX),
            fill(MEMBERS, tables.services.members.known().len(), MEMBERS_MAX),
            fill(NODE_ADDRESSES, tables.node_addresses.known().len(), NODE_ADDRESSES_MAX),
            fill(IPCACHE, tables.ipcache.known().len(), IPCACHE_MAX),
            fill(ENDPOINTS, tables.endpoints.known().len(), ENDPOINTS_MAX),
            fill(AUTH_DESTINATIONS, tables.auth_destinations.known().len(), AUTH_DESTINATIONS_MAX),
            fill(POLICY, tables.policy.known().len(), POLICY_MAX),
            fill(CONNTRACK, count::<ConnKey, Conn>(maps, CONNTRACK, CONNTRACK_MAX)?, CONNTRACK_MAX),
            fill(AFFINITY, count::<AffinityKey, Affinity>(maps, AFFINITY, AFFINITY_MAX)?, AFFINITY_MAX),
            fill(REVERSE, count::<ReverseKey, Frontend>(maps, REVERSE, REVERSE_MAX)?, REVERSE_MAX),
        ])
    }

    fn program_status(&self) -> Vec<ProgramStatus> {
        let status = |(name, program): (&str, &aya::programs::Program)| ProgramStatus {
            name: name.to_owned(),
            id: program.info().map_or(0, |info| info.id()),
            verified_instructions: self.verified.get(name).copied().unwrap_or(0),
        };
        let mut programs: Vec<_> = self.bpf.programs().map(status).collect();
        programs.sort_by(|a, b| a.name.cmp(&b.name));
        programs
    }

    fn link_status(&self) -> Vec<LinkStatus> {
        let status = |name: String| {
            let link = sys::open_pin(&self.links_dir().join(&name)).and_then(|fd| sys::link(&fd));
            let (program_id, attached) = link.map_or((0, false), |link| (link.program_id, link.target != 0));
            LinkStatus { name, program_id, attached }
        };
        let mut links: Vec<_> = self.pins().into_iter().map(status).collect();
        links.sort_by(|a, b| a.name.cmp(&b.name));
        links
    }
}

/// Drops by reason, and events that were lost. Needs no loaded programs, only the pinned maps.
pub fn counters(map_dir: &Path) -> Result<(BTreeMap<&'static str, u64>, u64), DatapathError> {
    let drops = per_cpu(map_dir, DROPS)?;
    let lost = per_cpu(map_dir, LOST_EVENTS)?;
    let sum = |counters: &PerCpuArray<MapData, u64>, name, index| {
        let values = counters.get(&index, 0).map_err(unreadable(name))?;
        Ok::<u64, DatapathError>(values.iter().sum())
    };
    let mut by_reason = BTreeMap::new();
    for reason in Reason::ALL.into_iter().filter(|reason| *reason != Reason::Forwarded) {
        let packets = sum(&drops, DROPS, reason as u32)?;
        if packets > 0 {
            by_reason.insert(reason.name(), packets);
        }
    }
    Ok((by_reason, sum(&lost, LOST_EVENTS, 0)?))
}

fn per_cpu(maps: &Path, name: &'static str) -> Result<PerCpuArray<MapData, u64>, DatapathError> {
    let map = MapData::from_pin(maps.join(name)).map_err(unreadable(name))?;
    Map::PerCpuArray(map).try_into().map_err(unreadable(name))
}

/// Connections come and go while this counts, so it stops at the map's size.
fn count<K: Pod, V: Pod>(maps: &Path, name: &'static str, max: u32) -> Result<usize, DatapathError> {
    let map = MapData::from_pin(maps.join(name)).map_err(unreadable(name))?;
    let map: HashMap<MapData, K, V> = Map::LruHashMap(map).try_into().map_err(unreadable(name))?;
    Ok(map.keys().take(max as usize).filter(Result::is_ok).count())
}

fn unreadable(map: &'static str) -> impl Fn(MapError) -> DatapathError {
    move |cause| DatapathError::Map { map, cause: Box::new(cause) }
}
