//! What HTTP and TCP streams have in common: one context of one instance, from its first callback to its last.
use crate::{
    abi::{ACTION_CONTINUE, half},
    error::Fault,
    headers::Headers,
    instance::{Instance, Live},
    outcome::LocalResponse,
    plugin::{Plugin, Shared},
    properties::Properties,
    state::{StreamState, Waiting},
    stats::PluginStats,
};
use bytes::Bytes;
use std::{
    rc::Rc,
    task::{Context, Poll},
};

pub struct Stream {
    plugin: Rc<Shared>,
    instance: Option<Rc<Instance>>,
    /// Here, or parked in the instance while it is paused.
    state: Option<Box<StreamState>>,
    id: u32,
    begun: bool,
    /// The first one stands.
    fault: Option<Fault>,
}

/// How a callback ended.
pub enum Settled {
    Continue,
    Pause,
    Respond(LocalResponse),
    Close,
    Fault(Fault),
}

/// What the caller lends to a callback and gets back unless it is held back.
pub struct Lent<'a> {
    pub headers: &'a mut Headers,
    pub body: &'a mut Bytes,
}

impl Stream {
    pub fn new(plugin: &Plugin, properties: Box<dyn Properties>) -> Self {
        let plugin = Rc::clone(&plugin.shared);
        PluginStats::add(&plugin.stats.requests, 1);
        let (instance, fault) = match plugin.instance() {
            Ok(instance) => (Some(instance), None),
            Err(fault) => (None, Some(fault)),
        };
        if fault.is_some() {
            PluginStats::add(&plugin.stats.faults, 1);
        }
        let id = instance.as_ref().map_or(0, |instance| instance.new_context());
        let state = plugin.new_state(id, properties);
        Self { plugin, instance, state: Some(state), id, begun: false, fault }
    }

