//! The backend that every Linux has: edge-triggered epoll, and one buffer for all sockets of the core.
//!
//! A socket is registered once. What the kernel has told is kept in its flags until a read or write says otherwise, so a read
//! that was short is not followed by one that would only say so. Bytes that a socket does not take are copied out of the shared
//! buffer and wait with the socket: an idle socket holds no buffer.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use socket2::SockRef;

use super::driver::{Chunk, Close, Driver, Event, Key, Progress, Readiness, Sent, Watched, begin_connect};
use super::slots::Slots;

/// The most that is read at once, in bytes: what a full read says about a stream decides whether it is spliced.
const BUFFER: usize = 64 * 1024;

/// Full reads in a row before other sockets get their turn.
const READS: u8 = 8;

/// Events that are taken from the kernel at once.
const EVENTS: usize = 256;

/// Tokens of descriptors that are no connections have these indices; a connection's cannot be that high.
const WATCHED: u32 = u32::MAX;
const LISTENING: u32 = u32::MAX - 1;

/// The driver.
pub(crate) struct Epoll {
    set: OwnedFd,
    sockets: Slots<Socket>,
    inbox: Option<Arc<OwnedFd>>,
    events: Vec<epoll::Event>,
    /// The first event that was not looked at.
    cursor: usize,
    /// The socket that is being looked at, and how often it was read from.
    current: Option<(Key, u8)>,
    /// Sockets to look at without having been told: they had more to read than their share.
    again: VecDeque<Key>,
    /// Of those, how many belong to this round.
    round: usize,
    told: VecDeque<Event>,
    buffer: Box<[u8]>,
}

#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    flags: Flags,
    waiting: Option<Box<Waiting>>,
}

/// Bytes that the socket did not take.
#[derive(Debug)]
struct Waiting {
    bytes: Vec<u8>,
    sent: usize,
}

/// What is known of a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Flags(u16);

impl Flags {
    const CONNECTING: Self = Self(1);
    /// A read would not wait, as far as we know.
    const READABLE: Self = Self(1 << 1);
    /// The peer's FIN is in the queue: what is read last is an end.
    const ENDING: Self = Self(1 << 2);
    /// The end was told.
    const ENDED: Self = Self(1 << 3);
    /// The kernel reports an error.
    const TROUBLE: Self = Self(1 << 4);
    /// An error was told, by event or as a result.
    const BROKEN: Self = Self(1 << 5);
    const RECEIVING: Self = Self(1 << 6);
    /// There is room again for what waits.
    const ROOM: Self = Self(1 << 7);
    /// [`Driver::poll`] was called.
    const WANTS_READABLE: Self = Self(1 << 8);
    const WANTS_WRITABLE: Self = Self(1 << 9);
    /// The kernel tells of room, too.
    const TELLS_ROOM: Self = Self(1 << 10);

    fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }

    fn set(&mut self, flag: Self, on: bool) {
        if on { self.0 |= flag.0 } else { self.0 &= !flag.0 }
    }

    /// Clears the flag, and says whether it was set.
    fn take(&mut self, flag: Self) -> bool {
        let had = self.has(flag);
        self.set(flag, false);
        had
    }
}

fn token(key: Key) -> EventData {
    EventData::new_u64(u64::from(key.generation) << 32 | u64::from(key.index))
}

impl Epoll {
    fn register(&mut self, fd: OwnedFd, flags: Flags) -> io::Result<Key> {
        let key = self.sockets.insert(Socket { fd, flags, waiting: None });
        let mut interest = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        interest.set(EventFlags::OUT, flags.has(Flags::TELLS_ROOM));
        if let Some(socket) = self.sockets.get(key)
            && let Err(error) = epoll::add(&self.set, &socket.fd, token(key), interest)
        {
            self.sockets.remove(key);
            return Err(error.into());
        }
        Ok(key)
    }

