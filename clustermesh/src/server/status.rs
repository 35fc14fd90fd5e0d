//! Refusals in etcd's words: clients recognise them by code and exact text.

use tonic::{Code, Status};

use crate::server::store::RevisionError;

/// As for etcd's read-only role: clients give up at once.
pub fn read_only() -> Status {
    Status::permission_denied("etcdserver: permission denied")
}

pub fn empty_key() -> Status {
    Status::invalid_argument("etcdserver: key is not provided")
}

pub fn invalid_sort_option() -> Status {
    Status::invalid_argument("etcdserver: invalid sort option")
}

pub fn auth_not_enabled() -> Status {
    Status::failed_precondition("etcdserver: authentication is not enabled")
}

/// Clients reconnect after this one.
pub fn stopped() -> Status {
    Status::unavailable("etcdserver: server stopped")
}

impl From<RevisionError> for Status {
    fn from(error: RevisionError) -> Self {
        Status::new(Code::OutOfRange, format!("etcdserver: {error}"))
    }
}
