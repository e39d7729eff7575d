//! The relay: bytes between a client and a server, both ways, until an end that has a reason.
//!
//! One loop for both directions. What can be read is written at once out of a buffer that belongs to the
//! thread; only what the other side does not take yet is kept (at most [`CHUNK`] for each direction, and
//! nothing more is read meanwhile). An idle session holds no buffer.
//!
//! Ends are passed on as they are. A FIN becomes a FIN after the bytes before it, in each direction by
//! itself. An RST becomes an RST. When we end a session ourselves (revoked, killed, idle) not one byte more
//! is moved in either direction; the server gets an RST, so that nothing of what it has not received yet can
//! still be executed and the backend ends at once; the client gets a FIN after what the kernel has already
//! taken for it (perhaps the server's own last words): PostgreSQL's messages have lengths and its results an
//! end mark, so a client cannot take this for a complete answer.
//!
//! Invariant: the fence is asked before every write. A write that is already inside the kernel when the
//! fence is raised may finish, like any byte that is on its way.
//!
//! Cancel-safety: dropping the future closes both sockets.

use std::cell::RefCell;
use std::io;
use std::pin::{Pin, pin};
use std::time::Duration;

use pointsman_core::close::CloseReason;
use pointsman_core::route::RevokeReason;
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::routes::Fence;
use crate::sessions::Session;
use crate::socket::{read_now, reset, shut_down_write};
use crate::stats::{ListenerStats, ServerStats};

#[cfg(test)]
mod tests;

/// The most that is read at once, in bytes.
const CHUNK: usize = 64 * 1024;

/// Full reads in one direction before the other one has its turn.
const ROUNDS: usize = 8;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// One end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
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

/// A client and a server, with what was read of each and not passed on yet.
pub(crate) struct Pair {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
    pub(crate) to_server: Vec<u8>,
    pub(crate) to_client: Vec<u8>,
}

/// What ends a session from outside, and what counts its bytes.
#[derive(Clone, Copy)]
pub(crate) struct Watch<'a> {
    pub(crate) session: &'a Session,
    pub(crate) fence: &'a Fence,
    pub(crate) listener: &'a ListenerStats,
    pub(crate) member: &'a ServerStats,
    pub(crate) idle_timeout: Option<Duration>,
}

impl Watch<'_> {
    /// Why not one byte more may be moved.
    fn stop(&self) -> Option<End> {
        if let Some(reason) = self.fence.raised() {
            return Some(End::Revoked(reason));
        }
        self.session.kill_reason().map(|reason| End::Killed(reason.clone()))
    }

    /// Counts bytes that `to` has taken.
    pub(crate) fn count(&self, to: Side, bytes: usize) {
        let bytes = bytes as u64;
        match to {
            Side::Server => {
                self.session.add_in(bytes);
                self.listener.bytes_in.add(bytes);
                self.member.bytes_in.add(bytes);
            }
            Side::Client => {
                self.session.add_out(bytes);
                self.listener.bytes_out.add(bytes);
                self.member.bytes_out.add(bytes);
            }
        }
    }
}

/// Relays until the session ends, and closes both sockets.
pub(crate) async fn relay(pair: Pair, watch: &Watch<'_>) -> End {
    let Pair { client, server, to_server, to_client } = pair;
    let mut flows = Flows {
        up: Flow::new(Side::Server, to_server),
        down: Flow::new(Side::Client, to_client),
        first_end: None,
        broken: None,
    };
    let end = run(&mut flows, &client, &server, watch).await;
    match end {
        End::Closed(_) => {}
        End::Broken(Side::Client, _) | End::Idle | End::Revoked(_) | End::Killed(_) => reset(server),
        End::Broken(Side::Server, _) => reset(client),
    }
    end
}

