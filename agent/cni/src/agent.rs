//! The agent's endpoint API: HTTP/1.1 over its unix socket, one request a connection.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::error::Error;
use crate::request::ContainerId;

/// Attaching programs takes milliseconds; a runtime gives up after some minutes.
const TIMEOUT: Duration = Duration::from_secs(15);
const MAX_RESPONSE: u64 = 64 * 1024;
const MAX_HEADERS: usize = 32;

/// A pod's interface, as the agent gets to know it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint<'a> {
    pub container_id: &'a str,
    pub namespace: &'a str,
    pub pod: &'a str,
    /// The host's end of the veth pair.
    pub interface: &'a str,
    pub addresses: &'a [IpAddr],
    pub netns: &'a Path,
    /// Of the pod's end.
    pub mac: String,
}

/// The agent at its socket.
pub struct Agent<'a> {
    pub socket: &'a Path,
}

struct Response {
    status: u16,
    body: String,
}

impl Agent<'_> {
    /// Registers the endpoint. Once this is done its policy is enforced.
    pub fn add(&self, endpoint: &Endpoint<'_>) -> Result<(), Error> {
        let body = serde_json::to_string(endpoint).map_err(Error::Decode)?;
        self.send("POST", "/v1/endpoints", &body)?.success()
    }

    /// Forgets the endpoint; that the agent does not know it is no error.
    pub fn remove(&self, container: &ContainerId) -> Result<(), Error> {
        let response = self.send("DELETE", &path_of(container), "")?;
        if response.status == 404 { Ok(()) } else { response.success() }
    }

    /// Whether the agent knows the endpoint.
    pub fn check(&self, container: &ContainerId) -> Result<(), Error> {
        let response = self.send("GET", &path_of(container), "")?;
        if response.status == 404 {
            return Err(Error::Check { problem: "the agent does not know it".to_owned() });
        }
        response.success()
    }

    /// Whether the agent listens.
    pub fn probe(&self) -> Result<(), Error> {
        let not_ready = |cause| Error::NotReady { socket: self.socket.to_owned(), cause };
        UnixStream::connect(self.socket).map(drop).map_err(not_ready)
    }

    fn send(&self, method: &str, path: &str, body: &str) -> Result<Response, Error> {
        let exchange = || {
            let mut stream = UnixStream::connect(self.socket)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            let length = body.len();
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                 Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
            );
            stream.write_all((head + body).as_bytes())?;
            let mut response = Vec::new();
            stream.take(MAX_RESPONSE).read_to_end(&mut response)?;
            parse(&response)
        };
        exchange().map_err(|cause| self.down(cause))
    }

    fn down(&self, cause: io::Error) -> Error {
        Error::AgentDown { socket: self.socket.to_owned(), cause }
    }
}

impl Response {
    fn success(self) -> Result<(), Error> {
        if (200..300).contains(&self.status) {
            return Ok(());
        }
        let reason = self.body.trim().to_owned();
        Err(Error::AgentRefused { status: self.status, reason })
    }
}

fn path_of(container: &ContainerId) -> String {
    format!("/v1/endpoints/{}", container.as_str())
}

fn parse(bytes: &[u8]) -> io::Result<Response> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let invalid = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => Ok(Response {
            status: response.code.ok_or_else(|| invalid("the answer has no status"))?,
            body: String::from_utf8_lossy(&bytes[length..]).into_owned(),
        }),
        Ok(httparse::Status::Partial) => Err(invalid("the answer was cut")),
        Err(error) => Err(invalid(&format!("the answer is not HTTP: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_refusal_carries_the_agents_reason() {
        let bytes = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 10\r\n\r\nnot synced";
        let error = parse(bytes).expect("HTTP").success().expect_err("a refusal");
        assert!(error.to_string().contains("status 503: not synced"), "{error}");
        assert_eq!(error.code(), 11);
    }

    #[test]
    fn an_answer_that_is_cut_is_an_error() {
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent").is_err());
        assert!(parse(b"").is_err());
    }

    proptest! {
        #[test]
        fn no_answer_makes_parsing_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }
    }
}
