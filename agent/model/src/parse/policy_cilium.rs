//! CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy. Every field is honoured or the whole policy is rejected, by
//! the field's name; then its selectors and directions are still read, for the pods that it selects fail closed.
pub(super) mod rules;

use super::{
    Context, Kind, ParseError, body,
    fields::{At, Fields},
};
use crate::{
    resolve::{PolicyFact, PolicySpec, Selector, Test, label},
    types::ObjectName,
};
use serde_json::Value;

pub(super) fn policy(kind: Kind, name: &ObjectName, object: &Value, context: &Context<'_>) -> PolicyFact {
    let reader = Reader { namespace: &name.namespace, cluster: context.cluster.as_str() };
    let given = |field: &str| object.get(field).filter(|value| !value.is_null());
    let mut paths: Vec<At<'_>> = given("spec").map(|spec| ("spec".to_owned(), spec)).into_iter().collect();
    if let Some(Value::Array(specs)) = given("specs") {
        paths.extend(specs.iter().enumerate().map(|(i, spec)| (format!("specs[{i}]"), spec)));
    }
    let mut error = reader.check_body(object).err();
    let mut specs = Vec::new();
    for (path, value) in paths {
        match reader.spec(&path, value) {
            Ok(spec) => specs.push(spec),
            Err(cause) => {
                specs.extend(reader.closed(value));
                error.get_or_insert(cause);
            }
        }
    }
    if let Some(cause) = &error {
        // One bad spec rejects all: none of them is enforced in part.
        for spec in &mut specs {
            spec.enforce_ingress |= !spec.ingress.is_empty();
            spec.enforce_egress |= !spec.egress.is_empty();
            (spec.ingress, spec.egress) = (Vec::new(), Vec::new());
        }
        if specs.is_empty() && !cause.path().ends_with("nodeSelector") {
            specs.push(PolicySpec::closed(reader.everybody(), true, true));
        }
    }
    PolicyFact { kind, name: name.clone(), specs, rejected: error.map(|cause| cause.to_string()) }
}

impl PolicySpec {
    /// No rules: what it selects is cut off in the directions given.
    pub(super) fn closed(subject: Selector, ingress: bool, egress: bool) -> Self {
        Self { subject, enforce_ingress: ingress, enforce_egress: egress, ingress: Vec::new(), egress: Vec::new() }
    }
}

struct Reader<'a> {
    /// Empty: cluster-wide.
    namespace: &'a str,
    cluster: &'a str,
}

