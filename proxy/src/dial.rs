//! Connecting to a server: the addresses of a member in order, within one deadline.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use pointsman_core::event::DialOutcome;
use pointsman_core::view::Address;

use crate::engine::{self, Stream, timeout_at};
use crate::socket;

/// Why there is no connection to a server, or no first byte from it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Nobody listens.
    #[error("connection refused")]
    Refused,
    /// The deadline passed.
    #[error("no answer in time")]
    TimedOut,
    /// The server closed or reset the connection before its first byte.
    #[error("the server closed the connection before its first byte")]
    Closed,
    /// The server is starting up, shutting down or in recovery.
    #[error("the server is not ready: {0}")]
    NotReady(String),
    /// The term of the grant ended meanwhile.
    #[error("the member is no longer the one to go to")]
    Revoked,
    /// The way to the server failed.
    #[error("{0}")]
    Unreachable(io::Error),
    /// We could not even try: descriptors, ports or memory of this host.
    #[error("this host cannot connect: {0}")]
    Local(io::Error),
}

impl DialError {
    /// What the topology is told. `None`: the failure says nothing about the server.
    pub(crate) fn outcome(&self) -> Option<DialOutcome> {
        match self {
            Self::Refused => Some(DialOutcome::Refused),
            Self::TimedOut => Some(DialOutcome::TimedOut),
            Self::Closed | Self::Unreachable(_) => Some(DialOutcome::Failed),
            Self::NotReady(_) => Some(DialOutcome::NotReady),
            Self::Revoked | Self::Local(_) => None,
        }
    }
}

impl From<io::Error> for DialError {
    /// By the error of connect(2), or of a read or write before the server's first byte.
    fn from(error: io::Error) -> Self {
        use rustix::io::Errno;
        const OURS: [Errno; 7] = [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOBUFS,
            Errno::NOMEM,
            Errno::ADDRNOTAVAIL,
            Errno::ADDRINUSE,
            Errno::AGAIN,
        ];
        if Errno::from_io_error(&error).is_some_and(|errno| OURS.contains(&errno)) {
            return Self::Local(error);
        }
        let kind = error.kind();
        if kind == io::ErrorKind::ConnectionRefused {
            Self::Refused
        } else if kind == io::ErrorKind::TimedOut {
            Self::TimedOut
        } else if is_reset(kind) {
            Self::Closed
        } else {
            Self::Unreachable(error)
        }
    }
}

/// Whether the other side has ended the connection.
pub(crate) fn is_reset(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(kind, ConnectionReset | BrokenPipe | ConnectionAborted | NotConnected | UnexpectedEof)
}

/// Connects to the first address that answers. Each attempt gets a fair part of the time that is left, so
/// that a silent address does not use up the turn of the next one. Cancel-safe: dropping it ends the attempt.
pub(crate) async fn connect(
    addresses: &[Address],
    deadline: Instant,
) -> Result<(Stream, SocketAddr), DialError> {
    let mut last = None;
    let mut names_left = addresses.len();
    for address in addresses {
        let sockets = match timeout_at(share(deadline, names_left), resolve(address)).await {
            Ok(Ok(sockets)) => sockets,
            Ok(Err(error)) => {
                last = Some(DialError::Unreachable(error));
                Vec::new()
            }
            Err(_) => {
                last = Some(DialError::TimedOut);
                Vec::new()
            }
        };
        names_left = names_left.saturating_sub(1);
        let mut sockets_left = sockets.len();
        for socket in sockets {
            match timeout_at(share(deadline, sockets_left + names_left), connect_to(socket)).await {
                Ok(Ok(stream)) => return Ok((stream, socket)),
                Ok(Err(error)) => last = Some(error.into()),
                Err(_) => last = Some(DialError::TimedOut),
            }
            sockets_left = sockets_left.saturating_sub(1);
        }
    }
    Err(last.unwrap_or_else(|| DialError::Unreachable(io::Error::other("the member has no address"))))
}

async fn connect_to(address: SocketAddr) -> io::Result<Stream> {
    Stream::connect(socket::to_connect(address)?, address).await
}

async fn resolve(address: &Address) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = address.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, address.port)]);
    }
    engine::resolve(&address.host, address.port).await
}

/// The end of an attempt, when `attempts` are left to be made until the deadline.
fn share(deadline: Instant, attempts: usize) -> Instant {
    let attempts = u32::try_from(attempts).unwrap_or(u32::MAX).max(1);
    let now = engine::now();
    now + deadline.saturating_duration_since(now) / attempts
}
