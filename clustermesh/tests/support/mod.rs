//! Clusters with certificates and servers of their own, readers that remember, and a wire that can be cut or frozen.
#![allow(dead_code, reason = "each test file uses its part")]
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinHandle,
};
use weft_certs::{ClusterCa, Identity, SharedIdentity, SpiffeId, Svid, TrustBundles, TrustDomain};
use weft_clustermesh::{
    MeshServer, MeshServerConfig, PeerConfig, PeerReader, PeerState, PeerUpdate,
    core::{ExportOptions, export},
    tls,
};
use weft_model::{
    snapshot::Snapshot,
    types::{ClusterName, Labels, Node, ObjectName, RemoteCluster, Workload},
};

pub const HOUR: Duration = Duration::from_secs(3600);

pub fn name(cluster: &str) -> ClusterName {
    ClusterName::try_from(cluster.to_owned()).unwrap()
}

pub fn domain(cluster: &str) -> TrustDomain {
    format!("{cluster}.example").parse().unwrap()
}

/// A cluster with a CA, as far as the mesh is concerned.
pub struct Cluster {
    pub name: ClusterName,
    pub id: u32,
    pub ca: ClusterCa,
    _dir: tempfile::TempDir,
}

impl Cluster {
    pub fn new(cluster: &str, id: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = ClusterCa::load_or_create(&dir.path().join("ca"), &domain(cluster)).unwrap();
        Self { name: name(cluster), id, ca, _dir: dir }
    }

    pub fn agent_svid(&self) -> Svid {
        let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
        self.ca
            .issue_server(
                &tls::agent_id(self.ca.trust_domain()),
                "remote",
                &["localhost"],
                &addresses,
                HOUR,
                SystemTime::now(),
            )
            .unwrap()
    }

    pub fn agent(&self) -> SharedIdentity {
        SharedIdentity::new(Identity::try_from(&self.agent_svid()).unwrap())
    }

    pub fn workload(&self, namespace: &str, account: &str) -> SharedIdentity {
        let id = SpiffeId::new(self.ca.trust_domain().clone(), namespace, account);
        SharedIdentity::new(Identity::try_from(&self.ca.issue(&id, HOUR, SystemTime::now()).unwrap()).unwrap())
    }

    pub fn server_config(&self, node: &str) -> MeshServerConfig {
        MeshServerConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)), self.name.clone(), node)
    }

    /// A mesh server for readers of the clusters in `known`.
    pub async fn serve(&self, node: &str, known: &TrustBundles) -> MeshServer {
        self.serve_with(self.server_config(node), known).await
    }

    pub async fn serve_with(&self, config: MeshServerConfig, known: &TrustBundles) -> MeshServer {
        MeshServer::start(config, tls::server(&self.agent(), known).unwrap()).await.unwrap()
    }

    /// With these nodes, and a pod on the first.
    pub fn snapshot(&self, nodes: &[&str]) -> Snapshot {
        let node = |(index, name): (usize, &&str)| Node {
            cluster: self.name.clone(),
            name: (*name).to_owned(),
            labels: Labels::new(),
            region: None,
            addresses: vec![IpAddr::from([192, 0, 2, 1 + index as u8])],
            pod_cidrs: vec![],
            wireguard_key: None,
            wireguard_port: 51871,
        };
        let pod = Workload {
            cluster: self.name.clone(),
            pod: ObjectName::new("shop", "backend-1"),
            service_account: "backend".into(),
            trust_domain: self.ca.trust_domain().clone(),
            labels: Labels::from([("app".into(), "backend".into())]),
            addresses: vec![IpAddr::from([10, 1, 0, 5])],
            node: nodes.first().map(|node| (*node).to_owned()),
            node_ip: Some(IpAddr::from([192, 0, 2, 1])),
            host_network: false,
            ready: true,
            identity: 0,
        };
        Snapshot {
            cluster: self.name.clone(),
            cluster_id: self.id,
            trust_domain: self.ca.trust_domain().clone(),
            node_name: "node-1".into(),
            synced: true,
            services: BTreeMap::new(),
            nodes: nodes.iter().enumerate().map(node).collect(),
            workloads: vec![pod],
            identities: BTreeMap::new(),
            policies: BTreeMap::new(),
            auth_destinations: vec![],
            policy_status: vec![],
            plugins: vec![],
            mesh_peers: vec![],
            object_errors: vec![],
        }
    }

    pub fn state(&self, nodes: &[&str]) -> BTreeMap<Bytes, Bytes> {
        export(&self.snapshot(nodes), &ExportOptions { hbone: true, since: SystemTime::UNIX_EPOCH })
    }

    pub fn peer(&self, endpoints: &[SocketAddr]) -> PeerConfig {
        PeerConfig {
            cluster: self.name.clone(),
            cluster_id: Some(self.id),
            trust_domain: self.ca.trust_domain().clone(),
            endpoints: endpoints.iter().map(ToString::to_string).collect(),
        }
    }
}

