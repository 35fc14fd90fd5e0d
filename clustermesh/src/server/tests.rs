//! The store against a model that copies all keys at every revision, and whole states against the store.
use super::*;
use crate::server::store::{KeySpan, RevisionError};
use proptest::prelude::*;

type Keys = BTreeMap<Bytes, Bytes>;

fn span(key: &'static str, end: &'static str) -> KeySpan {
    KeySpan::from_wire(Bytes::from_static(key.as_bytes()), Bytes::from_static(end.as_bytes()))
}

fn change() -> impl Strategy<Value = Change> {
    let key = (0u8..20).prop_map(|key| Bytes::from(format!("{key:02}")));
    (key, proptest::option::weighted(0.7, 0u8..4)).prop_map(|(key, value)| match value {
        Some(value) => Change::Put { key, value: value.to_string().into() },
        None => Change::Delete { key },
    })
}

fn apply_to_model(keys: &mut Keys, change: &Change) {
    match change {
        Change::Put { key, value } => keys.insert(key.clone(), value.clone()),
        Change::Delete { key } => keys.remove(key),
    };
}

/// What a watcher holds that had `keys` at `revision` and reads on in small batches. `None`: it is told to list again.
fn replayed(store: &Store, mut keys: Keys, revision: i64) -> Option<Keys> {
    let (everything, mut next) = (span("\0", "\0"), revision + 1);
    while next <= store.revision() {
        let (events, after) = store.events_from(next, &everything, 200).ok()?;
        for event in events {
            let kv = event.kv.as_ref()?;
            match event.r#type {
                0 => keys.insert(kv.key.clone(), kv.value.clone()),
                _ => keys.remove(&kv.key),
            };
        }
        next = after;
    }
    Some(keys)
}

proptest! {
    #[test]
    fn every_revision_in_the_log_reads_and_replays_as_it_was(
        batches in proptest::collection::vec(proptest::collection::vec(change(), 1..4), 1..60)
    ) {
        let mut store = Store::new(100, HistoryLimits { events: 20, bytes: usize::MAX });
        let mut keys = Keys::new();
        let mut copies = BTreeMap::from([(100, keys.clone())]);
        for batch in batches {
            batch.iter().for_each(|change| apply_to_model(&mut keys, change));
            copies.insert(store.apply(batch), keys.clone());
        }
        let middle = span("05", "15");
        for (&revision, copy) in &copies {
            let within = |key: &Bytes| key[..] >= b"05"[..] && key[..] < b"15"[..];
            match store.range(&middle, revision) {
                Ok(found) => {
                    let found: Vec<_> = found.map(|kv| (&kv.key, &kv.value)).collect();
                    let expected: Vec<_> = copy.iter().filter(|(key, _)| within(key)).collect();
                    prop_assert_eq!(found, expected);
                }
                Err(RevisionError::Compacted { oldest }) => prop_assert!(revision < oldest),
                Err(RevisionError::Future) => prop_assert!(false, "{} is no future revision", revision),
            }
            if let Some(seen) = replayed(&store, copy.clone(), revision) {
                prop_assert_eq!(seen, keys.clone());
            }
        }
        prop_assert!(replayed(&store, keys.clone(), store.revision()).is_some());
    }

    #[test]
    fn a_published_state_is_all_there_is_whatever_was_before(
        states in proptest::collection::vec(proptest::collection::btree_map("(weft|cilium)/state/[a-e]", "[a-c]", 1..6), 1..6)
    ) {
        let publisher = Publisher::new(HistoryLimits::default());
        for state in states {
            let state: Keys = state.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
            publisher.replace(state.clone());
            let store = publisher.store.read().unwrap();
            let found: Keys = store.range(&span("\0", "\0"), 0).unwrap().map(|kv| (kv.key.clone(), kv.value.clone())).collect();
            prop_assert_eq!(found, state);
        }
    }
}

#[test]
fn the_same_state_again_makes_no_event_and_heartbeats_stay() {
    let publisher = Publisher::new(HistoryLimits::default());
    let cluster = ClusterName::try_from("east".to_owned()).unwrap();
    publisher.apply(heartbeat(&cluster, SystemTime::now()).map(|(key, value)| Change::Put { key, value }));
    let state = Keys::from([("weft/state/x".into(), "1".into())]);
    publisher.replace(state.clone());
    let revision = publisher.store.read().unwrap().revision();
    publisher.replace(state);
    let store = publisher.store.read().unwrap();
    assert_eq!((store.revision(), store.keys().count()), (revision, 3));
}

#[test]
fn a_large_state_is_split_and_announced_as_complete_last() {
    let publisher = Publisher::new(HistoryLimits::default());
    let cluster = ClusterName::try_from("east".to_owned()).unwrap();
    let canary = Key::Synced(cluster, weft_clustermesh_core::key::Part::Nodes).to_bytes();
    let mut state: Keys = (0..2000).map(|n| (format!("weft/state/{n:05}").into(), vec![b'x'; 1000].into())).collect();
    state.insert(canary.clone(), "now".into());
    let before = publisher.store.read().unwrap().revision();
    publisher.replace(state);
    let store = publisher.store.read().unwrap();
    assert!(store.revision() - before >= 4);
    let canary = KeySpan::from_wire(canary, Bytes::new());
    let last = store.range(&canary, 0).unwrap().next().unwrap();
    assert_eq!(last.mod_revision, store.revision());
}
