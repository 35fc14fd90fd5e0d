//! NetworkPolicy.
use super::{Context, Kind, ParseError, fields::Fields, policy_cilium::rules, service::protocol_of};
use crate::{
    policy::PortRange,
    resolve::{PeerSpec, PolicyFact, PolicySpec, PortSpec, RuleSpec, Selector, Test, label},
    types::ObjectName,
};
use serde_json::Value;

pub(super) fn policy(name: &ObjectName, object: &Value, context: &Context<'_>) -> PolicyFact {
    let reader = Reader { namespace: &name.namespace, cluster: context.cluster.as_str() };
    let (spec, rejected) = match reader.policy(object) {
        Ok(spec) => (spec, None),
        Err(error) => (reader.closed(object), Some(error.to_string())),
    };
    PolicyFact { kind: Kind::NetworkPolicy, name: name.clone(), specs: vec![spec], rejected }
}

struct Reader<'a> {
    namespace: &'a str,
    cluster: &'a str,
}

impl Reader<'_> {
    fn policy(&self, object: &Value) -> Result<PolicySpec, ParseError> {
        let mut fields = super::body(object)?;
        let spec = fields.take("spec").ok_or_else(|| ParseError::invalid("spec", "missing"))?;
        fields.finish()?;
        let mut fields = Fields::new("spec", spec)?;
        let subject = self.subject(&mut fields)?;
        let types = fields.strings("policyTypes")?.unwrap_or_default();
        let (ingress, egress) = (fields.list("ingress")?, fields.list("egress")?);
        fields.finish()?;
        let mut speaks = (types.is_empty(), types.is_empty() && egress.is_some());
        for (path, name) in types {
            match name {
                "Ingress" => speaks.0 = true,
                "Egress" => speaks.1 = true,
                other => return Err(ParseError::invalid(path, format!("{other:?} is neither Ingress nor Egress"))),
            }
        }
        let rules = |list: Option<Vec<_>>, counts: bool, ingress: bool| -> Result<Vec<RuleSpec>, ParseError> {
            let list = list.unwrap_or_default().into_iter();
            let rules: Vec<_> = list.map(|(path, rule)| self.rule(path, rule, ingress)).collect::<Result<_, _>>()?;
            // Rules of a direction that policyTypes leaves out have no effect.
            Ok(if counts { rules } else { Vec::new() })
        };
        Ok(PolicySpec {
            subject,
            enforce_ingress: speaks.0,
            enforce_egress: speaks.1,
            ingress: rules(ingress, speaks.0, true)?,
            egress: rules(egress, speaks.1, false)?,
        })
    }

    /// What can still be read of a policy that is rejected.
    fn closed(&self, object: &Value) -> PolicySpec {
        let spec = object.get("spec");
        let subject = spec.and_then(|spec| self.subject(&mut Fields::new("spec", spec).ok()?).ok());
        let subject = subject.unwrap_or_else(|| {
            let mut all = Selector::default();
            all.require(label::NAMESPACE, Test::In(vec![self.namespace.to_owned()]));
            all
        });
        let (ingress, egress) = spec.map_or((true, true), directions);
        PolicySpec::closed(subject, ingress, egress)
    }

    fn subject(&self, fields: &mut Fields<'_>) -> Result<Selector, ParseError> {
        let mut selector = Selector::default();
        if let Some(value) = fields.take("podSelector") {
            add(&mut selector, &fields.path("podSelector"), value, "")?;
        }
        selector.require(label::NAMESPACE, Test::In(vec![self.namespace.to_owned()]));
        Ok(selector)
    }

    fn rule(&self, path: String, value: &Value, ingress: bool) -> Result<RuleSpec, ParseError> {
        let mut fields = Fields::new(path, value)?;
        let listed = fields.list(if ingress { "from" } else { "to" })?.unwrap_or_default();
        let mut peers = Vec::new();
        for (path, value) in listed {
            peers.push(self.peer(path, value)?);
        }
        if peers.is_empty() {
            peers.push(PeerSpec::All);
        }
        let mut ports = Vec::new();
        for (path, value) in fields.list("ports")?.unwrap_or_default() {
            ports.push(port(path, value, ingress)?);
        }
        fields.finish()?;
        Ok(RuleSpec { deny: false, peers, ports, http: None, auth_required: false })
    }

    fn peer(&self, path: String, value: &Value) -> Result<PeerSpec, ParseError> {
        let mut fields = Fields::new(path.clone(), value)?;
        let block = fields.take("ipBlock");
        let (pods, namespaces) = (fields.take("podSelector"), fields.take("namespaceSelector"));
        let (pods_path, namespaces_path) = (fields.path("podSelector"), fields.path("namespaceSelector"));
        let block_path = fields.path("ipBlock");
        fields.finish()?;
        if let Some(block) = block {
            if pods.is_some() || namespaces.is_some() {
                return Err(ParseError::invalid(block_path, "stands alone; selectors are peers of their own"));
            }
            let mut fields = Fields::new(block_path, block)?;
            let cidr_path = fields.path("cidr");
            let cidr = fields.string("cidr")?.ok_or_else(|| ParseError::invalid(&cidr_path, "missing"))?;
            let net = rules::prefix(&cidr_path, cidr)?;
            let except = rules::exceptions(net, fields.strings("except")?.unwrap_or_default())?;
            fields.finish()?;
            return Ok(PeerSpec::Cidr { net, except });
        }
        if pods.is_none() && namespaces.is_none() {
            return Err(ParseError::invalid(path, "want podSelector, namespaceSelector or ipBlock"));
        }
        let mut selector = Selector::default();
        if let Some(value) = pods {
            add(&mut selector, &pods_path, value, "")?;
        }
        match namespaces {
            Some(value) => {
                add(&mut selector, &namespaces_path, value, label::NAMESPACE_LABELS)?;
                selector.require(label::NAMESPACE, Test::Exists);
            }
            None => selector.require(label::NAMESPACE, Test::In(vec![self.namespace.to_owned()])),
        }
        // Kubernetes knows no other cluster, so its policies never mean one.
        selector.require(label::CLUSTER, Test::In(vec![self.cluster.to_owned()]));
        Ok(PeerSpec::Labels(selector))
    }
}

