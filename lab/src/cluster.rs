//! One running cluster: its source, its nodes' daemons, its kubelet, its power.
use crate::{
    cni::{self, Cni},
    control::{Action, ClusterStatus, NodeStatus, Role},
    control_plane::ControlPlane,
    daemons::{self, Built},
    fabric, kubelet,
    kubelet::Slot,
    kubernetes::ApiServer,
    layout::{Layout, Source},
    manifests,
    place::Place,
    pod::NodeContext,
    pods::{Host, Pods},
    process::{Daemon, Order},
    readiness,
    report::{self, Board, Reporter, Sink},
    spec::{ClusterSpec, NodeSpec, Spec},
};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use std::{collections::BTreeMap, fs, path::Path};
use tokio::{sync::watch, task::JoinSet};

pub struct Cluster {
    spec: ClusterSpec,
    nodes: Vec<Node>,
    pods: watch::Receiver<Pods>,
    board: Board,
    power: watch::Sender<bool>,
    control_plane: Option<ControlPlane>,
    /// The source, the kubelet and the looks at the agents; they end with the cluster.
    _tasks: JoinSet<()>,
}

struct Node {
    name: String,
    agent: Daemon,
    proxy: Daemon,
    ready: watch::Receiver<readiness::View>,
}

/// What all clusters of a lab share.
pub struct Common<'a> {
    pub layout: &'a Layout,
    pub built: &'a Built,
    pub spec: &'a Spec,
    pub source: Source,
    pub folder: &'a Path,
}

impl Cluster {
    /// Starts everything; readiness comes later.
    pub async fn start(common: &Common<'_>, spec: &ClusterSpec) -> Result<Self> {
        let Common { layout, built, .. } = *common;
        let name = &spec.name;
        for folder in [layout.status(name), layout.ca(name), layout.logs(name)] {
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let mut tasks = JoinSet::new();
        let (publish, pods) = watch::channel(Pods::default());
        let manifests_folder = common.folder.join(name);
        let (sink, control_plane) = match common.source {
            Source::Directory => {
                for node in &spec.nodes {
                    report::write_node(&layout.status(name), node)?;
                }
                tasks.spawn(manifests::follow(manifests_folder, publish));
                (Sink::Folder(layout.status(name)), None)
            }
            Source::Kubernetes => {
                let control_plane = ControlPlane::start(layout, built, common.spec, spec).await?;
                let server = ApiServer::connect(layout, name).await?;
                control_plane.ready(&server).await?;
                server.register(spec).await?;
                server.apply(ControlPlane::manifests()?).await?;
                server.apply(manifests::documents(&manifests_folder)?).await?;
                let nodes = spec.nodes.iter().map(|node| node.name.clone()).collect();
                tasks.spawn(server.clone().follow(nodes, publish));
                (Sink::Kubernetes(server), Some(control_plane))
            }
        };
        let board = Board::default();
        let (power, _) = watch::channel(true);
        let mut nodes = Vec::new();
        let mut slots = BTreeMap::new();
        for node in &spec.nodes {
            daemons::prepare_node(layout, built, common.spec, common.source, common.folder, spec, node)
                .with_context(|| format!("cannot prepare node {name}/{}", node.name))?;
            let (view, ready) = watch::channel(readiness::View::default());
            let (once, agent_ready) = watch::channel(false);
            tasks.spawn(readiness::follow(layout.agent_socket(name, &node.name), view, once));
            slots.insert(node.name.clone(), slot(common, spec, node, power.subscribe(), agent_ready));
            nodes.push(Node {
                name: node.name.clone(),
                proxy: Daemon::start(daemons::proxy(layout, built, spec, node)),
                agent: Daemon::start(daemons::agent(layout, built, spec, node)),
                ready,
            });
        }
        tasks.spawn(kubelet::run(slots, pods.clone(), Reporter { sink, board: board.clone() }));
        Ok(Self { spec: spec.clone(), nodes, pods, board, power, control_plane, _tasks: tasks })
    }

    pub fn name(&self) -> &str {
        &self.spec.name
    }

    pub fn status(&self) -> ClusterStatus {
        let node = |node: &Node| NodeStatus {
            name: node.name.clone(),
            agent: node.agent.state().into(),
            proxy: node.proxy.state().into(),
            ready: node.ready.borrow().ready,
        };
        ClusterStatus {
            name: self.spec.name.clone(),
            power: *self.power.borrow(),
            nodes: self.nodes.iter().map(node).collect(),
            wanted: self.pods.borrow().len(),
            pods: self.board.reports(),
        }
    }

    /// Fails if there is no such node.
    pub async fn daemon(&self, node: &str, role: Role, action: Action) -> Result<(), String> {
        let found = self.nodes.iter().find(|one| one.name == node);
        let node = found.ok_or_else(|| format!("cluster {} has no node {node}", self.spec.name))?;
        let daemon = match role {
            Role::Agent => &node.agent,
            Role::Proxy => &node.proxy,
        };
        daemon.order(order(action)).await;
        Ok(())
    }

    /// Fails if the cluster has no API server.
    pub async fn api_server(&self, action: Action) -> Result<(), String> {
        let found = self.control_plane.as_ref();
        let control_plane = found.ok_or_else(|| format!("cluster {} has no API server", self.spec.name))?;
        control_plane.order_api_server(order(action)).await;
        Ok(())
    }

    pub async fn set_power(&self, layout: &Layout, lab: &Spec, on: bool) -> Result<(), String> {
        for node in &self.nodes {
            let plug = fabric::set_cable(layout, lab, &self.spec.name, &node.name, on);
            plug.map_err(|error| error.to_string())?;
            let order = if on { Order::Start } else { Order::Stop(Signal::SIGKILL) };
            node.proxy.order(order).await;
            node.agent.order(order).await;
        }
        self.power.send_replace(on);
        Ok(())
    }
}

fn order(action: Action) -> Order {
    match action {
        Action::Kill => Order::Signal(Signal::SIGKILL),
        Action::Terminate => Order::Signal(Signal::SIGTERM),
        Action::KillAndKeepDown => Order::Stop(Signal::SIGKILL),
        Action::Start => Order::Start,
    }
}

fn slot(
    common: &Common<'_>,
    cluster: &ClusterSpec,
    node: &NodeSpec,
    power: watch::Receiver<bool>,
    agent_ready: watch::Receiver<bool>,
) -> Slot {
    let Common { layout, built, spec, .. } = *common;
    let state = layout.node_state(&cluster.name, &node.name);
    let cni = Cni {
        plugin: built.binary("weft-cni"),
        node: Place::node(layout, &cluster.name, &node.name),
        settings: cni::settings(spec, node, &state, &layout.agent_socket(&cluster.name, &node.name)),
    };
    let context = NodeContext {
        layout: layout.clone(),
        cluster: cluster.name.clone(),
        host: Host { node: node.name.clone(), addresses: node.addresses() },
        cni,
        binaries: built.binaries.clone(),
        power,
        agent_ready,
    };
    Slot { labels: node.labels(), context }
}
