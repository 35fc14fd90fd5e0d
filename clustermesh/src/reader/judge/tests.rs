//! Virtual time: no test here waits.
use super::*;
use bytes::Bytes;
use weft_clustermesh_core::{
    key::Part,
    value::{Capabilities, ClusterConfigValue, NodeValue, WeftClusterValue},
};
use weft_model::types::Node;

struct Lab {
    judge: Judge,
    start: Instant,
}

fn east() -> ClusterName {
    ClusterName::try_from("east".to_owned()).unwrap()
}

fn put(key: Key, value: impl Into<Bytes>) -> Change {
    Change::Put { key: key.to_bytes(), value: value.into() }
}

fn node(name: &str) -> Change {
    let node = Node {
        cluster: east(),
        name: name.into(),
        labels: Default::default(),
        region: None,
        addresses: vec!["192.0.2.1".parse().unwrap()],
        pod_cidrs: vec![],
        wireguard_key: None,
        wireguard_port: 51871,
    };
    put(Key::Node(east(), name.into()), NodeValue::from_node(&node, 3).to_bytes())
}

fn beat(value: &'static str) -> Change {
    put(Key::WeftHeartbeat(east()), value)
}

/// All that a Weft peer says, with one node.
fn everything(trust_domain: &str, heartbeat: &'static str) -> Vec<Change> {
    let capabilities = Capabilities { synced_canaries: true, ..Default::default() };
    let weft = WeftClusterValue { trust_domain: trust_domain.parse().unwrap(), hbone: true };
    let mut all = vec![
        put(Key::ClusterConfig(east()), ClusterConfigValue { id: 3, capabilities }.to_bytes()),
        put(Key::WeftCluster(east()), weft.to_bytes()),
        beat(heartbeat),
        node("node-1"),
    ];
    all.extend(Part::CILIUM.into_iter().chain([Part::Weft]).map(|part| put(Key::Synced(east(), part), "now")));
    all
}

fn listed(changes: Vec<Change>) -> Event {
    Event::Listed(
        changes
            .into_iter()
            .map(|change| match change {
                Change::Put { key, value } => (key, value),
                Change::Delete { .. } => panic!("a list has no deletes"),
            })
            .collect(),
    )
}

impl Lab {
    fn new() -> Self {
        let importer = Importer::new(east(), Some(3), "east.example".parse().unwrap());
        Self { judge: Judge::new(importer, east()), start: Instant::now() }
    }

    /// What comes out after `event` at this second: (nodes, alive) of each picture, and the last state.
    fn at(&mut self, seconds: f64, event: Option<Event>) -> (Vec<(usize, bool)>, Option<PeerState>) {
        let now = self.start + Duration::from_secs_f64(seconds);
        if let Some(event) = event {
            self.judge.handle(event, now);
        }
        let (mut clusters, mut state) = (vec![], None);
        for output in self.judge.outputs(now, SystemTime::UNIX_EPOCH + Duration::from_secs_f64(1000.0 + seconds)) {
            match output {
                Output::Cluster(cluster) => clusters.push((cluster.nodes.len(), cluster.alive)),
                Output::State(new) => state = Some(new),
            }
        }
        (clusters, state)
    }

    fn wakes_after(&self) -> Option<f64> {
        self.judge.wake_at().map(|at| at.duration_since(self.start).as_secs_f64())
    }
}

#[test]
fn a_burst_of_changes_makes_one_picture() {
    let mut lab = Lab::new();
    lab.at(0.0, Some(Event::Connected("a:1".into())));
    assert_eq!(lab.at(0.0, Some(listed(everything("east.example", "1")))).0, [(1, true)]);
    assert_eq!(lab.at(0.10, Some(Event::Changes(vec![node("node-2")]))).0, []);
    assert_eq!(lab.at(0.12, Some(Event::Changes(vec![node("node-3")]))).0, []);
    assert!((lab.wakes_after().unwrap() - 0.15).abs() < 0.001);
    assert_eq!(lab.at(0.15, None).0, [(3, true)]);
    // The same again is no news.
    assert_eq!(lab.at(0.20, Some(Event::Changes(vec![node("node-3")]))).0, []);
    assert_eq!(lab.at(0.25, None).0, []);
}

