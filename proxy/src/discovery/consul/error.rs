//! What can go wrong at one address, and what a person should look at then.

use std::time::Duration;

use pointsman_config::{Consul, Endpoint, Scheme, Secret};
use pointsman_core::consul::KvError;

use crate::http::HttpError;

/// Why an address was left.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConsulError {
    #[error("no answer to {call} within {} s", after.as_secs())]
    NoAnswer { call: &'static str, after: Duration },
    #[error("{0}")]
    Http(#[from] HttpError),
    /// The token, or the lack of one, is not enough. `message` is Consul's own.
    #[error("access denied: {message}")]
    Denied { message: String },
    /// The token may not read this key, and lists leave it out without a word.
    #[error("the token may not read {key}")]
    Hidden { key: String },
    /// Any other status. `message` is Consul's own.
    #[error("it answers {status}: {message}")]
    Refused { status: u16, message: String },
    /// A stale read said so.
    #[error("it has no leader")]
    NoLeader { keys: usize, index: u64 },
    #[error("it answers from its memory, without asking Consul's leader")]
    Stale,
    #[error("the answer has no X-Consul-Index; this is not Consul")]
    NotConsul,
    #[error("{0}")]
    Nonsense(#[from] KvError),
    #[error("index {revision} is older than {before}, which was seen before")]
    Behind { revision: i64, before: i64 },
}

impl ConsulError {
    /// Whether a stale read would tell more.
    pub(super) fn may_lack_leader(&self) -> bool {
        matches!(self, Self::NoAnswer { .. } | Self::Stale | Self::Refused { status: 500..=599, .. })
    }

    /// Whether Consul may be electing a leader just now, which is nothing out of the ordinary.
    pub(super) fn may_be_an_election(&self) -> bool {
        matches!(self, Self::NoLeader { .. } | Self::Stale | Self::Refused { status: 500..=599, .. })
    }

    /// How much an error says about the cause, among those of several addresses: a refused token says more than a
    /// closed port.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Http(HttpError::Connect(_)) => 0,
            Self::NoAnswer { .. } | Self::Stale | Self::Http(HttpError::Broken(_)) => 1,
            Self::Refused { .. }
            | Self::NotConsul
            | Self::Nonsense(_)
            | Self::Behind { .. }
            | Self::Http(HttpError::NotHttp(_) | HttpError::TooLong { .. }) => 2,
            Self::NoLeader { .. } => 3,
            Self::Denied { .. } | Self::Hidden { .. } | Self::Http(HttpError::Tls(_)) => 4,
        }
    }

    /// What happened and what to check, for people.
    pub(super) fn explain(&self, consul: &Consul, endpoint: &Endpoint, prefix: &str) -> String {
        let policy = format!("its policy needs key_prefix {prefix:?} {{ policy = \"read\" }}");
        let source = consul.token.as_ref().map(Secret::source);
        match (self, source) {
            (Self::Denied { message }, Some(source)) if message.contains("ACL not found") => format!(
                "it does not know the token from {source}: it was deleted or has expired; put a new one there"
            ),
            (Self::Denied { message }, Some(source)) => {
                format!("the token from {source} may not read {prefix} ({message}); {policy}")
            }
            (Self::Hidden { key }, Some(source)) => {
                format!("the token from {source} may not read {prefix}{key}; {policy}")
            }
            (Self::Denied { .. } | Self::Hidden { .. }, None) => {
                format!("without a token {prefix} cannot be read: set token_file; {policy}")
            }
            (Self::NoLeader { keys, index }, _) => format!(
                "it has no leader: Consul has lost its quorum, or this server is cut off from the others; \
                 it remembers {keys} keys of an earlier time (index {index}), which say whom to ask, not where to route"
            ),
            (Self::Refused { message, .. }, _) if message.contains("No path to datacenter") => {
                let datacenter = consul.datacenter.as_deref().unwrap_or("its own");
                format!("it knows no way to the datacenter {datacenter:?}; check datacenter")
            }
            (Self::Http(HttpError::Broken(why)), _)
                if endpoint.scheme == Scheme::Https
                    && consul.tls.as_ref().is_none_or(|tls| tls.cert_key.is_none())
                    && !why.contains("certificate") =>
            {
                // With TLS 1.3 the refusal can be overtaken by the connection's end.
                format!("{self}; perhaps it wants a client certificate: set tls.cert and tls.key")
            }
            _ => self.to_string(),
        }
    }
}
