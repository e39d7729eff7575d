//! The events of established sessions: bytes from one side to the other, and ends.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use super::core::{Core, Owner};
use socket2::SockRef;

use super::driver::{Chunk, Close, Driver, Event, Key, Readiness, Sent};
use super::inbox::{Inbox, Message};
use super::local::Wire;
use super::relay::{End, Flow, Mode, Relayed, Session, Side};
use super::splice::{Moved, Pipe};
use super::sys::socket::set_receive_low_water;

/// So many bytes in full buffers, one after the other, make a stream one that is spliced.
const BULK: usize = 64 * 1024;

/// A splice of less than this makes it one that is copied again, in bytes.
const SMALL: usize = 4 * 1024;

/// Pipes full before other sessions get their turn.
const ROUNDS: usize = 2;

/// After so much a stream is expected to go on: it gathers. In KiB.
const SUSTAINED: u32 = 1024;

/// How much a stream gathers before it is spliced on, in bytes: each wake-up costs as much as splicing some 50 KiB. It is a small part
/// of what the socket may hold, or the peer's window would be closed meanwhile.
const GATHER: u32 = 512 * 1024;
const LEAST_GATHER: u32 = 128 * 1024;
const PART: usize = 4;

/// How long the rest of a stream that gathers may lie before it is spliced on all the same.
const REST: Duration = Duration::from_millis(1);

/// Wakes a core for one session.
struct Nudge {
    inbox: Arc<Inbox>,
    session: Key,
}

impl Wake for Nudge {
    fn wake(self: Arc<Self>) {
        self.inbox.post(Message::Look(self.session));
    }
}

impl<D: Driver> Core<D> {
    /// Takes a session over from its task.
    pub(super) fn establish(&mut self, client: &Rc<Wire>, server: &Rc<Wire>, relayed: Box<dyn Relayed>) {
        let (Some(client_key), Some(server_key)) = (client.key.take(), server.key.take()) else {
            // Only a stream that its task still has can be handed over.
            return relayed.ended(End::Broken(Side::Client, io::ErrorKind::NotConnected.into()));
        };
        let watched = relayed.idle_timeout().is_some();
        let key = self.sessions.insert(Session {
            client: client_key,
            server: server_key,
            up: Flow::default(),
            down: Flow::default(),
            first_end: None,
            broken: None,
            watched,
            moved: self.ticks.now(),
            relayed,
        });
        self.walks.watched += usize::from(watched);
        self.walks.born(Instant::now(), key);
        self.set_owner(client_key, Owner::Session(key, Side::Client));
        self.set_owner(server_key, Owner::Session(key, Side::Server));
        if let Some(session) = self.sessions.get(key) {
            session
                .relayed
                .watch(&Waker::from(Arc::new(Nudge { inbox: Arc::clone(&self.inbox), session: key })));
        }
        for (side, wire) in [(Side::Client, client), (Side::Server, server)] {
            self.replay(key, side, wire);
        }
    }

    /// Tells a session what its socket has told the task already.
    fn replay(&mut self, key: Key, side: Side, wire: &Wire) {
        let mut state = wire.state.borrow_mut();
        let received = std::mem::take(&mut state.received);
        if !received.is_empty() {
            let to = side.other();
            let Some(session) = self.sessions.get(key) else { return };
            if let Some(end) = session.relayed.stop() {
                return self.end(key, end);
            }
            let sent = self.driver.send_bytes(session.key(to), &received);
            self.sent_on(key, side, sent);
        }
        if state.paused && self.sessions.get_mut(key).is_some_and(|session| !session.from(side).paused) {
            let Some(session) = self.sessions.get(key) else { return };
            self.driver.receive(session.key(side), true);
        }
        if state.ended {
            self.peer_ended(key, side);
        }
        if let Some(error) = state.broken.take() {
            self.broke(key, side, error);
        }
        if self.sessions.get(key).is_some_and(|session| session.relayed.stop().is_some()) {
            // Ended by somebody between the last look and the watch.
            self.inbox.post(Message::Look(key));
        }
    }

