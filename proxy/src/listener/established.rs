//! A session from the hand-over to the relay until its end: what it counts, what ends it, and what its end means.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use pointsman_core::close::{CloseReason, Peer};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::admission::Admitted;
use super::client::Client;
use super::link::{Grant, Link};
use super::record::{self, Tally};
use super::{Settings, Shared};
use crate::dial::is_reset;
use crate::engine::{End, Relayed, Side, Stream};
use crate::sessions::{Phase, Session, SessionGuard};
use crate::socket::TcpOptions;
use crate::stats::{ListenerStats, ServerStats};

/// What the relay has of a session. Everything that counts it is given back when it is dropped.
pub(crate) struct Established {
    shared: Arc<Shared>,
    session: SessionGuard,
    grant: Grant,
    tally: Tally,
    options: TcpOptions,
    idle_timeout: Option<Duration>,
    log: bool,
    _admitted: Admitted,
    _task: TaskTrackerToken,
}

/// Hands a session over that a server has taken.
pub(crate) fn hand_over(
    shared: Arc<Shared>,
    settings: &Settings,
    session: SessionGuard,
    admitted: Admitted,
    tally: Tally,
    client: Client,
    link: Link,
) {
    session.set_phase(Phase::Established);
    let Link { stream: server, grant, received, .. } = link;
    let (client, early) = client.into_parts();
    client.put_back(early);
    server.put_back(received);
    let task = shared.tracker.token();
    let established = Established {
        shared,
        session,
        grant,
        tally,
        options: TcpOptions::of(&settings.listener),
        idle_timeout: settings.listener.idle_timeout,
        log: settings.log_sessions,
        _admitted: admitted,
        _task: task,
    };
    Stream::relay(&client, &server, Box::new(established));
}

impl Relayed for Established {
    fn stop(&self) -> Option<End> {
        if let Some(reason) = self.grant.fence.raised() {
            return Some(End::Revoked(reason));
        }
        self.session.kill_reason().map(|reason| End::Killed(reason.clone()))
    }

    fn count(&self, to: Side, bytes: usize) {
        count(&self.session, &self.shared.stats, &self.grant.stats, to, bytes);
    }

    fn settled(&self, _client: BorrowedFd<'_>, server: BorrowedFd<'_>) {
        // The client's side has inherited them. An error means that the server has gone already.
        let _ = self.options.apply_late(server);
    }

    fn idle_timeout(&self) -> Option<Duration> {
        self.idle_timeout
    }

    fn watch(&self, waker: &Waker) {
        self.session.set_kill_waker(waker);
    }

    fn ended(self: Box<Self>, end: End) {
        match &end {
            End::Closed(Side::Server) | End::Broken(Side::Server, _) => {
                self.shared.reports.server_closed(&self.grant.member);
            }
            End::Idle | End::Revoked(_) | End::Killed(_) => self.grant.stats.cut.add(1),
            End::Closed(Side::Client) | End::Broken(Side::Client, _) => {}
        }
        let reason = reason_of(end);
        self.shared.stats.closed(&reason);
        record::write(&self.session, self.tally, &reason, self.log, false);
    }
}

/// Counts bytes that `to` has taken.
pub(crate) fn count(
    session: &Session,
    listener: &ListenerStats,
    member: &ServerStats,
    to: Side,
    bytes: usize,
) {
    let bytes = bytes as u64;
    match to {
        Side::Server => {
            session.add_in(bytes);
            listener.bytes_in.add(bytes);
            member.bytes_in.add(bytes);
        }
        Side::Client => {
            session.add_out(bytes);
            listener.bytes_out.add(bytes);
            member.bytes_out.add(bytes);
        }
    }
}

fn reason_of(end: End) -> CloseReason {
    match end {
        End::Closed(side) => CloseReason::Closed(peer(side)),
        End::Broken(side, error) => broken(peer(side), &error),
        End::Idle => CloseReason::IdleTimeout,
        End::Revoked(reason) => CloseReason::Revoked(reason),
        End::Killed(reason) => reason,
    }
}

fn peer(side: Side) -> Peer {
    match side {
        Side::Client => Peer::Client,
        Side::Server => Peer::Server,
    }
}

/// What an error of a connection says about its end.
pub(crate) fn broken(peer: Peer, error: &io::Error) -> CloseReason {
    use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
    if is_reset(error.kind()) {
        CloseReason::Reset(peer)
    } else if matches!(error.kind(), TimedOut | HostUnreachable | NetworkUnreachable) {
        CloseReason::Lost(peer)
    } else {
        CloseReason::WriteFailed(peer)
    }
}
