//! Queues between plugins of one process.
use crate::services::lock;
use bytes::Bytes;
use std::{
    collections::{HashMap, VecDeque},
    sync::Mutex,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueId(pub u32);

/// All queues of the process.
#[derive(Default)]
pub struct Queues {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    ids: HashMap<(String, Vec<u8>), QueueId>,
    queues: Vec<VecDeque<Bytes>>,
}

const QUEUES: usize = 1024;
const ITEMS: usize = 10_000;

impl Queues {
    /// `None`: there are too many.
    pub fn register(&self, vm_id: &str, name: &[u8]) -> Option<QueueId> {
        let mut table = lock(&self.table);
        if let Some(id) = table.ids.get(&(vm_id.to_owned(), name.to_vec())) {
            return Some(*id);
        }
        if table.queues.len() >= QUEUES {
            return None;
        }
        table.queues.push(VecDeque::new());
        let id = QueueId(u32::try_from(table.queues.len()).ok()?);
        table.ids.insert((vm_id.to_owned(), name.to_vec()), id);
        Some(id)
    }

    pub fn resolve(&self, vm_id: &str, name: &[u8]) -> Option<QueueId> {
        lock(&self.table).ids.get(&(vm_id.to_owned(), name.to_vec())).copied()
    }

    /// `None`: no such queue; `Some(false)`: it is full.
    pub fn push(&self, id: QueueId, item: &[u8]) -> Option<bool> {
        let mut table = lock(&self.table);
        let queue = table.queue(id)?;
        let room = queue.len() < ITEMS;
        if room {
            queue.push_back(Bytes::copy_from_slice(item));
        }
        Some(room)
    }

    /// `None`: no such queue; `Some(None)`: it is empty.
    pub fn pop(&self, id: QueueId) -> Option<Option<Bytes>> {
        lock(&self.table).queue(id).map(VecDeque::pop_front)
    }

    pub fn has_items(&self, id: QueueId) -> bool {
        lock(&self.table).queue(id).is_some_and(|queue| !queue.is_empty())
    }
}

impl Table {
    fn queue(&mut self, id: QueueId) -> Option<&mut VecDeque<Bytes>> {
        self.queues.get_mut(usize::try_from(id.0).ok()?.checked_sub(1)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_found_by_name_and_gives_items_in_order() {
        let queues = Queues::default();
        let id = queues.register("vm", b"q").unwrap();
        assert_eq!(queues.register("vm", b"q"), Some(id));
        assert_eq!((queues.resolve("vm", b"q"), queues.resolve("other", b"q")), (Some(id), None));
        assert_eq!((queues.push(id, b"1"), queues.push(id, b"2")), (Some(true), Some(true)));
        assert!(queues.has_items(id));
        assert_eq!(queues.pop(id), Some(Some(Bytes::from_static(b"1"))));
        assert_eq!(queues.pop(id), Some(Some(Bytes::from_static(b"2"))));
        assert_eq!((queues.pop(id), queues.pop(QueueId(0)), queues.push(QueueId(9), b"")), (Some(None), None, None));
    }
}