    /// An event of a socket of a session.
    pub(super) fn relay(&mut self, key: Key, side: Side, event: Event) {
        match event {
            Event::Data(_, chunk) => self.received(key, side, chunk),
            Event::End(_) => self.peer_ended(key, side),
            Event::Broken(_, error) => self.broke(key, side, error),
            Event::Sent(_, bytes) => self.room(key, side, bytes),
            Event::Quiet(_) => self.quiet(key, side),
            Event::Readable(_) => self.splice(key, side),
            Event::Writable(_) => self.splice(key, side.other()),
            Event::Connected(_) | Event::Watched(_) => {}
        }
    }

    /// Bytes of one side, to the other one.
    fn received(&mut self, key: Key, side: Side, chunk: Chunk) {
        let Some(session) = self.sessions.get_mut(key) else { return self.driver.release(chunk) };
        if let Some(end) = session.relayed.stop() {
            self.driver.release(chunk);
            return self.end(key, end);
        }
        session.moved = self.ticks.now();
        let length = chunk.len();
        let flow = session.from(side);
        if flow.dead {
            return self.driver.release(chunk);
        }
        flow.full = if length == D::BUFFER { flow.full.saturating_add(1) } else { 0 };
        let bulk = usize::from(flow.full) * D::BUFFER >= BULK;
        let sink = session.key(side.other());
        let sent = self.driver.send(sink, chunk);
        self.sent_on(key, side, sent);
        if bulk {
            self.turn(key, side);
        }
    }

    /// What became of bytes of `side` that were sent on.
    fn sent_on(&mut self, key: Key, side: Side, sent: io::Result<Sent>) {
        match sent {
            Ok(Sent { now, full }) => {
                let Some(session) = self.sessions.get_mut(key) else { return };
                if now > 0 {
                    session.relayed.count(side.other(), now);
                }
                let source = session.key(side);
                let flow = session.from(side);
                if full && !flow.paused {
                    flow.paused = true;
                    self.driver.receive(source, false);
                    self.driver.hurry();
                }
            }
            Err(error) => self.broke_on_write(key, side.other(), error),
        }
    }

