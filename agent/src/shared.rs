//! What the API reads while the control loop works: immutable pictures, swapped whole.
use crate::{
    api::types::{Condition, MapFill},
    config::Config,
    control::Command,
    endpoints::EndpointTable,
    mesh::MeshView,
    proxy::link::ProxyState,
};
use arc_swap::{ArcSwap, ArcSwapOption};
use std::collections::BTreeMap;
use tokio::sync::{mpsc, watch};
use weft_flows::ring::FlowRing;
use weft_model::snapshot::Snapshot;

pub struct Shared {
    pub config: Config,
    pub cluster_id: u32,
    pub trust_bundle_pem: String,
    pub snapshot: ArcSwapOption<Snapshot>,
    pub report: ArcSwap<Report>,
    pub endpoints: ArcSwap<EndpointTable>,
    pub flows: FlowRing,
    pub proxy: watch::Receiver<ProxyState>,
    pub mesh: MeshView,
    pub commands: mpsc::Sender<Command>,
}

/// What the control loop says of itself after each round.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The kernel holds everything that the sources say.
    pub ready: bool,
    pub conditions: Vec<Condition>,
    pub maps: Vec<MapFill>,
    pub drops: BTreeMap<String, u64>,
    pub kernel_events_lost: u64,
}
