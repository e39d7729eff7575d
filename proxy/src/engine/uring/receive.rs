//! The receiving half of a socket: from its first byte to its end.

use std::io;

use rustix::net::sockopt;

use super::{Event, Key, Operation, Receiving, Uring};
use crate::engine::driver::Chunk;

impl Uring {
    /// Begins to receive.
    pub(super) fn arm(&mut self, index: u32) {
        if self.ring.receive(index)
            && let Some((_, socket)) = self.socket_at(index)
        {
            socket.receiving = Receiving::Armed;
        }
    }

    /// Sockets that found no buffer begin again, as many as there are buffers now.
    pub(super) fn arm_starved(&mut self) {
        for _ in 0..self.ring.provided() {
            let Some(index) = self.starved.pop_front() else { return };
            if self.socket_at(index).is_some_and(|(_, socket)| socket.receiving == Receiving::Starved) {
                self.arm(index);
            }
        }
    }

    pub(super) fn resume(&mut self, key: Key) {
        let Some(socket) = self.socket_mut(key) else { return };
        socket.wanted = true;
        socket.owes_quiet = false;
        if socket.receiving == Receiving::Off {
            self.arm(key.index);
        }
    }

    pub(super) fn pause(&mut self, key: Key) {
        let Some(socket) = self.socket_mut(key) else { return };
        if !socket.wanted {
            return;
        }
        socket.wanted = false;
        socket.owes_quiet = true;
        match socket.receiving {
            Receiving::Armed => {
                socket.receiving = Receiving::Stopping;
                self.ring.cancel(key.index, Operation::Receive);
            }
            Receiving::Off | Receiving::Starved => {
                let event = self.settle(key.index);
                self.ready.extend(event);
            }
            Receiving::Closed
            | Receiving::Connecting
            | Receiving::Stopping
            | Receiving::Ended
            | Receiving::Broken => {}
        }
    }

    /// A receive brought something, or is over.
    pub(super) fn received(
        &mut self,
        index: u32,
        result: i32,
        buffer: Option<u16>,
        more: bool,
    ) -> Option<Event> {
        let (key, socket) = self.socket_at(index)?;
        if !more {
            // Whether it is to go on is decided below; until then nothing is in flight.
            socket.receiving = Receiving::Off;
        }
        match (u32::try_from(result), buffer) {
            (Ok(length @ 1..), Some(buffer)) => {
                if !more {
                    let event = self.settle(index);
                    self.ready.extend(event);
                }
                Some(Event::Data(key, Chunk { buffer, length }))
            }
            (outcome, buffer) => {
                if let Some(buffer) = buffer {
                    self.ring.give_back(buffer);
                }
                match outcome {
                    Ok(_) if more => None,
                    Ok(_) => self.ended(index),
                    Err(_) => self.receive_failed(index, -result),
                }
            }
        }
    }

    fn receive_failed(&mut self, index: u32, errno: i32) -> Option<Event> {
        let (_, socket) = self.socket_at(index)?;
        match errno {
            libc::ENOBUFS if socket.wanted => {
                socket.receiving = Receiving::Starved;
                self.starved.push_back(index);
                None
            }
            libc::ENOBUFS | libc::ECANCELED | libc::EINTR | libc::EAGAIN => self.settle(index),
            errno => self.broken(index, errno),
        }
    }

    /// The peer's FIN, or what looks like one after a send has met the error.
    fn ended(&mut self, index: u32) -> Option<Event> {
        let (key, socket) = self.socket_at(index)?;
        if let Some(error) = socket.error {
            return self.broken(index, error.get());
        }
        socket.receiving = Receiving::Ended;
        Some(Event::End(key))
    }

    /// Nothing is being received now, and everything that was has been told: what is to become of it?
    fn settle(&mut self, index: u32) -> Option<Event> {
        let (key, socket) = self.socket_at(index)?;
        socket.receiving = Receiving::Off;
        if let Some(error) = socket.error {
            return self.broken(index, error.get());
        }
        if socket.wanted {
            self.arm(index);
            return None;
        }
        let quiet = std::mem::take(&mut socket.owes_quiet);
        self.watch_for_hangup(index);
        quiet.then_some(Event::Quiet(key))
    }

    /// Tells an error, once.
    pub(super) fn broken(&mut self, index: u32, errno: i32) -> Option<Event> {
        let (key, socket) = self.socket_at(index)?;
        if socket.receiving == Receiving::Broken {
            return None;
        }
        socket.receiving = Receiving::Broken;
        socket.wanted = false;
        Some(Event::Broken(key, io::Error::from_raw_os_error(errno)))
    }

    /// A connection that was waited for is made, or has failed.
    pub(super) fn connected(&mut self, index: u32, result: i32) -> Option<Event> {
        let (key, socket) = self.socket_at(index)?;
        socket.receiving = Receiving::Off;
        if result < 0 {
            return self.broken(index, -result);
        }
        if result & i32::from(libc::POLLERR | libc::POLLHUP) != 0 {
            let errno = self.socket_error(index);
            return self.broken(index, errno);
        }
        let event = self.settle(index);
        self.ready.extend(event);
        Some(Event::Connected(key))
    }

    /// Polls for hang-ups that the kernel has ended begin again.
    pub(super) fn watch_again_for_hangups(&mut self) {
        for index in std::mem::take(&mut self.hangups) {
            self.watch_for_hangup(index);
        }
    }

    /// While nothing is received, an RST is still noticed.
    pub(super) fn watch_for_hangup(&mut self, index: u32) {
        let Some((_, socket)) = self.socket_at(index) else { return };
        if matches!(socket.receiving, Receiving::Off | Receiving::Ended) {
            self.ring.poll(index, Operation::Hangup);
        }
    }

    /// An error, or both directions are shut down.
    pub(super) fn hung_up(&mut self, index: u32, result: i32) -> Option<Event> {
        let reading = self.ring.is_in_flight(index, Operation::Readable);
        let (_, socket) = self.socket_at(index)?;
        // Receiving meets the error itself, after the bytes before it; so does whoever polls in order to read. It is polled for again when
        // that is over.
        if reading || !matches!(socket.receiving, Receiving::Off | Receiving::Ended) {
            return None;
        }
        if result & i32::from(libc::POLLERR) == 0 {
            // A FIN: that is told by the receive. The poll goes on, unless the kernel has ended it for want of room for completions. Then it
            // is begun again in the next round: at once it would be ended again, as long as there are completions to look at.
            if !self.ring.is_in_flight(index, Operation::Hangup) {
                self.hangups.push(index);
            }
            return None;
        }
        let errno = self.socket_error(index);
        self.broken(index, errno)
    }

    /// The error of a socket that has one (errno). If something else was told of it already it can only have been a reset.
    fn socket_error(&self, index: u32) -> i32 {
        match self.ring.fd(index).map(sockopt::socket_error) {
            Some(Ok(Err(error))) => error.raw_os_error(),
            Some(Ok(Ok(())) | Err(_)) | None => libc::ECONNRESET,
        }
    }
}
