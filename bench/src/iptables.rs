//! The rules that kube-proxy writes for services of type ClusterIP, in its own shape: one list of all services, a chain
//! for each service, and a chain for each endpoint.
use crate::{
    namespaces::{CLIENT, Row, Stand},
    scene,
};
use anyhow::{Context, Result, ensure};
use std::{
    fmt::{self, Write as _},
    io::Write as _,
    net::SocketAddrV4,
    process::Stdio,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// ip_tables in the kernel.
    Legacy,
    /// The same rules in nf_tables; Debian's default.
    Nft,
}

impl Variant {
    fn restore(self) -> &'static str {
        match self {
            Self::Legacy => "iptables-legacy-restore",
            Self::Nft => "iptables-nft-restore",
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy => "iptables-legacy",
            Self::Nft => "iptables-nft",
        })
    }
}

/// Loads the rules on the node of `row`, for `services` services that all lead to `backend`.
pub fn load(row: &Row, variant: Variant, services: u16, backend: SocketAddrV4) -> Result<()> {
    let mut command = row.command(Stand::Node, variant.restore());
    let mut child = command.stdin(Stdio::piped()).spawn().context("cannot start iptables-restore")?;
    let rules = rules(services, backend);
    let given = child.stdin.take().context("the standard input is a pipe")?.write_all(rules.as_bytes());
    let status = child.wait()?;
    ensure!(status.success() && given.is_ok(), "{} refused the rules: {status}", variant.restore());
    Ok(())
}

fn rules(services: u16, backend: SocketAddrV4) -> String {
    let pods =
        format!("{}/16", CLIENT.octets()[..2].iter().map(|octet| format!("{octet}.")).collect::<String>() + "0.0");
    let mut text = String::from(
        "*filter
:KUBE-FORWARD - [0:0]
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
",
    );
    for index in 0..services {
        // A String takes everything.
        let _ = writeln!(text, ":KUBE-SVC-{index:016X} - [0:0]\n:KUBE-SEP-{index:016X} - [0:0]");
    }
    text += "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
";
    for index in 0..services {
        let (service, name) = (scene::service_address(index), scene::service_name(index));
        let (ip, port) = (service.ip(), service.port());
        let _ = writeln!(
            text,
            "-A KUBE-SERVICES -d {ip}/32 -p tcp -m comment --comment \"bench/{name} cluster IP\" -m tcp --dport {port} -j KUBE-SVC-{index:016X}
-A KUBE-SVC-{index:016X} ! -s {pods} -d {ip}/32 -p tcp -m comment --comment \"bench/{name} cluster IP\" -m tcp --dport {port} -j KUBE-MARK-MASQ
-A KUBE-SVC-{index:016X} -m comment --comment \"bench/{name} -> {backend}\" -j KUBE-SEP-{index:016X}
-A KUBE-SEP-{index:016X} -s {}/32 -m comment --comment \"bench/{name}\" -j KUBE-MARK-MASQ
-A KUBE-SEP-{index:016X} -p tcp -m comment --comment \"bench/{name}\" -m tcp -j DNAT --to-destination {backend}",
            backend.ip(),
        );
    }
    text += "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in \
             this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n";
    text
}
