//! The TUN interface's settings, addresses and routes.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use weft_netlink::{Netlink, Route};

use crate::Error;
use crate::config::{DeviceConfig, ROUTE_PROTOCOL};

/// Loose: only that the source is reachable at all. The strict form would drop what comes for other addresses of ours;
/// 0 would not help where the setting for all interfaces is strict, since the greater one counts.
const RP_FILTER_LOOSE: &str = "2";
const ADDR_GEN_MODE_NONE: &str = "1";

pub(crate) struct Interface {
    netlink: Netlink,
    index: u32,
    mtu: u32,
    addresses: Vec<IpAddr>,
}

impl Interface {
    /// Sets up the interface that the TUN device has just created or attached to.
    pub(crate) fn configure(config: &DeviceConfig) -> Result<Self, Error> {
        let name = &config.interface;
        let mut netlink = Netlink::open()?;
        let link = netlink.link(name)?.ok_or_else(|| Error::InterfaceGone { name: name.clone() })?;
        set_sysctl("ipv6", name, "addr_gen_mode", ADDR_GEN_MODE_NONE);
        set_sysctl("ipv4", name, "rp_filter", RP_FILTER_LOOSE);
        netlink.set_mtu(link.index, config.mtu)?;
        let wanted: Vec<_> = config.addresses.iter().copied().map(IpNet::from).collect();
        for stale in netlink.addresses(link.index)?.into_iter().filter(|address| !wanted.contains(address)) {
            netlink.delete_address(link.index, stale)?;
        }
        for address in &wanted {
            netlink.add_address(link.index, *address)?;
        }
        netlink.set_up(link.index, true)?;
        Ok(Self { netlink, index: link.index, mtu: config.mtu, addresses: config.addresses.clone() })
    }

    /// Makes our routes through the interface exactly those to `destinations`.
    pub(crate) fn set_routes(&mut self, destinations: impl Iterator<Item = IpNet>) -> Result<(), Error> {
        let wanted: Vec<_> = destinations.map(|destination| self.route(destination)).collect();
        let current: Vec<_> = self
            .netlink
            .routes()?
            .into_iter()
            .filter(|route| route.link == self.index && route.protocol == ROUTE_PROTOCOL)
            .collect();
        for route in wanted.iter().filter(|route| !current.contains(route)) {
            self.netlink.replace_route(route)?;
        }
        let is_wanted = |route: &Route| wanted.iter().any(|wanted| wanted.destination == route.destination);
        for route in current.iter().filter(|route| !is_wanted(route)) {
            self.netlink.delete_route(route)?;
        }
        Ok(())
    }

    fn route(&self, destination: IpNet) -> Route {
        let is_v4 = matches!(destination, IpNet::V4(_));
        Route {
            destination: destination.trunc(),
            link: self.index,
            gateway: None,
            source: self.addresses.iter().copied().find(|address| address.is_ipv4() == is_v4),
            mtu: Some(self.mtu),
            protocol: ROUTE_PROTOCOL,
        }
    }
}

/// Removes the interface and with it its routes, for cleaning up; that there is none is no error.
pub fn remove_interface(name: &str) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    if let Some(link) = netlink.link(name)? {
        netlink.delete_link(link.index)?;
    }
    Ok(())
}

/// A read-only /proc, as in some containers, must not keep the tunnel from working.
fn set_sysctl(family: &str, interface: &str, name: &str, value: &str) {
    let path: PathBuf = ["/proc/sys/net", family, "conf", interface, name].iter().collect();
    if let Err(error) = fs::write(&path, value) {
        tracing::warn!(path = %path.display(), value, %error, "cannot set; packets of the tunnel may be dropped");
    }
}