#[test]
fn a_peer_that_falls_silent_is_dead_after_six_seconds_and_back_with_its_next_heartbeat() {
    let mut lab = Lab::new();
    lab.at(0.0, Some(Event::Connected("a:1".into())));
    lab.at(0.0, Some(listed(everything("east.example", "1"))));
    lab.at(2.0, Some(Event::Changes(vec![beat("2")])));
    lab.at(2.5, Some(Event::Disconnected { endpoint: "a:1".into(), error: "gone".into() }));
    assert_eq!(lab.wakes_after(), Some(8.0));
    let (clusters, state) = lab.at(8.0, None);
    assert_eq!(clusters, [(1, false)]);
    let state = state.unwrap();
    assert_eq!(
        (state.alive, state.connected, state.synced, state.error.as_deref()),
        (false, false, true, Some("gone"))
    );
    assert_eq!(lab.wakes_after(), None);

    lab.at(30.0, Some(Event::Connected("b:1".into())));
    // An etcd may show the last words of the dead; they do not wake it.
    assert_eq!(lab.at(30.0, Some(listed(everything("east.example", "2")))).0, []);
    assert_eq!(lab.at(32.0, Some(Event::Changes(vec![beat("3")]))).0, [(1, true)]);
}

#[test]
fn another_server_in_time_is_no_event_for_the_cluster() {
    let mut lab = Lab::new();
    lab.at(0.0, Some(listed(everything("east.example", "1"))));
    lab.at(1.0, Some(Event::Disconnected { endpoint: "a:1".into(), error: "gone".into() }));
    lab.at(1.2, Some(Event::Connected("b:1".into())));
    assert_eq!(lab.at(1.2, Some(listed(everything("east.example", "2")))).0, []);
    assert_eq!(lab.at(7.0, None).0, []);
    assert_eq!(lab.at(7.2, None).0, [(1, false)]);
}

/// An agent that restarts serves heartbeats before its sources are in sync.
#[test]
fn a_list_that_is_not_complete_replaces_nothing() {
    let mut lab = Lab::new();
    lab.at(0.0, Some(listed(everything("east.example", "1"))));
    let (clusters, state) = lab.at(1.0, Some(listed(vec![beat("2")])));
    assert_eq!(clusters, []);
    let state = state.unwrap();
    assert!(!state.synced && state.alive && state.error.unwrap().contains("cilium/cluster-config/east"));
    assert_eq!(lab.at(7.0, None).0, [(1, false)]);
}

#[test]
fn a_peer_that_becomes_somebody_else_is_as_good_as_dead_at_once() {
    let mut lab = Lab::new();
    lab.at(0.0, Some(listed(everything("east.example", "1"))));
    let (clusters, state) = lab.at(1.0, Some(listed(everything("west.example", "2"))));
    assert_eq!(clusters, [(1, false)]);
    assert!(state.unwrap().error.unwrap().contains("trust domain west.example"));
    assert_eq!(lab.at(2.0, Some(listed(everything("east.example", "3")))).0, [(1, true)]);
}

#[test]
fn bad_values_are_named_in_the_state() {
    let mut lab = Lab::new();
    let mut all = everything("east.example", "1");
    all.push(put(Key::Node(east(), "broken".into()), "{"));
    let state = lab.at(0.0, Some(listed(all))).1.unwrap();
    assert_eq!(state.problem_count, 1);
    let json = serde_json::to_value(&state).unwrap();
    assert!(json["problems"][0].as_str().unwrap().starts_with("cilium/state/nodes/v1/east/broken: not the JSON"));
}
