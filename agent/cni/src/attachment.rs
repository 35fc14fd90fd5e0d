//! A pod's link to its node: a veth pair with a host address in the pod, a default route over a link-local gateway, and
//! fixed neighbours on both ends, so that nobody has to answer ARP or neighbour discovery.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use ipnet::IpNet;
use weft_netlink::{Link, Mac, Netlink, Route, Veth, namespace};

use crate::error::Error;
use crate::names;
use crate::request::ContainerId;
use crate::sysctl;

/// Owner of routes (`proto` in `ip route`), the same as the agent's.
const ROUTE_PROTOCOL: u8 = 77;
/// Nobody has these addresses: the pod's neighbour entries lead them to the host's end.
const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
const ADDR_GEN_MODE_NONE: &str = "1";

/// What belongs to one pod.
#[derive(Debug)]
pub struct Attachment {
    pub host_interface: String,
    pub host_mac: Mac,
    pub pod_interface: String,
    pub pod_mac: Mac,
    pub addresses: Vec<IpAddr>,
    /// Of the interfaces, in bytes.
    pub mtu: u32,
    /// Of the pod's routes, in bytes.
    pub route_mtu: u32,
}

pub fn gateway(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { GATEWAY_V4 } else { GATEWAY_V6 }
}

/// All addresses of the same family.
pub fn any(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => ipnet::Ipv4Net::default().into(),
        IpAddr::V6(_) => ipnet::Ipv6Net::default().into(),
    }
}

impl Attachment {
    pub fn new(container: &ContainerId, pod_interface: &str, addresses: Vec<IpAddr>, mtu: u32, route_mtu: u32) -> Self {
        let (host_mac, pod_mac) = names::hardware_addresses(container);
        Self {
            host_interface: names::host_interface(container),
            host_mac,
            pod_interface: pod_interface.to_owned(),
            pod_mac,
            addresses,
            mtu,
            route_mtu,
        }
    }

    /// Makes all but the last step: the host's end stays down, so nothing passes.
    pub fn create(&self, netns: &File) -> Result<(), Error> {
        let mut netlink = Netlink::open()?;
        // What an ADD that was interrupted has left.
        if let Some(stale) = netlink.link(&self.host_interface)? {
            netlink.delete_link(stale.index)?;
        }
        let exists = namespace::within(netns, || Netlink::open()?.link(&self.pod_interface))??.is_some();
        if exists {
            return Err(Error::InterfaceExists { name: self.pod_interface.clone() });
        }
        netlink.create_veth(&Veth {
            name: &self.host_interface,
            mac: self.host_mac,
            peer_name: &self.pod_interface,
            peer_mac: self.pod_mac,
            peer_namespace: netns.as_fd(),
            mtu: self.mtu,
        })?;
        let host = &self.host_interface;
        // Pods answer for any address that a service translation needs; their sources are checked by our programs.
        sysctl::set("ipv4", host, "rp_filter", "0")?;
        sysctl::set("ipv4", host, "accept_local", "1")?;
        sysctl::set("ipv4", host, "forwarding", "1")?;
        sysctl::set("ipv6", host, "addr_gen_mode", ADDR_GEN_MODE_NONE)?;
        sysctl::set("ipv6", host, "accept_ra", "0")?;
        sysctl::set("ipv6", host, "forwarding", "1")?;
        namespace::within(netns, || self.configure_pod())?
    }

    /// Inside the pod's namespace.
    fn configure_pod(&self) -> Result<(), Error> {
        let mut netlink = Netlink::open()?;
        if let Some(loopback) = netlink.link("lo")? {
            netlink.set_up(loopback.index, true)?;
        }
        let link = self.find(&mut netlink, &self.pod_interface)?;
        let pod = &self.pod_interface;
        sysctl::set("ipv6", pod, "addr_gen_mode", ADDR_GEN_MODE_NONE)?;
        sysctl::set("ipv6", pod, "accept_dad", "0")?;
        sysctl::set("ipv6", pod, "accept_ra", "0")?;
        for address in &self.addresses {
            netlink.add_address(link.index, (*address).into())?;
        }
        netlink.set_up(link.index, true)?;
        for address in &self.addresses {
            netlink.set_neighbour(link.index, gateway(*address), self.host_mac)?;
            netlink.replace_route(&self.pod_route(*address, link.index))?;
        }
        Ok(())
    }

    /// The last step: packets flow.
    pub fn open(&self) -> Result<(), Error> {
        let mut netlink = Netlink::open()?;
        let link = self.find(&mut netlink, &self.host_interface)?;
        netlink.set_up(link.index, true)?;
        for address in &self.addresses {
            netlink.set_neighbour(link.index, *address, self.pod_mac)?;
            netlink.replace_route(&host_route(*address, link.index))?;
        }
        Ok(())
    }

    /// Whether all is still as `create` and `open` left it.
    pub fn check(&self, netns: &File) -> Result<(), Error> {
        let wrong = |problem: String| Err(Error::Check { problem });
        let mut netlink = Netlink::open()?;
        let host = self.find(&mut netlink, &self.host_interface)?;
        if !host.up {
            return wrong(format!("{} is down", host.name));
        }
        let routes = netlink.routes()?;
        if let Some(address) =
            self.addresses.iter().find(|address| !routes.contains(&host_route(**address, host.index)))
        {
            return wrong(format!("the node has no route to {address}"));
        }
        namespace::within(netns, || {
            let mut netlink = Netlink::open()?;
            let pod = self.find(&mut netlink, &self.pod_interface)?;
            if !pod.up || pod.mtu != self.mtu || pod.mac != Some(self.pod_mac) {
                return wrong(format!("{} is not up, or has another MTU or hardware address", pod.name));
            }
            let addresses = netlink.addresses(pod.index)?;
            let routes = netlink.routes()?;
            for address in &self.addresses {
                if !addresses.contains(&IpNet::from(*address)) {
                    return wrong(format!("{} has lost {address}", pod.name));
                }
                if !routes.contains(&self.pod_route(*address, pod.index)) {
                    return wrong(format!("the pod has no default route over {}", gateway(*address)));
                }
            }
            Ok(())
        })?
    }

    fn find(&self, netlink: &mut Netlink, name: &str) -> Result<Link, Error> {
        netlink.link(name)?.ok_or_else(|| Error::Check { problem: format!("{name} is gone") })
    }

    fn pod_route(&self, address: IpAddr, link: u32) -> Route {
        Route {
            destination: any(address),
            link,
            gateway: Some(gateway(address)),
            source: None,
            mtu: Some(self.route_mtu),
            protocol: ROUTE_PROTOCOL,
        }
    }
}

/// Removes the pod's veth pair, and with it routes and neighbours; that there is none is no error.
pub fn remove(container: &ContainerId) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    match netlink.link(&names::host_interface(container))? {
        None => Ok(()),
        Some(link) => match netlink.delete_link(link.index) {
            // The pod's namespace went away at the same time.
            Err(error) if error.errno() == Some(nix::libc::ENODEV) => Ok(()),
            outcome => outcome.map_err(Error::from),
        },
    }
}

fn host_route(address: IpAddr, link: u32) -> Route {
    Route { destination: address.into(), link, gateway: None, source: None, mtu: None, protocol: ROUTE_PROTOCOL }
}
