//! What a core needs of the kernel, and nothing more: the interface behind which the two backends stand.
//!
//! A driver owns sockets, goes by [`Key`]s, and turns what the kernel does into [`Event`]s, which its core pulls with
//! [`Driver::next`]. It knows nothing of sessions: who sends to whom, what a FIN leads to, whether a byte may still be
//! sent are decided by the core, between two events. So a driver never sends a byte by itself: what a socket did not take at
//! once waits until the core says [`Driver::flush`], after it has asked the session's fence again.
//!
//! * [`super::epoll`]: readiness, edge-triggered; one buffer for all sockets of the core; everything is done at once.
//! * [`super::uring`]: completion, io_uring; a ring of buffers that the kernel picks from; sends go straight from them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

/// Names a socket of a driver. The generation makes the key of a closed socket unlike the one that took its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// How much later than it might an [`Event::Sent`] is told at most: so far the counters of bytes may be behind.
pub(crate) const LATE: Duration = Duration::from_millis(100);

/// Bytes that were received and belong to nobody yet. To be handed to [`Driver::send`], or back with [`Driver::release`];
/// at the latest before the next call of [`Driver::next`].
#[derive(Debug)]
#[must_use = "send it, or give it back"]
pub(crate) struct Chunk {
    /// Which buffer of the driver.
    pub(super) buffer: u16,
    /// How many bytes, from the start of the buffer. Never 0.
    pub(super) length: u32,
}

impl Chunk {
    pub(crate) fn len(&self) -> usize {
        self.length as usize
    }
}

/// What became of bytes to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Bytes that the kernel has taken by now, of these or of earlier ones that have not been told of.
    pub(crate) now: usize,
    /// More than a little waits for the peer: receive nothing more for this socket until there is room
    /// ([`Driver::is_full`], asked again at each [`Event::Sent`]).
    pub(crate) full: bool,
}

/// What happens to a socket.
#[derive(Debug)]
pub(crate) enum Event {
    /// Bytes of the peer, in order.
    Data(Key, Chunk),
    /// The peer's FIN, after all its bytes. Sending goes on. An RST that follows is told if a send meets it, or after
    /// [`Driver::watch_after_end`].
    End(Key),
    /// An RST, a dead peer, a failed connect or send; told once, after the bytes that came before it if they are being received.
    /// The socket stays until [`Driver::close`].
    Broken(Key, io::Error),
    /// [`Driver::connect`] is done.
    Connected(Key),
    /// So many more bytes of what waited were taken (0: there is room again). If something still waits
    /// ([`Driver::has_queued`]) it goes with the next [`Driver::flush`], and not before.
    Sent(Key, usize),
    /// [`Driver::receive`]`(key, false)` is in force: whatever was received before has been told, nothing comes any more. Not told when
    /// the peer's end came first, or when receiving was resumed meanwhile.
    Quiet(Key),
    /// As asked for with [`Driver::poll`]: a read would not wait (bytes, a FIN or an error).
    Readable(Key),
    /// As asked for with [`Driver::poll`]: a write would not wait.
    Writable(Key),
    /// A descriptor of [`Driver::watch`] or [`Driver::listen`] is readable.
    Watched(Watched),
}

impl Event {
    /// The socket that it happens to. `None`: it is a watched descriptor's.
    pub(super) fn key(&self) -> Option<Key> {
        match self {
            Self::Data(key, _)
            | Self::End(key)
            | Self::Broken(key, _)
            | Self::Connected(key)
            | Self::Sent(key, _)
            | Self::Quiet(key)
            | Self::Readable(key)
            | Self::Writable(key) => Some(*key),
            Self::Watched(_) => None,
        }
    }
}

/// Descriptors that are not connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// The event counter by which other threads wake the core.
    Inbox,
    /// The listening socket of this number.
    Listening(u32),
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Connected,
    Waiting,
}