async fn run(flows: &mut Flows, client: &TcpStream, server: &TcpStream, watch: &Watch<'_>) -> End {
    let mut revoked = pin!(watch.fence.wait());
    let mut killed = pin!(watch.session.killed());
    let mut idle = IdleClock::new(watch.idle_timeout);
    loop {
        tokio::task::coop::consume_budget().await;
        match flows.step(client, server, watch) {
            Ok(0) => {}
            Ok(_) => idle.touch(),
            Err(end) => return end,
        }
        tokio::select! {
            biased;
            reason = &mut revoked => return End::Revoked(reason),
            reason = &mut killed => return End::Killed(reason),
            ready = client.ready(interest(&flows.up, &flows.down)) => flows.note(Side::Client, ready),
            ready = server.ready(interest(&flows.down, &flows.up)) => flows.note(Side::Server, ready),
            () = idle.expired() => return End::Idle,
        }
    }
}

/// What to wait for on a socket that is the source of one flow and the sink of the other. Errors always: an
/// RST may come after a FIN.
fn interest(from: &Flow, into: &Flow) -> Interest {
    let mut interest = Interest::ERROR;
    if from.wants_input() {
        interest |= Interest::READABLE;
    }
    if !into.pending.is_empty() {
        interest |= Interest::WRITABLE;
    }
    interest
}

/// Both directions of a session.
struct Flows {
    up: Flow,
    down: Flow,
    /// Who sent the first FIN.
    first_end: Option<Side>,
    /// This side's connection is gone; what it sent before is still passed on.
    broken: Option<(Side, io::Error)>,
}

impl Flows {
    /// Moves what can be moved without waiting, and says how many bytes that was.
    fn step(&mut self, client: &TcpStream, server: &TcpStream, watch: &Watch<'_>) -> Result<usize, End> {
        let mut moved = 0;
        loop {
            let up = self.up.pump(client, server, watch, !self.is_broken(Side::Client));
            let up = self.outcome(Side::Client, Side::Server, up)?;
            let down = self.down.pump(server, client, watch, !self.is_broken(Side::Server));
            let down = self.outcome(Side::Server, Side::Client, down)?;
            moved += up + down;
            if self.up.finished && self.down.finished && self.broken.is_none() {
                return Err(End::Closed(self.first_end.unwrap_or(Side::Client)));
            }
            // A broken side: again, until it has nothing more for the other one.
            match self.broken.take() {
                Some((side, error)) if up + down == 0 => return Err(End::Broken(side, error)),
                Some(broken) => self.broken = Some(broken),
                None => return Ok(moved),
            }
        }
    }

    fn is_broken(&self, side: Side) -> bool {
        self.broken.as_ref().is_some_and(|(broken, _)| *broken == side)
    }

    fn outcome(&mut self, source: Side, sink: Side, result: Result<usize, Stop>) -> Result<usize, End> {
        let flow = if sink == Side::Server { &self.up } else { &self.down };
        if flow.source_ended && self.first_end.is_none() {
            self.first_end = Some(source);
        }
        match result {
            Ok(moved) => Ok(moved),
            Err(Stop::Ordered(end)) => Err(end),
            Err(Stop::Source(error)) => self.broke(source, error),
            Err(Stop::Sink(error)) => self.broke(sink, error),
        }
    }

    /// Nothing more goes to this side; the other direction may still have something.
    fn broke(&mut self, side: Side, error: io::Error) -> Result<usize, End> {
        let (into, from) = match side {
            Side::Client => (&mut self.down, &self.up),
            Side::Server => (&mut self.up, &self.down),
        };
        into.abandon();
        if from.finished || from.dead {
            return Err(End::Broken(side, error));
        }
        self.broken.get_or_insert((side, error));
        Ok(0)
    }

    /// Takes note of an error that the kernel reports for a socket.
    fn note(&mut self, side: Side, ready: io::Result<Ready>) {
        let broken = match ready {
            Ok(ready) if ready.is_error() => io::ErrorKind::ConnectionReset.into(),
            Ok(_) => return,
            Err(error) => error,
        };
        self.broken.get_or_insert((side, broken));
    }
}

/// Why a flow cannot go on.
enum Stop {
    Source(io::Error),
    Sink(io::Error),
    Ordered(End),
}

