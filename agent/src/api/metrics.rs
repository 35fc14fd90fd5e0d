//! Prometheus metrics of the agent. They are read from the same pictures as the API's answers, at the time of asking.
use super::{rows, types::State};
use crate::shared::Shared;
use prometheus_client::{
    encoding::text::encode,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

type Labels = Vec<(String, String)>;

pub fn text(shared: &Shared) -> String {
    let status = rows::status(shared);
    let mut registry = Registry::with_prefix("weft_agent");
    let mut plain = |name: &str, help: &str, value: u64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    plain("ready", "1 once the kernel holds everything that the sources say", status.ready.into());
    plain("flows_seen", "Flows since the agent's start", status.flows_seen);
    plain("flows_lost", "Flows that nobody could take in time", status.flows_lost);
    plain("object_errors", "Objects and files that were refused", status.object_errors.len() as u64);
    let mut family = |name: &str, help: &str, values: Vec<(Labels, u64)>| {
        let family = Family::<Labels, Gauge>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        registry.register(name, help, family);
    };
    let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let drops = status.drops.iter().map(|(reason, count)| (vec![label("reason", reason)], *count));
    family("drops", "Packets dropped and connections refused in the kernel", drops.collect());
    let objects = status.objects.iter().map(|(kind, count)| (vec![label("kind", kind)], *count));
    family("objects", "Objects in the store", objects.collect());
    let entries = status.maps.iter().map(|map| (vec![label("map", &map.name)], map.entries));
    family("map_entries", "Entries of a kernel map", entries.collect());
    let max = status.maps.iter().map(|map| (vec![label("map", &map.name)], map.max));
    family("map_entries_max", "Room of a kernel map", max.collect());
    let conditions = status.conditions.iter().map(|condition| {
        let failed = condition.state == State::Failed;
        (vec![label("condition", &condition.name)], u64::from(!failed))
    });
    family("condition_ok", "0 for a part that does not work", conditions.collect());
    let peers = status.mesh.iter().map(|peer| {
        let connected = peer.state == "connected" && peer.synced;
        (vec![label("cluster", &peer.cluster)], u64::from(connected))
    });
    family("mesh_peer_synced", "1 for a connected cluster that is in sync", peers.collect());
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = encode(&mut text, &registry);
    text
}