impl Reader<'_> {
    fn check_body(&self, object: &Value) -> Result<(), ParseError> {
        let mut fields = body(object)?;
        let spec = fields.take("spec").is_some();
        let specs = fields.list("specs")?;
        fields.finish()?;
        if spec || specs.is_some_and(|specs| !specs.is_empty()) {
            return Ok(());
        }
        Err(ParseError::invalid("spec", "missing; a policy needs one"))
    }

    fn spec(&self, path: &str, value: &Value) -> Result<PolicySpec, ParseError> {
        let mut fields = Fields::new(path, value)?;
        if fields.take("nodeSelector").is_some() {
            return Err(ParseError::unsupported(fields.path("nodeSelector")));
        }
        let subject = match fields.take("endpointSelector") {
            Some(selector) => self.subject(&fields.path("endpointSelector"), selector)?,
            None => return Err(fields.invalid("endpointSelector", "missing; {} selects every pod")),
        };
        let (default_ingress, default_egress) = match fields.take("enableDefaultDeny") {
            None => (None, None),
            Some(value) => {
                let mut fields = Fields::new(fields.path("enableDefaultDeny"), value)?;
                let given = (fields.boolean("ingress")?, fields.boolean("egress")?);
                fields.finish()?;
                given
            }
        };
        // Words for people.
        fields.take("description");
        fields.take("labels");
        let ingress = self.rules(&mut fields, "ingress", "ingressDeny", true)?;
        let egress = self.rules(&mut fields, "egress", "egressDeny", false)?;
        fields.finish()?;
        if ingress.is_none() && egress.is_none() && default_ingress != Some(true) && default_egress != Some(true) {
            return Err(ParseError::invalid(
                path,
                "has no rule; ingress: [{}] closes a direction without letting anybody in",
            ));
        }
        Ok(PolicySpec {
            subject,
            // An empty rule allows nobody, but it is there: the direction is closed by it.
            enforce_ingress: default_ingress.unwrap_or(ingress.is_some()),
            enforce_egress: default_egress.unwrap_or(egress.is_some()),
            ingress: ingress.unwrap_or_default(),
            egress: egress.unwrap_or_default(),
        })
    }

    /// What can still be read of a spec that is rejected: whom it selects, in which directions. `None`: no pod at all.
    fn closed(&self, value: &Value) -> Option<PolicySpec> {
        let given = |field: &str| value.get(field).filter(|value| !value.is_null());
        if given("nodeSelector").is_some() && given("endpointSelector").is_none() {
            return None;
        }
        let subject = given("endpointSelector").and_then(|selector| self.subject("", selector).ok());
        let subject = subject.unwrap_or_else(|| self.everybody());
        let (ingress, egress) = self.directions(value);
        // Neither can be told: both.
        Some(PolicySpec::closed(subject, ingress || !egress, egress || !ingress))
    }

    fn directions(&self, value: &Value) -> (bool, bool) {
        let known = [
            "endpointSelector",
            "nodeSelector",
            "enableDefaultDeny",
            "description",
            "labels",
            "log",
            "ingress",
            "ingressDeny",
            "egress",
            "egressDeny",
        ];
        let Some(map) = value.as_object() else { return (true, true) };
        if map.keys().any(|key| !known.contains(&key.as_str())) {
            // `ingres`, perhaps: who knows which was meant.
            return (true, true);
        }
        let default = |direction: &str| {
            value.get("enableDefaultDeny").and_then(|deny| deny.get(direction)).and_then(Value::as_bool) == Some(true)
        };
        let given = |direction: &str| value.get(direction).is_some_and(|rules| !rules.is_null());
        (
            given("ingress") || given("ingressDeny") || default("ingress"),
            given("egress") || given("egressDeny") || default("egress"),
        )
    }

    /// Every pod that the policy could be about.
    fn everybody(&self) -> Selector {
        let mut selector = Selector::default();
        self.keep_to_namespace(&mut selector);
        selector
    }

    fn subject(&self, path: &str, value: &Value) -> Result<Selector, ParseError> {
        let mut selector = self.selector(path, value)?;
        self.keep_to_namespace(&mut selector);
        Ok(selector)
    }

    fn keep_to_namespace(&self, selector: &mut Selector) {
        let test = if self.namespace.is_empty() { Test::Exists } else { Test::In(vec![self.namespace.to_owned()]) };
        selector.require(label::NAMESPACE, test);
    }

    /// Peers: of the own namespace and cluster, unless it says otherwise. Pods with the same labels in another cluster
    /// are others.
    fn peer_selector(&self, path: &str, value: &Value) -> Result<Selector, ParseError> {
        let mut selector = self.selector(path, value)?;
        if selector.names_reserved() {
            return Ok(selector);
        }
        if !selector.names(label::NAMESPACE) && !selector.names_prefix(label::NAMESPACE_LABELS) {
            self.keep_to_namespace(&mut selector);
        }
        if !selector.names(label::CLUSTER) {
            selector.require(label::CLUSTER, Test::In(vec![self.cluster.to_owned()]));
        }
        Ok(selector)
    }

    fn selector(&self, path: &str, value: &Value) -> Result<Selector, ParseError> {
        let mut fields = Fields::new(path, value)?;
        let mut selector = Selector::default();
        let labels_path = fields.path("matchLabels");
        for (key, value) in fields.labels("matchLabels")?.unwrap_or_default() {
            if !selector.require_sourced(&key, Test::In(vec![value])) {
                return Err(ParseError::unsupported(format!("{labels_path}.{key}")));
            }
        }
        for (path, expression) in fields.list("matchExpressions")?.unwrap_or_default() {
            let mut fields = Fields::new(path, expression)?;
            let (key, test) = self::expression(&mut fields)?;
            if !selector.require_sourced(key, test) {
                return Err(ParseError::unsupported(format!("{}: source of label {key}", fields.path("key"))));
            }
            fields.finish()?;
        }
        fields.finish()?;
        Ok(selector)
    }
}

/// The label and the test of one member of `matchExpressions`.
pub(super) fn expression<'a>(fields: &mut Fields<'a>) -> Result<(&'a str, Test), ParseError> {
    let key = fields.string("key")?.filter(|key| !key.is_empty());
    let key = key.ok_or_else(|| fields.invalid("key", "missing"))?;
    let operator = fields.string("operator")?.unwrap_or_default();
    let values = fields.strings("values")?.unwrap_or_default();
    let values: Vec<String> = values.into_iter().map(|(_, value)| value.to_owned()).collect();
    let test = match (operator, values.is_empty()) {
        ("In", false) => Test::In(values),
        ("NotIn", false) => Test::NotIn(values),
        ("Exists", true) => Test::Exists,
        ("DoesNotExist", true) => Test::DoesNotExist,
        ("In" | "NotIn", true) => return Err(fields.invalid("values", format!("missing; {operator} needs them"))),
        ("Exists" | "DoesNotExist", false) => return Err(fields.invalid("values", format!("{operator} takes none"))),
        _ => {
            let problem = format!("{operator:?} is not known; want In, NotIn, Exists or DoesNotExist");
            return Err(fields.invalid("operator", problem));
        }
    };
    Ok((key, test))
}
