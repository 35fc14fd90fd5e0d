//! What the container runtime asks for, from the environment.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::error::Error;

/// Linux' IFNAMSIZ less the terminating zero.
const MAX_INTERFACE_NAME: usize = 15;
/// No file name may be longer.
const MAX_CONTAINER_ID: usize = 200;

/// The variables, as they are.
#[derive(Debug, Default)]
pub struct Environment(HashMap<String, String>);

/// Names a container to us: safe as a file name and in a URL path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(String);

/// The Kubernetes names of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
}

impl Environment {
    pub fn of_process() -> Self {
        // Other programs' variables need not be UTF-8.
        let text = |value: std::ffi::OsString| value.into_string().ok();
        Self(std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect())
    }

    pub fn command(&self) -> Result<&str, Error> {
        self.required("CNI_COMMAND")
    }

    pub fn container_id(&self) -> Result<ContainerId, Error> {
        let variable = "CNI_CONTAINERID";
        ContainerId::parse(self.required(variable)?)
            .ok_or(Error::Environment { variable, problem: "not a container id".to_owned() })
    }

    pub fn namespace(&self) -> Result<PathBuf, Error> {
        self.required("CNI_NETNS").map(PathBuf::from)
    }

    pub fn interface(&self) -> Result<&str, Error> {
        let variable = "CNI_IFNAME";
        let name = self.required(variable)?;
        let is_bad = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
        if name.len() > MAX_INTERFACE_NAME || name.contains(is_bad) || name == "." || name == ".." {
            return Err(Error::Environment { variable, problem: format!("'{name}', not an interface name") });
        }
        Ok(name)
    }

    pub fn pod(&self) -> Result<PodName, Error> {
        let arguments = self.required("CNI_ARGS")?;
        let value = |wanted: &str| {
            arguments
                .split(';')
                .filter_map(|argument| argument.split_once('='))
                .find(|(key, value)| *key == wanted && !value.is_empty())
                .map(|(_, value)| value.to_owned())
                .ok_or_else(|| Error::Environment { variable: "CNI_ARGS", problem: format!("without {wanted}") })
        };
        Ok(PodName { namespace: value("K8S_POD_NAMESPACE")?, name: value("K8S_POD_NAME")? })
    }

    fn required(&self, variable: &'static str) -> Result<&str, Error> {
        match self.0.get(variable) {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(Error::Environment { variable, problem: "not set".to_owned() }),
        }
    }
}

impl ContainerId {
    pub fn parse(text: &str) -> Option<Self> {
        let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        (starts_well && is_plain && text.len() <= MAX_CONTAINER_ID).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn the_pods_name_is_found_among_other_arguments() {
        let arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;K8S_POD_UID=x";
        let pod = environment(&[("CNI_ARGS", arguments)]).pod().expect("both names are there");
        assert_eq!(pod, PodName { namespace: "shop".to_owned(), name: "cart-0".to_owned() });
        let message = environment(&[("CNI_ARGS", "K8S_POD_NAME=x")]).pod().expect_err("no namespace").to_string();
        assert!(message.contains("CNI_ARGS is without K8S_POD_NAMESPACE"), "{message}");
    }

    #[test]
    fn names_that_could_leave_a_folder_are_refused() {
        for id in ["", "../x", "a/b", ".hidden", "a b", "-x"] {
            assert_eq!(ContainerId::parse(id), None, "{id}");
        }
        assert!(ContainerId::parse("0f3a_b.c-d").is_some());
        for name in ["eth0/..", "..", "a name", "sixteen-letters-"] {
            assert!(environment(&[("CNI_IFNAME", name)]).interface().is_err(), "{name}");
        }
    }

    #[test]
    fn a_missing_variable_is_named() {
        let message = environment(&[("CNI_NETNS", "")]).namespace().expect_err("it is empty").to_string();
        assert!(message.starts_with("CNI_NETNS is not set"), "{message}");
    }
}
