//! A cluster's etcd, kube-apiserver and kube-controller-manager, on a machine of their own in the fabric.
//!
//! Nodes reach the API server at that machine's address. The fabric has no way to this machine, so a forwarder on its
//! loopback serves `kubectl` and `weft` here.
use crate::{
    daemons::{Built, write_yaml},
    forward::Forwarder,
    kubernetes::ApiServer,
    layout::Layout,
    place::Place,
    process::{Daemon, Order, Program},
    spec::{ClusterSpec, Spec},
};
use anyhow::{Context, Result, bail};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use serde_json::{Value, json};
use std::{
    fs,
    io::Read,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::time::sleep;

const PORT: u16 = 6443;
const PATIENCE: Duration = Duration::from_secs(60);
/// Weft's kinds and those of Cilium's that it reads.
const KINDS: &str = include_str!("../../deploy/crds/kinds.yaml");
/// What the agents may do. They get no more here than in any other cluster.
const ROLE: &str = include_str!("../../deploy/agent-rbac.yaml");
const AGENT: &str = "system:serviceaccount:weft-system:weft-agent";
const AGENT_GROUPS: &str = "system:serviceaccounts,system:serviceaccounts:weft-system,system:authenticated";
const API_SERVER: &str = "kube-apiserver";

/// Its servers end with this.
pub struct ControlPlane {
    daemons: Vec<(&'static str, Daemon)>,
    folder: PathBuf,
    _forwarder: Forwarder,
}

impl ControlPlane {
    pub async fn start(layout: &Layout, built: &Built, lab: &Spec, cluster: &ClusterSpec) -> Result<Self> {
        let folder = layout.control_plane(&cluster.name);
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        let address = lab.control_plane(&cluster.name).context("the network has no address left for the API server")?;
        let place = Place::control_plane(layout, &cluster.name);
        let forwarder = Forwarder::start(place.clone(), SocketAddr::from((address, PORT))).await?;
        write_certificates(&folder, cluster, address)?;
        let (token, agents) = (token()?, token()?);
        let tokens = format!("{token},lab,lab,system:masters\n{agents},{AGENT},weft-agent,\"{AGENT_GROUPS}\"\n");
        fs::write(folder.join("tokens.csv"), tokens)?;
        let here = forwarder.address().to_string();
        write_yaml(&layout.kubeconfig(&cluster.name), &kubeconfig(cluster, &folder, &token, &here)?)?;
        let there = format!("{address}:{PORT}");
        write_yaml(&layout.node_kubeconfig(&cluster.name), &kubeconfig(cluster, &folder, &agents, &there)?)?;
        let manager_kubeconfig = folder.join("manager-kubeconfig");
        write_yaml(&manager_kubeconfig, &kubeconfig(cluster, &folder, &token, &there)?)?;

        let program = |name: &'static str, path: PathBuf, arguments: Vec<String>| {
            let log = layout.logs(&cluster.name).join(format!("{name}.log"));
            (name, Daemon::start(Program { path, arguments, environment: Vec::new(), place: Some(place.clone()), log }))
        };
        let file = |name: &str| folder.join(name).to_string_lossy().into_owned();
        let etcd = vec![
            format!("--data-dir={}", file("etcd")),
            "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--unsafe-no-fsync".to_owned(),
        ];
        let api_server = vec![
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--bind-address={address}"),
            format!("--advertise-address={address}"),
            format!("--secure-port={PORT}"),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--cert-dir={}", file("certs")),
            format!("--token-auth-file={}", file("tokens.csv")),
            format!("--service-cluster-ip-range={}", cluster.service_cidr),
            format!("--service-account-key-file={}", file("server.pub")),
            format!("--service-account-signing-key-file={}", file("server.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--allow-privileged=true".to_owned(),
        ];
        let manager = vec![
            format!("--kubeconfig={}", manager_kubeconfig.display()),
            format!("--service-account-private-key-file={}", file("server.key")),
            format!("--root-ca-file={}", file("ca.crt")),
            "--use-service-account-credentials=false".to_owned(),
            "--leader-elect=false".to_owned(),
            // The lab's nodes have no kubelet that renews a lease; the lab itself says what runs.
            "--controllers=*,-node-lifecycle-controller,-node-ipam-controller,-cloud-node-lifecycle-controller"
                .to_owned(),
            format!("--cert-dir={}", file("certs")),
        ];
        let daemons = vec![
            program("etcd", "etcd".into(), etcd),
            program(API_SERVER, built.kubernetes(API_SERVER), api_server),
            program("kube-controller-manager", built.kubernetes("kube-controller-manager"), manager),
        ];
        Ok(Self { daemons, folder, _forwarder: forwarder })
    }

    /// Waits until the API server serves.
    pub async fn ready(&self, server: &ApiServer) -> Result<()> {
        let begun = Instant::now();
        while !server.ready().await {
            if begun.elapsed() > PATIENCE {
                let troubles = self.daemons.iter().filter_map(|(name, daemon)| Some((name, daemon.state().trouble?)));
                let troubles: Vec<String> = troubles.map(|(name, trouble)| format!("{name}: {trouble}")).collect();
                bail!("the API server of {} is not ready: {}", self.folder.display(), troubles.join("; "));
            }
            sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// What a cluster for Weft holds before anything else: the kinds, and the agents' role.
    pub fn manifests() -> Result<Vec<Value>> {
        let read = |text, file| crate::manifests::values(text).map_err(|error| anyhow::anyhow!("{file}: {error}"));
        let mut all = read(KINDS, "deploy/crds/kinds.yaml")?;
        all.extend(read(ROLE, "deploy/agent-rbac.yaml")?);
        Ok(all)
    }

    pub async fn order_api_server(&self, order: Order) {
        for (_, daemon) in self.daemons.iter().filter(|(name, _)| *name == API_SERVER) {
            daemon.order(order).await;
        }
    }
}

fn kubeconfig(cluster: &ClusterSpec, folder: &Path, token: &str, server: &str) -> Result<Value> {
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": cluster.name,
        "clusters": [{"name": cluster.name, "cluster": {
            "server": format!("https://{server}"),
            "certificate-authority": folder.join("ca.crt"),
        }}],
        "users": [{"name": "lab", "user": {"token": token}}],
        "contexts": [{"name": cluster.name, "context": {"cluster": cluster.name, "user": "lab"}}],
    }))
}

fn write_certificates(folder: &Path, cluster: &ClusterSpec, address: Ipv4Addr) -> Result<()> {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, format!("lab cluster {}", cluster.name));
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let service = cluster.service_cidr.hosts().next().context("serviceCIDR has no addresses")?;
    let names = [
        "127.0.0.1".to_owned(),
        address.to_string(),
        service.to_string(),
        "localhost".to_owned(),
        "kubernetes.default.svc".to_owned(),
    ];
    let mut server = CertificateParams::new(names)?;
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let server = server.signed_by(&key, &authority)?;
    fs::write(folder.join("ca.crt"), authority.pem())?;
    fs::write(folder.join("server.crt"), server.pem())?;
    fs::write(folder.join("server.key"), key.serialize_pem())?;
    fs::write(folder.join("server.pub"), key.public_key_pem())?;
    Ok(())
}

fn token() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
