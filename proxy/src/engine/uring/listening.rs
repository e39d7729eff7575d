//! Listening sockets beside an io_uring.
//!
//! They are in an epoll set, and the ring waits for the set: a ring that waits on a listening socket itself keeps the port bound for
//! a moment after the process was killed, and a restart would find it in use. An epoll set keeps no socket open.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};

/// Listening sockets that are told of at once; with more the rest comes in the next round.
const AT_ONCE: usize = 16;

/// The listening sockets of one core.
pub(super) struct ListeningSet {
    set: Arc<OwnedFd>,
    ready: Vec<epoll::Event>,
}

impl ListeningSet {
    pub(super) fn new() -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { set: Arc::new(set), ready: Vec::with_capacity(AT_ONCE) })
    }

    /// Readable when there is something to accept.
    pub(super) fn set(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.set)
    }

    pub(super) fn add(&self, number: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let data = EventData::new_u64(number.into());
        Ok(epoll::add(&self.set, socket, data, EventFlags::IN | EventFlags::EXCLUSIVE)?)
    }

    pub(super) fn remove(&self, socket: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.set, socket); // not there: it was left alone for a while
    }

    /// The numbers of those that have somebody to accept.
    pub(super) fn ready(&mut self) -> impl Iterator<Item = u32> + '_ {
        self.ready.clear();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // An error would come back at the next wake-up: the set is level-triggered.
        let _ = epoll::wait(&self.set, rustix::buffer::spare_capacity(&mut self.ready), Some(&now));
        self.ready.iter().filter_map(|event| u32::try_from(event.data.u64()).ok())
    }
}
