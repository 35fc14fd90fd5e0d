//! A captured connection and what is known of it: who speaks to whom, what policy says now, how to reach the server.
use crate::{
    capture::connect::connect_as,
    flows::now_ms,
    hbone::client,
    identities::Party,
    state::{Decision, reason},
    stream::BoxStream,
    worker::{View, Worker},
};
use std::{cell::RefCell, io, net::SocketAddr, rc::Rc};
use weft_identity::SpiffeId;
use weft_proxy_api::flow::{Flow, HttpFlow, Verdict};

pub struct Conn {
    pub id: u64,
    pub worker: Rc<Worker>,
    /// To a local pod; else from one.
    pub ingress: bool,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// What the client proved on this very connection.
    pub proved: Option<SpiffeId>,
    judged: RefCell<Option<Rc<Judged>>>,
}

/// What one view says of a connection.
pub struct Judged {
    pub view: Rc<View>,
    pub source: Party,
    pub destination: Party,
    pub decision: Decision,
    /// Outbound: must go by HBONE.
    pub mtls: bool,
    /// Plugins for its requests, in order, as indexes into the view's.
    pub chain: Vec<usize>,
}

/// Why the server could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("the server cannot be reached")]
    Connect(#[from] io::Error),
    #[error(transparent)]
    Tunnel(#[from] client::TunnelError),
}

impl Conn {
    pub fn new(
        worker: Rc<Worker>,
        ingress: bool,
        source: SocketAddr,
        destination: SocketAddr,
        proved: Option<SpiffeId>,
    ) -> Self {
        let id = worker.next_id();
        Self { id, worker, ingress, source, destination, proved, judged: RefCell::new(None) }
    }

    /// By the configuration in force: a change counts from the next request on.
    pub fn judged(&self) -> Rc<Judged> {
        let view = self.worker.view();
        if let Some(judged) = &*self.judged.borrow()
            && Rc::ptr_eq(&judged.view, &view)
        {
            return judged.clone();
        }
        let judged = Rc::new(self.judge(view));
        self.judged.replace(Some(judged.clone()));
        judged
    }

    fn judge(&self, view: Rc<View>) -> Judged {
        let compiled = &view.generation.compiled;
        let (source, destination) = (compiled.party(self.source), compiled.party(self.destination));
        let port = self.destination.port();
        let (decision, mtls) = if self.ingress {
            let named = |id: &SpiffeId| source.workload.as_ref().is_some_and(|workload| workload.spiffe_id == *id);
            let authenticated = self.proved.as_ref().is_some_and(named);
            (compiled.judge(true, self.destination.ip(), source.identity, port, authenticated), false)
        } else {
            let judge = |proof| compiled.judge(false, self.source.ip(), destination.identity, port, proof);
            let mtls = compiled.takes_mtls_only(self.destination)
                || matches!(judge(false), Decision::Deny { reason: reason::PLAIN_TEXT, .. });
            (judge(true), mtls)
        };
        let mut chain: Vec<usize> =
            if self.ingress { compiled.plugins_for(self.destination).collect() } else { Vec::new() };
        if matches!(decision, Decision::Http { .. })
            && let Some(http_policy) = compiled.http_policy
        {
            // Indexes are in the order of execution.
            let place = chain.partition_point(|index| *index < http_policy);
            chain.insert(place, http_policy);
        }
        Judged { source, destination, decision, mtls, chain, view }
    }

    /// To the server, under the client's address, or through a tunnel.
    pub async fn dial(&self) -> Result<BoxStream, DialError> {
        let judged = self.judged();
        if judged.mtls {
            return Ok(client::open(self, &judged).await?);
        }
        Ok(Box::new(connect_as(self.source, self.destination).await?))
    }

    /// Tells of a connection that was judged as a whole.
    pub fn tell(&self, verdict: Verdict, drop_reason: &str, policy: &str, plugin: &str) {
        self.worker.shared.metrics.connections.count(verdict);
        self.worker.shared.flows.tell(verdict, || self.flow(verdict, drop_reason, policy, plugin, None));
    }

    /// Tells of a request.
    pub fn tell_request(
        &self,
        verdict: Verdict,
        drop_reason: &str,
        policy: &str,
        plugin: &str,
        http: impl FnOnce() -> HttpFlow,
    ) {
        self.worker.shared.metrics.requests.count(verdict);
        self.worker.shared.flows.tell(verdict, || self.flow(verdict, drop_reason, policy, plugin, Some(http())));
    }

    fn flow(&self, verdict: Verdict, drop_reason: &str, policy: &str, plugin: &str, http: Option<HttpFlow>) -> Flow {
        let judged = self.judged();
        Flow {
            time_ms: now_ms(),
            verdict,
            drop_reason: drop_reason.to_owned(),
            source: judged.source.peer(),
            destination: judged.destination.peer(),
            protocol: "TCP".to_owned(),
            direction: if self.ingress { "ingress" } else { "egress" }.to_owned(),
            policy: policy.to_owned(),
            plugin: plugin.to_owned(),
            http,
            peer_spiffe_id: self.peer_spiffe_id(&judged),
            node: judged.view.generation.compiled.node.clone(),
        }
    }

    fn peer_spiffe_id(&self, judged: &Judged) -> Option<String> {
        match &self.proved {
            Some(id) => Some(id.to_string()),
            // A tunnel stands only to a server that proved the identity of the destination.
            None if judged.mtls => judged.destination.workload.as_ref().map(|w| w.spiffe_id.to_string()),
            None => None,
        }
    }
}
