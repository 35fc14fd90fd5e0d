//! The API's answers, from what the control loop last published.
use super::types::{
    BackendRow, EndpointRow, FrontendRow, IdentityRow, MeshStatus, PluginRow, PolicyRow, ServiceRow, Status,
};
use crate::shared::Shared;
use std::collections::BTreeMap;
use weft_clustermesh_core::connect::ConnectInfo;
use weft_model::{
    snapshot::Snapshot,
    types::{ClusterName, GlobalService, ServiceView},
};

pub fn ready(shared: &Shared) -> bool {
    shared.report.load().ready
}

pub fn status(shared: &Shared) -> Status {
    let report = shared.report.load();
    let proxy = shared.proxy.borrow().clone();
    let snapshot = shared.snapshot.load();
    let (flows_seen, flows_lost) = shared.flows.counts();
    let mut object_errors = Vec::new();
    let mut objects = BTreeMap::new();
    if let Some(snapshot) = snapshot.as_deref() {
        object_errors.extend(snapshot.object_errors.iter().cloned());
        for (kind, count) in [
            ("services", snapshot.services.len()),
            ("nodes", snapshot.nodes.len()),
            ("workloads", snapshot.workloads.len()),
            ("identities", snapshot.identities.len()),
            ("policies", snapshot.policy_status.len()),
            ("plugins", snapshot.plugins.len()),
            ("mesh peers", snapshot.mesh_peers.len()),
        ] {
            objects.insert(kind.to_owned(), count as u64);
        }
    }
    Status {
        node: shared.config.node.clone(),
        cluster: shared.config.cluster.to_string(),
        cluster_id: shared.cluster_id,
        trust_domain: shared.config.trust_domain().to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ready: report.ready,
        conditions: report.conditions.clone(),
        maps: report.maps.clone(),
        drops: report.drops.clone(),
        objects,
        object_errors,
        proxy: proxy.status,
        mesh: shared.mesh.peers(),
        flows_seen,
        flows_lost: flows_lost + report.kernel_events_lost,
    }
}

pub fn services(shared: &Shared) -> Vec<ServiceRow> {
    of_snapshot(shared, |snapshot| {
        snapshot.services.values().map(|view| service(view, &snapshot.cluster, &snapshot.node_name)).collect()
    })
}

fn service(view: &ServiceView, cluster: &ClusterName, node: &str) -> ServiceRow {
    let frontends = view.service.frontends.iter().map(|frontend| FrontendRow {
        frontend: frontend.clone(),
        backends: view
            .usable_for(frontend, cluster, node)
            .into_iter()
            .map(|backend| BackendRow {
                address: backend.addr,
                port: backend.port,
                cluster: backend.cluster.to_string(),
                pod: backend.pod.clone(),
                node: backend.node.clone(),
            })
            .collect(),
    });
    ServiceRow {
        name: view.service.name.clone(),
        kind: view.service.kind.clone(),
        frontends: frontends.collect(),
        global: view.service.global.map_or("-".to_owned(), global),
        session_affinity_s: view.service.session_affinity.map(|timeout| timeout.as_secs()),
    }
}

fn global(global: GlobalService) -> String {
    let shared = if global.shared { "shared" } else { "not shared" };
    format!("{shared}, affinity {}", format!("{:?}", global.affinity).to_lowercase())
}

pub fn endpoints(shared: &Shared) -> Vec<EndpointRow> {
    let endpoints = shared.endpoints.load();
    let Some(snapshot) = shared.snapshot.load_full() else { return vec![] };
    let rows = endpoints.all().map(|endpoint| {
        let pod = endpoint.pod();
        let workload = snapshot.local_workloads().find(|workload| workload.pod == pod);
        let policy = match snapshot.policies.get(&pod).map(|policy| (policy.enforce_ingress, policy.enforce_egress)) {
            Some((true, true)) => "both",
            Some((true, false)) => "ingress",
            Some((false, true)) => "egress",
            _ => "none",
        };
        EndpointRow {
            id: endpoint.id,
            node: snapshot.node_name.clone(),
            addresses: endpoint.created.addresses.clone(),
            identity: workload.map_or(0, |workload| workload.identity),
            interface: endpoint.created.interface.clone(),
            policy: policy.to_owned(),
            spiffe_id: workload.map_or_else(|| "-".to_owned(), |workload| workload.spiffe_id().to_string()),
            pod,
        }
    });
    rows.collect()
}

pub fn identities(shared: &Shared) -> Vec<IdentityRow> {
    of_snapshot(shared, |snapshot| {
        let row = |identity: &weft_model::types::SecurityIdentity| IdentityRow {
            id: identity.id,
            node: snapshot.node_name.clone(),
            labels: identity.labels.clone(),
            cidr: identity.cidr.map(|cidr| cidr.to_string()),
        };
        snapshot.identities.values().map(row).collect()
    })
}

pub fn policies(shared: &Shared) -> Vec<PolicyRow> {
    of_snapshot(shared, |snapshot| {
        let row = |status: &weft_model::policy::PolicyStatus| PolicyRow {
            node: snapshot.node_name.clone(),
            status: status.clone(),
        };
        snapshot.policy_status.iter().map(row).collect()
    })
}

pub fn plugins(shared: &Shared) -> Vec<PluginRow> {
    let proxy = shared.proxy.borrow();
    let plugins = proxy.status.iter().flat_map(|status| &status.plugins);
    plugins.map(|status| PluginRow { node: shared.config.node.clone(), status: status.clone() }).collect()
}

pub fn mesh(shared: &Shared) -> MeshStatus {
    MeshStatus {
        node: shared.config.node.clone(),
        cluster: shared.config.cluster.to_string(),
        cluster_id: shared.cluster_id,
        trust_domain: shared.config.trust_domain().to_string(),
        listen: shared.config.mesh.listen.map(|at| at.to_string()),
        peers: shared.mesh.peers(),
    }
}

pub fn connect_info(shared: &Shared) -> ConnectInfo {
    ConnectInfo {
        cluster: shared.config.cluster.clone(),
        cluster_id: shared.cluster_id,
        trust_domain: shared.config.trust_domain(),
        trust_bundle_pem: shared.trust_bundle_pem.clone(),
        endpoints: shared.config.mesh.listen.iter().map(ToString::to_string).collect(),
    }
}

fn of_snapshot<T>(shared: &Shared, rows: impl FnOnce(&Snapshot) -> Vec<T>) -> Vec<T> {
    shared.snapshot.load_full().map_or_else(Vec::new, |snapshot| rows(&snapshot))
}
