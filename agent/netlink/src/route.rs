//! Routes of the main table.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use nix::libc;

use crate::link::family;
use crate::{Error, Netlink};

/// A unicast route of the main table through one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub destination: IpNet,
    /// Interface index.
    pub link: u32,
    /// Next hop; it is taken to be on the link, whatever the addresses there are.
    pub gateway: Option<IpAddr>,
    /// Source address for sockets that have not chosen one.
    pub source: Option<IpAddr>,
    /// Path MTU in bytes, where it is less than the interface's.
    pub mtu: Option<u32>,
    /// Who owns the route (`proto` in `ip route`).
    pub protocol: u8,
}

impl Netlink {
    /// Unicast routes of the main table, both families. Multipath routes are left out.
    pub fn routes(&mut self) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for any in [IpAddr::V4(0.into()), IpAddr::V6(0.into())] {
            let mut message = RouteMessage::default();
            message.header.address_family = family(any);
            let answers = self.dump(RouteNetlinkMessage::GetRoute(message), || "list routes".to_owned())?;
            routes.extend(answers.iter().filter_map(parse));
        }
        Ok(routes)
    }

    /// Adds a route, in place of one to the same destination.
    pub fn replace_route(&mut self, route: &Route) -> Result<(), Error> {
        let mut message = base(route);
        message.header.kind = RouteType::Unicast;
        message.header.scope = match (route.destination, route.gateway) {
            (IpNet::V4(_), None) => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        if let Some(gateway) = route.gateway {
            message.header.flags = RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Gateway(gateway.into()));
        }
        if let Some(source) = route.source {
            message.attributes.push(RouteAttribute::PrefSource(source.into()));
        }
        if let Some(mtu) = route.mtu {
            message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
        }
        self.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("add the route to {} through interface {}", route.destination, route.link)
        })?;
        Ok(())
    }

    /// Removes a route of that destination, interface and owner; that there is none is no error.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), Error> {
        let mut message = base(route);
        // Any scope matches.
        message.header.scope = RouteScope::NoWhere;
        let answer = self.request(RouteNetlinkMessage::DelRoute(message), 0, || {
            format!("remove the route to {} through interface {}", route.destination, route.link)
        });
        match answer {
            Err(error) if error.errno() == Some(libc::ESRCH) => Ok(()),
            answer => answer.map(drop),
        }
    }
}

fn base(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.destination.addr());
    message.header.destination_prefix_length = route.destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(route.protocol);
    if route.destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(route.destination.network().into()));
    }
    message.attributes.push(RouteAttribute::Oif(route.link));
    message
}

fn parse(message: &RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    let any = match header.address_family {
        netlink_packet_route::AddressFamily::Inet => IpAddr::V4(0.into()),
        netlink_packet_route::AddressFamily::Inet6 => IpAddr::V6(0.into()),
        _ => return None,
    };
    let mut link = None;
    let mut destination = any;
    let (mut gateway, mut source, mut mtu) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(Route {
        destination: IpNet::new(destination, header.destination_prefix_length).ok()?,
        link: link?,
        gateway,
        source,
        mtu,
        protocol: header.protocol.into(),
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
