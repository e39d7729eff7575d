//! io_uring, made safe: a [`Ring`] owns everything that the kernel may touch until it has said that it is done.
//!
//! * Descriptors are handed over with [`Ring::adopt`] and go by an index. At most one operation of each [`Operation`] is in flight for
//!   each of them; one that is dismissed is closed after its last completion, and its index is reused only then.
//! * Buffers belong to the ring for good; a table says who may touch them (see [`buffers`]).
//! * Owned bytes and addresses are moved in, and come back (or are dropped) with their completion.
//! * Dropping a ring cancels everything and waits for the completions; if one does not come in time, the memory is leaked.
//!
//! The thread that opened a ring is the only one that can use it: the kernel insists (`IORING_SETUP_SINGLE_ISSUER`), the type says so.
//! Nothing newer than Linux 6.1 is used. Sources: `io_uring_setup(2)`, `io_uring_enter(2)`, `io_uring_register(2)`.

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, opcode, squeue};

mod buffers;
mod complete;
#[cfg(test)]
pub(crate) mod faults;
mod tag;

use buffers::{Buffers, GROUP};
pub(crate) use tag::Operation;
use tag::Tag;

/// How often a submission that the kernel has no memory for is tried in one wait.
const ATTEMPTS: u32 = 64;

/// How large a ring is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Operations that are handed to the kernel in one call, at most.
    pub(crate) submissions: u32,
    /// Completions that the kernel keeps without allocating.
    pub(crate) completions: u32,
    /// Receive buffers: a power of two, at most 32,768.
    pub(crate) buffers: u16,
    /// Bytes of each buffer.
    pub(crate) bytes_each: u32,
}

/// Bytes to be sent that are not in a buffer of the ring.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    pub(crate) bytes: Vec<u8>,
    /// Where to begin: what comes before has been sent.
    pub(crate) from: usize,
}

impl Waiting {
    pub(crate) fn rest(&self) -> &[u8] {
        self.bytes.get(self.from..).unwrap_or_default()
    }
}

/// What was sent from.
#[derive(Debug)]
pub(crate) enum Payload {
    /// A buffer of the ring, from its start, so many bytes.
    Buffer(u16, u32),
    /// Bytes that had been moved in.
    Owned(Box<Waiting>),
}

/// What the kernel has done. Results are as in the kernel: a count, or a negative errno.
#[derive(Debug)]
pub(crate) enum Completion {
    /// A receive brought bytes in a buffer, or ended (0: a FIN). `more`: the receive goes on.
    Received { index: u32, result: i32, buffer: Option<u16>, more: bool },
    /// A send took so many bytes.
    Sent { index: u32, result: i32, payload: Payload },
    /// A poll; the result is a mask of `libc::POLL*`.
    Polled { index: u32, operation: Operation, result: i32 },
    /// [`Ring::cancel`] found nothing to cancel: the operation is done, or on its way between two states.
    NotCancelled { index: u32, operation: Operation },
    /// The watched descriptor of this number can be read. To be watched again.
    Watched(u8),
    /// A dismissed descriptor has been closed; its index may be given out again.
    Closed,
}

#[derive(Debug, Default)]
struct Descriptor {
    fd: Option<OwnedFd>,
    /// Bits of [`Operation`].
    in_flight: u8,
    /// Cancellations in flight.
    cancels: u8,
    dismissed: bool,
}

/// Everything that must outlive the operations in flight.
struct Owned {
    ring: IoUring,
    buffers: Buffers,
    sending: Vec<Option<Box<Waiting>>>,
    watched: [Option<Arc<OwnedFd>>; 2],
}

/// An io_uring with its buffers and descriptors.
pub(crate) struct Ring {
    owned: ManuallyDrop<Owned>,
    free_sending: Vec<u32>,
    /// Descriptors of [`Owned::watched`] that have an operation in flight.
    watching: u8,
    descriptors: Vec<Descriptor>,
    free: Vec<u32>,
    open: usize,
    /// Entries that found no room in the submission queue, in order.
    backlog: VecDeque<squeue::Entry>,
    /// Cancellations since the last wait.
    cancelled: u32,
    /// Operations whose last completion has not been seen.
    outstanding: usize,
    /// Why a submission failed, to be told by the next wait.
    failed: Option<io::Error>,
    #[cfg(test)]
    pub(crate) faults: faults::Faults,
    /// Neither `Send` nor `Sync`.
    thread: PhantomData<*const ()>,
}