    /// Some of what waited for `side` was taken.
    fn room(&mut self, key: Key, side: Side, bytes: usize) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if bytes > 0 {
            session.moved = self.ticks.now();
            session.relayed.count(side, bytes);
        }
        let sink = session.key(side);
        if self.driver.has_queued(sink) {
            if let Some(end) = session.relayed.stop() {
                return self.end(key, end);
            }
            self.driver.hurry();
            match self.driver.flush(sink) {
                Ok(Sent { now, .. }) => {
                    if now > 0 {
                        session.moved = self.ticks.now();
                        session.relayed.count(side, now);
                    }
                }
                Err(error) => return self.broke_on_write(key, side, error),
            }
        }
        self.caught_up(key, side);
    }

    /// Goes on with a flow whose sink may have caught up.
    fn caught_up(&mut self, key: Key, sink: Side) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let (sink_key, source_key) = (session.key(sink), session.key(sink.other()));
        let empty = !self.driver.has_queued(sink_key);
        let flow = session.into(sink);
        if flow.dead {
            return;
        }
        match flow.mode {
            Mode::Copy => {
                if flow.paused && !self.driver.is_full(sink_key) {
                    flow.paused = false;
                    self.driver.receive(source_key, true);
                }
            }
            Mode::Turning { quiet: true } if empty => {
                flow.mode = Mode::Splice(None);
                flow.paused = false;
                return self.splice(key, sink.other());
            }
            Mode::Turning { .. } | Mode::Splice(_) => {}
        }
        if empty {
            self.pass_end(key, sink.other());
        }
    }

    /// A FIN of `side`: it is passed on after everything that came before it.
    fn peer_ended(&mut self, key: Key, side: Side) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.is_broken(side) {
            // After an error that somebody was told of, the kernel shows an end that is none.
            session.from(side).source_ended = true;
            return self.end_broken(key);
        }
        session.first_end.get_or_insert(side);
        let sink = session.key(side.other());
        let flow = session.from(side);
        flow.source_ended = true;
        flow.mode = Mode::Copy;
        // A second end mostly follows at once. If it does not, the beat sees to it that an RST is not missed.
        self.walks.watched += usize::from(!std::mem::replace(&mut session.watched, true));
        if self.driver.has_queued(sink) {
            self.driver.hurry();
        } else {
            self.pass_end(key, side);
        }
    }

    /// Passes the end of `side` on, if it has come and nothing waits before it.
    fn pass_end(&mut self, key: Key, side: Side) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let sink = session.key(side.other());
        let flow = session.from(side);
        if !flow.source_ended || flow.finished || flow.dead {
            return;
        }
        if session.is_broken(side) {
            return self.end_broken(key);
        }
        if let Some(end) = session.relayed.stop() {
            return self.end(key, end);
        }
        if session.into(side).finished {
            // The other direction is over: closing sends this FIN, too.
            let first = session.first_end.unwrap_or(side);
            return self.end(key, End::Closed(first));
        }
        match self.driver.shut_down_write(sink) {
            Ok(()) => session.from(side).finished = true,
            Err(error) => self.broke_on_write(key, side.other(), error),
        }
    }

    /// A side is gone. What it said before was told, or is in its socket still if the flow is spliced.
    fn broke(&mut self, key: Key, side: Side, error: io::Error) {
        if !self.mark_broken(key, side, error) {
            return;
        }
        self.splice(key, side);
        if let Some(session) = self.sessions.get_mut(key) {
            session.from(side).source_ended = true;
            self.end_broken(key);
        }
    }

    /// A side takes nothing any more. What it sent before that may still have to be read, and is passed on: the event that ends the
    /// session comes after it.
    fn broke_on_write(&mut self, key: Key, side: Side, error: io::Error) {
        if !self.mark_broken(key, side, error) {
            return;
        }
        let Some(session) = self.sessions.get_mut(key) else { return };
        let from = session.from(side);
        if from.source_ended || from.dead {
            return self.end_broken(key);
        }
        self.wait_for_last_words(key, side);
        self.splice(key, side);
    }

    /// Remembers which side has failed: nothing is sent to it any more. `false`: that is known, or the session is over, because the other side
    /// had failed before.
    fn mark_broken(&mut self, key: Key, side: Side, error: io::Error) -> bool {
        let Some(session) = self.sessions.get_mut(key) else { return false };
        session.into(side).dead = true;
        match &session.broken {
            None => {
                session.broken = Some(Box::new((side, error)));
                true
            }
            Some(broken) if broken.0 == side => false,
            Some(_) => {
                self.end_as_broken(key);
                false
            }
        }
    }

    /// Ends a session with a broken side that has nothing more to say, once the other side has what it said.
    fn end_broken(&mut self, key: Key) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(side) = session.broken.as_ref().map(|broken| broken.0) else { return };
        let sink = session.key(side.other());
        let flow = session.from(side);
        let passing = self.driver.has_queued(sink) || matches!(flow.mode, Mode::Splice(Some(_)));
        if passing && !flow.dead {
            return self.wait_for_last_words(key, side);
        }
        self.end_as_broken(key);
    }

    /// The beat ends the session if the last words of `side` are not read, or not taken.
    fn wait_for_last_words(&mut self, key: Key, side: Side) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.moved = self.ticks.now();
        self.walks.watched += usize::from(!std::mem::replace(&mut session.watched, true));
        self.driver.receive(session.key(side.other()), false);
    }

    fn end_as_broken(&mut self, key: Key) {
        if let Some(broken) = self.sessions.get_mut(key).and_then(|session| session.broken.take()) {
            self.end(key, End::Broken(broken.0, broken.1));
        }
    }

    /// Ends a session: both sockets are closed in the way that passes the end on.
    pub(super) fn end(&mut self, key: Key, end: End) {
        let Some(session) = self.sessions.remove(key) else { return };
        let (client, server) = match end {
            End::Closed(_) => (Close::Fin, Close::Fin),
            End::Broken(Side::Server, _) => (Close::Reset, Close::Fin),
            End::Broken(Side::Client, _) | End::Idle | End::Revoked(_) | End::Killed(_) => {
                (Close::Fin, Close::Reset)
            }
        };
        self.close(session.server, server);
        self.close(session.client, client);
        self.walks.watched -= usize::from(session.watched);
        for mode in [session.up.mode, session.down.mode] {
            if let Mode::Splice(Some(pipe)) = mode {
                self.pipes.put(*pipe);
            }
        }
        session.relayed.ended(end);
    }
}

