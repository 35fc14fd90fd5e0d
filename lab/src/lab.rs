//! The vocabulary of tests: a lab that is there while the value lives, and what can be done with it.
//!
//! Everything here panics with a message when it cannot be done: a test that cannot run fails.
mod capture;

pub use capture::Capture;

use crate::{
    cleanup,
    control::{self, Action, LabStatus, Reply, Request, Role},
    layout::{DEFAULT_RUNTIME_DIR, Layout, ProcessId, Record, Source},
    place::Place,
    pods::PodReport,
    start::{self, Options},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(50);

/// A lab with a private copy of its folder. Dropping it takes it down; it also ends with this process.
pub struct Lab {
    layout: Layout,
    folder: tempfile::TempDir,
    record: Record,
}

#[derive(Clone, Copy)]
pub struct Cluster<'a> {
    lab: &'a Lab,
    name: &'a str,
}

#[derive(Clone, Copy)]
pub struct Node<'a> {
    cluster: Cluster<'a>,
    name: &'a str,
}

#[derive(Clone, Copy)]
pub struct Pod<'a> {
    cluster: Cluster<'a>,
    name: &'a str,
}

impl Lab {
    /// A lab from a folder, whose path may be relative to the top of the source tree.
    pub fn up(folder: impl AsRef<Path>) -> Self {
        Self::up_from(folder, Source::Directory)
    }

