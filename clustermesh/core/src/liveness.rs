//! Whether a peer counts as alive: judged by its heartbeats alone, so that a lost connection which comes back in time
//! (a mesh server that restarts, another endpoint) is no event.
use std::time::{Duration, Instant};

/// How often we write our own heartbeat.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(2);
/// Three missed heartbeats.
pub const WEFT_TIMEOUT: Duration = Duration::from_secs(6);
/// Cilium writes one a minute and waits for two.
pub const CILIUM_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerKind {
    Weft,
    Cilium,
}

impl PeerKind {
    pub const fn timeout(self) -> Duration {
        match self {
            Self::Weft => WEFT_TIMEOUT,
            Self::Cilium => CILIUM_TIMEOUT,
        }
    }
}

/// Fed with heartbeats and asked with the time; it has no clock.
#[derive(Clone, Debug)]
pub struct Liveness {
    kind: PeerKind,
    value: Option<Vec<u8>>,
    last: Option<Instant>,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { kind: PeerKind::Cilium, value: None, last: None }
    }
}

impl Liveness {
    /// A heartbeat as it was listed or watched. What was seen before is none: an etcd may show the last words of a
    /// cluster that is gone. Clocks of others are not read.
    pub fn heartbeat(&mut self, kind: PeerKind, value: &[u8], now: Instant) {
        match (self.kind, kind) {
            (PeerKind::Weft, PeerKind::Cilium) => return, // it writes Cilium's key too; its own is the one that counts
            (PeerKind::Cilium, PeerKind::Weft) => (self.kind, self.value) = (kind, None),
            _ => {}
        }
        if self.value.as_deref() != Some(value) {
            self.value = Some(value.to_vec());
            self.last = Some(now);
        }
    }

    pub fn is_alive(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|deadline| now < deadline)
    }

    /// When it will be dead if nothing comes. `None`: never heard.
    pub fn deadline(&self) -> Option<Instant> {
        self.last.map(|last| last + self.kind.timeout())
    }

    /// Since the last heartbeat.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.last.map(|last| now.saturating_duration_since(last))
    }

    pub fn kind(&self) -> PeerKind {
        self.kind
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_weft_peer_is_dead_after_three_missed_heartbeats_and_alive_on_the_next() {
        let (start, mut peer) = (Instant::now(), Liveness::default());
        assert!(!peer.is_alive(start));
        for beat in 0..5u8 {
            peer.heartbeat(PeerKind::Weft, &[beat], at(start, 2.0 * f64::from(beat)));
        }
        assert!(peer.is_alive(at(start, 13.9)));
        assert!(!peer.is_alive(at(start, 14.0)));
        peer.heartbeat(PeerKind::Weft, b"back", at(start, 60.0));
        assert!(peer.is_alive(at(start, 60.0)));
        assert_eq!(peer.age(at(start, 61.0)), Some(Duration::from_secs(1)));
    }

    #[test]
    fn the_last_words_of_a_dead_cluster_do_not_wake_it() {
        let (start, mut peer) = (Instant::now(), Liveness::default());
        peer.heartbeat(PeerKind::Weft, b"1", start);
        peer.heartbeat(PeerKind::Weft, b"1", at(start, 7.0));
        assert!(!peer.is_alive(at(start, 7.0)));
    }

    #[test]
    fn a_cilium_peer_is_given_two_minutes() {
        let (start, mut peer) = (Instant::now(), Liveness::default());
        peer.heartbeat(PeerKind::Cilium, b"1", start);
        assert!(peer.is_alive(at(start, 119.0)));
        assert!(!peer.is_alive(at(start, 120.0)));
    }

    #[test]
    fn a_weft_peer_is_not_kept_alive_by_the_key_that_it_writes_for_cilium() {
        let (start, mut peer) = (Instant::now(), Liveness::default());
        peer.heartbeat(PeerKind::Cilium, b"1", start);
        peer.heartbeat(PeerKind::Weft, b"1", start);
        peer.heartbeat(PeerKind::Cilium, b"2", at(start, 5.0));
        assert!(!peer.is_alive(at(start, 6.0)));
        assert_eq!(peer.kind(), PeerKind::Weft);
    }
}
