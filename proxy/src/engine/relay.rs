//! An established session: two sockets, two flows, and how they end.
//!
//! What is received from one side is sent to the other at once; nothing is received from a side whose counterpart does not
//! keep up. A flow that fills buffers is spliced until its splices become small.
//!
//! Ends are passed on as they are. A FIN becomes a FIN after the bytes before it, in each direction by itself. An RST becomes an
//! RST, after what its sender had said before if the other side takes that without standing still for long. When we end a session ourselves (revoked, killed, idle) not one byte more is moved in either direction; the server gets an
//! RST, so that nothing of what it has not received yet can still be executed and the backend ends at once; the client gets a FIN
//! after what the kernel has already taken for it (perhaps the server's own last words): PostgreSQL's messages have lengths and its
//! results an end mark, so a client cannot take this for a complete answer.
//!
//! Invariant: the fence is asked before every write, also before the rest of an earlier one. Bytes that are inside the kernel when the
//! fence is raised may arrive, like any byte that is on its way.

use std::io;
use std::time::Instant;

use pointsman_core::close::CloseReason;
use pointsman_core::route::RevokeReason;

use super::driver::Key;
use super::splice::Pipe;

/// One end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// How a session ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Both sides sent a FIN, this one first.
    Closed(Side),
    /// This side reset the connection, or stopped to answer.
    Broken(Side, io::Error),
    /// Nothing was moved for the idle timeout.
    Idle,
    /// The term of its grant ended.
    Revoked(RevokeReason),
    /// Somebody asked for it.
    Killed(CloseReason),
}

/// The session that a relay works for: what may end it from outside, and who keeps its accounts.
pub(crate) trait Relayed {
    /// Why not one byte more may be moved. Asked before each write: it has to be cheap.
    fn stop(&self) -> Option<End>;

    /// So many bytes were taken by this side.
    fn count(&self, to: Side, bytes: usize);

    /// Options that only a session of some age needs are due: it has lived for a second or so.
    fn settled(&self, client: std::os::fd::BorrowedFd<'_>, server: std::os::fd::BorrowedFd<'_>);

    /// After how long without a byte the session ends.
    fn idle_timeout(&self) -> Option<std::time::Duration>;

    /// Has this woken when [`Relayed::stop`] may have changed for this session alone.
    fn watch(&self, waker: &std::task::Waker);

    /// The end, after the sockets were closed.
    fn ended(self: Box<Self>, end: End);
}

/// One direction.
#[derive(Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts about one direction; its way of moving bytes is `mode`"
)]
pub(super) struct Flow {
    pub(super) mode: Mode,
    /// Full buffers in a row.
    pub(super) full: u8,
    /// KiB that were spliced since the flow was turned.
    pub(super) spliced: u32,
    /// It is gathering: the source is told of only when there is much of it.
    pub(super) gathering: bool,
    /// Nothing is received, because the sink does not keep up.
    pub(super) paused: bool,
    /// The source sent a FIN.
    pub(super) source_ended: bool,
    /// The FIN was passed on.
    pub(super) finished: bool,
    /// The sink takes nothing any more.
    pub(super) dead: bool,
}

/// How the bytes of a flow are moved.
#[derive(Debug, Default)]
pub(super) enum Mode {
    #[default]
    Copy,
    /// To be spliced, as soon as everything that was received has been sent. Quiet: nothing more will be received.
    Turning { quiet: bool },
    /// The pipe is kept only while something is in it.
    Splice(Option<Box<Pipe>>),
}

/// A session in the table of its core.
pub(super) struct Session {
    pub(super) client: Key,
    pub(super) server: Key,
    /// To the server.
    pub(super) up: Flow,
    /// To the client.
    pub(super) down: Flow,
    /// Who sent the first FIN.
    pub(super) first_end: Option<Side>,
    /// This side's connection is gone; what it sent before is still passed on.
    pub(super) broken: Option<Box<(Side, io::Error)>>,
    /// The beat looks at it: it has an idle timeout, a broken side, or one that has ended.
    pub(super) watched: bool,
    /// When a byte was moved last, in ticks of the core.
    pub(super) moved: u32,
    pub(super) relayed: Box<dyn Relayed>,
}

impl Session {
    pub(super) fn key(&self, side: Side) -> Key {
        match side {
            Side::Client => self.client,
            Side::Server => self.server,
        }
    }

    /// The flow whose source is this side.
    pub(super) fn from(&mut self, side: Side) -> &mut Flow {
        match side {
            Side::Client => &mut self.up,
            Side::Server => &mut self.down,
        }
    }

    /// The flow whose sink is this side.
    pub(super) fn into(&mut self, side: Side) -> &mut Flow {
        self.from(side.other())
    }

    pub(super) fn is_broken(&self, side: Side) -> bool {
        self.broken.as_ref().is_some_and(|broken| broken.0 == side)
    }
}

/// A clock that is read once in each round of a core, not for each byte.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticks {
    began: Instant,
    now: u32,
}

impl Ticks {
    /// What a tick is, in milliseconds: idle timeouts end at most two ticks late.
    pub(super) const MILLIS: u32 = 100;

    pub(super) fn start(now: Instant) -> Self {
        Self { began: now, now: 0 }
    }

    pub(super) fn set(&mut self, now: Instant) {
        let millis = now.saturating_duration_since(self.began).as_millis() / u128::from(Self::MILLIS);
        self.now = u32::try_from(millis).unwrap_or(u32::MAX); // after thirteen years
    }

    pub(super) fn now(self) -> u32 {
        self.now
    }
}
