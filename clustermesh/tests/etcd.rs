//! Programs that nobody here wrote: Debian's etcdctl on our server, and our reader on Debian's etcd.
mod support;

use std::{
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use support::{Cluster, Follower, bundles};
use weft_clustermesh::MeshServer;

/// etcdctl with the certificate of west's agent.
struct Etcdctl {
    endpoint: String,
    dir: tempfile::TempDir,
}

impl Etcdctl {
    fn new(server: &MeshServer, server_ca: &Cluster, of: &Cluster) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let svid = of.agent_svid();
        for (name, text) in
            [("ca", server_ca.ca.bundle_pem()), ("cert", &svid.certificates_pem), ("key", &svid.private_key_pem)]
        {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Self { endpoint: format!("https://{}", server.address()), dir }
    }

    /// What it printed within three seconds: a watch does not end by itself.
    fn run(&self, arguments: &str) -> (String, String) {
        let file = |name: &str| self.dir.path().join(name);
        let output = Command::new("timeout")
            .args(["3", "etcdctl", "--endpoints", &self.endpoint])
            .args(["--cacert".as_ref(), file("ca").as_os_str(), "--cert".as_ref(), file("cert").as_os_str()])
            .args(["--key".as_ref(), file("key").as_os_str()])
            .args(arguments.split(' '))
            .env("ETCDCTL_API", "3")
            .output()
            .expect("etcdctl is installed (Debian: etcd-client)");
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_reads_watches_pages_and_may_not_write() {
    let (east, west) = (Cluster::new("east", 1), Cluster::new("west", 2));
    let known = bundles(&[&east, &west]);
    let server = east.serve("node-1", &known).await;
    server.publish(east.state(&["node-1"]));
    let etcdctl = Etcdctl::new(&server, &east, &west);

    let (config, errors) = etcdctl.run("get cilium/cluster-config/east");
    assert!(
        config.contains(r#"{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255}}"#),
        "{config}{errors}"
    );
    let (keys, _) = etcdctl.run("get --prefix cilium/state/ --keys-only --limit 1");
    assert!(keys.starts_with("cilium/state/identities/v1/id/"), "{keys}");
    let (status, errors) = etcdctl.run("endpoint status");
    assert!(status.contains(", 3.6.5, "), "{status}{errors}");
    assert!(etcdctl.run("member list").0.contains(&etcdctl.endpoint));
    let (_, refused) = etcdctl.run("put a b");
    assert!(refused.contains("permission denied"), "{refused}");

    let (watched, ()) =
        tokio::join!(tokio::task::spawn_blocking(move || etcdctl.run("watch --prefix cilium/state/nodes/").0), async {
            tokio::time::sleep(Duration::from_millis(1000)).await;
            server.publish(east.state(&["node-1", "node-2"]));
            server.publish(east.state(&["node-1"]));
        });
    let lines: Vec<String> = watched.unwrap().lines().map(ToOwned::to_owned).collect();
    assert_eq!((lines[0].as_str(), lines[1].as_str()), ("PUT", "cilium/state/nodes/v1/east/node-2"), "{lines:?}");
    assert!(lines.iter().any(|line| line == "DELETE"), "{lines:?}");
}

/// A real etcd on this machine, ended on drop.
struct Etcd {
    process: Child,
    client: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Etcd {
    fn start() -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (client, peer) = (free(), free());
        let dir = tempfile::tempdir().unwrap();
        let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(dir.path())
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("default={peer_url}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is installed (Debian: etcd-server)");
        let etcd = Self { process, client, _dir: dir };
        let start = Instant::now();
        while !etcd.ctl(&["endpoint", "health"]).1 {
            assert!(start.elapsed() < Duration::from_secs(20), "etcd does not come up");
        }
        etcd
    }

    fn ctl(&self, arguments: &[&str]) -> (String, bool) {
        let output = Command::new("etcdctl")
            .args(["--endpoints", &self.client.to_string(), "--dial-timeout", "1s"])
            .args(arguments)
            .env("ETCDCTL_API", "3")
            .output()
            .expect("etcdctl is installed (Debian: etcd-client)");
        (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success())
    }

    fn put(&self, key: &str, value: &str) {
        assert!(self.ctl(&["put", key, value]).1, "put {key}");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cilium_cluster_in_a_real_etcd_is_read_with_the_same_code() {
    let etcd = Etcd::start();
    let cluster = Cluster::new("cluster3", 3);
    let mut follower = Follower::of(cluster.peer(&[etcd.client]), None);
    follower.until("what is missing", |f| f.error().contains("cilium/cluster-config/cluster3")).await;

    etcd.put("cilium/.heartbeat", "2026-08-01T12:00:00Z");
    for (key, value) in cluster.state(&["node-1"]) {
        let (key, value) = (String::from_utf8(key.to_vec()).unwrap(), String::from_utf8(value.to_vec()).unwrap());
        if key.starts_with("cilium/") && !key.starts_with("cilium/synced/") {
            etcd.put(&key, &value);
        }
    }
    follower.until("the missing canaries", |f| f.error().contains("still filling")).await;
    assert!(follower.cluster.is_none());
    for part in ["nodes", "services", "ip", "identities"] {
        etcd.put(&format!("cilium/synced/cluster3/cilium/state/{part}/v1"), "2026-08-01T12:00:00Z");
    }
    follower.until_nodes(&["node-1"]).await;
    let found = follower.cluster.clone().unwrap();
    assert_eq!((found.alive, found.hbone, found.workloads.len()), (true, false, 1));

    assert!(etcd.ctl(&["del", "--prefix", "cilium/state/nodes/v1/cluster3/"]).1);
    follower.until_nodes(&[]).await;
}
