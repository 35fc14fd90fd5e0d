//! One request and its response on their way through the plugins.
use super::{
    properties::{ConnProperties, TunnelProperties},
    set::{Running, Slot},
};
use crate::{
    conn::{Conn, Judged},
    http::body::{Body, Filter},
    state::{Decision, HTTP_POLICY, SPIFFE_AUTHZ},
    worker::View,
};
use bytes::Bytes;
use hyper::body::Incoming;
use std::{cell::RefCell, future::poll_fn, rc::Rc, task::Poll, time::Duration};
use tokio::time::timeout;
use weft_plugin_host::{Direction, Fault, Headers, HttpStream, LocalResponse, Outcome, TcpOutcome};

/// How long a plugin may hold a request back.
const PAUSE_TIME: Duration = Duration::from_secs(30);
const PAUSED_TOO_LONG: &str = "held the request back and did not let it go on";

/// What the plugins of a phase say together.
#[derive(Debug)]
pub enum Step {
    Continue,
    Respond {
        response: LocalResponse,
        plugin: String,
    },
    Close {
        plugin: String,
    },
    /// A plugin that fails closed has failed.
    Failed {
        plugin: String,
        reason: String,
    },
}

pub struct Exchange {
    pub(super) active: RefCell<Vec<Active>>,
    /// Set when a plugin ends the exchange in the middle of a body.
    pub(super) ended: RefCell<Option<Step>>,
}

pub(super) struct Active {
    pub name: String,
    built_in: bool,
    pub fail_open: bool,
    pub running: Rc<Running>,
    pub stream: HttpStream,
}

impl Exchange {
    /// `Err`: a plugin that must see the request does not run.
    pub fn begin(conn: &Rc<Conn>, judged: &Rc<Judged>, protocol: &'static str) -> Result<Rc<Self>, Box<Step>> {
        let generation = &judged.view.generation;
        if matches!(judged.decision, Decision::Http { .. }) && generation.compiled.http_policy.is_none() {
            return Err(Box::new(missing(HTTP_POLICY, "it is not configured")));
        }
        let mut active = Vec::with_capacity(judged.chain.len());
        for index in &judged.chain {
            let built_in = generation.compiled.http_policy == Some(*index);
            let (Some(plan), Some(slot)) = (generation.plugins.get(*index), judged.view.plugins.get(*index)) else {
                continue;
            };
            let fail_open = plan.fail_open && !built_in;
            match slot {
                Slot::Running(running) => {
                    let (conn, judged) = (conn.clone(), judged.clone());
                    let stream = running.plugin.http_stream(Box::new(ConnProperties { conn, judged, protocol }));
                    let name = if built_in { HTTP_POLICY.to_owned() } else { plan.name.clone() };
                    active.push(Active { name, built_in, fail_open, running: running.clone(), stream });
                }
                Slot::Failed(_) if fail_open => {}
                Slot::Failed(reason) => return Err(Box::new(missing(&plan.name, reason))),
            }
        }
        Ok(Rc::new(Self { active: RefCell::new(active), ended: RefCell::new(None) }))
    }

    pub fn is_empty(&self) -> bool {
        self.active.borrow().is_empty()
    }

    /// In order. Afterwards the built-in plugin's part is done: `policy` is the name of the policy that it went by.
    pub async fn request_headers(&self, headers: &mut Headers, end: bool, policy: &mut String) -> Step {
        let mut index = 0;
        while index < self.len() {
            let outcome = self.call(index, |stream| stream.request_headers(headers, end));
            let step = match outcome {
                Outcome::Pause => self.resumed(index, Direction::Request, headers).await,
                outcome => outcome,
            };
            if self.is_built_in(index) {
                *policy = self.policy(index);
            }
            match self.settle(index, step) {
                Some(Step::Continue) if self.is_built_in(index) => {
                    self.remove(index);
                }
                Some(Step::Continue) => {
                    self.edit(index, |stream| stream.retain_request(headers));
                    index += 1;
                }
                Some(step) => return step,
                // Failed open: the plugin is out of this exchange.
                None => {}
            }
        }
        Step::Continue
    }

    /// In the opposite order, as Envoy does.
    pub async fn response_headers(&self, headers: &mut Headers, end: bool) -> Step {
        for index in (0..self.len()).rev() {
            let outcome = self.call(index, |stream| stream.response_headers(headers, end));
            let outcome = match outcome {
                Outcome::Pause => self.resumed(index, Direction::Response, headers).await,
                outcome => outcome,
            };
            match self.settle(index, outcome) {
                Some(Step::Continue) => self.edit(index, |stream| stream.retain_response(headers)),
                None => {}
                Some(step) => return step,
            }
        }
        Step::Continue
    }

