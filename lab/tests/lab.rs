//! The lab itself: what it promises to tests and to users, on the real daemons.
use std::{
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};
use weft_lab::{
    Lab,
    layout::{DEFAULT_RUNTIME_DIR, ProcessId, Source, netns_path},
    start,
};

const EXAMPLE: &str = "examples/two-clusters";

#[test]
fn pods_come_and_go_with_their_manifests_and_readiness_follows_probes() {
    let lab = Lab::up(EXAMPLE);
    let east = lab.cluster("east");
    let extra = "apiVersion: v1
kind: Pod
metadata: {name: extra, namespace: shop}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: extra
    command: [weft-lab, serve, --http, \"8080\", --unready-file, /tmp/weft-$(POD_IP)-unready, --drain, \"0\"]
    readinessProbe: {httpGet: {port: 8080, path: /healthz}, periodSeconds: 1, failureThreshold: 1}
";
    lab.write("east/extra.yaml", extra);
    lab.wait_for("the new pod is ready", || east.pods().iter().any(|pod| pod.key.name == "extra" && pod.ready));
    let flag = tempfile::TempPath::try_from_path(format!("/tmp/weft-{}-unready", east.pod("extra").ip())).unwrap();
    std::fs::write(&flag, "").unwrap();
    lab.wait_for("the pod is not ready", || !east.pod("extra").report().ready);
    drop(flag);
    lab.wait_for("the pod is ready again", || east.pod("extra").report().ready);

    let netns = lab.layout().pod_netns("east", "shop", "extra");
    assert!(netns_path(&netns).exists());
    lab.delete("east/extra.yaml");
    lab.wait_for("the pod is gone", || east.pods().iter().all(|pod| pod.key.name != "extra"));
    assert!(!netns_path(&netns).exists(), "{netns} stays behind");
}

#[test]
fn daemons_that_are_killed_come_back_and_a_dark_cluster_is_silent() {
    let lab = Lab::up(EXAMPLE);
    let node = lab.node("east/east-1");
    let (agent, proxy) = (node.agent_pid(), node.proxy_pid());
    lab.kill_agent("east/east-1");
    lab.wait_for("another agent runs", || node.agent_pid().is_some_and(|pid| Some(pid) != agent));
    lab.settle();
    assert_eq!(node.proxy_pid(), proxy);

    lab.kill_cluster("west");
    let west = lab.layout().node_cgroup("west", "west-1");
    lab.wait_for("no process of the cluster runs", || processes_below(&west) == 0);
    lab.revive_cluster("west");
    lab.wait_for("the agent of the cluster is ready", || lab.node("west/west-1").status().ready);
    lab.settle();
}

#[test]
fn a_capture_sees_what_passes_between_regions() {
    let lab = Lab::up(EXAMPLE);
    let capture = lab.capture("east-west", "udp port 7");
    let script = "echo between regions > /dev/udp/172.20.2.1/7; echo inside the region > /dev/udp/172.20.1.2/7";
    lab.node("east/east-1").exec(["bash", "-c", script]);
    let capture = capture.finish();
    assert!(capture.holds(b"between regions"));
    assert!(!capture.holds(b"inside the region"));
    assert_eq!(capture.count("dst host 172.20.2.1 and udp port 7"), 1);
}

#[test]
fn labs_stand_side_by_side_and_leave_nothing() {
    let (one, other) = (Lab::up(EXAMPLE), Lab::up(EXAMPLE));
    let prefix = format!("weft-{}-", one.name());
    let (cgroup, runtime) = (one.layout().cgroup().to_owned(), one.layout().runtime().to_owned());
    assert!(namespaces().iter().any(|name| name.starts_with(&prefix)));
    drop(one);
    assert!(!namespaces().iter().any(|name| name.starts_with(&prefix)));
    assert_eq!((cgroup.exists(), runtime.exists()), (false, false));
    assert!(other.status().ready);
}

#[test]
fn a_lab_ends_with_the_process_that_owns_it() {
    let mut owner = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = i32::try_from(owner.id()).unwrap();
    let options = start::Options {
        folder: Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(EXAMPLE),
        name: format!("test-{pid}-owned"),
        source: Source::Directory,
        runtime_dir: DEFAULT_RUNTIME_DIR.into(),
        owner: ProcessId::of(pid),
        program: env!("CARGO_BIN_EXE_weft-lab").into(),
    };
    let layout = start::begin(&options).unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    let begun = Instant::now();
    while layout.runtime().exists() && begun.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(50));
    }
    let left = (layout.cgroup().exists(), layout.runtime().exists());
    weft_lab::take_down(&layout);
    assert_eq!(left, (false, false), "the lab outlived its owner");
}

fn processes_below(cgroup: &Path) -> usize {
    let own = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default().lines().count();
    let below = std::fs::read_dir(cgroup).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    own + below.map(|entry| processes_below(&entry.path())).sum::<usize>()
}

fn namespaces() -> Vec<String> {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
