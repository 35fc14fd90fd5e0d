//! The proxy's listening sockets, and their slots in the pinned socket map `LISTENERS` where the kernel programs find
//! them. The port is never dialled: nobody else can take the place of the proxy, and a successor replaces a slot at once.
use super::connect::transparent_socket;
use aya::maps::{Map, MapData, SockMap};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};
use weft_bpf_abi::net::{LISTENERS, listener};

const BACKLOG: libc::c_int = 4_096;

/// What a captured connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// To a local pod.
    Ingress,
    /// From a local pod.
    Outbound,
    /// HBONE to a local pod.
    Hbone,
}

/// A listening socket with its role.
#[derive(Debug)]
pub struct Listener {
    pub role: Role,
    pub socket: TcpListener,
    /// Where its connections were meant to go; `None`: the address under which they are accepted.
    pub original: Option<SocketAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(
        "cannot open a transparent listening socket for {family}: it needs CAP_NET_ADMIN and the loopback device up"
    )]
    Listen {
        family: &'static str,
        #[source]
        cause: io::Error,
    },
    #[error("no connections are captured: the map {path} cannot be opened: has the agent loaded its programs?")]
    NoMap {
        path: PathBuf,
        #[source]
        cause: aya::maps::MapError,
    },
    #[error("no connections are captured: {path} does not take listening sockets")]
    Slot {
        path: PathBuf,
        #[source]
        cause: aya::maps::MapError,
    },
}

impl Listener {
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { role: self.role, socket: self.socket.try_clone()?, original: self.original })
    }

    fn slot(&self) -> io::Result<u32> {
        let v4 = self.socket.local_addr()?.is_ipv4();
        Ok(match (self.role, v4) {
            (Role::Ingress, true) => listener::INGRESS4,
            (Role::Ingress, false) => listener::INGRESS6,
            (Role::Outbound, true) => listener::OUTBOUND4,
            (Role::Outbound, false) => listener::OUTBOUND6,
            (Role::Hbone, true) => listener::HBONE4,
            (Role::Hbone, false) => listener::HBONE6,
        })
    }
}

/// One listener a role and family. A node without IPv6 gets those of IPv4.
pub fn open() -> Result<Vec<Listener>, CaptureError> {
    let mut all = Vec::new();
    for role in [Role::Ingress, Role::Outbound, Role::Hbone] {
        let v4 = listen(Ipv4Addr::LOCALHOST.into()).map_err(|cause| CaptureError::Listen { family: "IPv4", cause })?;
        all.push(Listener { role, socket: v4, original: None });
        match listen(Ipv6Addr::LOCALHOST.into()) {
            Ok(socket) => all.push(Listener { role, socket, original: None }),
            Err(error) => tracing::info!(%error, ?role, "no IPv6 here: its connections are not taken"),
        }
    }
    Ok(all)
}

/// Puts the listeners into their slots; from now on new connections come here. Again is harmless.
pub fn publish(listeners: &[Listener], map_dir: &Path) -> Result<(), CaptureError> {
    let path = map_dir.join(LISTENERS);
    let no_map = |cause| CaptureError::NoMap { path: path.clone(), cause };
    let data = MapData::from_pin(&path).map_err(no_map)?;
    let mut slots: SockMap<MapData> = Map::SockMap(data).try_into().map_err(no_map)?;
    for listener in listeners {
        let refused = |cause| CaptureError::Slot { path: path.clone(), cause };
        let slot = listener.slot().map_err(|cause| CaptureError::Listen { family: "a captured connection", cause })?;
        slots.set(slot, &listener.socket, 0).map_err(refused)?;
    }
    Ok(())
}

/// Loopback keeps strangers out; the address plays no other part.
fn listen(ip: std::net::IpAddr) -> io::Result<TcpListener> {
    let address = SocketAddr::new(ip, 0);
    let socket = transparent_socket(address)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_map_is_named_with_the_remedy() {
        let error = publish(&[], Path::new("/nonexistent")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no connections are captured: the map /nonexistent/LISTENERS cannot be opened: has the agent loaded its programs?"
        );
    }

    #[test]
    fn each_role_and_family_has_its_own_slot() {
        let mut slots: Vec<u32> = open().unwrap().iter().map(|l| l.slot().unwrap()).collect();
        slots.sort_unstable();
        assert_eq!(slots, (0..listener::COUNT).collect::<Vec<_>>());
    }
}
