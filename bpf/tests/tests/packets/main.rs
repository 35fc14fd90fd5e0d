//! The tc programs under BPF_PROG_TEST_RUN: for each packet the verdict, the counted reason, and the unchanged packet.
mod handover;
mod network;
mod pod;
mod shapes;

use weft_bpf_abi::{
    net::{Endpoint, identity},
    policy::{EGRESS, INGRESS},
};
use weft_bpf_tests::bench::Bench;

/// The cast of every test, once for each family. The pod is on the bench's device, the neighbour on another.
#[derive(Clone, Copy)]
struct Cast {
    pod: &'static str,
    neighbour: &'static str,
    remote: &'static str,
    world: &'static str,
    node: &'static str,
}

const CASTS: [Cast; 2] = [
    Cast { pod: "10.0.1.2", neighbour: "10.0.1.3", remote: "10.0.2.2", world: "198.51.100.9", node: "192.0.2.1" },
    Cast { pod: "fd00:1::2", neighbour: "fd00:1::3", remote: "fd00:2::2", world: "2001:db8::9", node: "fd00::1" },
];

// Endpoint ids and identities at once.
const POD: u32 = 256;
const NEIGHBOUR: u32 = 257;
const REMOTE: u32 = 258;
const OTHER_DEVICE: u32 = 2;

/// Where the rules of the pod apply.
const POD_EGRESS: (u32, u8) = (POD, EGRESS);
const POD_INGRESS: (u32, u8) = (POD, INGRESS);
const NEIGHBOUR_INGRESS: (u32, u8) = (NEIGHBOUR, INGRESS);

const BOTH: u32 = Endpoint::ENFORCE_EGRESS | Endpoint::ENFORCE_INGRESS;

/// Runs a test for both families on a fresh bench: the pod with these flags, the neighbour with those.
fn for_each_family(pod: u32, neighbour: u32, test: impl Fn(&mut Bench, Cast)) {
    for cast in CASTS {
        let mut bench = Bench::new();
        bench.pod(cast.pod, POD, pod);
        bench.pod_on(cast.neighbour, NEIGHBOUR, neighbour, OTHER_DEVICE);
        bench.identity(cast.remote, REMOTE, 0);
        bench.identity(cast.node, identity::HOST, 0);
        test(&mut bench, cast);
    }
}

/// `address:port`, in brackets where needed.
fn at(ip: &str, port: u16) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}
