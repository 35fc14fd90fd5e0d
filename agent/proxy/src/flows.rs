//! Flows on their way to the agent: a bounded ring that keeps the newest while nobody reads.
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::Notify;
use weft_proxy_api::flow::{Flow, Verdict};

/// Flows kept while nobody reads.
const KEPT: usize = 4_096;
/// Allowed requests told each second; more of them are counted as lost, so that telling never costs more than serving.
/// Refusals are always told.
const ALLOWED_A_SECOND: u32 = 2_000;

#[derive(Debug)]
pub struct Flows {
    ring: Mutex<Ring>,
    ready: Notify,
}

#[derive(Debug)]
struct Ring {
    flows: VecDeque<Flow>,
    lost: u64,
    lost_total: u64,
    second: Instant,
    allowed: u32,
}

impl Default for Flows {
    fn default() -> Self {
        let ring = Ring { flows: VecDeque::new(), lost: 0, lost_total: 0, second: Instant::now(), allowed: 0 };
        Self { ring: Mutex::new(ring), ready: Notify::new() }
    }
}

impl Flows {
    /// Adds the flow that `make` makes, unless the second's share of allowed ones is used up.
    pub fn tell(&self, verdict: Verdict, make: impl FnOnce() -> Flow) {
        if matches!(verdict, Verdict::Forwarded | Verdict::Redirected) && !self.ring().may_tell(Instant::now()) {
            return;
        }
        let flow = make();
        let mut ring = self.ring();
        if ring.flows.len() == KEPT {
            ring.flows.pop_front();
            ring.lose(1);
        }
        ring.flows.push_back(flow);
        drop(ring);
        self.ready.notify_one();
    }

    /// Up to `most` flows, oldest first, and how many were lost since the last call.
    pub fn take(&self, most: usize) -> (Vec<Flow>, u64) {
        let mut ring = self.ring();
        let count = most.min(ring.flows.len());
        let flows = ring.flows.drain(..count).collect();
        (flows, std::mem::take(&mut ring.lost))
    }

    /// Returns when there may be something to take.
    pub async fn ready(&self) {
        self.ready.notified().await;
    }

    /// The reader that took `count` flows could not pass them on.
    pub fn lost(&self, count: u64) {
        self.ring().lose(count);
    }

    /// Wakes the next reader, after the current one has gone or was replaced.
    pub fn wake(&self) {
        self.ready.notify_one();
    }

    pub fn lost_total(&self) -> u64 {
        self.ring().lost_total
    }

    /// Nothing panics while it is held, and a ring is whole at any time.
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn may_tell(&mut self, now: Instant) -> bool {
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.allowed = 0;
        }
        self.allowed += 1;
        let may = self.allowed <= ALLOWED_A_SECOND;
        if !may {
            self.lose(1);
        }
        may
    }

    fn lose(&mut self, count: u64) {
        self.lost += count;
        self.lost_total += count;
    }
}

pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proxy_api::flow::Peer;

    fn flow(verdict: Verdict, time_ms: u64) -> Flow {
        let peer = Peer { address: "10.0.0.1:1".parse().unwrap(), identity: 0, pod: "".into(), cluster: "".into() };
        Flow {
            time_ms,
            verdict,
            drop_reason: String::new(),
            source: peer.clone(),
            destination: peer,
            protocol: "TCP".into(),
            direction: "ingress".into(),
            policy: String::new(),
            plugin: String::new(),
            http: None,
            peer_spiffe_id: None,
            node: String::new(),
        }
    }

    #[test]
    fn the_ring_keeps_the_newest_and_counts_what_it_lost() {
        let flows = Flows::default();
        for time in 0..KEPT as u64 + 10 {
            flows.tell(Verdict::Dropped, || flow(Verdict::Dropped, time));
        }
        let (taken, lost) = flows.take(3);
        assert_eq!((taken.iter().map(|f| f.time_ms).collect::<Vec<_>>(), lost), (vec![10, 11, 12], 10));
        assert_eq!((flows.take(usize::MAX).0.len(), flows.take(1).1, flows.lost_total()), (KEPT - 3, 0, 10));
    }

    #[test]
    fn a_flood_of_allowed_requests_does_not_crowd_out_a_refusal() {
        let flows = Flows::default();
        for time in 0..10_000 {
            flows.tell(Verdict::Forwarded, || flow(Verdict::Forwarded, time));
        }
        flows.tell(Verdict::Dropped, || flow(Verdict::Dropped, 1));
        let (taken, lost) = flows.take(usize::MAX);
        assert_eq!(taken.last().unwrap().verdict, Verdict::Dropped);
        assert!(lost > 0 && taken.len() < 10_000);
    }
}