pub fn bundles(clusters: &[&Cluster]) -> TrustBundles {
    TrustBundles::from_pem(clusters.iter().map(|c| (c.ca.trust_domain(), c.ca.bundle_pem()))).unwrap()
}

/// A reader with the last of what it said.
pub struct Follower {
    updates: mpsc::Receiver<PeerUpdate>,
    pub cluster: Option<RemoteCluster>,
    pub state: Option<PeerState>,
    /// How often the cluster was said to be dead.
    pub deaths: usize,
    pub errors: Vec<String>,
    _reader: PeerReader,
}

impl Follower {
    pub fn of(config: PeerConfig, tls: Option<Arc<rustls::ClientConfig>>) -> Self {
        let (sender, updates) = mpsc::channel(16);
        let reader = PeerReader::spawn(config, tls, sender);
        Self { updates, cluster: None, state: None, deaths: 0, errors: vec![], _reader: reader }
    }

    /// Reads on until `wanted` holds; how long that took.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) -> Duration {
        let start = Instant::now();
        while !wanted(self) {
            match tokio::time::timeout(Duration::from_secs(20), self.updates.recv()).await {
                Ok(Some(PeerUpdate::Cluster(cluster))) => {
                    self.deaths += usize::from(!cluster.alive);
                    self.cluster = Some(*cluster);
                }
                Ok(Some(PeerUpdate::State(state))) => {
                    self.errors.extend(state.error.clone());
                    self.state = Some(state);
                }
                Ok(None) => panic!("the reader has ended"),
                Err(_) => panic!("never came: {what}; {:?}", self.state),
            }
            assert!(start.elapsed() < Duration::from_secs(30), "never came: {what}; {:?}", self.state);
        }
        start.elapsed()
    }

    pub async fn until_nodes(&mut self, names: &[&str]) -> Duration {
        self.until(&format!("nodes {names:?}"), |f| f.nodes() == names).await
    }

    pub fn nodes(&self) -> Vec<&str> {
        self.cluster.iter().flat_map(|cluster| cluster.nodes.keys().map(String::as_str)).collect()
    }

    pub fn is_alive(&self) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| cluster.alive)
    }

    pub fn error(&self) -> &str {
        self.state.as_ref().and_then(|state| state.error.as_deref()).unwrap_or_default()
    }
}

#[derive(Clone, Copy, PartialEq)]
pub enum Wire {
    Open,
    /// Nothing passes, nothing is closed: a host that lost its power.
    Frozen,
    /// Connections are closed and none is taken.
    Cut,
}

/// A wire to `target` that obeys.
pub struct Link {
    pub address: SocketAddr,
    wire: watch::Sender<Wire>,
    task: JoinHandle<()>,
}

impl Link {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (wire, state) = watch::channel(Wire::Open);
        let task = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { return };
                let Ok(server) = TcpStream::connect(target).await else { continue };
                tokio::spawn(carry(client, server, state.clone()));
            }
        });
        Self { address, wire, task }
    }

    pub fn set(&self, wire: Wire) {
        self.wire.send_replace(wire);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(client: TcpStream, server: TcpStream, wire: watch::Receiver<Wire>) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pump(from_client, to_server, wire.clone()) => {}
        () = pump(from_server, to_client, wire) => {}
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut wire: watch::Receiver<Wire>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let state = *wire.borrow_and_update();
        match state {
            Wire::Cut => return,
            Wire::Frozen => {
                if wire.changed().await.is_err() {
                    return;
                }
            }
            Wire::Open => tokio::select! {
                read = from.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(n) => if to.write_all(&buffer[..n]).await.is_err() { return },
                },
                changed = wire.changed() => if changed.is_err() { return },
            },
        }
    }
}
