//! What can go wrong at one endpoint, and what a person should look at then.

use std::io;
use std::time::Duration;

use pointsman_config::{Endpoint, Etcd, Scheme};

use crate::connect::{self, Trouble};
use crate::tls::TlsError;

/// Why an endpoint was left.
#[derive(Debug, thiserror::Error)]
pub(super) enum EtcdError {
    #[error("no connection within {} s", after.as_secs())]
    ConnectTimeout { after: Duration },
    #[error("{}", connect::explain(.0))]
    Connect(io::Error),
    #[error("{0}")]
    Tls(#[from] TlsError),
    #[error("no answer to {call} within {} s", after.as_secs())]
    CallTimeout { call: &'static str, after: Duration },
    /// etcd itself refuses: `message` is its own.
    #[error("{message}")]
    Refused { message: String },
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("the answer has no header; this is not etcd")]
    NoHeader,
    #[error("more than {limit} keys under {prefix}")]
    TooManyKeys { prefix: String, limit: usize },
    #[error("revision {revision} is older than {before}, which was seen before")]
    Behind { revision: i64, before: i64 },
    #[error("the watch said nothing for {} s", after.as_secs())]
    Silent { after: Duration },
    #[error("the watch was cancelled: {reason}")]
    Canceled { reason: String },
    #[error("the watch was cancelled: the history before revision {revision} was compacted")]
    Compacted { revision: i64 },
    #[error("the stream ended")]
    Ended,
}

impl EtcdError {
    /// Sorts what the library reports. `trouble`: what the connection broke of, if it did; the library would
    /// only say that it is closed.
    pub(super) fn from_client(error: &etcd_client::Error, trouble: &Trouble) -> Self {
        match (error, trouble.get()) {
            (_, Some(trouble)) => Self::Broken(trouble.clone()),
            // Without a cause of its own, a status is etcd's word.
            (etcd_client::Error::GRpcStatus(status), None) if std::error::Error::source(status).is_none() => {
                Self::Refused { message: status.message().to_owned() }
            }
            (etcd_client::Error::GRpcStatus(status), None) => Self::Broken(status.message().to_owned()),
            (other, None) => Self::Broken(other.to_string()),
        }
    }

    /// How much an error says about the cause, among those of several endpoints: a wrong password says more
    /// than a closed port.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Connect(_) | Self::ConnectTimeout { .. } | Self::Ended => 0,
            Self::Silent { .. } | Self::CallTimeout { .. } | Self::Broken(_) => 1,
            Self::Canceled { .. } | Self::Compacted { .. } | Self::Behind { .. } | Self::NoHeader => 2,
            Self::Refused { .. } | Self::Tls(_) | Self::TooManyKeys { .. } => 3,
        }
    }

    /// What happened and what to check, for people.
    pub(super) fn explain(&self, etcd: &Etcd, endpoint: &Endpoint, prefix: &str) -> String {
        let tls = endpoint.scheme == Scheme::Https;
        let no_certificate = etcd.tls.as_ref().is_none_or(|tls| tls.cert_key.is_none());
        let Self::Refused { message } = self else {
            let hint = if matches!(self, Self::CallTimeout { .. }) {
                "; has etcd lost its quorum?"
            } else if tls
                && no_certificate
                && matches!(self, Self::Broken(why) if !why.contains("certificate"))
            {
                // With TLS 1.3 the refusal can be overtaken by the connection's end.
                "; perhaps it wants a client certificate: set tls.cert and tls.key"
            } else {
                ""
            };
            return format!("{self}{hint}");
        };
        let user = etcd.credentials.as_ref().map_or("nobody", |credentials| credentials.user.as_str());
        let known = [
            (
                "authentication failed",
                format!("authentication failed for user {user:?}; check username and password"),
            ),
            (
                "permission denied",
                format!("permission denied: the role of {user:?} may not read {prefix}; grant it"),
            ),
            ("user name is empty", "it wants a user and a password, and none are configured".to_owned()),
            ("invalid auth token", format!("it does not accept the token of user {user:?} any more")),
            (
                "no leader",
                "it has no leader: it has lost its quorum, or is cut off from the others".to_owned(),
            ),
            ("request timed out", "it cannot reach its quorum".to_owned()),
        ];
        let found = known.into_iter().find(|(words, _)| message.contains(words));
        found.map_or_else(|| format!("it refuses: {message}"), |(_, text)| text)
    }
}
