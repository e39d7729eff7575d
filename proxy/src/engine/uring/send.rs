//! The sending half of a socket.

use rustix::net::{Shutdown, shutdown};

use super::socket::Socket;
use super::{
    Event, FULL, Key, LARGEST_SPARE, Operation, Payload, Receiving, SPARES, Sending, Sent, Uring, Waiting,
};
use crate::engine::driver::Chunk;

impl Uring {
    /// A chunk goes straight from its buffer if nothing is before it; otherwise it is copied behind that.
    pub(super) fn enqueue_chunk(&mut self, to: Key, chunk: Chunk) -> Sent {
        let Some(socket) = self.socket_mut(to).filter(|socket| socket.sending != Sending::Dead) else {
            self.ring.give_back(chunk.buffer);
            return Sent::default();
        };
        if socket.sending == Sending::Idle && socket.queued == 0 && socket.receiving != Receiving::Connecting
        {
            socket.queued = chunk.length;
            socket.staged = Some(chunk);
            socket.sending = Sending::Ready;
            self.outbox.push(to.index);
            return Sent { now: 0, full: self.is_full_at(to.index) };
        }
        if !self.append_to_staged(to.index, &chunk) {
            self.unstage(to.index);
            if let Some(waiting) = waiting_of(&mut self.sockets, &mut self.spare, to.index) {
                waiting.bytes.extend_from_slice(self.ring.bytes(chunk.buffer, chunk.length));
            }
        }
        self.ring.give_back(chunk.buffer);
        self.queue_grew(to.index, chunk.length)
    }

    /// Bytes of the caller's are copied.
    pub(super) fn enqueue_bytes(&mut self, to: Key, bytes: &[u8]) -> Sent {
        let alive = self.socket(to).is_some_and(|socket| socket.sending != Sending::Dead);
        if !alive || bytes.is_empty() {
            return Sent::default();
        }
        self.unstage(to.index);
        if let Some(waiting) = waiting_of(&mut self.sockets, &mut self.spare, to.index) {
            waiting.bytes.extend_from_slice(bytes);
        }
        self.queue_grew(to.index, u32::try_from(bytes.len()).unwrap_or(u32::MAX))
    }

    /// Sends what waits, unless the socket is known to take nothing.
    pub(super) fn flush_waiting(&mut self, to: Key) -> Sent {
        if let Some(socket) = self.socket_mut(to)
            && socket.sending == Sending::Idle
            && socket.waiting.is_some()
            && socket.receiving != Receiving::Connecting
        {
            socket.sending = Sending::Ready;
            self.outbox.push(to.index);
        }
        Sent { now: 0, full: self.is_full_at(to.index) }
    }

    fn is_full_at(&self, index: u32) -> bool {
        self.sockets.get(index as usize).is_some_and(|socket| socket.queued >= FULL)
    }

    /// Counts bytes that were put into the queue. If nothing was before them they go in this round.
    fn queue_grew(&mut self, index: u32, by: u32) -> Sent {
        let Some((_, socket)) = self.socket_at(index) else { return Sent::default() };
        let first = socket.queued == 0;
        socket.queued = socket.queued.saturating_add(by);
        if first && socket.sending == Sending::Idle && socket.receiving != Receiving::Connecting {
            socket.sending = Sending::Ready;
            self.outbox.push(index);
        }
        Sent { now: 0, full: self.is_full_at(index) }
    }

    /// Copies a chunk behind the one that is staged, if it fits into the same buffer.
    fn append_to_staged(&mut self, index: u32, chunk: &Chunk) -> bool {
        let Some(socket) = self.sockets.get_mut(index as usize) else { return false };
        let Some(staged) = &mut socket.staged else { return false };
        let fits = self.ring.append(staged.buffer, staged.length, chunk.buffer, chunk.length);
        if fits {
            staged.length += chunk.length;
        }
        fits
    }

    /// Moves what is staged to where more can be put behind it.
    fn unstage(&mut self, index: u32) {
        let Some((_, socket)) = self.socket_at(index) else { return };
        let Some(chunk) = socket.staged.take() else { return };
        if let Some(waiting) = waiting_of(&mut self.sockets, &mut self.spare, index) {
            waiting.bytes.extend_from_slice(self.ring.bytes(chunk.buffer, chunk.length));
        }
        self.ring.give_back(chunk.buffer);
    }

    fn keep_spare(&mut self, mut waiting: Waiting) {
        if self.spare.len() < SPARES && waiting.bytes.capacity() <= LARGEST_SPARE {
            waiting.bytes.clear();
            waiting.from = 0;
            self.spare.push(waiting);
        }
    }

    /// Begins the sends of this round, in the order in which they were asked for, and says how many there are.
    pub(super) fn send_outbox(&mut self) -> u32 {
        let mut sends = 0;
        let mut outbox = std::mem::take(&mut self.outbox);
        for index in outbox.drain(..) {
            sends += u32::from(self.begin_send(index));
        }
        self.outbox = outbox;
        sends
    }

