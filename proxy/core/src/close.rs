//! How sessions end, one word for each way: for the metric label, the log line, the operator and the client.

use std::fmt;

use crate::error_response::SqlState;
use crate::route::{NoRoute, RevokeReason};
use crate::startup::StartupError;

#[cfg(test)]
mod tests;

/// Who ended a session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Side {
    /// The client, by what it did or failed to do.
    Client,
    /// The server.
    Server,
    /// Pointsman.
    Us,
}

impl Side {
    /// All sides, for metrics.
    pub const ALL: [Self; 3] = [Self::Client, Self::Server, Self::Us];

    /// As a metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Us => "us",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// The two connections of a session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Peer {
    /// The one that the client opened.
    Client,
    /// The one that we opened.
    Server,
}

impl Peer {
    const fn side(self) -> Side {
        match self {
            Self::Client => Side::Client,
            Self::Server => Side::Server,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.side().label())
    }
}

/// Why a session, or what would have become one, has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// An orderly end by one side: its stream ended first.
    Closed(Peer),
    /// One side sent RST.
    Reset(Peer),
    /// One side no longer answers: keepalive or `user_timeout` found it dead.
    Lost(Peer),
    /// Writing to one side failed in another way than [`Self::Reset`] and [`Self::Lost`].
    WriteFailed(Peer),
    /// The client did not finish its start-up message (or PROXY header, or TLS handshake) in time.
    StartupTimeout,
    /// The client's first message cannot be served.
    BadStartup(StartupError),
    /// An outer balancer's PROXY header is missing or malformed.
    BadProxyHeader,
    /// `allow` and `deny` keep this address out.
    Denied,
    /// `max_connections` of the listener is reached.
    ListenerFull,
    /// `max_connections_per_source` is reached.
    SourceLimit,
    /// `max_held` of the listener is reached.
    QueueFull,
    /// Held until the deadline, and why there was no route then. `None`: there was one, but the release rate
    /// did not let this connection through in time.
    HeldTooLong(Option<NoRoute>),
    /// The client went away while it was held.
    LeftWhileHeld,
    /// No candidate could be dialled.
    DialFailed {
        /// How many dials were made.
        tried: u32,
    },
    /// The server was reached but refused for now (57P03 and its like), until the deadline.
    ServerNotReady,
    /// The grant of the session was revoked.
    Revoked(RevokeReason),
    /// The drain at shutdown, or of the member, reached its deadline.
    Drained,
    /// An operator ended the session.
    Killed,
    /// Nothing was sent for `idle_timeout`.
    IdleTimeout,
    /// The local address of the session has left this host.
    VipMoved,
    /// A `CancelRequest` was delivered: the normal end of such a connection.
    CancelDone,
    /// A defect of ours, or the system refused something that we need.
    Internal(&'static str),
}

impl CloseReason {
    /// Every label that [`CloseReason::label`] can give, for counters that start at zero.
    pub const ALL: [&'static str; 29] = [
        "client-closed",
        "server-closed",
        "client-reset",
        "server-reset",
        "client-lost",
        "server-lost",
        "client-write-failed",
        "server-write-failed",
        "startup-timeout",
        "bad-startup",
        "bad-proxy-header",
        "denied",
        "listener-full",
        "source-limit",
        "queue-full",
        "held-too-long",
        "left-while-held",
        "dial-failed",
        "server-not-ready",
        "leader-changed",
        "promoted",
        "demoted",
        "reconfigured",
        "drained",
        "killed",
        "idle-timeout",
        "vip-moved",
        "cancel-done",
        "internal",
    ];