/// Splicing.
impl<D: Driver> Core<D> {
    /// Begins to turn a flow from copying to splicing.
    fn turn(&mut self, key: Key, side: Side) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let source = session.key(side);
        let flow = session.from(side);
        if !matches!(flow.mode, Mode::Copy) || flow.source_ended || flow.dead {
            return;
        }
        let Some(pipe) = self.pipes.take() else {
            flow.full = 0;
            return;
        };
        self.pipes.put(pipe); // there is one: it is taken when there is something to put in
        flow.mode = Mode::Turning { quiet: false };
        flow.paused = true;
        self.driver.receive(source, false);
        self.driver.hurry();
    }

    /// Nothing more is received from `side`.
    fn quiet(&mut self, key: Key, side: Side) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let flow = session.from(side);
        if let Mode::Turning { quiet } = &mut flow.mode {
            *quiet = true;
            self.caught_up(key, side.other());
        }
    }

    /// Splices what `side` has sent, until one of the two sockets makes it wait.
    pub(super) fn splice(&mut self, key: Key, side: Side) {
        match self.splice_turn(key, side) {
            Ok(Turn::Done) => {}
            Ok(Turn::Empty) => self.gather(key, side),
            Ok(Turn::More) => self.unfinished.push((key, side)),
            Ok(Turn::Ended) => self.peer_ended(key, side),
            Ok(Turn::Copy) => self.copy_again(key, side),
            Ok(Turn::Stop(end)) => self.end(key, end),
            Err(Failed { side: broken, error }) if broken == side => self.broke(key, side, error),
            Err(Failed { side, error }) => self.broke_on_write(key, side, error),
        }
    }

    fn splice_turn(&mut self, key: Key, side: Side) -> Result<Turn, Failed> {
        let Some(session) = self.sessions.get_mut(key) else { return Ok(Turn::Done) };
        let flow = session.from(side);
        if flow.dead {
            return Ok(Turn::Done);
        }
        let Mode::Splice(kept) = &mut flow.mode else { return Ok(Turn::Done) };
        let pipe = kept.take().or_else(|| self.pipes.take().map(Box::new));
        let Some(mut pipe) = pipe else { return Ok(Turn::Copy) };
        let turn = pump(&mut self.driver, session, side, &mut pipe, self.ticks.now());
        // Between two sessions an empty pipe is better off with the core; a full one holds bytes of this session.
        if pipe.held() == 0 && !matches!(turn, Ok(Turn::More)) {
            self.pipes.put(*pipe);
        } else if let Mode::Splice(kept) = &mut session.from(side).mode {
            *kept = Some(pipe);
        }
        turn
    }

    /// A stream that has been going on for a while waits until there is a pipe full, or a moment.
    fn gather(&mut self, key: Key, side: Side) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let source = session.key(side);
        let flow = session.from(side);
        if flow.gathering || flow.spliced < SUSTAINED {
            return;
        }
        let Some(fd) = self.driver.fd(source) else { return };
        let room = SockRef::from(&fd).recv_buffer_size().unwrap_or(0) / PART;
        let amount = u32::try_from(room).unwrap_or(u32::MAX).min(GATHER);
        if amount < LEAST_GATHER || set_receive_low_water(fd, amount).is_err() {
            flow.spliced = 0; // the buffer may have grown by the next time
            return;
        }
        flow.gathering = true;
        self.gathering.push_back(Gathering {
            until: Instant::now() + REST,
            key,
            side,
            spliced: flow.spliced,
        });
    }

    /// Looks after the streams that gather: what has not moved for a moment goes on as it is.
    pub(super) fn look_after_gathering(&mut self, now: Instant) {
        while self.gathering.front().is_some_and(|gathering| gathering.until <= now) {
            let Some(mut gathering) = self.gathering.pop_front() else { return };
            let Gathering { key, side, .. } = gathering;
            let Some(session) = self.sessions.get_mut(key) else { continue };
            let flow = session.from(side);
            if !flow.gathering {
                continue;
            }
            if flow.spliced != gathering.spliced {
                gathering.spliced = flow.spliced;
                gathering.until = now + REST;
                self.gathering.push_back(gathering);
                continue;
            }
            self.stop_gathering(key, side);
            self.splice(key, side);
        }
    }

    fn stop_gathering(&mut self, key: Key, side: Side) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let source = session.key(side);
        let flow = session.from(side);
        flow.spliced = 0;
        if std::mem::take(&mut flow.gathering)
            && let Some(fd) = self.driver.fd(source)
        {
            // It fails on no socket on which it has worked before.
            let _ = set_receive_low_water(fd, 1);
        }
    }

    fn copy_again(&mut self, key: Key, side: Side) {
        self.stop_gathering(key, side);
        let Some(session) = self.sessions.get_mut(key) else { return };
        let source = session.key(side);
        let flow = session.from(side);
        flow.mode = Mode::Copy;
        flow.full = 0;
        flow.paused = false;
        self.driver.receive(source, true);
    }

    /// Goes on with splices that had used up their turn.
    pub(super) fn go_on(&mut self) {
        for (key, side) in std::mem::take(&mut self.unfinished) {
            self.splice(key, side);
        }
    }
}