    fn begin_send(&mut self, index: u32) -> bool {
        let Some(socket) = self.sockets.get_mut(index as usize) else { return false };
        if socket.sending != Sending::Ready {
            return false;
        }
        socket.sending = Sending::Busy;
        if let Some(chunk) = socket.staged.take() {
            debug_assert!(socket.waiting.is_none(), "what is gathered is unstaged");
            if !self.ring.send_buffer(index, chunk.buffer, chunk.length) {
                debug_assert!(false, "a second send for {index}");
                self.ring.give_back(chunk.buffer);
                return false;
            }
        } else if let Some(waiting) = socket.waiting.take()
            && let Err(waiting) = self.ring.send_owned(index, waiting)
        {
            // Too many at once: it waits for another flush.
            socket.waiting = Some(waiting);
            socket.sending = Sending::Full;
            self.ring.poll(index, Operation::Room);
            return false;
        }
        true
    }

    /// A send has been tried.
    pub(super) fn sent(&mut self, index: u32, result: i32, payload: Payload) -> Option<Event> {
        let taken = u32::try_from(result).unwrap_or(0);
        let rest = self.rest(payload, taken);
        let (key, socket) = self.socket_at(index)?;
        socket.queued = socket.queued.saturating_sub(taken);
        socket.sending = Sending::Idle;
        if result < 0 && !matches!(-result, libc::EAGAIN | libc::EINTR | libc::ECANCELED) {
            return self.send_failed(index, -result);
        }
        if let Some(mut rest) = rest {
            if let Some(behind) = socket.waiting.take() {
                rest.bytes.extend_from_slice(behind.rest());
            }
            socket.waiting = Some(rest);
            socket.sending = Sending::Full;
            self.ring.poll(index, Operation::Room);
        }
        (taken > 0).then_some(Event::Sent(key, taken as usize))
    }

    /// What is left of a payload after `taken` bytes, in memory of its own size: the peer may stall for long.
    fn rest(&mut self, payload: Payload, taken: u32) -> Option<Box<Waiting>> {
        match payload {
            Payload::Buffer(buffer, length) => {
                let bytes = self.ring.bytes(buffer, length).get(taken as usize..).unwrap_or_default();
                let rest = (!bytes.is_empty()).then(|| Box::new(Waiting { bytes: bytes.to_vec(), from: 0 }));
                self.ring.give_back(buffer);
                rest
            }
            Payload::Owned(mut waiting) => {
                waiting.from = waiting.from.saturating_add(taken as usize);
                let rest = waiting.rest().len();
                if rest == 0 {
                    self.keep_spare(*waiting);
                    return None;
                }
                if waiting.bytes.capacity() > 2 * rest {
                    *waiting = Waiting { bytes: waiting.rest().to_vec(), from: 0 };
                }
                Some(waiting)
            }
        }
    }

    /// The connection is gone. What it sent before is told first, if it is being received: the receive meets the end, too.
    fn send_failed(&mut self, index: u32, errno: i32) -> Option<Event> {
        let (_, socket) = self.socket_at(index)?;
        socket.sending = Sending::Dead;
        socket.waiting = None;
        match socket.receiving {
            Receiving::Armed | Receiving::Stopping | Receiving::Starved => {
                socket.error = std::num::NonZeroI32::new(errno);
                if !ends_connection(errno)
                    && let Some(fd) = self.ring.fd(index)
                {
                    // The peer may stay for ever: the receive is made to end, after what has come already.
                    let _ = shutdown(fd, Shutdown::Read); // fails only if the connection is gone, and then the receive ends
                }
                None
            }
            Receiving::Closed
            | Receiving::Connecting
            | Receiving::Off
            | Receiving::Ended
            | Receiving::Broken => self.broken(index, errno),
        }
    }

    /// The socket takes bytes again.
    pub(super) fn room(&mut self, index: u32) -> Option<Event> {
        let (key, socket) = self.socket_at(index)?;
        if socket.sending != Sending::Full {
            return None;
        }
        socket.sending = Sending::Idle;
        Some(Event::Sent(key, 0))
    }
}

/// Whether an error of a send means that the receive ends, too. A shortage of memory does not.
fn ends_connection(errno: i32) -> bool {
    matches!(
        errno,
        libc::ECONNRESET
            | libc::EPIPE
            | libc::ETIMEDOUT
            | libc::ECONNABORTED
            | libc::ENOTCONN
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
    )
}

/// Where what waits for a socket is gathered.
fn waiting_of<'a>(
    sockets: &'a mut [Socket],
    spare: &mut Vec<Waiting>,
    index: u32,
) -> Option<&'a mut Waiting> {
    let socket = sockets.get_mut(index as usize)?;
    Some(socket.waiting.get_or_insert_with(|| Box::new(spare.pop().unwrap_or_default())))
}
