//! Keys as an etcd would keep them: a revision for each change, reads of the recent past, a bounded log of events.
//! Pure: no clock, no sockets.
//!
//! Only the present is stored. A read at an older revision starts from it and takes back what the log says has happened
//! since; what has left the log is 'compacted', as it would be in etcd.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use itertools::Itertools;
use weft_clustermesh_core::Change;

use crate::pb::mvccpb::{Event, KeyValue, event::EventType};

#[derive(Clone, Copy, Debug)]
pub struct HistoryLimits {
    pub events: usize,
    pub bytes: usize,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { events: 100_000, bytes: 64 << 20 }
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevisionError {
    #[error("mvcc: required revision has been compacted")]
    Compacted { oldest: i64 },
    #[error("mvcc: required revision is a future revision")]
    Future,
}

#[derive(Debug)]
pub struct Store {
    keys: BTreeMap<Bytes, KeyValue>,
    key_bytes: usize,
    log: VecDeque<Event>,
    log_bytes: usize,
    limits: HistoryLimits,
    revision: i64,
    /// The first revision that can still be read and watched.
    oldest: i64,
}

impl Store {
    /// `first_revision` must be above every revision that an earlier run has shown to a peer: then a
    /// peer that resumes after a restart is told 'compacted' and lists again, and misses nothing.
    pub fn new(first_revision: i64, limits: HistoryLimits) -> Self {
        Self {
            keys: BTreeMap::new(),
            key_bytes: 0,
            log: VecDeque::new(),
            log_bytes: 0,
            limits,
            revision: first_revision,
            oldest: first_revision,
        }
    }

    pub fn revision(&self) -> i64 {
        self.revision
    }

    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.keys.keys()
    }

    pub fn key_bytes(&self) -> usize {
        self.key_bytes
    }