/// Moves bytes through the pipe until one of the two sockets makes it wait, or others have to get their turn.
fn pump<D: Driver>(
    driver: &mut D,
    session: &mut Session,
    side: Side,
    pipe: &mut Pipe,
    now: u32,
) -> Result<Turn, Failed> {
    let to = side.other();
    let (source, sink) = (session.key(side), session.key(to));
    for _ in 0..ROUNDS {
        let mut small = false;
        if pipe.held() == 0 {
            let Some(fd) = driver.fd(source) else { return Ok(Turn::Done) };
            match pipe.fill(fd).map_err(|error| Failed { side, error })? {
                Moved::Bytes(count) => small = count < SMALL,
                Moved::Wait => {
                    driver.poll(source, Readiness::Readable);
                    return Ok(Turn::Empty);
                }
                Moved::End => return Ok(Turn::Ended),
            }
        }
        while pipe.held() > 0 {
            if let Some(end) = session.relayed.stop() {
                return Ok(Turn::Stop(end));
            }
            let Some(fd) = driver.fd(sink) else { return Ok(Turn::Done) };
            match pipe.drain(fd).map_err(|error| Failed { side: to, error })? {
                Moved::Bytes(count) => {
                    session.relayed.count(to, count);
                    session.moved = now;
                    let flow = session.from(side);
                    flow.spliced = flow.spliced.wrapping_add(u32::try_from(count >> 10).unwrap_or(0));
                }
                Moved::Wait | Moved::End => {
                    driver.poll(sink, Readiness::Writable);
                    return Ok(Turn::Done);
                }
            }
        }
        if small {
            return Ok(Turn::Copy);
        }
    }
    Ok(Turn::More)
}

/// What a turn of splicing came to.
enum Turn {
    /// Waits for the sink.
    Done,
    /// Waits for the source.
    Empty,
    /// Could go on at once.
    More,
    Ended,
    Copy,
    Stop(End),
}

/// A stream that gathers.
pub(super) struct Gathering {
    /// When somebody has to look.
    pub(super) until: Instant,
    key: Key,
    side: Side,
    /// How far it had come.
    spliced: u32,
}

/// Which socket has failed.
struct Failed {
    side: Side,
    error: io::Error,
}
