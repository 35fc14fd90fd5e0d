//! What is derived from a container's id, so that DEL finds it again without any state.

use sha2::{Digest, Sha256};
use weft_netlink::Mac;

use crate::request::ContainerId;

/// Name of the host's end of the pod's veth pair: 14 characters.
pub fn host_interface(container: &ContainerId) -> String {
    let digest = Sha256::digest(container.as_str());
    let hex: String = digest[..5].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("weft{hex}")
}

/// Hardware addresses of the host's and the pod's end.
pub fn hardware_addresses(container: &ContainerId) -> (Mac, Mac) {
    let digest = Sha256::digest(container.as_str());
    let mac = |bytes: &[u8]| {
        let mut mac = [0; 6];
        mac.copy_from_slice(&bytes[..6]);
        // Unicast, locally administered.
        mac[0] = mac[0] & !0x01 | 0x02;
        Mac(mac)
    };
    (mac(&digest[8..]), mac(&digest[16..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_interface_fits_the_kernels_limit_and_depends_on_the_id() {
        let id = |text| ContainerId::parse(text).expect("an id");
        let name = host_interface(&id("abc"));
        assert_eq!(name, "weftba7816bf8f");
        assert_ne!(name, host_interface(&id("abd")));
        let (host, pod) = hardware_addresses(&id("abc"));
        assert_ne!(host, pod);
        assert_eq!(host.0[0] & 3, 2);
    }
}
