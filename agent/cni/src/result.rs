//! The result of ADD.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde::Serialize;

use crate::attachment::{Attachment, any, gateway};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AddResult<'a> {
    cni_version: &'a str,
    interfaces: [Interface<'a>; 2],
    ips: Vec<Ip>,
    routes: Vec<Route>,
    dns: Dns,
}

#[derive(Serialize)]
struct Interface<'a> {
    name: &'a str,
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<&'a Path>,
}

#[derive(Serialize)]
struct Ip {
    address: IpNet,
    gateway: IpAddr,
    /// Of the interface in the pod.
    interface: usize,
}

#[derive(Serialize)]
struct Route {
    dst: IpNet,
    gw: IpAddr,
}

#[derive(Serialize)]
struct Dns {}

impl<'a> AddResult<'a> {
    pub fn new(version: &'a str, attachment: &'a Attachment, namespace: &'a Path) -> Self {
        let host = Interface { name: &attachment.host_interface, mac: attachment.host_mac.to_string(), sandbox: None };
        let pod = Interface {
            name: &attachment.pod_interface,
            mac: attachment.pod_mac.to_string(),
            sandbox: Some(namespace),
        };
        let addresses = &attachment.addresses;
        Self {
            cni_version: version,
            interfaces: [host, pod],
            ips: addresses
                .iter()
                .map(|address| Ip { address: (*address).into(), gateway: gateway(*address), interface: 1 })
                .collect(),
            routes: addresses.iter().map(|address| Route { dst: any(*address), gw: gateway(*address) }).collect(),
            dns: Dns {},
        }
    }
}
