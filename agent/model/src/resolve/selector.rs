//! Label selectors over the labels of security identities.
use crate::types::Labels;

/// Keys of identity labels, as Cilium has them.
pub mod label {
    pub const NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const CLUSTER: &str = "io.cilium.k8s.policy.cluster";
    pub const SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";
    /// Before each label of the pod's namespace.
    pub const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
    /// Source of all that comes from Kubernetes.
    pub const K8S: &str = "k8s:";
    /// Source of what is no pod: `reserved:host`.
    pub const RESERVED: &str = "reserved:";
}

/// All requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    /// The label as written, without its source.
    name: String,
    /// With source, as identities have it; any of them counts.
    keys: Vec<String>,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

impl Selector {
    /// Adds a requirement on a label from Kubernetes.
    pub fn require(&mut self, name: &str, test: Test) {
        let keys = vec![format!("{}{name}", label::K8S)];
        self.requirements.push(Requirement { name: name.to_owned(), keys, test });
    }

    /// Adds a requirement on a label as Cilium writes it: `app`, `any:app`, `k8s:app`, `reserved:host`. False: its
    /// source is not known here.
    #[must_use]
    pub fn require_sourced(&mut self, key: &str, test: Test) -> bool {
        let (sources, name): (&[&str], _) = match key.split_once(':') {
            None => (&[label::K8S, label::RESERVED], key),
            Some(("any", name)) => (&[label::K8S, label::RESERVED], name),
            Some(("k8s", name)) => (&[label::K8S], name),
            Some(("reserved", name)) => (&[label::RESERVED], name),
            Some(_) => return false,
        };
        let keys = sources.iter().map(|source| format!("{source}{name}")).collect();
        self.requirements.push(Requirement { name: name.to_owned(), keys, test });
        true
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| requirement.holds(labels))
    }

    /// Says something about this label.
    pub fn names(&self, name: &str) -> bool {
        self.requirements.iter().any(|requirement| requirement.name == name)
    }

    /// Says something about a label that begins so.
    pub fn names_prefix(&self, prefix: &str) -> bool {
        self.requirements.iter().any(|requirement| requirement.name.starts_with(prefix))
    }

    /// Speaks of reserved identities outright.
    pub fn names_reserved(&self) -> bool {
        self.requirements.iter().any(|r| r.keys.iter().all(|key| key.starts_with(label::RESERVED)))
    }

    /// The labels that it speaks of, without source.
    pub fn label_names(&self) -> impl Iterator<Item = &str> {
        self.requirements.iter().map(|requirement| requirement.name.as_str())
    }

    /// The only namespace that it can match in, where it says so.
    pub fn single_namespace(&self) -> Option<&str> {
        self.requirements.iter().find_map(|requirement| match &requirement.test {
            Test::In(values) if requirement.name == label::NAMESPACE && values.len() == 1 => Some(values[0].as_str()),
            _ => None,
        })
    }
}

impl Requirement {
    fn holds(&self, labels: &Labels) -> bool {
        let mut values = self.keys.iter().filter_map(|key| labels.get(key));
        match &self.test {
            Test::In(wanted) => values.any(|value| wanted.contains(value)),
            // As Kubernetes has it, a label that is absent is not in the list.
            Test::NotIn(unwanted) => !values.any(|value| unwanted.contains(value)),
            Test::Exists => values.next().is_some(),
            Test::DoesNotExist => values.next().is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn one(key: &str, test: Test) -> Selector {
        let mut selector = Selector::default();
        assert!(selector.require_sourced(key, test));
        selector
    }

    #[test]
    fn a_label_may_be_written_with_or_without_its_source() {
        let pod = labels(&[("k8s:app", "web")]);
        for key in ["app", "any:app", "k8s:app"] {
            assert!(one(key, Test::In(vec!["web".into()])).matches(&pod), "{key}");
        }
        assert!(!one("reserved:app", Test::Exists).matches(&pod));
        assert!(!Selector::default().require_sourced("cidr:10.0.0.0/8", Test::Exists));
    }

    #[test]
    fn each_operator_treats_an_absent_label_as_kubernetes_does() {
        let pod = labels(&[("k8s:app", "web")]);
        let web = || vec!["web".to_owned()];
        let cases = [
            ("app", Test::In(web()), true),
            ("app", Test::NotIn(web()), false),
            ("app", Test::Exists, true),
            ("app", Test::DoesNotExist, false),
            ("tier", Test::In(web()), false),
            ("tier", Test::NotIn(web()), true),
            ("tier", Test::Exists, false),
            ("tier", Test::DoesNotExist, true),
        ];
        for (key, test, expected) in cases {
            assert_eq!(one(key, test.clone()).matches(&pod), expected, "{key} {test:?}");
        }
    }

    #[test]
    fn an_empty_selector_matches_everything() {
        assert!(Selector::default().matches(&labels(&[])));
    }
}