    /// A value that the plugin set for this stream.
    pub fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        let path = path.join("\0");
        if let Some(state) = &self.state {
            return state.kept(path.as_bytes()).map(<[u8]>::to_vec);
        }
        let instance = self.instance.as_ref()?;
        instance.look(|host| host.parked.get(&self.id)?.kept(path.as_bytes()).map(<[u8]>::to_vec)).flatten()
    }

    /// Changes the stream's state between callbacks.
    pub fn edit(&mut self, edit: impl FnOnce(&mut StreamState)) {
        if let Some(mut state) = self.take_state() {
            edit(&mut state);
            self.put_state(state);
        }
    }

    pub fn buffered(&mut self, buffer: usize) -> usize {
        let mut length = 0;
        self.edit(|state| length = state.buffers[buffer].len());
        length
    }

    pub fn body_limit(&self) -> usize {
        self.instance.as_ref().map_or(usize::MAX, |instance| instance.limits().buffered_body_bytes)
    }

    /// Runs a callback that is about `subject` in `half`. `call` gives `None` where the plugin does not have it.
    pub fn run(
        &mut self,
        callback: &'static str,
        half: usize,
        subject: Waiting,
        lent: Lent<'_>,
        call: impl FnOnce(&mut Live, u32) -> wasmtime::Result<Option<u32>>,
    ) -> Settled {
        if let Some(fault) = &self.fault {
            return Settled::Fault(fault.clone());
        }
        let (Some(instance), Some(mut state)) = (self.instance.clone(), self.take_state()) else {
            return self.fail(Fault::InstanceLost);
        };
        lend(&mut state, subject, lent.headers, lent.body);
        state.resumed[half] = false;
        let (id, begun) = (self.id, std::mem::replace(&mut self.begun, true));
        let (mut state, action) = instance.call(state, callback, |live| {
            if !begun && let Some(create) = &live.exports.context_create {
                create.call(&mut live.store, (id, crate::state::ROOT_CONTEXT))?;
            }
            call(live, id)
        });
        match action {
            Ok(action) => {
                if action.is_none_or(|action| action == ACTION_CONTINUE) {
                    state.resumed[half] = true;
                }
                state.waiting[half] = Some(subject);
                self.settle(state, half, lent)
            }
            Err(fault) => {
                give_back(&mut state, subject, lent);
                self.state = Some(state);
                self.plugin.failed(&instance, &fault);
                self.fail(fault)
            }
        }
    }

    /// Whether a paused half may go on.
    pub fn poll_resumed(&mut self, context: &mut Context<'_>, half: usize, lent: Lent<'_>) -> Poll<Settled> {
        if let Some(fault) = &self.fault {
            return Poll::Ready(Settled::Fault(fault.clone()));
        }
        let alive = self.instance.as_ref().is_some_and(|instance| instance.is_alive());
        let Some(mut state) = self.take_state() else {
            return Poll::Ready(self.fail(Fault::InstanceLost));
        };
        if !alive {
            if let Some(subject) = state.waiting[half].take() {
                give_back(&mut state, subject, lent);
            }
            self.state = Some(state);
            return Poll::Ready(self.fail(Fault::InstanceLost));
        }
        state.waker = Some(context.waker().clone());
        match self.settle(state, half, lent) {
            Settled::Pause => Poll::Pending,
            settled => Poll::Ready(settled),
        }
    }

    /// Ends the context; the second time it does nothing.
    pub fn finish(&mut self) {
        let (Some(instance), Some(state)) = (self.instance.clone(), self.take_state()) else { return };
        if !std::mem::replace(&mut self.begun, false) || !instance.is_alive() {
            self.instance = None;
            self.state = Some(state);
            return;
        }
        let id = self.id;
        let (state, result) = instance.call(state, "proxy_on_done", |live| {
            if let Some(done) = &live.exports.done {
                done.call(&mut live.store, id)?;
            }
            if let Some(log) = &live.exports.log {
                log.call(&mut live.store, id)?;
            }
            if let Some(delete) = &live.exports.delete {
                delete.call(&mut live.store, id)?;
            }
            Ok(())
        });
        if let Err(fault) = result {
            self.plugin.failed(&instance, &fault);
            self.fail(fault);
        }
        self.state = Some(state);
        self.instance = None;
    }

    /// Tells the plugin something that needs no answer.
    pub fn notify(&mut self, callback: &'static str, call: impl FnOnce(&mut Live, u32) -> wasmtime::Result<()>) {
        let (Some(instance), Some(state)) = (self.instance.clone(), self.take_state()) else { return };
        if !self.begun || self.fault.is_some() {
            self.put_state(state);
            return;
        }
        let id = self.id;
        let (state, result) = instance.call(state, callback, |live| call(live, id));
        self.put_state(state);
        if let Err(fault) = result {
            self.plugin.failed(&instance, &fault);
            self.fail(fault);
        }
    }

    fn settle(&mut self, mut state: Box<StreamState>, half: usize, lent: Lent<'_>) -> Settled {
        let settled = if let Some(response) = state.local_response.take() {
            PluginStats::add(&self.plugin.stats.denied, 1);
            Settled::Respond(response)
        } else if std::mem::take(&mut state.close) {
            PluginStats::add(&self.plugin.stats.denied, 1);
            Settled::Close
        } else if std::mem::take(&mut state.resumed[half]) {
            Settled::Continue
        } else {
            self.put_parked(state);
            return Settled::Pause;
        };
        if let Some(subject) = state.waiting[half].take() {
            give_back(&mut state, subject, lent);
        }
        // The other half may still wait, and then the root context must find it.
        self.put_state(state);
        settled
    }

    fn take_state(&mut self) -> Option<Box<StreamState>> {
        self.state.take().or_else(|| self.instance.as_ref()?.unpark(self.id))
    }

    fn put_state(&mut self, state: Box<StreamState>) {
        if state.waiting.iter().any(Option::is_some) { self.put_parked(state) } else { self.state = Some(state) }
    }

    fn put_parked(&mut self, state: Box<StreamState>) {
        self.state = match &self.instance {
            Some(instance) => instance.park(state),
            None => Some(state),
        };
    }

    fn fail(&mut self, fault: Fault) -> Settled {
        PluginStats::add(&self.plugin.stats.faults, 1);
        self.fault = Some(fault.clone());
        Settled::Fault(fault)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.finish();
        if let Some(state) = self.take_state() {
            self.plugin.take_back(state);
        }
    }
}

fn lend(state: &mut StreamState, subject: Waiting, headers: &mut Headers, body: &mut Bytes) {
    match subject {
        Waiting::Connection => {}
        Waiting::Map(map) => {
            state.maps[map] = Some(std::mem::take(headers));
            state.open_maps[map] = true;
        }
        Waiting::Buffer(buffer) => {
            state.buffers[buffer].push(std::mem::take(body));
            state.open_buffers[buffer] = true;
        }
    }
}

fn give_back(state: &mut StreamState, subject: Waiting, lent: Lent<'_>) {
    match subject {
        Waiting::Connection => {}
        Waiting::Map(map) => {
            state.open_maps[map] = false;
            if let Some(headers) = state.maps[map].take() {
                *lent.headers = headers;
            }
        }
        Waiting::Buffer(buffer) => {
            state.open_buffers[buffer] = false;
            *lent.body = state.buffers[buffer].take();
        }
    }
}

/// The two ways that data flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Or: from downstream.
    Request,
    /// Or: from upstream.
    Response,
}

impl Direction {
    pub(crate) fn http_half(self) -> usize {
        match self {
            Self::Request => half::REQUEST,
            Self::Response => half::RESPONSE,
        }
    }

    pub(crate) fn tcp_half(self) -> usize {
        match self {
            Self::Request => half::DOWNSTREAM,
            Self::Response => half::UPSTREAM,
        }
    }
}
