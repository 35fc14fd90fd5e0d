//! What the host functions work on: the state of one instance and of the stream that it is called for.
use crate::{
    abi::{buffer, half, map},
    headers::Headers,
    limits::{CpuLimit, MemoryLimiter},
    log::LogRing,
    metrics::PluginMetrics,
    outcome::LocalResponse,
    properties::Properties,
    queues::QueueId,
    services::{HostServices, SharedData},
};
use bytes::{Bytes, BytesMut};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    task::Waker,
    time::Duration,
};
use wasmtime::{Memory, TypedFunc};

/// The root context of every instance.
pub const ROOT_CONTEXT: u32 = 1;

/// Data of the store of one instance.
pub struct HostState {
    pub memory: Option<Memory>,
    pub allocate: Option<TypedFunc<u32, u32>>,
    pub memory_limiter: MemoryLimiter,
    pub cpu: CpuLimit,
    pub identity: Identity,
    pub log: LogRing,
    pub services: HostServices,
    pub shared_data: Arc<SharedData>,
    pub metrics: Arc<PluginMetrics>,
    /// The stream that host functions are about; `None`: the root context.
    pub current: Option<Box<StreamState>>,
    /// Paused streams, reachable from callbacks of the root context.
    pub parked: HashMap<u32, Box<StreamState>>,
    pub tick_period: Option<Duration>,
    /// Queues that this instance registered and is told about.
    pub queues: Vec<QueueId>,
    pub exit_code: Option<i32>,
    /// Values on their way into the guest; kept for its capacity.
    pub scratch: Vec<u8>,
}

/// Who the plugin is, as far as it can ask.
#[derive(Clone, Default)]
pub struct Identity {
    pub name: String,
    pub root_id: String,
    pub vm_id: String,
    pub configuration: Bytes,
    /// `NAME=value`, each with its NUL.
    pub environment: Vec<Vec<u8>>,
}

impl Identity {
    pub fn new(spec: &crate::spec::PluginSpec) -> Self {
        let environment = |env: &BTreeMap<String, String>| {
            env.iter().map(|(name, value)| format!("{name}={value}\0").into_bytes()).collect()
        };
        Self {
            name: spec.name.clone(),
            root_id: spec.root_id.clone(),
            vm_id: spec.vm_id.clone(),
            configuration: Bytes::from(spec.configuration.clone()),
            environment: environment(&spec.env),
        }
    }
}

impl HostState {
    pub fn new(identity: Identity, memory_limiter: MemoryLimiter, log: LogRing, services: HostServices) -> Self {
        Self {
            memory: None,
            allocate: None,
            memory_limiter,
            cpu: CpuLimit::default(),
            log,
            shared_data: services.shared_data(&identity.vm_id),
            metrics: services.metrics(&identity.name),
            services,
            identity,
            current: None,
            parked: HashMap::new(),
            tick_period: None,
            queues: Vec::new(),
            exit_code: None,
            scratch: Vec::new(),
        }
    }

    /// Of no plugin: for looking at a module before it is one.
    pub fn detached() -> Self {
        Self::new(Identity::default(), MemoryLimiter::default(), LogRing::default(), HostServices::default())
    }

    /// Makes another stream the current one; `false`: no such stream waits here.
    pub fn switch_to(&mut self, context: u32) -> bool {
        if self.current.as_ref().map_or(ROOT_CONTEXT, |stream| stream.id) == context {
            return true;
        }
        let next = self.parked.remove(&context);
        if next.is_none() && context != ROOT_CONTEXT {
            return false;
        }
        if let Some(stream) = std::mem::replace(&mut self.current, next) {
            self.parked.insert(stream.id, stream);
        }
        true
    }
}

/// One stream: what its plugin may see and change now.
pub struct StreamState {
    pub id: u32,
    pub properties: Box<dyn Properties>,
    /// Set by the plugin: path (segments joined with NUL) and value.
    pub kept: Vec<(Vec<u8>, Vec<u8>)>,
    pub maps: [Option<Headers>; map::COUNT],
    /// Maps that may be changed now.
    pub open_maps: [bool; map::COUNT],
    pub buffers: [Buffer; buffer::COUNT],
    /// Buffers that may be read and changed now.
    pub open_buffers: [bool; buffer::COUNT],
    pub local_response: Option<LocalResponse>,
    /// Halves that the plugin asked to continue.
    pub resumed: [bool; half::COUNT],
    /// What waits in each half.
    pub waiting: [Option<Waiting>; half::COUNT],
    pub close: bool,
    pub waker: Option<Waker>,
}

