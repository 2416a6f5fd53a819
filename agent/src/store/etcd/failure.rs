//! What an error of etcd's client means for us.

use std::error::Error as _;

use crate::store::Error;

/// gRPC's status codes, <https://grpc.io/docs/guides/status-codes/>.
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const UNIMPLEMENTED: i32 = 12;
}

/// What is asked for, for people.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access<'a> {
    pub(super) verb: &'a str,
    pub(super) key: &'a str,
    /// The permission on `key` that etcd asks for.
    pub(super) permission: &'a str,
}

/// What a failure means for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The server is away, slow, hung or electing. Another one may not be.
    Away,
    /// The revision asked for is no more, or not yet.
    Compacted,
    /// The answer is larger than the client takes.
    TooLarge,
    /// No such lease.
    LeaseGone,
    /// That lease is there already.
    LeaseExists,
    /// The server says no.
    Refused,
    /// The user lacks a permission.
    Denied,
}

/// An error with its meaning.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) error: Error,
    /// Which endpoint failed, while the error has not been put in an operator's words.
    pub(super) endpoint: Option<usize>,
}

impl Failure {
    pub(super) fn new(kind: Kind, error: Error) -> Self {
        Self { kind, error, endpoint: None }
    }

    /// The same of this endpoint.
    pub(super) fn at(self, endpoint: usize) -> Self {
        Self { endpoint: Some(endpoint), ..self }
    }
}

/// Whether nobody has to log in.
pub(super) fn is_auth_disabled(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status)
        if status.code() as i32 == code::FAILED_PRECONDITION && status.message().contains("authentication is not enabled"))
}

/// The server is away.
pub(super) fn away(access: Access<'_>, reason: String) -> Failure {
    let step = format!("{} {}", access.verb, access.key);
    Failure::new(Kind::Away, Error { step, reason, transient: true })
}

/// What an error of the client's means.
pub(super) fn failure(access: Access<'_>, error: &etcd_client::Error) -> Failure {
    use etcd_client::Error as E;
    let (kind, reason) = match error {
        E::GRpcStatus(status) => {
            let kind = kind(status.code() as i32, status.message());
            // The status itself says "transport error"; what went wrong is below it.
            (kind, chain(status.message(), status.source()))
        }
        E::LeaseKeepAliveError(reason) if reason == "lease not found" => (Kind::LeaseGone, reason.clone()),
        E::TransportError(error) => (Kind::Away, chain(&error.to_string(), error.source())),
        E::InvalidArgs(_) | E::InvalidUri(_) | E::InvalidMetadataValue(_) => (Kind::Refused, error.to_string()),
        other => (Kind::Away, chain(&other.to_string(), other.source())),
    };
    let reason = if kind == Kind::Denied { needs(access, &reason) } else { reason };
    let step = format!("{} {}", access.verb, access.key);
    Failure::new(kind, Error { step, reason, transient: kind == Kind::Away })
}

/// Adds what an operator has to grant.
pub(super) fn needs(access: Access<'_>, reason: &str) -> String {
    format!("{reason}: the user needs a role with {} permission on {}", access.permission, access.key)
}

fn kind(code: i32, message: &str) -> Kind {
    match code {
        code::OUT_OF_RANGE if message.contains("message length too large") => Kind::TooLarge,
        code::OUT_OF_RANGE => Kind::Compacted,
        code::NOT_FOUND if message.contains("lease not found") => Kind::LeaseGone,
        code::FAILED_PRECONDITION if message.contains("lease already exists") => Kind::LeaseExists,
        code::PERMISSION_DENIED => Kind::Denied,
        code::NOT_FOUND | code::FAILED_PRECONDITION | code::INVALID_ARGUMENT | code::UNIMPLEMENTED => Kind::Refused,
        // Unavailable, Unknown, Cancelled, DeadlineExceeded, Internal, ResourceExhausted, Unauthenticated, …
        _ => Kind::Away,
    }
}

/// An error and its causes in one line, each only once, without the transport's empty words.
fn chain(message: &str, mut source: Option<&(dyn std::error::Error + 'static)>) -> String {
    let mut parts = vec![message.to_owned()];
    while let Some(error) = source {
        parts.push(error.to_string());
        source = error.source();
    }
    let mut said: Vec<String> = Vec::new();
    for part in parts {
        if !part.is_empty() && part != "transport error" && !said.iter().any(|before| before.contains(&part)) {
            said.push(part);
        }
    }
    if said.is_empty() { message.to_owned() } else { said.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_meanings() {
        assert_eq!(kind(11, "etcdserver: mvcc: required revision has been compacted"), Kind::Compacted);
        assert_eq!(kind(11, "etcdserver: mvcc: required revision is a future revision"), Kind::Compacted);
        assert_eq!(kind(11, "Error, decoded message length too large: found 5 bytes"), Kind::TooLarge);
        assert_eq!(kind(5, "etcdserver: requested lease not found"), Kind::LeaseGone);
        assert_eq!(kind(9, "etcdserver: lease already exists"), Kind::LeaseExists);
        assert_eq!(kind(7, "etcdserver: permission denied"), Kind::Denied);
        assert_eq!(kind(14, "etcdserver: no leader"), Kind::Away);
        assert_eq!(kind(16, "etcdserver: invalid auth token"), Kind::Away);
    }
}