    /// Takes an event of the kernel in. `Some`: it is a watched descriptor's.
    fn note(&mut self, event: epoll::Event) -> Option<Event> {
        let data = event.data.u64();
        let key = Key { index: low(data), generation: low(data >> 32) };
        if key.index == WATCHED {
            return Some(Event::Watched(Watched::Inbox));
        }
        if key.index == LISTENING {
            return Some(Event::Watched(Watched::Listening(key.generation)));
        }
        let socket = self.sockets.get_mut(key)?;
        let (told, flags) = (event.flags, &mut socket.flags);
        if told.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP) {
            flags.set(Flags::READABLE, true);
        }
        if told.intersects(EventFlags::RDHUP | EventFlags::HUP) {
            flags.set(Flags::ENDING, true);
        }
        if told.contains(EventFlags::ERR) {
            flags.set(Flags::TROUBLE, true);
        }
        if told.contains(EventFlags::OUT) {
            flags.set(Flags::ROOM, true);
        }
        self.current = Some((key, 0));
        None
    }

    /// The next event of a socket, by what its flags say.
    fn look(&mut self, key: Key, reads: &mut u8) -> Option<Event> {
        let Self { sockets, buffer, .. } = self;
        let socket = sockets.get_mut(key)?;
        let flags = &mut socket.flags;
        if flags.has(Flags::CONNECTING) {
            if flags.has(Flags::TROUBLE) {
                return Some(socket.broken(key));
            }
            if !flags.take(Flags::ROOM) {
                return None;
            }
            flags.set(Flags::CONNECTING, false);
            flags.set(Flags::RECEIVING, true);
            return Some(Event::Connected(key));
        }
        if flags.has(Flags::RECEIVING) && flags.has(Flags::READABLE) && !flags.has(Flags::ENDED) {
            if *reads == READS {
                self.again.push_back(key);
                return None;
            }
            *reads += 1;
            if let Some(event) = socket.read(key, buffer) {
                return Some(event);
            }
        }
        let flags = &mut socket.flags;
        if flags.has(Flags::TROUBLE) && !flags.has(Flags::BROKEN) {
            return Some(socket.broken(key));
        }
        if flags.has(Flags::READABLE) && flags.take(Flags::WANTS_READABLE) {
            return Some(Event::Readable(key));
        }
        if flags.take(Flags::ROOM) {
            if flags.take(Flags::WANTS_WRITABLE) {
                flags.set(Flags::ROOM, socket.waiting.is_some());
                return Some(Event::Writable(key));
            }
            if socket.waiting.is_some() {
                return Some(Event::Sent(key, 0));
            }
        }
        None
    }

    /// Keeps what a socket has not taken.
    fn keep(&mut self, key: Key, rest: &[u8]) -> io::Result<()> {
        let Some(socket) = self.sockets.get_mut(key) else { return Ok(()) };
        let waiting = socket.waiting.get_or_insert_with(|| Box::new(Waiting { bytes: Vec::new(), sent: 0 }));
        waiting.bytes.extend_from_slice(rest);
        self.tell_room(key)
    }

    /// Has the kernel tell when there is room in a socket that has just said that there is none.
    fn tell_room(&mut self, key: Key) -> io::Result<()> {
        let Some(socket) = self.sockets.get_mut(key) else { return Ok(()) };
        if !socket.flags.has(Flags::TELLS_ROOM) {
            socket.flags.set(Flags::TELLS_ROOM, true);
            let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            epoll::modify(&self.set, &socket.fd, token(key), interest)?;
        }
        Ok(())
    }
}

impl Socket {
    /// One read. `None`: there is nothing more for now.
    fn read(&mut self, key: Key, buffer: &mut [u8]) -> Option<Event> {
        let room = buffer.len();
        loop {
            match rustix::net::recv(&self.fd, &mut *buffer, RecvFlags::empty()) {
                Ok((0, _)) => {
                    self.flags.set(Flags::ENDED, true);
                    return Some(Event::End(key));
                }
                Ok((count, _)) => {
                    // More may be there only if the buffer is full, or if the end or an error comes after it.
                    let last =
                        count < room && !self.flags.has(Flags::ENDING) && !self.flags.has(Flags::TROUBLE);
                    self.flags.set(Flags::READABLE, !last);
                    // The buffer is far smaller than 4 GiB.
                    return Some(Event::Data(
                        key,
                        Chunk { buffer: 0, length: u32::try_from(count).unwrap_or(0) },
                    ));
                }
                Err(Errno::AGAIN) => {
                    self.flags.set(Flags::READABLE, false);
                    return None;
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.flags.set(Flags::READABLE, false);
                    self.flags.set(Flags::BROKEN, true);
                    return Some(Event::Broken(key, error.into()));
                }
            }
        }
    }