/// The directions that a spec speaks of, as far as it can be read; both where it cannot.
fn directions(spec: &Value) -> (bool, bool) {
    let known = ["podSelector", "policyTypes", "ingress", "egress"];
    match (spec.as_object(), spec.get("policyTypes")) {
        (Some(map), _) if map.keys().any(|key| !known.contains(&key.as_str())) => (true, true),
        (Some(map), None | Some(Value::Null)) => (true, map.get("egress").is_some_and(|rules| !rules.is_null())),
        (Some(_), Some(Value::Array(types))) => {
            let named = |direction: &str| types.iter().any(|name| name == direction);
            let strange = types.iter().any(|name| name != "Ingress" && name != "Egress");
            (named("Ingress") || strange || types.is_empty(), named("Egress") || strange)
        }
        _ => (true, true),
    }
}

/// Adds a label selector of Kubernetes; `prefix` goes before each of its labels.
fn add(selector: &mut Selector, path: &str, value: &Value, prefix: &str) -> Result<(), ParseError> {
    let mut fields = Fields::new(path, value)?;
    for (key, value) in fields.labels("matchLabels")?.unwrap_or_default() {
        selector.require(&format!("{prefix}{key}"), Test::In(vec![value]));
    }
    for (path, expression) in fields.list("matchExpressions")?.unwrap_or_default() {
        let mut fields = Fields::new(path, expression)?;
        let (key, test) = super::policy_cilium::expression(&mut fields)?;
        fields.finish()?;
        selector.require(&format!("{prefix}{key}"), test);
    }
    fields.finish()
}

fn port(path: String, value: &Value, ingress: bool) -> Result<PortSpec, ParseError> {
    let mut fields = Fields::new(path, value)?;
    let protocol = fields.string("protocol")?;
    let protocol = protocol_of(protocol).ok_or_else(|| fields.invalid("protocol", "want TCP, UDP or SCTP"))?;
    let end = fields.integer("endPort")?;
    let number = |value: i64| u16::try_from(value).ok().filter(|port| *port != 0);
    let spec = match fields.take("port") {
        None if end.is_some() => return Err(fields.invalid("endPort", "needs port")),
        None => PortSpec::Range(PortRange { protocol: Some(protocol), first: 0, last: u16::MAX }),
        Some(Value::String(name)) if end.is_some() => {
            return Err(fields.invalid("endPort", format!("the named port {name} takes none")));
        }
        // The name is the other pod's on the way out, and each may give it another number.
        Some(Value::String(name)) if !ingress => {
            return Err(ParseError::unsupported(format!("{}: name {name}", fields.path("port"))));
        }
        Some(Value::String(name)) => PortSpec::Name { name: name.clone(), protocol: Some(protocol) },
        Some(value) => {
            let first = value.as_i64().and_then(number).ok_or_else(|| fields.invalid("port", "want 1 to 65535"))?;
            let last = match end {
                None => first,
                Some(end) => number(end)
                    .filter(|last| *last >= first)
                    .ok_or_else(|| fields.invalid("endPort", format!("{end} is not a port from {first} to 65535")))?,
            };
            PortSpec::Range(PortRange { protocol: Some(protocol), first, last })
        }
    };
    fields.finish()?;
    Ok(spec)
}
