//! Pods as the lab knows them: which are wanted, and what is reported of each.
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

/// The Pods that a source wants.
pub type Pods = BTreeMap<PodKey, Arc<Pod>>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodKey {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Where a pod runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub node: String,
    /// InternalIP first.
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerReport {
    pub name: String,
    pub pid: Option<i32>,
    pub ready: bool,
    pub restarts: u32,
    /// How it ended, where it will not be started again.
    pub exit: Option<i32>,
}

/// What a kubelet reports of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReport {
    pub key: PodKey,
    pub host: Host,
    pub ips: Vec<IpAddr>,
    pub phase: Phase,
    pub ready: bool,
    /// RFC 3339, once it is going away.
    pub deleted: Option<String>,
    pub started: Option<String>,
    pub containers: Vec<ContainerReport>,
    /// Why it is not running.
    pub message: Option<String>,
}

impl PodReport {
    /// Nothing more is expected of it: it is ready, or it has done its work.
    pub fn settled(&self) -> bool {
        self.ready || self.phase == Phase::Succeeded
    }

    /// The Pod's `status`.
    pub fn status(&self) -> Value {
        let condition = |kind: &str, holds: bool| {
            json!({"type": kind, "status": if holds { "True" } else { "False" },
                   "lastTransitionTime": self.started.clone().unwrap_or_else(now)})
        };
        let containers: Vec<Value> = self.containers.iter().map(container_status).collect();
        let address = |addresses: &[IpAddr]| addresses.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>();
        let mut status = json!({
            "phase": self.phase,
            "hostIP": self.host.addresses.first(),
            "hostIPs": address(&self.host.addresses),
            "conditions": [
                condition("PodScheduled", true),
                condition("Initialized", self.phase != Phase::Pending),
                condition("ContainersReady", self.ready),
                condition("Ready", self.ready),
            ],
            "containerStatuses": containers,
        });
        if let Some(ip) = self.ips.first() {
            status["podIP"] = json!(ip);
            status["podIPs"] = json!(address(&self.ips));
        }
        if let Some(message) = &self.message {
            status["message"] = json!(message);
        }
        if let Some(started) = &self.started {
            status["startTime"] = json!(started);
        }
        status
    }

    /// The whole Pod as an API server would show it.
    pub fn manifest(&self, pod: &Pod) -> Result<Value, serde_json::Error> {
        let mut value = serde_json::to_value(pod)?;
        value["apiVersion"] = json!("v1");
        value["kind"] = json!("Pod");
        value["metadata"]["namespace"] = json!(self.key.namespace);
        if let Some(deleted) = &self.deleted {
            value["metadata"]["deletionTimestamp"] = json!(deleted);
        }
        value["spec"]["nodeName"] = json!(self.host.node);
        if value["spec"]["serviceAccountName"].is_null() {
            value["spec"]["serviceAccountName"] = json!("default");
        }
        value["status"] = self.status();
        Ok(value)
    }
}

/// Now, as Kubernetes writes times.
pub fn now() -> String {
    let seconds = Timestamp::now().as_second();
    Timestamp::from_second(seconds).map(|time| time.to_string()).unwrap_or_default()
}

fn container_status(container: &ContainerReport) -> Value {
    let state = match (container.pid, container.exit) {
        (Some(_), _) => json!({"running": {}}),
        (None, Some(code)) => json!({"terminated": {"exitCode": code}}),
        (None, None) => json!({"waiting": {"reason": "ContainerCreating"}}),
    };
    json!({"name": container.name, "ready": container.ready, "started": container.pid.is_some(),
           "restartCount": container.restarts, "image": "", "imageID": "", "state": state})
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodStatus;

    #[test]
    fn a_report_is_a_valid_pod_status() {
        let report = PodReport {
            key: PodKey { namespace: "shop".into(), name: "api".into() },
            host: Host { node: "east-1".into(), addresses: vec!["172.20.1.1".parse().unwrap()] },
            ips: vec!["10.1.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            phase: Phase::Running,
            ready: true,
            deleted: Some(now()),
            started: Some(now()),
            containers: vec![ContainerReport {
                name: "server".into(),
                pid: Some(1),
                ready: true,
                ..Default::default()
            }],
            message: None,
        };
        let status: PodStatus = serde_json::from_value(report.status()).unwrap();
        assert_eq!(status.pod_ips.unwrap().len(), 2);
        let manifest = report.manifest(&Pod::default()).unwrap();
        assert_eq!(manifest["spec"]["nodeName"], "east-1");
        assert!(serde_json::from_value::<Pod>(manifest).unwrap().metadata.deletion_timestamp.is_some());
    }
}
