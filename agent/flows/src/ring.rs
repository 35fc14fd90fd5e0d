//! The last flows of this node. Writers never wait; a reader that falls behind is told how many it missed.
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::broadcast;
use weft_proxy_api::flow::Flow;

/// How far a follower may fall behind.
const FOLLOWERS_BEHIND: usize = 4096;

#[derive(Clone)]
pub struct FlowRing {
    kept: Arc<Mutex<Kept>>,
    new: broadcast::Sender<Arc<Flow>>,
}

struct Kept {
    flows: VecDeque<Arc<Flow>>,
    capacity: usize,
    /// Flows that the kernel or the proxy could not hand over.
    lost: u64,
    seen: u64,
}

impl FlowRing {
    pub fn new(capacity: usize) -> Self {
        let (new, _) = broadcast::channel(FOLLOWERS_BEHIND);
        let kept = Kept { flows: VecDeque::with_capacity(capacity), capacity, lost: 0, seen: 0 };
        Self { kept: Arc::new(Mutex::new(kept)), new }
    }

    pub fn push(&self, flow: Flow) {
        let flow = Arc::new(flow);
        {
            let mut kept = self.kept();
            if kept.flows.len() == kept.capacity {
                kept.flows.pop_front();
            }
            kept.flows.push_back(flow.clone());
            kept.seen += 1;
        }
        // No follower is no error.
        let _ = self.new.send(flow);
    }

    pub fn lose(&self, flows: u64) {
        self.kept().lost += flows;
    }

    /// The last `count` flows that `wanted` accepts, oldest first.
    pub fn last(&self, count: usize, wanted: impl Fn(&Flow) -> bool) -> Vec<Arc<Flow>> {
        let mut found: Vec<_> =
            self.kept().flows.iter().rev().filter(|flow| wanted(flow)).take(count).cloned().collect();
        found.reverse();
        found
    }

    pub fn follow(&self) -> broadcast::Receiver<Arc<Flow>> {
        self.new.subscribe()
    }

    /// (flows seen, flows lost)
    pub fn counts(&self) -> (u64, u64) {
        let kept = self.kept();
        (kept.seen, kept.lost)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // A panic between the two lines of a writer leaves a whole ring behind.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::tests::flow;

    #[test]
    fn the_oldest_flow_makes_room_for_the_newest() {
        let ring = FlowRing::new(2);
        for path in ["/1", "/2", "/3"] {
            ring.push(flow("shop/frontend", "shop/api", path));
        }
        let paths: Vec<_> = ring.last(10, |_| true).iter().map(|f| f.http.as_ref().unwrap().path.clone()).collect();
        assert_eq!((paths, ring.counts()), (vec!["/2".to_owned(), "/3".to_owned()], (3, 0)));
    }

    #[test]
    fn a_follower_hears_of_what_comes_after_it_began() {
        let ring = FlowRing::new(2);
        ring.push(flow("a/a", "b/b", "/before"));
        let mut follower = ring.follow();
        ring.push(flow("a/a", "b/b", "/after"));
        assert_eq!(follower.try_recv().unwrap().http.as_ref().unwrap().path, "/after");
        assert!(follower.try_recv().is_err());
    }
}
