//! The io_uring backend: completion, a ring of buffers that the kernel picks from, sends straight from them.
//!
//! * Receiving is one multishot operation for each socket. An idle socket holds no buffer.
//! * A send is tried once and never waits in the kernel (`MSG_DONTWAIT`), so that nothing is ever sent that the core has not asked the
//!   fence for in the same round. It is submitted by [`Driver::wait`] together with all others: what is closed before is not sent.
//! * A buffer of the ring is held for one round: from its completion until the send from it was tried, once. What the socket did not take is
//!   copied out into memory of its own size. However many readers stall, the ring stays whole for the others.
//! * What is given to a socket that has something to send already is gathered behind it, so that a round needs one send for each socket.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{Shutdown, shutdown, sockopt};

use super::driver::{
    Chunk, Close, Driver, Event, Key, LATE, Progress, Readiness, Sent, Watched, begin_connect,
};
use super::sys::ring::{Completion, Operation, Payload, Ring, Size, Waiting};
use listening::ListeningSet;
use socket::{Receiving, Sending, Socket};

mod listening;
mod probe;
mod receive;
mod send;
mod socket;
#[cfg(test)]
mod tests;

/// So many bytes wait for a peer at most, before its source is asked to pause.
const FULL: u32 = 64 * 1024;

/// 8 MiB of buffers for each core, of which small messages touch a page each: 2 MiB. A round in which more sockets have received
/// something than there are buffers costs the others a new start of their receive.
const SIZE: Size = Size { submissions: 1024, completions: 8192, buffers: 512, bytes_each: 16 * 1024 };

/// Spare memory for what is gathered: so many pieces are kept for the next use, of at most so many bytes.
const SPARES: usize = 4;
const LARGEST_SPARE: usize = 256 * 1024;

/// The driver of one core.
pub(crate) struct Uring {
    ring: Ring,
    sockets: Vec<Socket>,
    /// Sockets with something to send in this round.
    outbox: Vec<u32>,
    /// Sockets whose receiving ended because there was no buffer left.
    starved: VecDeque<u32>,
    /// Events that have come to pass without a completion.
    ready: VecDeque<Event>,
    listening: ListeningSet,
    /// What becomes of the sends of this round is to be told at once.
    hurried: bool,
    /// Descriptors to be watched again.
    watch_again: Vec<u8>,
    /// Sockets to be watched again for a hang-up.
    hangups: Vec<u32>,
    spare: Vec<Waiting>,
}

impl Uring {
    fn with_size(size: Size) -> io::Result<Self> {
        let mut ring = Ring::open(size)?;
        probe::probe(&mut ring)?;
        let listening = ListeningSet::new()?;
        ring.watch(LISTENING, listening.set());
        Ok(Self {
            ring,
            sockets: Vec::new(),
            outbox: Vec::new(),
            starved: VecDeque::new(),
            ready: VecDeque::new(),
            listening,
            hurried: false,
            watch_again: Vec::new(),
            hangups: Vec::new(),
            spare: Vec::new(),
        })
    }

    /// The open socket that a key names.
    fn socket(&self, key: Key) -> Option<&Socket> {
        let socket = self.sockets.get(key.index as usize)?;
        (socket.generation == key.generation && socket.receiving != Receiving::Closed).then_some(socket)
    }

    fn socket_mut(&mut self, key: Key) -> Option<&mut Socket> {
        let socket = self.sockets.get_mut(key.index as usize)?;
        (socket.generation == key.generation && socket.receiving != Receiving::Closed).then_some(socket)
    }

    /// The open socket of a completion, with its key. Closed ones have no completions.
    fn socket_at(&mut self, index: u32) -> Option<(Key, &mut Socket)> {
        let socket = self.sockets.get_mut(index as usize)?;
        let key = Key { index, generation: socket.generation };
        (socket.receiving != Receiving::Closed).then_some((key, socket))
    }

    /// Whether the socket of an event is still open.
    fn is_current(&self, event: &Event) -> bool {
        event.key().is_none_or(|key| self.socket(key).is_some())
    }

    fn adopt(&mut self, socket: OwnedFd, receiving: Receiving) -> io::Result<Key> {
        let index = self.ring.adopt(socket).ok_or_else(|| io::Error::other("too many sockets"))?;
        let slot = index as usize;
        if slot >= self.sockets.len() {
            self.sockets.resize_with(slot + 1, Socket::default);
        }
        let socket = self.sockets.get_mut(slot).ok_or_else(|| io::Error::other("too many sockets"))?;
        *socket = Socket { generation: socket.generation, receiving, wanted: true, ..Socket::default() };
        Ok(Key { index, generation: socket.generation })
    }

    fn completed(&mut self, completion: Completion) -> Option<Event> {
        match completion {
            Completion::Received { index, result, buffer, more } => {
                self.received(index, result, buffer, more)
            }
            Completion::Sent { index, result, payload } => self.sent(index, result, payload),
            Completion::Polled { index, operation, result } => self.polled(index, operation, result),
            Completion::NotCancelled { index, operation } => {
                let (_, socket) = self.socket_at(index)?;
                if operation == Operation::Receive && socket.receiving == Receiving::Stopping {
                    self.ring.cancel(index, operation);
                }
                None
            }
            Completion::Watched(number) => {
                self.watch_again.push(number);
                if number == INBOX {
                    return Some(Event::Watched(Watched::Inbox));
                }
                let ready = self.listening.ready().map(|number| Event::Watched(Watched::Listening(number)));
                self.ready.extend(ready);
                None
            }
            Completion::Closed => None,
        }
    }

