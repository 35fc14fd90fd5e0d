//! What end-to-end tests share beyond the lab's own vocabulary.
#![allow(dead_code, reason = "each test program uses a part")]
use serde_json::Value;
use std::process::Output;
use weft_lab::{
    Lab,
    dial::Call,
    lab::{Node, Pod},
};

/// Who makes a call.
#[derive(Clone, Copy)]
pub enum Caller<'a> {
    Pod(Pod<'a>),
    Node(Node<'a>),
}

impl<'a> From<Pod<'a>> for Caller<'a> {
    fn from(pod: Pod<'a>) -> Self {
        Self::Pod(pod)
    }
}

impl<'a> From<Node<'a>> for Caller<'a> {
    fn from(node: Node<'a>) -> Self {
        Self::Node(node)
    }
}

impl Caller<'_> {
    pub fn run(self, command: &[&str]) -> Output {
        match self {
            Self::Pod(pod) => pod.try_exec(command),
            Self::Node(node) => node.try_exec(command),
        }
    }
}

/// Calls an echo server `count` times, each on a new socket. `how` is `tcp`, `udp` or `udp-unconnected`.
pub fn dial<'a>(from: impl Into<Caller<'a>>, how: &str, to: &str, count: usize) -> Vec<Call> {
    dial_within(from, how, to, count, "3")
}

/// As [`dial`]; a call waits for its answer this long, in seconds.
pub fn dial_within<'a>(from: impl Into<Caller<'a>>, how: &str, to: &str, count: usize, patience: &str) -> Vec<Call> {
    let program = weft_lab::program().expect("weft-lab is built");
    let command = [&program.to_string_lossy(), "dial", how, to, "--count", &count.to_string(), "--patience", patience];
    let output = from.into().run(&command);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{}: {error}: {output:?}", command.join(" ")))
}

pub fn dial_once<'a>(from: impl Into<Caller<'a>>, how: &str, to: &str) -> Call {
    dial(from, how, to, 1).remove(0)
}

/// The call is answered.
pub fn reaches<'a>(from: impl Into<Caller<'a>>, how: &str, to: &str) -> bool {
    dial_once(from, how, to).server.is_some()
}

/// The kind of error that the call ends with.
pub fn error<'a>(from: impl Into<Caller<'a>>, how: &str, to: &str) -> String {
    let call = dial_once(from, how, to);
    call.error.unwrap_or_else(|| panic!("{how} to {to} is answered by {:?}", call.server))
}

/// What `weft … -o json` says.
pub fn weft_json(lab: &Lab, context: &str, arguments: &[&str]) -> Value {
    let output = lab.try_weft(context, &[arguments, &["-o", "json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}"))
}

/// The row of a list whose field is this.
pub fn row(rows: &Value, field: &str, value: &str) -> Option<Value> {
    rows.as_array()?.iter().find(|row| row[field] == value).cloned()
}

/// Packets dropped for this reason on all nodes of the cluster.
pub fn dropped(lab: &Lab, context: &str, reason: &str) -> u64 {
    let status = weft_json(lab, context, &["status"]);
    status.as_array().into_iter().flatten().filter_map(|node| node["drops"][reason].as_u64()).sum()
}

/// What `weft status` says of objects and files that it refuses, a line each.
pub fn object_errors(lab: &Lab, context: &str) -> Vec<String> {
    let status = weft_json(lab, context, &["status"]);
    let errors = status.as_array().into_iter().flatten().flat_map(|node| node["objectErrors"].as_array().cloned());
    let text =
        |error: &Value| format!("{}: {}: {}", error["origin"], error["object"], error["message"]).replace('"', "");
    errors.flatten().map(|error| text(&error)).collect()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