impl StreamState {
    pub fn new(properties: Box<dyn Properties>) -> Self {
        Self {
            id: 0,
            properties,
            kept: Vec::new(),
            maps: [const { None }; map::COUNT],
            open_maps: [false; map::COUNT],
            buffers: Default::default(),
            open_buffers: [false; buffer::COUNT],
            local_response: None,
            resumed: [false; half::COUNT],
            waiting: [None; half::COUNT],
            close: false,
            waker: None,
        }
    }

    /// As new, for another stream; its memory is used again.
    pub fn reset(&mut self) {
        self.properties = Box::new(());
        self.kept.clear();
        self.maps = [const { None }; map::COUNT];
        self.open_maps = [false; map::COUNT];
        self.buffers = Default::default();
        self.open_buffers = [false; buffer::COUNT];
        self.local_response = None;
        self.resumed = [false; half::COUNT];
        self.waiting = [None; half::COUNT];
        self.close = false;
        self.waker = None;
    }

    pub fn kept(&self, path: &[u8]) -> Option<&[u8]> {
        self.kept.iter().find(|(kept, _)| kept == path).map(|(_, value)| value.as_slice())
    }

    /// Room for what one stream's plugin can set: it is the plugin's own doing, but never the host's end.
    pub fn keep(&mut self, path: &[u8], value: &[u8]) -> bool {
        const MOST: usize = 256;
        if let Some((_, kept)) = self.kept.iter_mut().find(|(kept, _)| kept == path) {
            kept.clear();
            kept.extend_from_slice(value);
        } else if self.kept.len() < MOST {
            self.kept.push((path.to_vec(), value.to_vec()));
        } else {
            return false;
        }
        true
    }
}

/// What a paused half of a stream holds back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// The connection itself.
    Connection,
    Map(usize),
    Buffer(usize),
}

/// Body bytes: shared with the caller until the plugin changes them.
#[derive(Default)]
pub struct Buffer {
    bytes: Bytes,
}

impl Buffer {
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a chunk; the first one is not copied.
    pub fn push(&mut self, chunk: Bytes) {
        if self.bytes.is_empty() {
            self.bytes = chunk;
        } else {
            let mut joined = self.take_mut();
            joined.extend_from_slice(&chunk);
            self.bytes = joined.freeze();
        }
    }

    pub fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.bytes)
    }

    /// Replaces `size` bytes at `start` (both cut to what there is).
    pub fn splice(&mut self, start: usize, size: usize, with: &[u8]) {
        let old = self.take();
        let start = start.min(old.len());
        let end = start.saturating_add(size).min(old.len());
        let mut new = BytesMut::with_capacity(old.len() - (end - start) + with.len());
        new.extend_from_slice(&old[..start]);
        new.extend_from_slice(with);
        new.extend_from_slice(&old[end..]);
        self.bytes = new.freeze();
    }

    fn take_mut(&mut self) -> BytesMut {
        self.take().try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(text: &'static str) -> Buffer {
        Buffer { bytes: Bytes::from_static(text.as_bytes()) }
    }

    #[test]
    fn a_buffer_is_changed_at_any_place() {
        for (start, size, with, expected) in [
            (0, 0, "x", "xhello"),
            (5, 0, "x", "hellox"),
            (99, 7, "x", "hellox"),
            (0, usize::MAX, "x", "x"),
            (1, 3, "ipp", "hippo"),
            (3, usize::MAX, "", "hel"),
        ] {
            let mut buffer = buffer("hello");
            buffer.splice(start, size, with.as_bytes());
            assert_eq!(buffer.as_slice(), expected.as_bytes());
        }
    }

    #[test]
    fn chunks_are_gathered() {
        let mut buffer = buffer("a");
        buffer.push(Bytes::from_static(b"b"));
        buffer.push(Bytes::from_static(b"c"));
        assert_eq!(buffer.take(), "abc");
        assert_eq!(buffer.len(), 0);
    }
}
