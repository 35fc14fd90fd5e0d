//! Per-interface settings under /proc/sys/net, of the calling thread's network namespace.

use std::path::PathBuf;
use std::{fs, io};

use crate::error::Error;

/// Sets `net.FAMILY.conf.INTERFACE.NAME`. A kernel without IPv6 has no such settings, and needs none.
pub fn set(family: &'static str, interface: &str, name: &str, value: &'static str) -> Result<(), Error> {
    let path: PathBuf = ["/proc/sys/net", family, "conf", interface, name].iter().collect();
    match fs::write(&path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && family == "ipv6" => Ok(()),
        Err(cause) => Err(Error::Sysctl { path, value, cause }),
        Ok(()) => Ok(()),
    }
}
