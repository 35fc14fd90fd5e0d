//! Clusters out of network namespaces on one Linux machine, for the demo, the tests, the benchmarks, and a first look.
//!
//! | module | knows |
//! | --- | --- |
//! | `spec`, `layout` | what a lab is made of; where it keeps what |
//! | `place`, `fabric` | namespaces and cgroups; the wires between nodes |
//! | `process`, `daemons` | keeping a program up; which programs a node has |
//! | `manifests`, `kubernetes`, `control_plane` | the two sources of pods |
//! | `kubelet`, `pod`, `container`, `probe`, `cni`, `pods`, `report` | running pods and reporting on them |
//! | `cluster`, `supervisor`, `control`, `cleanup` | the whole, its socket, its end |
//! | `lab` | the vocabulary of tests |
//! | `server`, `load`, `dial` | what runs in example pods |
//!
//! Tasks: the supervisor owns the clusters; a cluster owns its source, its kubelet, a look at each agent, and two
//! daemons a node; a kubelet owns its pods, a pod its containers. Each ends with its owner. Channels are `watch`
//! (latest value only), and one of eight orders for each daemon.
mod cleanup;
mod cluster;
mod cni;
mod container;
pub mod control;
mod control_plane;
mod daemons;
pub mod dial;
mod fabric;
mod forward;
mod kubelet;
mod kubernetes;
pub mod lab;
pub mod layout;
pub mod load;
mod manifests;
pub mod place;
mod pod;
pub mod pods;
mod probe;
mod process;
mod readiness;
mod report;
pub mod server;
pub mod spec;
pub mod start;
mod supervisor;

pub use cleanup::{sweep, take_down};
pub use lab::Lab;
pub use supervisor::run as supervise;

use crate::{control::LabStatus, layout::Layout, place::Place, pods::PodReport};
use std::{io, path::PathBuf};

/// A pod of a cluster by `POD` or `NAMESPACE/POD`; without a namespace the name must be the only one.
pub fn find_pod(status: &LabStatus, cluster: &str, name: &str) -> Result<PodReport, String> {
    let clusters = status.clusters.iter().filter(|one| one.name == cluster);
    let pods: Vec<&PodReport> = clusters.flat_map(|cluster| &cluster.pods).collect();
    let (namespace, pod) = name.split_once('/').map_or((None, name), |(namespace, pod)| (Some(namespace), pod));
    let fits = |report: &&&PodReport| {
        report.key.name == pod && namespace.is_none_or(|namespace| report.key.namespace == namespace)
    };
    let found: Vec<&&PodReport> = pods.iter().filter(fits).collect();
    match found[..] {
        [report] => Ok((*report).clone()),
        [] => {
            let known: Vec<String> = pods.iter().map(|report| report.key.to_string()).collect();
            Err(format!("cluster {cluster} has no pod {name}; it has: {}", known.join(", ")))
        }
        _ => Err(format!("cluster {cluster} has several pods {pod}: name its namespace, as in NAMESPACE/{pod}")),
    }
}

/// Where the processes of a pod run.
pub fn pod_place(layout: &Layout, cluster: &str, report: &PodReport) -> Place {
    let (namespace, name) = (&report.key.namespace, &report.key.name);
    let netns = layout.pod_netns(cluster, namespace, name);
    let own = layout::netns_path(&netns).exists();
    let netns = if own { netns } else { layout.node_netns(cluster, &report.host.node) };
    Place { netns, cgroup: layout.pod_cgroup(cluster, &report.host.node, namespace, name) }
}

/// A binary of Weft's, where the lab finds them.
pub fn binary(name: &str) -> io::Result<PathBuf> {
    Ok(daemons::Built::find()?.binary(name))
}

/// This program itself, or the one beside the tests.
pub fn program() -> io::Result<PathBuf> {
    let beside = binary("weft-lab")?;
    if beside.exists() { Ok(beside) } else { std::env::current_exe() }
}
