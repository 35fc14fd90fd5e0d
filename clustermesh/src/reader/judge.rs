//! From what a connection hears to what the agent is told. No clock, no sockets.
use super::{PeerState, connection::Event};
use std::time::{Duration, Instant, SystemTime};
use weft_clustermesh_core::{Change, Importer, Key, Liveness, NotReady, liveness::PeerKind};
use weft_model::types::{ClusterName, RemoteCluster};

/// Changes are gathered for so long before a new whole picture is made of them.
const COALESCE: Duration = Duration::from_millis(50);

pub(super) struct Judge {
    importer: Importer,
    liveness: Liveness,
    state: PeerState,
    /// What was handed on last.
    told: Option<RemoteCluster>,
    told_state: Option<PeerState>,
    /// Changes have come that no picture was made of; due then.
    due: Option<Instant>,
    /// The peer is not who it was when it was connected: as good as dead.
    impostor: bool,
}

#[derive(Debug)]
pub(super) enum Output {
    Cluster(Box<RemoteCluster>),
    State(PeerState),
}

impl Judge {
    pub fn new(importer: Importer, cluster: ClusterName) -> Self {
        let state = PeerState {
            cluster,
            connected: false,
            endpoint: String::new(),
            last_heartbeat: None,
            synced: false,
            alive: false,
            weft: false,
            error: None,
            problems: vec![],
            problem_count: 0,
        };
        let liveness = Liveness::default();
        Self { importer, liveness, state, told: None, told_state: None, due: None, impostor: false }
    }

    pub fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Connected(endpoint) => {
                (self.state.connected, self.state.endpoint, self.state.error) = (true, endpoint, None);
            }
            Event::Disconnected { endpoint, error } => {
                (self.state.connected, self.state.endpoint, self.state.error) = (false, endpoint, Some(error));
            }
            Event::Listed(kvs) => {
                self.importer.clear();
                for (key, value) in kvs {
                    self.apply(Change::Put { key, value }, now);
                }
                self.due = Some(now);
            }
            Event::Changes(changes) => changes.into_iter().for_each(|change| self.apply(change, now)),
        }
    }

    fn apply(&mut self, change: Change, now: Instant) {
        if let Change::Put { key, value } = &change {
            let kind = match Key::parse(key) {
                Some(Key::Heartbeat) => Some(PeerKind::Cilium),
                Some(Key::WeftHeartbeat(cluster)) if cluster == self.state.cluster => Some(PeerKind::Weft),
                _ => None,
            };
            if let Some(kind) = kind {
                return self.liveness.heartbeat(kind, value, now);
            }
        }
        self.importer.apply(&change);
        self.due.get_or_insert(now + COALESCE);
    }

    /// When to ask for outputs though nothing was heard.
    pub fn wake_at(&self) -> Option<Instant> {
        let death = self.liveness.deadline().filter(|_| self.state.alive);
        [self.due, death].into_iter().flatten().min()
    }

    pub fn outputs(&mut self, now: Instant, wall: SystemTime) -> Vec<Output> {
        let mut outputs = vec![];
        let heard = self.liveness.is_alive(now);
        if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            match self.importer.build(heard) {
                Ok(cluster) => {
                    (self.state.synced, self.impostor) = (true, false);
                    if self.state.connected {
                        self.state.error = None;
                    }
                    self.tell(cluster, &mut outputs);
                }
                Err(error) => {
                    self.state.synced = false;
                    self.impostor = !matches!(error, NotReady::NoClusterConfig(_) | NotReady::Unsynced { .. });
                    self.state.error = Some(error.to_string());
                }
            }
            self.state.weft = self.importer.is_weft();
            (self.state.problems, self.state.problem_count) = self.importer.problems();
        }
        self.state.alive = heard && !self.impostor;
        if let Some(told) = self.told.as_ref().filter(|told| told.alive != self.state.alive) {
            let cluster = RemoteCluster { alive: self.state.alive, ..told.clone() };
            tracing::info!(cluster = %cluster.name, alive = cluster.alive, "a connected cluster's life");
            self.tell(cluster, &mut outputs);
        }
        let heartbeat = self.liveness.age(now).and_then(|age| wall.checked_sub(age));
        // The age is measured by another clock: the same heartbeat may come out a little off.
        let same = |known: SystemTime, new: SystemTime| {
            known.max(new).duration_since(known.min(new)).is_ok_and(|off| off < Duration::from_millis(500))
        };
        match (self.state.last_heartbeat, heartbeat) {
            (Some(known), Some(new)) if same(known, new) => {}
            _ => self.state.last_heartbeat = heartbeat,
        }
        if self.told_state.as_ref() != Some(&self.state) {
            self.told_state = Some(self.state.clone());
            outputs.push(Output::State(self.state.clone()));
        }
        outputs
    }

    fn tell(&mut self, cluster: RemoteCluster, outputs: &mut Vec<Output>) {
        if self.told.as_ref() != Some(&cluster) {
            self.told = Some(cluster.clone());
            outputs.push(Output::Cluster(Box::new(cluster)));
        }
    }
}

#[cfg(test)]
mod tests;
