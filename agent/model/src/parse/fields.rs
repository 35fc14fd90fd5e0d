//! Reading JSON objects field by field, so that every message names the field by its whole path and no field is
//! overlooked: what nobody asked for is an error too.
use crate::types::Labels;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What is wrong with an object. The text names the field; where a remedy is not plain from it, the remedy too.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("{path} is not supported")]
    Unsupported { path: String },
    #[error("{path}: {problem}")]
    Invalid { path: String, problem: String },
}

impl ParseError {
    pub(crate) fn unsupported(path: impl Into<String>) -> Self {
        Self::Unsupported { path: path.into() }
    }
    pub(crate) fn invalid(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { path: path.into(), problem: problem.into() }
    }
    /// The field that is meant.
    pub fn path(&self) -> &str {
        match self {
            Self::Unsupported { path } | Self::Invalid { path, .. } => path,
        }
    }
}

/// The fields of one JSON object that were not asked for yet.
pub(crate) struct Fields<'a> {
    path: String,
    left: BTreeMap<&'a str, &'a Value>,
}

/// A value with its path, as `spec.egress[0]`.
pub(crate) type At<'a> = (String, &'a Value);

impl<'a> Fields<'a> {
    pub(crate) fn new(path: impl Into<String>, value: &'a Value) -> Result<Self, ParseError> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self::of_map(path, map)),
            other => Err(ParseError::invalid(path, format!("want an object, not {}", kind_of(other)))),
        }
    }

    pub(crate) fn of_map(path: impl Into<String>, map: &'a Map<String, Value>) -> Self {
        // `field:` with nothing after it is null: as good as absent, as for the API server.
        let left = map.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.as_str(), value)).collect();
        Self { path: path.into(), left }
    }

    /// The path of one of its fields.
    pub(crate) fn path(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    pub(crate) fn take(&mut self, field: &str) -> Option<&'a Value> {
        self.left.remove(field)
    }

    pub(crate) fn invalid(&self, field: &str, problem: impl Into<String>) -> ParseError {
        ParseError::invalid(self.path(field), problem)
    }

    pub(crate) fn string(&mut self, field: &str) -> Result<Option<&'a str>, ParseError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.invalid(field, format!("want text, not {}", kind_of(other)))),
        }
    }

    pub(crate) fn boolean(&mut self, field: &str) -> Result<Option<bool>, ParseError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.invalid(field, format!("want true or false, not {}", kind_of(other)))),
        }
    }

    pub(crate) fn integer(&mut self, field: &str) -> Result<Option<i64>, ParseError> {
        match self.take(field) {
            None => Ok(None),
            Some(value) => match value.as_i64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.invalid(field, format!("want a whole number, not {}", kind_of(value)))),
            },
        }
    }

    /// A list with the path of each member; `None` where the field is absent.
    pub(crate) fn list(&mut self, field: &str) -> Result<Option<Vec<At<'a>>>, ParseError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Array(items)) => {
                let path = self.path(field);
                Ok(Some(items.iter().enumerate().map(|(i, item)| (format!("{path}[{i}]"), item)).collect()))
            }
            Some(other) => Err(self.invalid(field, format!("want a list, not {}", kind_of(other)))),
        }
    }

    pub(crate) fn strings(&mut self, field: &str) -> Result<Option<Vec<(String, &'a str)>>, ParseError> {
        let Some(items) = self.list(field)? else { return Ok(None) };
        items.into_iter().map(|(path, item)| Ok((path.clone(), text(path, item)?))).collect::<Result<_, _>>().map(Some)
    }

    /// A map of texts, as labels are.
    pub(crate) fn labels(&mut self, field: &str) -> Result<Option<Labels>, ParseError> {
        let path = self.path(field);
        let map = match self.take(field) {
            None => return Ok(None),
            Some(Value::Object(map)) => map,
            Some(other) => return Err(ParseError::invalid(path, format!("want an object, not {}", kind_of(other)))),
        };
        let entry = |(key, value): (&String, &Value)| match value {
            // `app:` with nothing after it is the empty value, not no label: a selector must not grow by it.
            Value::Null => Ok((key.clone(), String::new())),
            value => Ok((key.clone(), text(format!("{path}.{key}"), value)?.to_owned())),
        };
        map.iter().map(entry).collect::<Result<_, _>>().map(Some)
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> Result<(), ParseError> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(field) => Err(ParseError::unsupported(self.path(field))),
        }
    }
}

pub(crate) fn text(path: String, value: &Value) -> Result<&str, ParseError> {
    value.as_str().ok_or_else(|| ParseError::invalid(path, format!("want text, not {}", kind_of(value))))
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Paths of fields that are in `given` but not in `known`, which is what a typed reader made of it.
pub(crate) fn unknown_fields(given: &Value, known: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", given, known, &mut found);
    found
}

fn compare(path: &str, given: &Value, known: &Value, found: &mut Vec<String>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (key, value) in given.iter().filter(|(_, value)| !value.is_null()) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match known.get(key) {
                    Some(known) => compare(&path, value, known, found),
                    None => found.push(path),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (i, (given, known)) in given.iter().zip(known).enumerate() {
                compare(&format!("{path}[{i}]"), given, known, found);
            }
        }
        _ => {}
    }
}
