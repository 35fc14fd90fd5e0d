//! The kernel settings that the data path needs, and why.
use crate::error::DatapathError;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// For the node as a whole. Must run in its network namespace.
pub fn node() -> Result<(), DatapathError> {
    set("net/ipv4/ip_forward", "1")?;
    // At 1 the source check of captured packets would use their mark, find the table for local delivery and drop them.
    // Either this or the interface's own value switches it on.
    set("net/ipv4/conf/all/src_valid_mark", "0")?;
    // The strictest of this and the interface's own value holds; strict drops a host's captured connections.
    if get("net/ipv4/conf/all/rp_filter").is_some_and(|value| value == "1") {
        set("net/ipv4/conf/all/rp_filter", "2")?;
    }
    if has_ipv6() {
        set("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// For the host side of a pod's veth.
pub fn endpoint(interface: &str) -> Result<(), DatapathError> {
    let of = |setting: &str| format!("net/ipv4/conf/{interface}/{setting}");
    // A connection of the host that is handed to the proxy comes back in from the pod's veth with the host's address.
    set(&of("rp_filter"), "2")?;
    set(&of("accept_local"), "1")?;
    set(&of("src_valid_mark"), "0")
}

/// For a native device: what others (`wg-quick`) may have set.
pub fn device(interface: &str) -> Result<(), DatapathError> {
    set(&format!("net/ipv4/conf/{interface}/src_valid_mark"), "0")
}

pub(crate) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf/all").exists()
}

fn path(setting: &str) -> PathBuf {
    Path::new("/proc/sys").join(setting)
}

fn get(setting: &str) -> Option<String> {
    Some(fs::read_to_string(path(setting)).ok()?.trim().to_owned())
}

/// Writes only where it differs, so that a read-only /proc/sys with the right values will do.
fn set(setting: &str, value: &'static str) -> Result<(), DatapathError> {
    if get(setting).is_some_and(|now| now == value) {
        return Ok(());
    }
    let fail = |cause: io::Error| DatapathError::Sysctl {
        name: setting.replace('.', "%").replace('/', ".").replace('%', "/"),
        value,
        cause,
    };
    fs::write(path(setting), value).map_err(fail)
}
