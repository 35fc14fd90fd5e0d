//! What this host's own interfaces are.
use futures::TryStreamExt;
use nix::{
    ifaddrs::getifaddrs,
    net::if_::{InterfaceFlags, if_nametoindex},
};
use rtnetlink::packet_route::link::LinkAttribute;
use std::collections::BTreeSet;

/// Native devices, where the settings name none: up, with an address, neither loopback nor a pod's or the tunnel's.
pub fn native_devices(tunnel: &str) -> Vec<String> {
    let Ok(interfaces) = getifaddrs() else { return vec![] };
    let native = interfaces.filter(|interface| {
        let flags = interface.flags;
        let addressed =
            interface.address.is_some_and(|a| a.as_sockaddr_in().is_some() || a.as_sockaddr_in6().is_some());
        let name = &interface.interface_name;
        flags.contains(InterfaceFlags::IFF_UP)
            && !flags.contains(InterfaceFlags::IFF_LOOPBACK)
            && addressed
            && name != tunnel
            && !["weft", "veth", "docker", "br-", "cni"].iter().any(|prefix| name.starts_with(prefix))
    });
    native.map(|interface| interface.interface_name).collect::<BTreeSet<_>>().into_iter().collect()
}

/// `None`: there is no such interface.
pub fn ifindex(interface: &str) -> Option<u32> {
    if_nametoindex(interface).ok()
}

/// The smallest MTU of these devices, in bytes; Ethernet's where none can be read.
pub async fn mtu(devices: &[String]) -> u32 {
    const ETHERNET: u32 = 1500;
    let Ok((connection, handle, _)) = rtnetlink::new_connection() else { return ETHERNET };
    let connection = tokio::spawn(connection);
    let mut smallest = None;
    for device in devices {
        let mut links = handle.link().get().match_name(device.clone()).execute();
        while let Ok(Some(link)) = links.try_next().await {
            let mtu = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            });
            smallest = smallest.into_iter().chain(mtu).min();
        }
    }
    connection.abort();
    smallest.unwrap_or(ETHERNET)
}
