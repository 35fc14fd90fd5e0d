//! Routes and rules of the node: pod ranges of the other nodes, and the local delivery of captured packets. Ours carry a
//! protocol number of their own, so that they can be told from everybody else's.
use crate::{error::DatapathError, plan::Route, sysctl};
use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    Handle, IpVersion, RouteMessageBuilder,
    packet_route::{
        address::AddressAttribute,
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};
use serde::Serialize;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};
use tokio::task::JoinHandle;
use weft_bpf_abi::mark;

/// `ip route show proto 77`; the CNI plugin uses it too.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(77);

/// What one pass over the routes did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RouteReport {
    pub added: usize,
    pub removed: usize,
    /// Route and reason. Tried again at the next pass.
    pub failures: Vec<(String, String)>,
}

/// Belongs to the network namespace that it was made in.
pub struct Router {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Router {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Router {
    /// Must be called inside a tokio runtime, on a thread of the node's network namespace.
    pub fn new() -> Result<Self, DatapathError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(DatapathError::Netlink)?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// Delivers packets that the programs have marked to this node's own sockets, whatever their destination.
    pub async fn deliver_captured(&self) -> Result<(), DatapathError> {
        for version in families() {
            let missing = self.rules(&version).await?.is_empty();
            let what = || "the rule for captured packets";
            let (rule, route) = (self.handle.rule().add(), self.handle.route());
            if missing {
                let added = match version {
                    IpVersion::V4 => captured_rule(rule).v4().execute().await,
                    IpVersion::V6 => captured_rule(rule).v6().execute().await,
                };
                added.or_else(already_there).map_err(|cause| failed(what(), cause))?;
            }
            let added = match version {
                IpVersion::V4 => route.add(captured_route(RouteMessageBuilder::<Ipv4Addr>::new())).execute().await,
                IpVersion::V6 => route.add(captured_route(RouteMessageBuilder::<Ipv6Addr>::new())).execute().await,
            };
            added.or_else(already_there).map_err(|cause| failed("the route for captured packets", cause))?;
        }
        Ok(())
    }

    /// Makes the routes to other nodes' pods what the plan says. Routes of others are left alone.
    pub async fn reconcile(&self, desired: &BTreeSet<Route>) -> Result<RouteReport, DatapathError> {
        let mut report = RouteReport::default();
        let mut actual = BTreeSet::new();
        for message in self.routes().await? {
            // Routes with our number but no gateway are those of local pods, the tunnel and captured packets.
            let Some(route) = parse(&message) else { continue };
            if desired.contains(&route) {
                actual.insert(route);
                continue;
            }
            match self.handle.route().del(message).execute().await {
                Ok(()) => report.removed += 1,
                Err(cause) => report.failures.push((text(&route), cause.to_string())),
            }
        }
        for route in desired.difference(&actual) {
            match self.add(route).await {
                Ok(()) => report.added += 1,
                Err(cause) => report.failures.push((text(route), cause.to_string())),
            }
        }
        Ok(report)
    }

    /// Every address of this node's interfaces, loopback left out: `NodeSettings::host_addresses`.
    pub async fn local_addresses(&self) -> Result<Vec<IpAddr>, DatapathError> {
        let messages: Vec<_> =
            self.handle.address().get().execute().try_collect().await.map_err(|cause| failed("addresses", cause))?;
        let address = |attribute: &AddressAttribute| match attribute {
            AddressAttribute::Local(addr) | AddressAttribute::Address(addr) => Some(*addr),
            _ => None,
        };
        let own = |attributes: &[AddressAttribute]| {
            let local = attributes.iter().find(|a| matches!(a, AddressAttribute::Local(_)));
            local.and_then(address).or_else(|| attributes.iter().find_map(address))
        };
        let all = messages.iter().filter_map(|message| own(&message.attributes));
        Ok(all.filter(|addr| !addr.is_loopback()).collect())
    }

    /// Removes the routes and rules that this makes. Returns how many of each there were.
    pub async fn remove_all(&self) -> Result<(usize, usize), DatapathError> {
        let (mut routes, mut rules) = (0, 0);
        for version in families() {
            for rule in self.rules(&version).await? {
                self.handle.rule().del(rule).execute().await.map_err(|cause| failed("a rule", cause))?;
                rules += 1;
            }
        }
        for route in self.routes().await? {
            // Routes to local pods are the CNI plugin's, and go with the pods.
            if parse(&route).is_some() || table(&route) == mark::CAPTURED_TABLE {
                self.handle.route().del(route).execute().await.map_err(|cause| failed("a route", cause))?;
                routes += 1;
            }
        }
        Ok((routes, rules))
    }