    pub fn up_from(folder: impl AsRef<Path>, source: Source) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let copy = tempfile::tempdir().expect("a folder for the lab's files");
        copy_folder(&top.join(folder), copy.path());
        let program = crate::program().expect("weft-lab is built: run `cargo xtask build`");
        let options = Options {
            folder: copy.path().to_owned(),
            name,
            source,
            runtime_dir: DEFAULT_RUNTIME_DIR.into(),
            owner: Some(ProcessId::current().expect("/proc is mounted")),
            program,
        };
        let layout = start::begin(&options).unwrap_or_else(|error| panic!("{}", chain(&error)));
        let record = layout.read_record().expect("the lab's record").expect("the lab's record");
        // From here on a panic takes the lab down.
        let lab = Self { layout, folder: copy, record };
        if let Err(error) = start::until_ready(&lab.layout, PATIENCE, &mut |_| true) {
            panic!("{}\n{}", chain(&error), lab.logs());
        }
        lab
    }

    pub fn name(&self) -> &str {
        self.layout.name()
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The private copy of the lab's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn cluster<'a>(&'a self, name: &'a str) -> Cluster<'a> {
        assert!(self.record.spec.cluster(name).is_some(), "there is no cluster {name}");
        Cluster { lab: self, name }
    }

    /// `CLUSTER/NODE`
    pub fn node<'a>(&'a self, name: &'a str) -> Node<'a> {
        let (cluster, node) = name.split_once('/').expect("CLUSTER/NODE");
        self.cluster(cluster).node(node)
    }

    /// `CLUSTER/POD` or `CLUSTER/NAMESPACE/POD`
    pub fn pod<'a>(&'a self, name: &'a str) -> Pod<'a> {
        let (cluster, pod) = name.split_once('/').expect("CLUSTER/[NAMESPACE/]POD");
        self.cluster(cluster).pod(pod)
    }

    /// Changes a file of the private copy, `CLUSTER/FILE`; readers see the old content or the new.
    pub fn edit(&self, file: &str, change: impl FnOnce(String) -> String) {
        let path = self.folder.path().join(file);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self.write(file, &change(text));
    }

    /// Writes a file of the private copy, new or not.
    pub fn write(&self, file: &str, text: &str) {
        let path = self.folder.path().join(file);
        crate::layout::write_atomically(&path, text.as_bytes()).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    pub fn delete(&self, file: &str) {
        fs::remove_file(self.folder.path().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    /// Runs `weft` for the cluster whose context is named; fails the test if it fails.
    pub fn weft<const N: usize>(&self, context: &str, arguments: [&str; N]) -> String {
        let output = self.try_weft(context, &arguments);
        succeeded(&format!("weft --context {context} {}", arguments.join(" ")), output)
    }

    /// As [`Self::weft`], whatever comes of it.
    pub fn try_weft(&self, context: &str, arguments: &[&str]) -> Output {
        let weft = crate::binary("weft").expect("weft is built");
        let mut command = Command::new(weft);
        command.arg("--contexts").arg(self.layout.contexts()).args(["--context", context]).args(arguments);
        command.output().expect("weft starts")
    }

    /// `CLUSTER/NODE`: SIGKILL; the lab starts it again.
    pub fn kill_agent(&self, node: &str) {
        self.daemon(node, Role::Agent, Action::Kill);
    }
    /// `CLUSTER/NODE`: SIGKILL, and nobody starts it again until [`Self::resume_agent`].
    pub fn stop_agent(&self, node: &str) {
        self.daemon(node, Role::Agent, Action::KillAndKeepDown);
    }
    pub fn resume_agent(&self, node: &str) {
        self.daemon(node, Role::Agent, Action::Start);
    }
    pub fn kill_proxy(&self, node: &str) {
        self.daemon(node, Role::Proxy, Action::Kill);
    }
    pub fn stop_proxy(&self, node: &str) {
        self.daemon(node, Role::Proxy, Action::KillAndKeepDown);
    }
    pub fn resume_proxy(&self, node: &str) {
        self.daemon(node, Role::Proxy, Action::Start);
    }

    /// SIGKILL to the cluster's API server, and nobody starts it again until [`Self::resume_api_server`].
    pub fn stop_api_server(&self, cluster: &str) {
        self.done(&Request::ApiServer { cluster: cluster.to_owned(), action: Action::KillAndKeepDown });
    }
    pub fn resume_api_server(&self, cluster: &str) {
        self.done(&Request::ApiServer { cluster: cluster.to_owned(), action: Action::Start });
    }

    /// Runs `kubectl` as the cluster's administrator; fails the test if it fails.
    pub fn kubectl<const N: usize>(&self, cluster: &str, arguments: [&str; N]) -> String {
        succeeded(&format!("kubectl {}", arguments.join(" ")), self.try_kubectl(cluster, &arguments))
    }

    /// As [`Self::kubectl`], whatever comes of it.
    pub fn try_kubectl(&self, cluster: &str, arguments: &[&str]) -> Output {
        let built = crate::daemons::Built::find().expect("the binaries are found");
        let mut command = Command::new(built.kubernetes("kubectl"));
        command.arg("--kubeconfig").arg(self.layout.kubeconfig(cluster)).args(arguments);
        command.output().expect("kubectl is built: run `cargo xtask kubernetes`")
    }

    /// `kubectl apply` of manifests given as text.
    pub fn apply(&self, cluster: &str, manifests: &str) -> Output {
        let mut file = tempfile::NamedTempFile::new().expect("a file for the manifests");
        std::io::Write::write_all(&mut file, manifests.as_bytes()).expect("the manifests are written");
        self.try_kubectl(cluster, &["apply", "-f", &file.path().to_string_lossy()])
    }

    /// Every process of the cluster dies at once and its cables are pulled.
    pub fn kill_cluster(&self, cluster: &str) {
        self.done(&Request::Power { cluster: cluster.to_owned(), on: false });
    }
    pub fn revive_cluster(&self, cluster: &str) {
        self.done(&Request::Power { cluster: cluster.to_owned(), on: true });
    }

    /// Records what passes on a link between regions until it is finished.
    pub fn capture(&self, link: &str, filter: &str) -> Capture {
        assert!(self.record.spec.links.iter().any(|one| one.name == link), "there is no link {link}");
        Capture::start(&self.layout, link, filter)
    }

    pub fn status(&self) -> LabStatus {
        match control::ask(&self.layout, &Request::Status) {
            Ok(Reply::Status(status)) => status,
            other => panic!("the lab does not answer: {other:?}\n{}", self.logs()),
        }
    }

    /// Waits until every agent and every pod is ready.
    pub fn settle(&self) {
        self.wait_for("everything is ready", || self.status().ready);
    }

    /// Fails the test, with the ends of the logs, if it takes too long.
    pub fn wait_for(&self, what: &str, reached: impl FnMut() -> bool) {
        self.wait_within(PATIENCE / 4, what, reached);
    }

    pub fn wait_within(&self, patience: Duration, what: &str, mut reached: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !reached() {
            assert!(begun.elapsed() < patience, "not within {patience:?}: {what}\n{}", self.logs());
            thread::sleep(LOOK);
        }
    }

    /// The end of each log, for the message of a test that fails.
    pub fn logs(&self) -> String {
        let clusters = self.record.spec.clusters.iter().map(|cluster| self.layout.logs(&cluster.name));
        let files = clusters.filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        let mut paths: Vec<PathBuf> = files.map(|entry| entry.path()).collect();
        paths.push(self.layout.log());
        paths.sort();
        paths.iter().map(|path| format!("--- {}\n{}\n", path.display(), tail(path))).collect()
    }

    fn daemon(&self, node: &str, role: Role, action: Action) {
        let (cluster, node) = node.split_once('/').expect("CLUSTER/NODE");
        self.done(&Request::Daemon { cluster: cluster.to_owned(), node: node.to_owned(), role, action });
    }

    fn done(&self, request: &Request) {
        match control::ask(&self.layout, request) {
            Ok(Reply::Done) => {}
            other => panic!("{request:?}: {other:?}"),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        cleanup::take_down(&self.layout);
    }
}

impl<'a> Cluster<'a> {
    pub fn node(self, name: &'a str) -> Node<'a> {
        Node { cluster: self, name }
    }

    /// A pod by its name, which may be preceded by its namespace and a slash.
    pub fn pod(self, name: &'a str) -> Pod<'a> {
        Pod { cluster: self, name }
    }

    pub fn pods(self) -> Vec<PodReport> {
        let status = self.lab.status();
        let found = status.clusters.into_iter().find(|cluster| cluster.name == self.name);
        found.map(|cluster| cluster.pods).unwrap_or_default()
    }
}

impl Node<'_> {
    /// Runs a command on the node; fails the test if it fails.
    pub fn exec<const N: usize>(self, command: [&str; N]) -> String {
        succeeded(&command.join(" "), self.try_exec(&command))
    }

    pub fn try_exec(self, command: &[&str]) -> Output {
        exec(&Place::node(&self.cluster.lab.layout, self.cluster.name, self.name), command)
    }

    pub fn agent_pid(self) -> Option<i32> {
        self.status().agent.pid
    }

    pub fn proxy_pid(self) -> Option<i32> {
        self.status().proxy.pid
    }

    pub fn status(self) -> control::NodeStatus {
        let clusters = self.cluster.lab.status().clusters;
        let nodes = clusters.into_iter().filter(|cluster| cluster.name == self.cluster.name).flat_map(|one| one.nodes);
        let mut nodes = nodes.filter(|node| node.name == self.name);
        nodes.next().unwrap_or_else(|| panic!("cluster {} has no node {}", self.cluster.name, self.name))
    }
}

impl Pod<'_> {
    /// Runs a command in the pod; fails the test if it fails.
    pub fn exec<const N: usize>(self, command: [&str; N]) -> String {
        succeeded(&command.join(" "), self.try_exec(&command))
    }

    pub fn try_exec(self, command: &[&str]) -> Output {
        exec(&self.place(), command)
    }

    /// A command in the pod, to be started by the caller.
    pub fn command(self, program: &str) -> Command {
        self.place().command(program).unwrap_or_else(|error| panic!("pod {}: {error}", self.name))
    }

    /// The body, then a space and the status; `curl exit N` where there was no answer.
    pub fn curl(self, arguments: &str) -> String {
        let script = format!("curl -s --max-time 5 -w ' %{{http_code}}' {arguments} || printf ' curl exit %s' $?");
        String::from_utf8_lossy(&self.try_exec(&["sh", "-c", &script]).stdout).into_owned()
    }

    pub fn report(self) -> PodReport {
        let Cluster { lab, name } = self.cluster;
        crate::find_pod(&lab.status(), name, self.name).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn ip(self) -> std::net::IpAddr {
        *self.report().ips.first().unwrap_or_else(|| panic!("pod {} has no address", self.name))
    }

    fn place(self) -> Place {
        crate::pod_place(&self.cluster.lab.layout, self.cluster.name, &self.report())
    }
}

/// What a command printed; fails the test if the command failed.
fn succeeded(command: &str, output: Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn exec(place: &Place, command: &[&str]) -> Output {
    let (program, arguments) = command.split_first().expect("a command");
    let command = place.command(program).and_then(|mut command| command.args(arguments).output());
    command.unwrap_or_else(|error| panic!("{program} in {}: {error}", place.netns))
}

fn copy_folder(from: &Path, to: &Path) {
    let read = |error| panic!("{}: {error}", from.display());
    for entry in fs::read_dir(from).unwrap_or_else(read).flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir_all(&target).expect("a folder in the copy");
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).expect("a file in the copy");
        }
    }
}

fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