    /// The body, seen by the plugins that are left.
    pub fn body(self: &Rc<Self>, direction: Direction, body: Incoming) -> Body {
        if self.is_empty() {
            return body.into();
        }
        let filter: Box<dyn Filter> = Box::new(super::body::BodyFilter::new(self.clone(), direction));
        Body::filtered(body, filter)
    }

    /// What a plugin said in the middle of a body.
    pub fn take_end(&self) -> Option<Step> {
        self.ended.take()
    }

    pub(super) fn len(&self) -> usize {
        self.active.borrow().len()
    }

    /// `None`: failed open and removed, or no such plugin.
    pub(super) fn settle(&self, index: usize, outcome: Outcome) -> Option<Step> {
        let (plugin, fail_open) = {
            let active = self.active.borrow();
            let active = active.get(index)?;
            (active.name.clone(), active.fail_open)
        };
        match outcome {
            Outcome::Continue => Some(Step::Continue),
            Outcome::Respond(response) => Some(Step::Respond { response, plugin }),
            Outcome::Close => Some(Step::Close { plugin }),
            Outcome::Fault(fault) if fail_open => {
                tracing::debug!(plugin, %fault, "a plugin failed and is left out");
                self.remove(index);
                None
            }
            Outcome::Fault(fault) => Some(Step::Failed { plugin, reason: fault.to_string() }),
            Outcome::Pause => Some(Step::Failed { plugin, reason: PAUSED_TOO_LONG.to_owned() }),
        }
    }

    pub(super) fn call(&self, index: usize, call: impl FnOnce(&mut HttpStream) -> Outcome) -> Outcome {
        let mut active = self.active.borrow_mut();
        match active.get_mut(index) {
            Some(Active { running, stream, .. }) => running.timed(|| call(stream)),
            None => Outcome::Fault(Fault::InstanceLost),
        }
    }

    fn edit(&self, index: usize, edit: impl FnOnce(&mut HttpStream)) {
        if let Some(active) = self.active.borrow_mut().get_mut(index) {
            edit(&mut active.stream);
        }
    }

    /// Ends the plugin's context; its callbacks may not find the list borrowed.
    fn remove(&self, index: usize) {
        let removed = self.active.borrow_mut().remove(index);
        drop(removed);
    }

    fn is_built_in(&self, index: usize) -> bool {
        self.active.borrow().get(index).is_some_and(|active| active.built_in)
    }

    fn policy(&self, index: usize) -> String {
        let active = self.active.borrow();
        let policy = active.get(index).and_then(|active| active.stream.property(&["weft", "policy"]));
        policy.map(|policy| String::from_utf8_lossy(&policy).into_owned()).unwrap_or_default()
    }

    async fn resumed(&self, index: usize, direction: Direction, headers: &mut Headers) -> Outcome {
        let mut nothing = Bytes::new();
        let resumed = poll_fn(|cx| match self.active.borrow_mut().get_mut(index) {
            Some(active) => active.stream.poll_resumed(cx, direction, headers, &mut nothing),
            None => Poll::Ready(Outcome::Fault(Fault::InstanceLost)),
        });
        timeout(PAUSE_TIME, resumed).await.unwrap_or(Outcome::Pause)
    }
}

fn missing(plugin: &str, reason: &str) -> Step {
    Step::Failed { plugin: plugin.to_owned(), reason: format!("it does not run: {reason}") }
}

/// Asks `spiffe-authz` whether a tunnel's peer may come in. `Err`: why not.
pub async fn admit(view: &View, properties: TunnelProperties) -> Result<(), String> {
    let slot = view.generation.compiled.spiffe_authz.and_then(|index| view.plugins.get(index));
    let running = match slot {
        Some(Slot::Running(running)) => running,
        Some(Slot::Failed(reason)) => return Err(format!("{SPIFFE_AUTHZ} does not run: {reason}")),
        None => return Err(format!("{SPIFFE_AUTHZ} does not run: it is not configured")),
    };
    let peer = properties.peer.clone();
    let mut stream = running.plugin.tcp_stream(Box::new(properties));
    let outcome = match running.timed(|| stream.new_connection()) {
        TcpOutcome::Pause => {
            let mut nothing = Bytes::new();
            let resumed = stream.resumed(Direction::Request, &mut nothing);
            timeout(PAUSE_TIME, resumed).await.unwrap_or(TcpOutcome::Pause)
        }
        outcome => outcome,
    };
    match outcome {
        TcpOutcome::Continue => Ok(()),
        TcpOutcome::Close => Err(match stream.property(&["weft", "deny_reason"]) {
            Some(reason) => format!("{SPIFFE_AUTHZ}: {}", String::from_utf8_lossy(&reason)),
            None => format!("{SPIFFE_AUTHZ} refuses {peer}"),
        }),
        TcpOutcome::Pause => Err(format!("{SPIFFE_AUTHZ} {PAUSED_TOO_LONG}")),
        TcpOutcome::Fault(fault) => Err(format!("{SPIFFE_AUTHZ} failed: {fault}")),
    }
}
