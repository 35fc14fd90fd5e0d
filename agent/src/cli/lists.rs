//! The `list` commands.
use super::{
    Global, client, contexts,
    output::{or_dash, print, table},
};
use crate::api::types::{BackendRow, EndpointRow, IdentityRow, PluginRow, PolicyRow, ServiceRow};
use anyhow::Result;
use http::Method;
use serde::{Serialize, de::DeserializeOwned};

pub async fn services(global: &Global) -> Result<()> {
    let context = contexts::chosen(global)?;
    let rows: Vec<ServiceRow> = client::any(&context, Method::GET, "/v1/services", None::<&()>).await?;
    print(global.output, &rows, |rows| {
        let lines = rows.iter().flat_map(|service| {
            service.frontends.iter().map(move |row| {
                let frontend = &row.frontend;
                [
                    service.name.to_string(),
                    format!("{:?}", frontend.kind),
                    format!("{}/{}", std::net::SocketAddr::new(frontend.addr, frontend.port), protocol(frontend)),
                    backends(&row.backends),
                    or_dash(service.global.clone()),
                ]
            })
        });
        table(["NAME", "KIND", "FRONTEND", "BACKENDS", "GLOBAL"], lines)
    })
}

fn protocol(frontend: &weft_model::types::Frontend) -> String {
    format!("{:?}", frontend.protocol).to_uppercase()
}

fn backends(rows: &[BackendRow]) -> String {
    const SHOWN: usize = 4;
    let mut text: Vec<String> = rows
        .iter()
        .take(SHOWN)
        .map(|row| format!("{} ({})", std::net::SocketAddr::new(row.address, row.port), row.cluster))
        .collect();
    if rows.len() > SHOWN {
        text.push(format!("and {} more", rows.len() - SHOWN));
    }
    if text.is_empty() { "none: refuses".to_owned() } else { text.join(", ") }
}

pub async fn endpoints(global: &Global) -> Result<()> {
    print(global.output, &of_all_nodes::<EndpointRow>(global, "/v1/endpoints").await?, |rows| {
        let lines = rows.iter().map(|row| {
            [
                row.pod.to_string(),
                row.node.clone(),
                row.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
                row.identity.to_string(),
                row.policy.clone(),
                row.spiffe_id.clone(),
            ]
        });
        table(["POD", "NODE", "ADDRESSES", "IDENTITY", "POLICY", "SPIFFE ID"], lines)
    })
}

pub async fn identities(global: &Global) -> Result<()> {
    print(global.output, &of_all_nodes::<IdentityRow>(global, "/v1/identities").await?, |rows| {
        let lines = rows.iter().map(|row| {
            let labels = row.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ");
            [row.id.to_string(), row.node.clone(), or_dash(row.cidr.clone().unwrap_or(labels))]
        });
        table(["ID", "NODE", "LABELS OR CIDR"], lines)
    })
}

pub async fn policies(global: &Global) -> Result<()> {
    print(global.output, &of_all_nodes::<PolicyRow>(global, "/v1/policies").await?, |rows| {
        let lines = rows.iter().map(|row| {
            let endpoints = row.status.endpoints.len().to_string();
            [row.status.kind.clone(), row.status.name.clone(), row.node.clone(), endpoints, row.status.state.clone()]
        });
        table(["KIND", "NAME", "NODE", "LOCAL PODS", "STATE"], lines)
    })
}

pub async fn plugins(global: &Global) -> Result<()> {
    print(global.output, &of_all_nodes::<PluginRow>(global, "/v1/plugins").await?, |rows| {
        let lines = rows.iter().map(|PluginRow { node, status }| {
            let hash = status.sha256.get(..12).unwrap_or(&status.sha256).to_owned();
            [
                status.name.clone(),
                node.clone(),
                format!("{}/{}", status.phase, status.priority),
                or_dash(hash),
                status.requests.to_string(),
                status.denied.to_string(),
                status.faults.to_string(),
                format!("{:.1} MiB", status.memory_bytes as f64 / f64::from(1 << 20)),
                status.state.clone(),
            ]
        });
        table(["NAME", "NODE", "PHASE/PRIORITY", "SHA256", "REQUESTS", "DENIED", "FAULTS", "MEMORY", "STATE"], lines)
    })
}

async fn of_all_nodes<T: Serialize + DeserializeOwned>(global: &Global, path: &str) -> Result<Vec<T>> {
    let context = contexts::chosen(global)?;
    let lists: Vec<Vec<T>> = client::every(&context, path).await?;
    Ok(lists.into_iter().flatten().collect())
}