impl Ring {
    /// Sets up a ring for the calling thread. The error says which step the kernel refused.
    pub(crate) fn open(size: Size) -> io::Result<Self> {
        let ring = IoUring::builder()
            .dontfork()
            .setup_clamp()
            .setup_submit_all()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(size.completions)
            .build(size.submissions)
            .map_err(|error| refused("io_uring_setup", &error))?;
        if !ring.params().is_feature_nodrop() || !ring.params().is_feature_ext_arg() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring is too old"));
        }
        let buffers = Buffers::map(size.buffers, size.bytes_each).map_err(|error| refused("mmap", &error))?;
        let owned = Owned { ring, buffers, sending: Vec::new(), watched: [None, None] };
        let mut ring = Self {
            owned: ManuallyDrop::new(owned),
            free_sending: Vec::new(),
            watching: 0,
            descriptors: Vec::new(),
            free: Vec::new(),
            open: 0,
            backlog: VecDeque::new(),
            cancelled: 0,
            outstanding: 0,
            failed: None,
            #[cfg(test)]
            faults: faults::Faults::default(),
            thread: PhantomData,
        };
        let Owned { ring: uring, buffers, .. } = &mut *ring.owned;
        buffers.register(&uring.submitter()).map_err(|error| refused("IORING_REGISTER_PBUF_RING", &error))?;
        Ok(ring)
    }

    /// Takes a descriptor, and names it. `None` if there are too many.
    pub(crate) fn adopt(&mut self, fd: OwnedFd) -> Option<u32> {
        let index = if let Some(index) = self.free.pop() {
            index
        } else {
            let index = u32::try_from(self.descriptors.len()).ok()?;
            self.descriptors.push(Descriptor::default());
            index
        };
        *self.descriptors.get_mut(index as usize)? = Descriptor { fd: Some(fd), ..Descriptor::default() };
        self.open += 1;
        Some(index)
    }

    /// A descriptor that has not been dismissed.
    pub(crate) fn fd(&self, index: u32) -> Option<BorrowedFd<'_>> {
        let descriptor = self.descriptors.get(index as usize).filter(|descriptor| !descriptor.dismissed)?;
        descriptor.fd.as_ref().map(AsFd::as_fd)
    }

    /// Descriptors that are not closed yet.
    pub(crate) fn open_descriptors(&self) -> usize {
        self.open
    }

    /// Whether the operation is in flight.
    pub(crate) fn is_in_flight(&self, index: u32, operation: Operation) -> bool {
        self.descriptors
            .get(index as usize)
            .is_some_and(|descriptor| descriptor.in_flight & operation.bit() != 0)
    }

    /// Marks an operation as in flight. `None` if it is already, or if there is no such descriptor.
    fn begin(&mut self, index: u32, operation: Operation) -> Option<Fd> {
        let descriptor = self.descriptors.get_mut(index as usize)?;
        if descriptor.dismissed || descriptor.in_flight & operation.bit() != 0 {
            return None;
        }
        let fd = Fd(descriptor.fd.as_ref()?.as_raw_fd());
        descriptor.in_flight |= operation.bit();
        Some(fd)
    }

    /// Receives into the ring's buffers until an end, an error, or until no buffer is left (`-ENOBUFS`).
    pub(crate) fn receive(&mut self, index: u32) -> bool {
        let Some(fd) = self.begin(index, Operation::Receive) else { return false };
        let entry = opcode::RecvMulti::new(fd, GROUP).build();
        self.push(entry, Tag::of(index, Operation::Receive));
        true
    }

    /// Waits for an event on a socket, once; for a hang-up again and again: the kernel adds not only `POLLERR` and `POLLHUP` to every poll but
    /// `POLLRDHUP`, too, so that after a FIN a single poll would be over before the RST comes.
    pub(crate) fn poll(&mut self, index: u32, operation: Operation) -> bool {
        let Some(events) = operation.poll_events() else { return false };
        let Some(fd) = self.begin(index, operation) else { return false };
        let entry = opcode::PollAdd::new(fd, events).multi(operation == Operation::Hangup).build();
        self.push(entry, Tag::of(index, operation));
        true
    }

    /// Sends the first `length` bytes of a buffer of the caller's, as far as the socket takes them at once (`-EAGAIN`: it takes none).
    /// If it cannot be begun nothing happens.
    pub(crate) fn send_buffer(&mut self, index: u32, buffer: u16, length: u32) -> bool {
        if self.is_in_flight(index, Operation::Send) {
            return false;
        }
        let Some(start) = self.owned.buffers.send(buffer, length) else { return false };
        let Some(fd) = self.begin(index, Operation::Send) else {
            self.owned.buffers.sent(buffer);
            return false;
        };
        self.send(fd, start, length, Tag::send_buffer(index, buffer));
        true
    }

    /// Sends bytes, as far as the socket takes them at once. If it cannot be begun they come back.
    pub(crate) fn send_owned(&mut self, index: u32, waiting: Box<Waiting>) -> Result<(), Box<Waiting>> {
        let number =
            self.free_sending.last().copied().or_else(|| u32::try_from(self.owned.sending.len()).ok());
        let Some(number) = number.filter(|number| *number <= Tag::LARGEST_NUMBER) else {
            return Err(waiting);
        };
        let Some(fd) = self.begin(index, Operation::Send) else { return Err(waiting) };
        let rest = waiting.rest();
        let (start, length) = (rest.as_ptr(), u32::try_from(rest.len()).unwrap_or(u32::MAX));
        if self.free_sending.pop().is_none() {
            self.owned.sending.push(None);
        }
        if let Some(slot) = self.owned.sending.get_mut(number as usize) {
            *slot = Some(waiting);
        }
        self.send(fd, start, length, Tag::send_owned(index, number));
        Ok(())
    }

    /// `MSG_DONTWAIT`: it is tried once and never goes on by itself. A send that waited inside the kernel could take place after its
    /// session's fence was raised.
    fn send(&mut self, fd: Fd, start: *const u8, length: u32, tag: Tag) {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        #[cfg(test)]
        let length = self.faults.length_of_send(tag.index(), length);
        #[cfg(test)]
        if self.faults.refuses_send(tag.index()) {
            self.push(opcode::Nop::new().build(), tag);
            return;
        }
        self.push(opcode::Send::new(fd, start, length).flags(flags).build(), tag);
    }

    /// Ends an operation before its time; its completion follows in any case. [`Completion::NotCancelled`] if it was not found.
    pub(crate) fn cancel(&mut self, index: u32, operation: Operation) {
        let Some(descriptor) = self.descriptors.get_mut(index as usize) else { return };
        // Many cancellations at once are nobody's wish: two for each operation is more than ever happens.
        if descriptor.in_flight & operation.bit() == 0 || descriptor.cancels >= 16 {
            return;
        }
        descriptor.cancels += 1;
        self.cancelled = self.cancelled.saturating_add(1);
        // By the operation's own number: to look for a descriptor the kernel would walk through all that is in flight.
        let target = Tag::of(index, operation);
        self.push(opcode::AsyncCancel::new(target.user_data()).build(), Tag::cancel(index, operation));
    }

    /// Closes a descriptor after whatever is in flight has been cancelled. True if it is closed already; otherwise
    /// [`Completion::Closed`] follows, and nothing else is told of it any more.
    pub(crate) fn dismiss(&mut self, index: u32) -> bool {
        let Some(descriptor) = self.descriptors.get_mut(index as usize) else { return false };
        if descriptor.fd.is_none() || descriptor.dismissed {
            return false;
        }
        descriptor.dismissed = true;
        self.cancel_all(index);
        self.close_if_done(index)
    }

    /// Cancels what waits in the kernel. A send never waits.
    fn cancel_all(&mut self, index: u32) {
        let in_flight = self.descriptors.get(index as usize).map_or(0, |descriptor| descriptor.in_flight);
        for operation in Operation::ALL {
            if operation != Operation::Send && in_flight & operation.bit() != 0 {
                self.cancel(index, operation);
            }
        }
    }

    fn close_if_done(&mut self, index: u32) -> bool {
        let Some(descriptor) = self.descriptors.get_mut(index as usize) else { return false };
        if !descriptor.dismissed || descriptor.in_flight != 0 || descriptor.cancels != 0 {
            return false;
        }
        *descriptor = Descriptor::default();
        self.free.push(index);
        self.open -= 1;
        true
    }

    /// Tells once when `fd` can be read. A number that is being watched already is refused.
    pub(crate) fn watch(&mut self, number: u8, fd: Arc<OwnedFd>) -> bool {
        if self.watching & (1 << (number & 7)) != 0 {
            return false;
        }
        let Some(slot) = self.owned.watched.get_mut(usize::from(number)) else { return false };
        *slot = Some(fd);
        self.watch_again(number)
    }

    /// Watches the same descriptor again.
    pub(crate) fn watch_again(&mut self, number: u8) -> bool {
        let Some(Some(fd)) = self.owned.watched.get(usize::from(number)) else { return false };
        if self.watching & (1 << number) != 0 {
            return false;
        }
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), tag::events(libc::POLLIN)).build();
        self.watching |= 1 << number;
        self.push(entry, Tag::watch(number));
        true
    }

    /// The first `length` bytes of a buffer that was received into; nothing of any other.
    pub(crate) fn bytes(&self, buffer: u16, length: u32) -> &[u8] {
        self.owned.buffers.bytes(buffer, length)
    }

    /// Copies `length` bytes of `from` behind the first `used` bytes of `to`. False if they do not fit.
    pub(crate) fn append(&mut self, to: u16, used: u32, from: u16, length: u32) -> bool {
        self.owned.buffers.append(to, used, from, length)
    }

    /// Gives a buffer of the caller's back to the kernel, from the next [`Ring::wait`] on.
    pub(crate) fn give_back(&mut self, buffer: u16) {
        self.owned.buffers.give(buffer);
    }

    /// Buffers that the kernel can still pick.
    pub(crate) fn provided(&self) -> usize {
        self.owned.buffers.provided()
    }

    fn push(&mut self, entry: squeue::Entry, tag: Tag) {
        let entry = entry.user_data(tag.user_data());
        self.outstanding += 1;
        if self.backlog.is_empty() {
            if self.try_push(&entry) {
                return;
            }
            // Full: what is there goes now.
            if let Err(error) = self.enter(0, None)
                && !is_passing(&error)
            {
                self.failed = Some(error);
            }
            if self.try_push(&entry) {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: what the entry points to is alive until its completion: buffers of the mapping, and bytes and addresses in tables of
        // `Owned`, which let go of them only in `complete`. All of it is dropped after the last completion, or leaked.
        unsafe { self.owned.ring.submission().push(entry) }.is_ok()
    }

    /// Submits everything and waits for so many completions, at most for `timeout` (`None`: for ever). A signal or a shortage of the kernel's ends
    /// the wait early. `EBADR`: the kernel lost completions, so the ring is of no use any more.
    pub(crate) fn wait(&mut self, completions: u32, timeout: Option<Duration>) -> io::Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.owned.buffers.publish();
        // The kernel does no more of its put-off work at once than it is asked to wait for (and no less than 20, Linux 6.13). Each
        // cancellation puts some off: if many were made and nothing is waited for, a backlog would grow before everybody else's bytes.
        // Both of its completions are there at once, so this does not wait.
        let cancelled = std::mem::take(&mut self.cancelled).saturating_mul(2);
        let completions =
            if timeout == Some(Duration::ZERO) { completions.max(cancelled) } else { completions };
        let mut failures = 0;
        loop {
            while let Some(entry) = self.backlog.pop_front() {
                if !self.try_push(&entry) {
                    self.backlog.push_front(entry);
                    break;
                }
            }
            let all = self.backlog.is_empty();
            let want = if all { completions } else { 0 };
            match self.enter(want, timeout) {
                Ok(_) => {}
                Err(error) if is_passing(&error) => failures += 1,
                Err(error) => return Err(error),
            }
            // What was asked for in this round is submitted in this round, or a send could take place when nobody wants it any more.
            if (all && self.owned.ring.submission().is_empty()) || failures > ATTEMPTS {
                return Ok(());
            }
        }
    }

    /// `io_uring_enter(2)`. Completions are fetched in any case: work that the kernel has put off is only done then.
    fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<usize> {
        let submit = u32::try_from(self.owned.ring.submission().len()).unwrap_or(u32::MAX);
        let time = timeout.map(Timespec::from);
        let mut arguments = SubmitArgs::new();
        if let Some(time) = &time {
            arguments = arguments.timespec(time);
        }
        let mut flags = EnterFlags::EXT_ARG | EnterFlags::GETEVENTS;
        if self.owned.ring.params().is_feature_no_iowait() {
            // A thread that waits for its peers does not wait for a disk (Linux 6.15; without it the host shows up as 100 % iowait).
            flags |= EnterFlags::NO_IOWAIT;
        }
        // SAFETY: with EXT_ARG the argument is an `io_uring_getevents_arg`, which `SubmitArgs` is; it and the time live through the call.
        unsafe { self.owned.ring.submitter().enter(submit, want, flags.bits(), Some(&arguments)) }
    }
}

/// A shortage or an interruption: to be tried again, and no reason to stop.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
    )
}

/// What the kernel refuses, and the usual reason.
pub(crate) fn refused(step: &str, error: &io::Error) -> io::Error {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM) => "; kernel.io_uring_disabled or a seccomp filter forbids it",
        Some(libc::ENOSYS) => "; the kernel has none, or a seccomp filter hides it",
        Some(libc::EINVAL) => "; the kernel is too old (6.1 is needed)",
        Some(libc::ENOMEM) => "; perhaps the limit of locked memory",
        Some(_) | None => "",
    };
    io::Error::new(error.kind(), format!("{step}: {error}{hint}"))
}