    /// One new revision for all the changes. Those that change nothing are no events; without any, no new revision.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> i64 {
        let revision = self.revision + 1;
        for event in changes {
            if let Some(event) = self.apply_one(event, revision) {
                self.log_bytes += event_bytes(&event);
                self.log.push_back(event);
                self.revision = revision;
            }
        }
        while self.log.len() > self.limits.events || self.log_bytes > self.limits.bytes {
            self.forget_through(self.log[0].revision());
        }
        self.revision
    }

    /// Forgets the events up to and including `revision`; keys stay.
    pub fn forget_through(&mut self, revision: i64) {
        while let Some(event) = self.log.pop_front_if(|event| event.revision() <= revision) {
            self.log_bytes -= event_bytes(&event);
        }
        self.oldest = self.oldest.max(revision.min(self.revision) + 1);
    }

    /// What `span` held at `revision` (0: now), in the order of keys.
    pub fn range<'a>(
        &'a self,
        span: &'a KeySpan,
        revision: i64,
    ) -> Result<impl Iterator<Item = &'a KeyValue>, RevisionError> {
        let revision = if revision <= 0 { self.revision } else { revision };
        if revision > self.revision {
            return Err(RevisionError::Future);
        }
        if revision < self.oldest && revision != self.revision {
            return Err(RevisionError::Compacted { oldest: self.oldest });
        }
        let mut undone: BTreeMap<&Bytes, Option<&KeyValue>> = BTreeMap::new();
        for event in self.log.iter().rev().take_while(|event| event.revision() > revision) {
            if span.contains(event.key()) {
                undone.insert(event.key(), event.prev_kv.as_ref());
            }
        }
        let touched: BTreeSet<&Bytes> = undone.keys().copied().collect();
        let today = self.keys.range::<[u8], _>(span.bounds()).map(|(_, kv)| kv);
        let untouched = today.filter(move |kv| touched.is_empty() || !touched.contains(&kv.key));
        let past = undone.into_values().flatten();
        Ok(untouched.merge_by(past, |a, b| a.key < b.key))
    }

    /// The events that follow for a watcher which has seen all before `next_revision`: whole revisions, some `max_bytes`
    /// of them, and where to go on.
    pub fn events_from(
        &self,
        next_revision: i64,
        span: &KeySpan,
        max_bytes: usize,
    ) -> Result<(Vec<&Event>, i64), RevisionError> {
        if next_revision < self.oldest {
            return Err(RevisionError::Compacted { oldest: self.oldest });
        }
        let start = self.log.partition_point(|event| event.revision() < next_revision);
        let (mut events, mut bytes, mut reached) = (Vec::new(), 0, next_revision - 1);
        for event in self.log.range(start..) {
            if bytes >= max_bytes && event.revision() > reached {
                return Ok((events, reached + 1));
            }
            reached = event.revision();
            if span.contains(event.key()) {
                bytes += event_bytes(event);
                events.push(event);
            }
        }
        Ok((events, next_revision.max(self.revision + 1)))
    }

    fn apply_one(&mut self, change: Change, revision: i64) -> Option<Event> {
        let (kind, kv, prev_kv) = match change {
            Change::Put { key, value } => {
                let prev = self.keys.get(&key);
                if prev.is_some_and(|kv| kv.value == value) {
                    return None;
                }
                let create_revision = prev.map_or(revision, |kv| kv.create_revision);
                let version = prev.map_or(1, |kv| kv.version + 1);
                let kv = KeyValue { key, value, create_revision, mod_revision: revision, version, lease: 0 };
                let prev = self.keys.insert(kv.key.clone(), kv.clone());
                self.key_bytes += kv_bytes(&kv);
                (EventType::Put, kv, prev)
            }
            Change::Delete { key } => {
                let prev = self.keys.remove(&key)?;
                (EventType::Delete, KeyValue { key, mod_revision: revision, ..KeyValue::default() }, Some(prev))
            }
        };
        self.key_bytes -= prev_kv.as_ref().map_or(0, kv_bytes);
        Some(Event { r#type: kind.into(), kv: Some(kv), prev_kv })
    }
}

/// A run of keys: one, a prefix, or from here to there, as the wire says it in `key` and `range_end`.
#[derive(Debug, Clone)]
pub struct KeySpan {
    start: Bytes,
    end: End,
}

#[derive(Debug, Clone)]
enum End {
    OneKey,
    Before(Bytes),
    Unbounded,
}

impl KeySpan {
    pub fn from_wire(key: Bytes, range_end: Bytes) -> Self {
        let end = match range_end.as_ref() {
            [] => End::OneKey,
            [0] => End::Unbounded,
            _ => End::Before(range_end),
        };
        Self { start: key, end }
    }

    pub fn contains(&self, key: &Bytes) -> bool {
        match &self.end {
            End::OneKey => *key == self.start,
            End::Before(end) => *key >= self.start && key < end,
            End::Unbounded => *key >= self.start,
        }
    }

    pub fn is_empty(&self) -> bool {
        matches!(&self.end, End::Before(end) if *end <= self.start)
    }

    fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let start = self.start.as_ref();
        match &self.end {
            End::OneKey => (Bound::Included(start), Bound::Included(start)),
            End::Before(_) if self.is_empty() => (Bound::Included(start), Bound::Excluded(start)),
            End::Before(end) => (Bound::Included(start), Bound::Excluded(end.as_ref())),
            End::Unbounded => (Bound::Included(start), Bound::Unbounded),
        }
    }
}

impl Event {
    fn logged(&self) -> &KeyValue {
        // Only `apply_one` makes events of the log, and it gives each its key.
        self.kv.as_ref().expect("a logged event has a key")
    }

    pub fn key(&self) -> &Bytes {
        &self.logged().key
    }

    pub fn revision(&self) -> i64 {
        self.logged().mod_revision
    }
}

pub fn event_bytes(event: &Event) -> usize {
    kv_bytes(event.logged()) + event.prev_kv.as_ref().map_or(0, kv_bytes)
}

fn kv_bytes(kv: &KeyValue) -> usize {
    kv.key.len() + kv.value.len() + 48
}