    fn polled(&mut self, index: u32, operation: Operation, result: i32) -> Option<Event> {
        let (key, _) = self.socket_at(index)?;
        match operation {
            Operation::Hangup => self.hung_up(index, result),
            Operation::Room => self.room(index),
            Operation::Readable => {
                self.watch_for_hangup(index);
                Some(Event::Readable(key))
            }
            Operation::Writable => Some(Event::Writable(key)),
            Operation::Connect => self.connected(index, result),
            Operation::Receive | Operation::Send => None,
        }
    }
}

/// The descriptors that the ring watches.
const INBOX: u8 = 0;
const LISTENING: u8 = 1;

impl Driver for Uring {
    const NAME: &'static str = "io_uring";
    const BUFFER: usize = SIZE.bytes_each as usize;

    fn open() -> io::Result<Self> {
        Self::with_size(SIZE)
    }

    fn watch(&mut self, fd: Arc<OwnedFd>) -> io::Result<()> {
        if self.ring.watch(INBOX, fd) { Ok(()) } else { Err(io::ErrorKind::AlreadyExists.into()) }
    }

    fn listen(&mut self, number: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.listening.add(number, socket)
    }

    fn unlisten(&mut self, socket: BorrowedFd<'_>) {
        self.listening.remove(socket);
    }

    fn add(&mut self, socket: OwnedFd) -> io::Result<Key> {
        let key = self.adopt(socket, Receiving::Off)?;
        self.arm(key.index);
        Ok(key)
    }

    fn connect(&mut self, socket: OwnedFd, to: SocketAddr) -> io::Result<(Key, Progress)> {
        let progress = begin_connect(&socket, to)?;
        if progress == Progress::Connected {
            return Ok((self.add(socket)?, progress));
        }
        let key = self.adopt(socket, Receiving::Connecting)?;
        self.ring.poll(key.index, Operation::Connect);
        Ok((key, progress))
    }

    fn bytes(&self, chunk: &Chunk) -> &[u8] {
        self.ring.bytes(chunk.buffer, chunk.length)
    }

    fn release(&mut self, chunk: Chunk) {
        self.ring.give_back(chunk.buffer);
    }

    fn send(&mut self, to: Key, chunk: Chunk) -> io::Result<Sent> {
        Ok(self.enqueue_chunk(to, chunk))
    }

    fn send_bytes(&mut self, to: Key, bytes: &[u8]) -> io::Result<Sent> {
        Ok(self.enqueue_bytes(to, bytes))
    }

    fn flush(&mut self, to: Key) -> io::Result<Sent> {
        Ok(self.flush_waiting(to))
    }

    fn has_queued(&self, key: Key) -> bool {
        self.socket(key).is_some_and(|socket| socket.queued > 0)
    }

    fn is_full(&self, key: Key) -> bool {
        self.socket(key).is_some_and(|socket| socket.queued >= FULL)
    }

    fn watch_after_end(&mut self, key: Key) {
        if self.socket(key).is_some() {
            self.watch_for_hangup(key.index);
        }
    }

    fn receive(&mut self, key: Key, on: bool) {
        if on {
            self.resume(key);
        } else {
            self.pause(key);
        }
    }

    fn poll(&mut self, key: Key, readiness: Readiness) {
        if self.socket(key).is_none() {
            return;
        }
        let operation = match readiness {
            Readiness::Readable => Operation::Readable,
            Readiness::Writable => Operation::Writable,
        };
        self.ring.poll(key.index, operation);
    }

    fn shut_down_write(&mut self, key: Key) -> io::Result<()> {
        match self.fd(key) {
            Some(fd) => Ok(shutdown(fd, Shutdown::Write)?),
            None => Ok(()),
        }
    }

    fn close(&mut self, key: Key, how: Close) {
        if how == Close::Reset
            && let Some(fd) = self.fd(key)
        {
            // If it fails the socket is closed with a FIN, which is all that can be done.
            let _ = sockopt::set_socket_linger(fd, Some(Duration::ZERO));
        }
        let Some(socket) = self.socket_mut(key) else { return };
        let generation = socket.generation.wrapping_add(1);
        let closed = Socket { generation, receiving: Receiving::Closed, ..Socket::default() };
        let Socket { staged, .. } = std::mem::replace(socket, closed);
        if let Some(chunk) = staged {
            self.ring.give_back(chunk.buffer);
        }
        self.ring.dismiss(key.index);
    }

    fn fd(&self, key: Key) -> Option<BorrowedFd<'_>> {
        self.socket(key)?;
        self.ring.fd(key.index)
    }

    fn hurry(&mut self) {
        self.hurried = true;
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let sends = self.send_outbox();
        self.arm_starved();
        self.watch_again_for_hangups();
        while let Some(number) = self.watch_again.pop() {
            self.ring.watch_again(number);
        }
        if self.is_busy() || timeout == Some(Duration::ZERO) {
            return self.ring.wait(0, Some(Duration::ZERO));
        }
        // A send is tried at once, so it has completed before the wait begins: if that is all that has happened nobody need wake up.
        if std::mem::take(&mut self.hurried) || sends == 0 {
            return self.ring.wait(1, timeout);
        }
        self.ring.wait(sends + 1, Some(timeout.map_or(LATE, |timeout| timeout.min(LATE))))
    }

    fn next(&mut self) -> Option<Event> {
        while let Some(event) = self.ready.pop_front() {
            if self.is_current(&event) {
                return Some(event);
            }
        }
        loop {
            let completion = self.ring.next()?;
            if let Some(event) = self.completed(completion) {
                return Some(event);
            }
            if !self.ready.is_empty() {
                return self.next();
            }
        }
    }

    fn is_busy(&self) -> bool {
        !self.ready.is_empty() || (!self.starved.is_empty() && self.ring.provided() > 0)
    }

    fn open_sockets(&self) -> usize {
        self.ring.open_descriptors()
    }
}