/// One direction.
struct Flow {
    to: Side,
    /// Read and not written yet.
    pending: Vec<u8>,
    /// How much of `pending` is written.
    written: usize,
    /// The source sent a FIN.
    source_ended: bool,
    /// The FIN is passed on.
    finished: bool,
    /// The sink takes nothing any more.
    dead: bool,
}

impl Flow {
    fn new(to: Side, pending: Vec<u8>) -> Self {
        Self { to, pending, written: 0, source_ended: false, finished: false, dead: false }
    }

    fn wants_input(&self) -> bool {
        self.pending.is_empty() && !self.source_ended && !self.dead
    }

    fn abandon(&mut self) {
        self.dead = true;
        self.pending = Vec::new();
        self.written = 0;
    }

    /// Moves what can be moved without waiting. `orderly`: an end of the source is a FIN, to be passed on;
    /// after an RST whose error was read already, the kernel shows an end that is none.
    fn pump(
        &mut self,
        source: &TcpStream,
        sink: &TcpStream,
        watch: &Watch<'_>,
        orderly: bool,
    ) -> Result<usize, Stop> {
        if self.dead || self.finished {
            return Ok(0);
        }
        let mut moved = self.flush(sink, watch)?;
        for _ in 0..ROUNDS {
            if !self.wants_input() {
                break;
            }
            let (read, written) =
                BUFFER.with_borrow_mut(|buffer| self.transfer(buffer, source, sink, watch))?;
            moved += written;
            if read < CHUNK {
                break;
            }
        }
        if self.source_ended && self.pending.is_empty() && orderly {
            shut_down_write(sink).map_err(Stop::Sink)?;
            self.finished = true;
        }
        Ok(moved)
    }

    /// One read, and the writes that it leads to.
    fn transfer(
        &mut self,
        buffer: &mut [u8],
        source: &TcpStream,
        sink: &TcpStream,
        watch: &Watch<'_>,
    ) -> Result<(usize, usize), Stop> {
        let count = match read_now(source, buffer) {
            Ok(0) => {
                self.source_ended = true;
                return Ok((0, 0));
            }
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((0, 0)),
            Err(error) => return Err(Stop::Source(error)),
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        let written = write_now(sink, bytes, self.to, watch)?;
        self.pending.extend_from_slice(bytes.get(written..).unwrap_or_default());
        Ok((count, written))
    }

    /// Writes what was left over.
    fn flush(&mut self, sink: &TcpStream, watch: &Watch<'_>) -> Result<usize, Stop> {
        if self.pending.is_empty() {
            return Ok(0);
        }
        let rest = self.pending.get(self.written..).unwrap_or_default();
        let written = write_now(sink, rest, self.to, watch)?;
        self.written += written;
        if self.written >= self.pending.len() {
            self.pending = Vec::new();
            self.written = 0;
        }
        Ok(written)
    }
}

/// Writes as much as the sink takes now, unless the session has been told to end.
fn write_now(sink: &TcpStream, bytes: &[u8], to: Side, watch: &Watch<'_>) -> Result<usize, Stop> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        if let Some(end) = watch.stop() {
            return Err(Stop::Ordered(end));
        }
        match sink.try_write(rest) {
            Ok(count) => {
                watch.count(to, count);
                written += count;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(Stop::Sink(error)),
        }
    }
    Ok(written)
}

/// Expires when nothing was moved for a while. Costs nothing when there is no limit.
struct IdleClock {
    limit: Duration,
    last: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl IdleClock {
    fn new(limit: Option<Duration>) -> Self {
        let last = Instant::now();
        let sleep = limit.map(|limit| Box::pin(sleep_until(last + limit)));
        Self { limit: limit.unwrap_or_default(), last, sleep }
    }

    fn touch(&mut self) {
        if self.sleep.is_some() {
            self.last = Instant::now();
        }
    }

    /// Cancel-safe. The timer is moved only when it fires, not with each byte.
    async fn expired(&mut self) {
        let Some(sleep) = &mut self.sleep else { return std::future::pending().await };
        loop {
            sleep.as_mut().await;
            if self.last.elapsed() >= self.limit {
                return;
            }
            sleep.as_mut().reset(self.last + self.limit);
        }
    }
}