/// Begins to connect. A server on this host is connected to before connect(2) returns, although that says otherwise; to know it saves a
/// wait and a wake-up.
pub(super) fn begin_connect(socket: &OwnedFd, to: SocketAddr) -> io::Result<Progress> {
    match rustix::net::connect(socket, &to) {
        Ok(()) => return Ok(Progress::Connected),
        Err(Errno::INPROGRESS | Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut polled = [PollFd::new(socket, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let done = rustix::event::poll(&mut polled, Some(&now)) == Ok(1);
    let [polled] = polled;
    Ok(if done && polled.revents() == PollFlags::OUT { Progress::Connected } else { Progress::Waiting })
}

/// What to wait for, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    Readable,
    Writable,
}

/// How a socket is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Close {
    /// With a FIN, after what the kernel has taken already (an RST if input is left unread: the kernel's rule).
    Fin,
    /// With an RST: what the peer has not received yet is thrown away.
    Reset,
}

/// One core's way to the kernel. Not shared between threads.
///
/// Keys: every call takes one that this driver gave out and that was not closed; an event never names a closed one. A call with a
/// stale key does nothing, it never touches another socket.
pub(crate) trait Driver: Sized {
    /// What it is called in the configuration and the metrics.
    const NAME: &'static str;

    /// The most that one [`Event::Data`] brings, in bytes: a stream that fills several in a row is bulk.
    const BUFFER: usize;

    /// Made by the thread that will use it. The error says what the kernel refuses.
    fn open() -> io::Result<Self>;

    /// Tells whenever `fd` is readable, as [`Watched::Inbox`], for as long as the driver lives. Level-triggered: what is not consumed
    /// is told again.
    fn watch(&mut self, fd: Arc<OwnedFd>) -> io::Result<()>;

    /// Tells whenever there is something to accept from `socket`, level-triggered, as [`Watched::Listening`]. Several cores may listen on
    /// the same socket: it is enough to wake one of them. The driver must not keep the socket open: not its own descriptor, and
    /// not a request inside the kernel that lives on when the process is killed (a restart would find the port in use).
    fn listen(&mut self, number: u32, socket: BorrowedFd<'_>) -> io::Result<()>;

    /// The contrary. The socket may live on in other cores.
    fn unlisten(&mut self, socket: BorrowedFd<'_>);

    /// Takes a connected, non-blocking socket, and receives from it.
    fn add(&mut self, socket: OwnedFd) -> io::Result<Key>;

    /// Connects a non-blocking socket. Unless it is connected already [`Event::Connected`] or [`Event::Broken`] follows. Receives from
    /// then on. The caller has a deadline, and closes when it passes.
    fn connect(&mut self, socket: OwnedFd, to: SocketAddr) -> io::Result<(Key, Progress)>;

    /// The bytes of a chunk.
    fn bytes(&self, chunk: &Chunk) -> &[u8];

    /// Gives a chunk back unsent.
    fn release(&mut self, chunk: Chunk);

    /// Sends a chunk after whatever waits already. The error is the socket's: it will not be told again.
    fn send(&mut self, to: Key, chunk: Chunk) -> io::Result<Sent>;

    /// Like [`Driver::send`], for bytes of the caller's.
    fn send_bytes(&mut self, to: Key, bytes: &[u8]) -> io::Result<Sent>;

    /// Sends what waits, as far as the socket takes it.
    fn flush(&mut self, to: Key) -> io::Result<Sent>;

    /// Whether bytes wait that the kernel has not taken.
    fn has_queued(&self, key: Key) -> bool;

    /// Whether so much waits that nothing more should be received for this socket.
    fn is_full(&self, key: Key) -> bool;

    /// Has an RST noticed that comes after [`Event::End`]. Most sockets are closed right after their end: it is for those that are not.
    fn watch_after_end(&mut self, key: Key);

    /// Stops or resumes receiving. Stopping takes effect at [`Event::Quiet`]; an end without data (RST) is noticed all the same.
    fn receive(&mut self, key: Key, on: bool);

    /// Asks for one [`Event::Readable`] or [`Event::Writable`], after the kernel has said that a call would wait. For a socket whose
    /// receiving has been stopped.
    fn poll(&mut self, key: Key, readiness: Readiness);

    /// Sends a FIN; nothing waits to be sent. The peer may go on sending.
    fn shut_down_write(&mut self, key: Key) -> io::Result<()>;

    /// Closes, and forgets what waits. The key is stale at once; what the kernel still has to do is the driver's business.
    fn close(&mut self, key: Key, how: Close);

    /// The descriptor, for options and splice(2).
    fn fd(&self, key: Key) -> Option<BorrowedFd<'_>>;

    /// The core wants to know soon what becomes of what it has sent in this round: something else waits for it. Without this a driver may
    /// tell of it together with the next event of another kind, at most [`LATE`] later.
    fn hurry(&mut self);

    /// Submits what is to be done and waits for events, at most for `timeout` (zero: not at all; `None`: for ever). Being interrupted by a
    /// signal is no error.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;

    /// The next event of the last [`Driver::wait`], `None` when there is no more for now. A socket with much to read gets a bounded share
    /// in each round; [`Driver::is_busy`] then says that waiting is wrong.
    fn next(&mut self) -> Option<Event>;

    /// Something is left to do without waiting: the next [`Driver::wait`] has to return at once.
    fn is_busy(&self) -> bool;

    /// Sockets that are open, closing ones included.
    fn open_sockets(&self) -> usize;
}
