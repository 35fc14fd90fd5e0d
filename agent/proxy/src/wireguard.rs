//! Keeps the node's WireGuard device as the configuration says, and tells how it is.
use std::{net::SocketAddr, str::FromStr};
use weft_proxy_api::{
    config::{WireGuardConfig, WireGuardPeer},
    flow::{WireGuardPeerStatus, WireGuardStatus},
};
use weft_wireguard::{Device, DeviceConfig, Error, KeyError, PeerConfig, PrivateKey, PublicKey};

#[derive(Debug, thiserror::Error)]
enum TunnelError {
    #[error("the node's own WireGuard key is not a key")]
    OwnKey(#[source] KeyError),
    #[error("WireGuard cannot run")]
    Device(#[from] Error),
}

/// The device, if there is to be one. Its calls talk to the kernel: not for worker threads.
#[derive(Default)]
pub struct WireGuard {
    wanted: Option<WireGuardConfig>,
    device: Option<Device>,
    /// Why the device does not run as it is wanted.
    failure: Option<String>,
    /// Peers that are left out, and why.
    bad_peers: Vec<String>,
}

impl WireGuard {
    /// Takes over a configuration; `None` ends the device and removes its interface.
    pub fn apply(&mut self, config: Option<&WireGuardConfig>) {
        let Some(config) = config else {
            if let Some(before) = self.wanted.take() {
                self.device = None;
                self.failure = None;
                if let Err(error) = weft_wireguard::remove_interface(&before.interface) {
                    tracing::warn!(error = weft_certs::explain(&error), "the WireGuard interface stays");
                }
            }
            return;
        };
        let same_device = |before: &WireGuardConfig| {
            let peers = Vec::new();
            WireGuardConfig { peers: peers.clone(), ..before.clone() } == WireGuardConfig { peers, ..config.clone() }
        };
        if !self.wanted.as_ref().is_some_and(same_device) {
            self.device = None;
        }
        self.wanted = Some(config.clone());
        self.retry();
    }

    /// Tries again what failed.
    pub fn retry(&mut self) {
        let failure = self.try_apply().err().map(|error| weft_certs::explain(&error));
        // Once, not at every try.
        if let Some(reason) = failure.as_ref().filter(|_| failure != self.failure) {
            tracing::warn!(reason, "WireGuard does not run as configured");
        }
        self.failure = failure;
    }

    pub fn failed(&self) -> bool {
        self.failure.is_some()
    }

    /// What fails closed.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        self.failure.iter().chain(&self.bad_peers).cloned()
    }

    pub fn status(&self) -> Option<WireGuardStatus> {
        let wanted = self.wanted.as_ref()?;
        let Some(device) = &self.device else {
            let reason = self.failure.as_deref().unwrap_or("it was not started");
            return Some(WireGuardStatus {
                interface: wanted.interface.clone(),
                state: format!("failed: {reason}"),
                ..WireGuardStatus::default()
            });
        };
        let status = device.status();
        let failure = status.failure.as_ref().or(self.failure.as_ref());
        let said = |name: &str| wanted.peers.iter().find(|peer| peer.name == name).map(|peer| peer.endpoint);
        let peers = status.peers.into_iter().map(|peer| WireGuardPeerStatus {
            endpoint: peer.endpoint.or(said(&peer.name)).unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0))),
            public_key: peer.public_key.to_string(),
            handshake_age_s: peer.handshake_age.map(|age| age.as_secs()),
            sent_bytes: peer.sent_bytes,
            received_bytes: peer.received_bytes,
            name: peer.name,
        });
        Some(WireGuardStatus {
            interface: status.interface,
            public_key: status.public_key.to_string(),
            state: failure.map_or("running".to_owned(), |reason| format!("failed: {reason}")),
            peers: peers.collect(),
            dropped: status.dropped.not_encrypted(),
        })
    }

    fn try_apply(&mut self) -> Result<(), TunnelError> {
        let Some(wanted) = &self.wanted else { return Ok(()) };
        let mut peers = Vec::new();
        self.bad_peers.clear();
        for peer in &wanted.peers {
            match peer_config(peer) {
                Ok(peer) => peers.push(peer),
                Err(error) => self.bad_peers.push(format!("WireGuard peer {}: {error}", peer.name)),
            }
        }
        let device = match self.device.take() {
            Some(device) => device,
            None => Device::start(DeviceConfig {
                interface: wanted.interface.clone(),
                private_key: PrivateKey::from_str(&wanted.private_key).map_err(TunnelError::OwnKey)?,
                listen_port: wanted.listen_port,
                mtu: wanted.mtu,
                mark: wanted.mark,
                addresses: wanted.addresses.clone(),
            })?,
        };
        let done = device.set_peers(peers);
        self.device = Some(device);
        Ok(done?)
    }
}

fn peer_config(peer: &WireGuardPeer) -> Result<PeerConfig, KeyError> {
    Ok(PeerConfig {
        name: peer.name.clone(),
        public_key: PublicKey::from_str(&peer.public_key)?,
        endpoint: Some(peer.endpoint),
        allowed_ips: peer.allowed_ips.clone(),
        persistent_keepalive: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_key_is_named_in_the_status_and_stops_nothing_else() {
        let mut wireguard = WireGuard::default();
        wireguard.apply(Some(&WireGuardConfig {
            interface: "weft-wg-test".into(),
            private_key: "not a key".into(),
            listen_port: 0,
            mtu: 1420,
            mark: 0,
            addresses: vec![],
            peers: vec![],
        }));
        let status = wireguard.status().unwrap();
        assert!(status.state.starts_with("failed: the node's own WireGuard key is not a key"), "{}", status.state);
        assert!(wireguard.failed());
    }
}
