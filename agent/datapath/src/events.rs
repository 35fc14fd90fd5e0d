//! What the programs tell of new connections.
use crate::error::DatapathError;
use aya::maps::{Map, MapData, RingBuf};
use std::{io, path::Path, time::Duration};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};
use weft_bpf_abi::event::{EVENTS, Event};

/// The kernel wakes a reader that has caught up for the next event, at the cost of the connection that it tells of: about
/// 20 us. One that lets events gather is woken once for all of them. The buffer holds thousands.
const GATHER: Duration = Duration::from_millis(10);

/// Reads the ring buffer `EVENTS`. One reader a node: what it takes, no other gets. Reading too slowly loses events, in
/// the kernel, where they are counted.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Events {
    /// Must be called inside a tokio runtime. `map_dir` as `load::map_dir` names it; the maps must exist.
    pub fn open(map_dir: &Path) -> Result<Self, DatapathError> {
        let fail = |cause| DatapathError::Map { map: EVENTS, cause: Box::new(cause) };
        let map = MapData::from_pin(map_dir.join(EVENTS)).map_err(fail)?;
        let ring = RingBuf::try_from(Map::RingBuf(map)).map_err(fail)?;
        // SAFETY: the ring owns its descriptor, and nothing replaces or closes it inside `AsyncFd`.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        let ring = ring.map_err(|error| fail(io::Error::from(error).into()))?;
        Ok(Self { ring })
    }

    /// The next event. Cancel safe.
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            if let Some(event) = take(self.ring.get_mut()) {
                return Ok(event);
            }
            let mut ready = self.ring.readable_mut().await?;
            sleep(GATHER).await;
            match take(ready.get_inner_mut()) {
                Some(event) => return Ok(event),
                None => ready.clear_ready(),
            }
        }
    }
}

/// Skips entries that are no events: programs of another build wrote them.
fn take(ring: &mut RingBuf<MapData>) -> Option<Event> {
    loop {
        let item = ring.next()?;
        if item.len() == size_of::<Event>() {
            // SAFETY: as long as an event, whose every bit pattern is valid.
            return Some(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
        }
    }
}
