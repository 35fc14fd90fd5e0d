//! Rule sets, compiled once, and the verdict on a request.
use crate::{
    config::{Config, RuleConfig},
    matcher::Patterns,
    path::{Spelling, spelling},
};
use std::collections::HashMap;

/// All sets of a configuration.
#[derive(Default)]
pub struct RuleSets {
    sets: HashMap<Vec<u8>, RuleSet>,
}

/// The rules of one set: a request that matches one of them is allowed.
pub struct RuleSet {
    rules: Vec<Rule>,
    paths: Patterns,
    /// For each expression of `paths` the rules that have it.
    by_path: Vec<Vec<usize>>,
    /// Rules for any path.
    any_path: Vec<usize>,
}

struct Rule {
    policy: String,
    method: Method,
    host: Option<Patterns>,
    headers: Vec<Header>,
}

enum Method {
    Any,
    /// The usual case: names without anything special, perhaps several.
    Names(Vec<String>),
    Pattern(Patterns),
}

struct Header {
    name: String,
    value: Option<String>,
}

/// What a request has. Parts that few rules ask for are fetched when one does.
pub trait Request {
    fn method(&self) -> &[u8];
    /// With its query.
    fn path(&self) -> &[u8];
    fn host(&self) -> Option<Vec<u8>>;
    fn header(&self, name: &str) -> Option<Vec<u8>>;
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// By a rule of this policy.
    Allow(&'a str),
    Deny(Denial),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    NoSet,
    NoRule,
    /// Allowed as it is written, but not as a server may read it.
    Spelling,
}

/// A rule that cannot be used, with the reason; it matches nothing, so that the others still hold.
pub struct BadRule {
    pub set: String,
    pub policy: String,
    pub reason: String,
}

impl RuleSets {
    pub fn compile(config: Config) -> (Self, Vec<BadRule>) {
        let mut bad = Vec::new();
        let mut sets = HashMap::new();
        for (id, rules) in config.sets {
            let mut usable = Vec::new();
            for rule in rules {
                match check(&rule) {
                    Ok(()) => usable.push(rule),
                    Err(reason) => bad.push(BadRule { set: id.clone(), policy: rule.policy, reason }),
                }
            }
            match RuleSet::compile(usable) {
                Ok(set) => drop(sets.insert(id.into_bytes(), set)),
                Err(reason) => bad.push(BadRule { set: id, policy: String::new(), reason }),
            }
        }
        (Self { sets }, bad)
    }

    pub fn judge(&self, set: Option<&[u8]>, request: &impl Request) -> Verdict<'_> {
        match set.and_then(|set| self.sets.get(set)) {
            Some(set) => set.judge(request),
            None => Verdict::Deny(Denial::NoSet),
        }
    }
}

impl RuleSet {
    fn compile(configs: Vec<RuleConfig>) -> Result<Self, String> {
        let mut patterns: Vec<String> = Vec::new();
        let mut by_path: Vec<Vec<usize>> = Vec::new();
        let (mut any_path, mut rules) = (Vec::new(), Vec::with_capacity(configs.len()));
        for (index, config) in configs.into_iter().enumerate() {
            match config.path.clone().filter(|path| !path.is_empty()) {
                None => any_path.push(index),
                Some(path) => match patterns.iter().position(|pattern| *pattern == path) {
                    Some(pattern) => by_path[pattern].push(index),
                    None => {
                        patterns.push(path);
                        by_path.push(vec![index]);
                    }
                },
            }
            rules.push(Rule::compile(config)?);
        }
        let paths = Patterns::new(&patterns).map_err(|bad| bad.0)?;
        Ok(Self { rules, paths, by_path, any_path })
    }

    fn judge(&self, request: &impl Request) -> Verdict<'_> {
        let Some(rule) = self.first_match(request, request.path()) else { return Verdict::Deny(Denial::NoRule) };
        match spelling(request.path()) {
            Spelling::Normal => Verdict::Allow(&rule.policy),
            Spelling::Also(path) if self.first_match(request, &path).is_some() => Verdict::Allow(&rule.policy),
            Spelling::Also(_) | Spelling::Refused => Verdict::Deny(Denial::Spelling),
        }
    }

    /// The first of the rules that match, so that the answer does not depend on how they are stored.
    fn first_match(&self, request: &impl Request, path: &[u8]) -> Option<&Rule> {
        let mut first = usize::MAX;
        let mut consider = |candidates: &[usize]| {
            for index in candidates {
                // In ascending order: none of the rest comes before.
                if *index >= first {
                    break;
                }
                if self.rules[*index].matches(request) {
                    first = *index;
                }
            }
        };
        consider(&self.any_path);
        self.paths.matching(path, |pattern| consider(&self.by_path[pattern]));
        self.rules.get(first)
    }
}

impl Rule {
    fn compile(config: RuleConfig) -> Result<Self, String> {
        let one = |pattern: String| Patterns::new(&[pattern]).map_err(|bad| bad.0);
        let host = config.host.filter(|host| !host.is_empty()).map(one).transpose()?;
        let headers = config.headers.iter().map(|header| Header::parse(header)).collect();
        Ok(Self { policy: config.policy, method: Method::compile(config.method)?, host, headers })
    }

    /// All but the path.
    fn matches(&self, request: &impl Request) -> bool {
        self.method.matches(request.method())
            && self.host.as_ref().is_none_or(|pattern| request.host().is_some_and(|host| host_matches(pattern, &host)))
            && self.headers.iter().all(|header| header.matches(request))
    }
}

impl Method {
    fn compile(method: Option<String>) -> Result<Self, String> {
        let Some(method) = method.filter(|method| !method.is_empty()) else { return Ok(Self::Any) };
        let names: Vec<String> = method.split('|').map(str::to_owned).collect();
        if names.iter().all(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphabetic())) {
            return Ok(Self::Names(names));
        }
        Patterns::new(&[method]).map(Self::Pattern).map_err(|bad| bad.0)
    }

    fn matches(&self, method: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Names(names) => names.iter().any(|name| name.as_bytes() == method),
            Self::Pattern(pattern) => pattern.any(method),
        }
    }
}

impl Header {
    fn parse(text: &str) -> Self {
        let (name, value) = text.split_once(':').map_or((text, None), |(name, value)| (name, Some(value)));
        Self { name: name.trim().to_ascii_lowercase(), value: value.map(|value| value.trim().to_owned()) }
    }

    fn matches(&self, request: &impl Request) -> bool {
        let found = request.header(&self.name);
        match &self.value {
            None => found.is_some(),
            Some(value) => found.is_some_and(|found| found == value.as_bytes()),
        }
    }
}

fn host_matches(pattern: &Patterns, host: &[u8]) -> bool {
    pattern.any(host) || without_port(host).is_some_and(|host| pattern.any(host))
}

/// `None`: there is no port.
fn without_port(host: &[u8]) -> Option<&[u8]> {
    let colon = host.iter().rposition(|byte| *byte == b':')?;
    let port = &host[colon + 1..];
    (!port.is_empty() && port.iter().all(u8::is_ascii_digit)).then(|| &host[..colon])
}

fn check(rule: &RuleConfig) -> Result<(), String> {
    for (field, pattern) in [("method", &rule.method), ("path", &rule.path), ("host", &rule.host)] {
        if let Some(pattern) = pattern {
            Patterns::check(pattern).map_err(|bad| format!("{field} {pattern:?}: {}", bad.0))?;
        }
    }
    match rule.headers.iter().find(|header| Header::parse(header).name.is_empty()) {
        Some(header) => Err(format!("headers: {header:?} has no name")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