    fn broken(&mut self, key: Key) -> Event {
        self.flags.set(Flags::BROKEN, true);
        self.flags.set(Flags::CONNECTING, false);
        // Taken already, by a write that was told of it: what it was is known to the core then.
        let taken = || io::ErrorKind::ConnectionReset.into();
        let error = SockRef::from(&self.fd).take_error().unwrap_or_else(Some).unwrap_or_else(taken);
        Event::Broken(key, error)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
fn low(data: u64) -> u32 {
    data as u32
}

/// Sends as much as the socket takes now.
fn send_now(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match rustix::net::send(fd, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(count) => return Ok(count),
            Err(Errno::AGAIN) => return Ok(0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

impl Driver for Epoll {
    const NAME: &'static str = "epoll";
    const BUFFER: usize = BUFFER;

    fn open() -> io::Result<Self> {
        Ok(Self {
            set: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sockets: Slots::default(),
            inbox: None,
            events: Vec::with_capacity(EVENTS),
            cursor: 0,
            current: None,
            again: VecDeque::new(),
            round: 0,
            told: VecDeque::new(),
            buffer: vec![0; BUFFER].into(),
        })
    }

    fn watch(&mut self, fd: Arc<OwnedFd>) -> io::Result<()> {
        epoll::add(&self.set, &fd, token(Key { index: WATCHED, generation: 0 }), EventFlags::IN)?;
        self.inbox = Some(fd);
        Ok(())
    }

    fn listen(&mut self, number: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let token = token(Key { index: LISTENING, generation: number });
        // Of all the cores that wait, one is woken for one connection.
        Ok(epoll::add(&self.set, socket, token, EventFlags::IN | EventFlags::EXCLUSIVE)?)
    }

    fn unlisten(&mut self, socket: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.set, socket); // not there: it was left alone for a while
    }

    fn add(&mut self, socket: OwnedFd) -> io::Result<Key> {
        self.register(socket, Flags::RECEIVING)
    }

    fn connect(&mut self, socket: OwnedFd, to: SocketAddr) -> io::Result<(Key, Progress)> {
        // Registered afterwards: a socket that is not connecting yet reports a hang-up.
        let progress = begin_connect(&socket, to)?;
        let flags = match progress {
            Progress::Connected => Flags::RECEIVING,
            Progress::Waiting => Flags(Flags::CONNECTING.0 | Flags::TELLS_ROOM.0),
        };
        Ok((self.register(socket, flags)?, progress))
    }

    fn bytes(&self, chunk: &Chunk) -> &[u8] {
        self.buffer.get(..chunk.len()).unwrap_or_default()
    }

    fn release(&mut self, _chunk: Chunk) {}

    fn send(&mut self, to: Key, chunk: Chunk) -> io::Result<Sent> {
        let buffer = std::mem::take(&mut self.buffer);
        let sent = self.send_bytes(to, buffer.get(..chunk.len()).unwrap_or_default());
        self.buffer = buffer;
        sent
    }

    fn send_bytes(&mut self, to: Key, bytes: &[u8]) -> io::Result<Sent> {
        let Some(socket) = self.sockets.get_mut(to) else { return Ok(Sent::default()) };
        let connecting = socket.flags.has(Flags::CONNECTING);
        let now = if socket.waiting.is_some() || connecting { 0 } else { send_now(&socket.fd, bytes)? };
        let rest = bytes.get(now..).unwrap_or_default();
        if !rest.is_empty() {
            self.keep(to, rest)?;
        }
        Ok(Sent { now, full: !rest.is_empty() })
    }

    fn flush(&mut self, to: Key) -> io::Result<Sent> {
        let Some(socket) = self.sockets.get_mut(to) else { return Ok(Sent::default()) };
        let Some(waiting) = &mut socket.waiting else { return Ok(Sent::default()) };
        let now = send_now(&socket.fd, waiting.bytes.get(waiting.sent..).unwrap_or_default())?;
        waiting.sent += now;
        let full = waiting.sent < waiting.bytes.len();
        if !full {
            socket.waiting = None;
        }
        Ok(Sent { now, full })
    }

    fn has_queued(&self, key: Key) -> bool {
        self.sockets.get(key).is_some_and(|socket| socket.waiting.is_some())
    }

    fn is_full(&self, key: Key) -> bool {
        self.has_queued(key)
    }

    fn watch_after_end(&mut self, _key: Key) {} // it is told anyway

    fn receive(&mut self, key: Key, on: bool) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        socket.flags.set(Flags::RECEIVING, on);
        if !on {
            self.told.push_back(Event::Quiet(key));
        } else if socket.flags.has(Flags::READABLE) {
            self.again.push_back(key);
        }
    }

    fn poll(&mut self, key: Key, readiness: Readiness) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        // The caller was told to wait: what was known before is not true any more, and the next change is an edge.
        match readiness {
            Readiness::Readable => {
                let ending = socket.flags.has(Flags::ENDING);
                socket.flags.set(Flags::READABLE, ending);
                socket.flags.set(Flags::WANTS_READABLE, true);
                if ending {
                    self.again.push_back(key);
                }
            }
            Readiness::Writable => {
                socket.flags.set(Flags::ROOM, false);
                socket.flags.set(Flags::WANTS_WRITABLE, true);
                // Changing the interest tells of room that is there already.
                let _ = self.tell_room(key); // fails only for want of memory; the session's idle sweep ends it then
            }
        }
    }

    fn shut_down_write(&mut self, key: Key) -> io::Result<()> {
        let Some(socket) = self.sockets.get(key) else { return Ok(()) };
        Ok(rustix::net::shutdown(&socket.fd, Shutdown::Write)?)
    }

    fn close(&mut self, key: Key, how: Close) {
        let Some(socket) = self.sockets.remove(key) else { return };
        if how == Close::Reset {
            // Fails only on a socket that is closed already; dropping it is right either way.
            let _ = SockRef::from(&socket.fd).set_linger(Some(Duration::ZERO));
        }
    }

    fn fd(&self, key: Key) -> Option<BorrowedFd<'_>> {
        self.sockets.get(key).map(|socket| socket.fd.as_fd())
    }

    fn hurry(&mut self) {} // sends are done at once

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout =
            timeout.map(|timeout| Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 }));
        self.events.clear();
        self.cursor = 0;
        match epoll::wait(&self.set, rustix::buffer::spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.round = self.again.len();
        Ok(())
    }

    fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.told.pop_front() {
                if let Event::Quiet(key) = event
                    && self.sockets.get(key).is_none_or(|socket| socket.flags.has(Flags::RECEIVING))
                {
                    continue; // resumed or closed meanwhile
                }
                return Some(event);
            }
            if let Some((key, mut reads)) = self.current.take() {
                if let Some(event) = self.look(key, &mut reads) {
                    self.current = Some((key, reads));
                    return Some(event);
                }
            } else if let Some(event) = self.events.get(self.cursor).copied() {
                self.cursor += 1;
                if let Some(event) = self.note(event) {
                    return Some(event);
                }
            } else if self.round > 0 {
                self.round -= 1;
                self.current = self.again.pop_front().map(|key| (key, 0));
            } else {
                return None;
            }
        }
    }

    fn is_busy(&self) -> bool {
        !self.again.is_empty() || !self.told.is_empty()
    }

    fn open_sockets(&self) -> usize {
        self.sockets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::conformance::conformance;

    conformance!(usual, || Epoll::open().unwrap());
}