    async fn add(&self, route: &Route) -> Result<(), rtnetlink::Error> {
        let (net, routes) = (route.destination, self.handle.route());
        let message = match (net, route.via) {
            (IpNet::V4(net), IpAddr::V4(via)) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .gateway(via)
                .protocol(PROTOCOL)
                .build(),
            (IpNet::V6(net), IpAddr::V6(via)) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .gateway(via)
                .protocol(PROTOCOL)
                .build(),
            // The plan pairs families.
            _ => return Ok(()),
        };
        routes.add(message).replace().execute().await
    }

    /// Ours, of every table.
    async fn routes(&self) -> Result<Vec<RouteMessage>, DatapathError> {
        let mut ours = Vec::new();
        for version in families() {
            let query = match version {
                IpVersion::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
                IpVersion::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
            };
            let all: Vec<RouteMessage> = self
                .handle
                .route()
                .get(query)
                .execute()
                .try_collect()
                .await
                .map_err(|cause| failed("routes", cause))?;
            ours.extend(all.into_iter().filter(|message| message.header.protocol == PROTOCOL));
        }
        Ok(ours)
    }

    async fn rules(&self, version: &IpVersion) -> Result<Vec<RuleMessage>, DatapathError> {
        let rules = self.handle.rule().get(version.clone()).execute();
        let all: Vec<RuleMessage> = rules.try_collect().await.map_err(|cause| failed("rules", cause))?;
        let ours = |rule: &RuleMessage| {
            rule.attributes.contains(&RuleAttribute::Priority(mark::CAPTURED_RULE_PRIORITY))
                && rule.attributes.contains(&RuleAttribute::FwMark(mark::CAPTURED))
        };
        Ok(all.into_iter().filter(ours).collect())
    }
}

fn families() -> Vec<IpVersion> {
    if sysctl::has_ipv6() { vec![IpVersion::V4, IpVersion::V6] } else { vec![IpVersion::V4] }
}

fn captured_rule(mut request: rtnetlink::RuleAddRequest) -> rtnetlink::RuleAddRequest {
    request.message_mut().attributes.extend([RuleAttribute::FwMask(mark::MASK), RuleAttribute::Protocol(PROTOCOL)]);
    request
        .priority(mark::CAPTURED_RULE_PRIORITY)
        .fw_mark(mark::CAPTURED)
        .table_id(mark::CAPTURED_TABLE)
        .action(RuleAction::ToTable)
}

/// `local default dev lo`
fn captured_route<T>(builder: RouteMessageBuilder<T>) -> RouteMessage {
    const LOOPBACK_INDEX: u32 = 1;
    builder
        .table_id(mark::CAPTURED_TABLE)
        .kind(RouteType::Local)
        .scope(RouteScope::Host)
        .protocol(PROTOCOL)
        .output_interface(LOOPBACK_INDEX)
        .build()
}

/// A route with a gateway in the main table.
fn parse(message: &RouteMessage) -> Option<Route> {
    let find = |wanted: fn(&RouteAttribute) -> Option<&RouteAddress>| message.attributes.iter().find_map(wanted);
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    };
    if message.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let via = find(|attribute| match attribute {
        RouteAttribute::Gateway(address) => Some(address),
        _ => None,
    });
    let destination = find(|attribute| match attribute {
        RouteAttribute::Destination(address) => Some(address),
        _ => None,
    });
    let destination = IpNet::new(ip(destination?)?, message.header.destination_prefix_length).ok()?;
    Some(Route { destination, via: ip(via?)? })
}

fn table(message: &RouteMessage) -> u32 {
    let wide = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    wide.unwrap_or(u32::from(message.header.table))
}

fn text(route: &Route) -> String {
    format!("{} via {}", route.destination, route.via)
}

fn already_there(error: rtnetlink::Error) -> Result<(), rtnetlink::Error> {
    match &error {
        rtnetlink::Error::NetlinkError(message) if message.raw_code() == -libc::EEXIST => Ok(()),
        _ => Err(error),
    }
}

fn failed(what: &str, cause: rtnetlink::Error) -> DatapathError {
    DatapathError::Route { what: what.to_owned(), cause: Box::new(cause) }
}
