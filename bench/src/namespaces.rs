//! Client, node and server as three namespaces in a row, without Weft: where its rivals stand.
use anyhow::{Context, Result};
use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    process::{Command, id},
};
use weft_lab::place::{ip, tool};

const PREFIX: &str = "weft-bench-";
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 10);
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 1);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 10);
const NODE_OF_SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 1);

/// Removed when dropped.
pub struct Row {
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    Client,
    Node,
    Server,
}

impl Row {
    /// `name` tells rows of one run apart.
    pub fn new(name: &str) -> Result<Self> {
        let row = Self { name: format!("{PREFIX}{}-{name}", id()) };
        for stand in [Stand::Client, Stand::Node, Stand::Server] {
            let netns = row.netns(stand);
            ip(&format!("netns add {netns}"))?;
            ip(&format!("-n {netns} link set lo up"))?;
        }
        let node = row.netns(Stand::Node);
        for (stand, near, far, device) in
            [(Stand::Client, CLIENT, NODE, "client"), (Stand::Server, SERVER, NODE_OF_SERVER, "server")]
        {
            let netns = row.netns(stand);
            ip(&format!("-n {node} link add {device} type veth peer name eth0 netns {netns}"))?;
            ip(&format!("-n {node} addr add {far}/24 dev {device}"))?;
            ip(&format!("-n {node} link set {device} up"))?;
            ip(&format!("-n {netns} addr add {near}/24 dev eth0"))?;
            ip(&format!("-n {netns} link set eth0 up"))?;
            ip(&format!("-n {netns} route add default via {far}"))?;
        }
        tool("ip", &format!("netns exec {node} sysctl -qw net.ipv4.ip_forward=1"))?;
        Ok(row)
    }

    /// `program` with the namespace of `stand`; the process that starts becomes the program.
    pub fn command(&self, stand: Stand, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns(stand)]).arg(program.as_ref());
        command
    }

    fn netns(&self, stand: Stand) -> String {
        format!("{}-{}", self.name, format!("{stand:?}").to_lowercase())
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        for stand in [Stand::Client, Stand::Node, Stand::Server] {
            // One that was never made is no loss.
            let _ = ip(&format!("netns del {}", self.netns(stand)));
        }
    }
}

/// Removes what runs left that were killed.
pub fn sweep() {
    let Ok(entries) = fs::read_dir("/run/netns") else { return };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    for name in names {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another run may be sweeping, too.
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

/// This program.
pub fn this() -> Result<std::path::PathBuf> {
    std::env::current_exe().context("cannot find this program")
}