    /// One of [`CloseReason::ALL`]; never changes, because dashboards and alarms are built on it.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Closed(Peer::Client) => "client-closed",
            Self::Closed(Peer::Server) => "server-closed",
            Self::Reset(Peer::Client) => "client-reset",
            Self::Reset(Peer::Server) => "server-reset",
            Self::Lost(Peer::Client) => "client-lost",
            Self::Lost(Peer::Server) => "server-lost",
            Self::WriteFailed(Peer::Client) => "client-write-failed",
            Self::WriteFailed(Peer::Server) => "server-write-failed",
            Self::StartupTimeout => "startup-timeout",
            Self::BadStartup(_) => "bad-startup",
            Self::BadProxyHeader => "bad-proxy-header",
            Self::Denied => "denied",
            Self::ListenerFull => "listener-full",
            Self::SourceLimit => "source-limit",
            Self::QueueFull => "queue-full",
            Self::HeldTooLong(_) => "held-too-long",
            Self::LeftWhileHeld => "left-while-held",
            Self::DialFailed { .. } => "dial-failed",
            Self::ServerNotReady => "server-not-ready",
            Self::Revoked(RevokeReason::LeaderChanged) => "leader-changed",
            Self::Revoked(RevokeReason::Promoted) => "promoted",
            Self::Revoked(RevokeReason::Demoted) => "demoted",
            Self::Revoked(RevokeReason::Reconfigured) => "reconfigured",
            Self::Drained => "drained",
            Self::Killed => "killed",
            Self::IdleTimeout => "idle-timeout",
            Self::VipMoved => "vip-moved",
            Self::CancelDone => "cancel-done",
            Self::Internal(_) => "internal",
        }
    }

    /// Who ended it.
    pub const fn side(&self) -> Side {
        match self {
            Self::Closed(peer) | Self::Reset(peer) | Self::Lost(peer) | Self::WriteFailed(peer) => {
                peer.side()
            }
            Self::StartupTimeout
            | Self::BadStartup(_)
            | Self::BadProxyHeader
            | Self::LeftWhileHeld
            | Self::CancelDone => Side::Client,
            Self::DialFailed { .. } | Self::ServerNotReady => Side::Server,
            Self::Denied
            | Self::ListenerFull
            | Self::SourceLimit
            | Self::QueueFull
            | Self::HeldTooLong(_)
            | Self::Revoked(_)
            | Self::Drained
            | Self::Killed
            | Self::IdleTimeout
            | Self::VipMoved
            | Self::Internal(_) => Side::Us,
        }
    }

    /// The code that we tell a client that can still be told, before its session has begun or in its stead.
    /// `None`: nobody to tell, or the client ended it.
    ///
    /// Never written into an established session: our message could land inside one of the server's.
    pub const fn sqlstate(&self) -> Option<SqlState> {
        match self {
            Self::BadStartup(error) => Some(error.sqlstate()),
            Self::StartupTimeout | Self::BadProxyHeader => Some(SqlState::PROTOCOL_VIOLATION),
            Self::Denied => Some(SqlState::INVALID_AUTHORIZATION),
            Self::ListenerFull | Self::SourceLimit | Self::QueueFull => Some(SqlState::TOO_MANY_CONNECTIONS),
            Self::HeldTooLong(_)
            | Self::DialFailed { .. }
            | Self::ServerNotReady
            | Self::Revoked(_)
            | Self::VipMoved
            // The server went away before the session began: another try is worth it.
            | Self::Closed(Peer::Server)
            | Self::Reset(Peer::Server)
            | Self::Lost(Peer::Server)
            | Self::WriteFailed(Peer::Server) => Some(SqlState::CANNOT_CONNECT_NOW),
            Self::Drained | Self::Killed => Some(SqlState::ADMIN_SHUTDOWN),
            Self::IdleTimeout => Some(SqlState::IDLE_SESSION_TIMEOUT),
            Self::Internal(_) => Some(SqlState::INTERNAL_ERROR),
            Self::Closed(Peer::Client)
            | Self::Reset(Peer::Client)
            | Self::Lost(Peer::Client)
            | Self::WriteFailed(Peer::Client)
            | Self::LeftWhileHeld
            | Self::CancelDone => None,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(peer) => write!(f, "the {peer} closed the connection"),
            Self::Reset(peer) => write!(f, "the {peer} reset the connection"),
            Self::Lost(peer) => write!(f, "the {peer} no longer answers"),
            Self::WriteFailed(peer) => write!(f, "writing to the {peer} failed"),
            Self::StartupTimeout => f.write_str("the client did not finish its start-up in time"),
            Self::BadStartup(error) => error.fmt(f),
            Self::BadProxyHeader => f.write_str("the PROXY protocol header is missing or malformed"),
            Self::Denied => f.write_str("this address may not connect to this listener"),
            Self::ListenerFull => f.write_str("too many connections to this listener"),
            Self::SourceLimit => f.write_str("too many connections from this address"),
            Self::QueueFull => f.write_str("too many connections are waiting for a server"),
            Self::HeldTooLong(Some(why)) => write!(f, "no server is available: {why}"),
            Self::HeldTooLong(None) => f.write_str("too many connections waited before this one"),
            Self::LeftWhileHeld => f.write_str("the client went away while it waited for a server"),
            Self::DialFailed { tried: 1 } => f.write_str("the only server tried could not be reached"),
            Self::DialFailed { tried } => write!(f, "no server could be reached after {tried} tries"),
            Self::ServerNotReady => f.write_str("the server does not accept connections yet"),
            Self::Revoked(RevokeReason::LeaderChanged) => f.write_str("another member has become the leader"),
            Self::Revoked(RevokeReason::Promoted) => f.write_str("the replica has become the primary"),
            Self::Revoked(RevokeReason::Demoted) => f.write_str("the server is no longer the primary"),
            Self::Revoked(RevokeReason::Reconfigured) => f.write_str("the listener was removed or changed"),
            Self::Drained => f.write_str("draining reached its deadline"),
            Self::Killed => f.write_str("an operator ended the session"),
            Self::IdleTimeout => f.write_str("the session was idle for too long"),
            Self::VipMoved => f.write_str("the virtual IP has moved to another host"),
            Self::CancelDone => f.write_str("the cancel request was delivered"),
            Self::Internal(what) => write!(f, "internal error: {what}"),
        }
    }
}
