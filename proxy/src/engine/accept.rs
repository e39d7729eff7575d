//! Listening sockets on the cores: every core accepts from every one of them.
//!
//! They are in an epoll set of their own, whichever backend the core has: an io_uring that waits on a listening socket
//! keeps the port bound for a moment after the process was killed, and a restart would find it in use. An epoll set keeps no
//! socket open.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::local::Task;
use super::stream::Stream;

/// The most connections that are accepted from one socket before others get their turn.
const BATCH: u32 = 32;

/// Who takes connections in.
pub(crate) trait Acceptor: Send + Sync + 'static {
    /// A connection, on the core that will serve it; `local` is the address that it came to. `None`: it was refused in silence.
    fn accepted(self: Arc<Self>, stream: Stream, client: SocketAddr, local: SocketAddr) -> Option<Task>;

    /// accept(2) itself has failed; says how long to leave it alone.
    fn failed(&self, error: &io::Error) -> Duration;

    /// accept(2) works (again).
    fn works(&self);
}

/// One listening socket. Each core holds it until it has been told to let go.
pub(crate) struct Listening {
    pub(crate) socket: std::net::TcpListener,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    pub(crate) acceptor: Arc<dyn Acceptor>,
    /// Says to whoever waits for the address that somebody accepts here still.
    pub(crate) held: TaskTrackerToken,
}

impl Listening {
    /// The address that a connection came to: asked of the kernel only if there may be several.
    pub(super) fn local(&self, socket: &OwnedFd) -> io::Result<SocketAddr> {
        if !self.address.ip().is_unspecified() {
            return Ok(self.address);
        }
        Ok(SocketAddr::try_from(rustix::net::getsockname(socket)?)?)
    }
}

impl std::fmt::Debug for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Listening").field(&self.socket).finish()
    }
}

/// The listening sockets of one core.
pub(super) struct Listeners {
    set: Arc<OwnedFd>,
    all: Vec<Entry>,
    ready: Vec<epoll::Event>,
    newest: u64,
}

struct Entry {
    number: u64,
    listening: Arc<Listening>,
    /// How many connections to look for at once: as many as there were lately.
    batch: u32,
}

/// A connection that was accepted.
pub(super) struct Accepted {
    pub(super) listening: Arc<Listening>,
    pub(super) socket: OwnedFd,
    pub(super) client: SocketAddr,
}

/// A socket that is to be left alone for a while.
pub(super) struct Resting {
    pub(super) listening: Arc<Listening>,
    pub(super) pause: Duration,
}

impl Listeners {
    pub(super) fn new() -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { set: Arc::new(set), all: Vec::new(), ready: Vec::with_capacity(16), newest: 0 })
    }

    /// Readable when there is something to accept.
    pub(super) fn set(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.set)
    }

    pub(super) fn add(&mut self, listening: Arc<Listening>) -> io::Result<()> {
        self.newest += 1;
        let data = EventData::new_u64(self.newest);
        // Of all the cores that wait, one is woken for one connection.
        epoll::add(&self.set, listening.socket.as_fd(), data, EventFlags::IN | EventFlags::EXCLUSIVE)?;
        self.all.push(Entry { number: self.newest, listening, batch: 1 });
        Ok(())
    }

    pub(super) fn remove(&mut self, listening: &Arc<Listening>) {
        if let Some(at) = self.all.iter().position(|entry| Arc::ptr_eq(&entry.listening, listening)) {
            let entry = self.all.swap_remove(at);
            // The descriptor may live on in another core or at a successor: it would go on telling us.
            let _ = epoll::delete(&self.set, entry.listening.socket.as_fd()); // not there: a pause has taken it out
        }
    }

    /// Accepts what is there, as far as it is fair, and says which sockets cannot go on.
    pub(super) fn accept(&mut self, accepted: &mut Vec<Accepted>) -> Vec<Resting> {
        self.ready.clear();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // An error here would come back at the next wake-up: the set is level-triggered.
        let _ = epoll::wait(&self.set, rustix::buffer::spare_capacity(&mut self.ready), Some(&now));
        let mut resting = Vec::new();
        for event in &self.ready {
            let number = event.data.u64();
            let Some(entry) = self.all.iter_mut().find(|entry| entry.number == number) else { continue };
            if let Err(error) = entry.accept(accepted) {
                let pause = entry.listening.acceptor.failed(&error);
                resting.push(Resting { listening: Arc::clone(&entry.listening), pause });
            }
        }
        for one in &resting {
            self.remove(&one.listening);
        }
        resting
    }
}

impl Entry {
    /// Twice as many as were there the last time: a lone connection costs one call, a rush is taken in batches.
    fn accept(&mut self, accepted: &mut Vec<Accepted>) -> io::Result<()> {
        for count in 0..self.batch {
            match accept_one(&self.listening.socket) {
                Ok(Some((socket, client))) => {
                    self.listening.acceptor.works();
                    accepted.push(Accepted { listening: Arc::clone(&self.listening), socket, client });
                }
                Ok(None) => {
                    self.batch = count.max(1);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        self.batch = (self.batch * 2).min(BATCH);
        Ok(())
    }
}

/// `None`: nobody waits.
fn accept_one(socket: &std::net::TcpListener) -> io::Result<Option<(OwnedFd, SocketAddr)>> {
    loop {
        match rustix::net::acceptfrom_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok((socket, client)) => {
                let Some(client) = client.and_then(|client| SocketAddr::try_from(client).ok()) else { continue };
                return Ok(Some((socket, client)));
            }
            Err(Errno::AGAIN) => return Ok(None),
            // The client gave up while it waited, or its network has failed: accept(2) of Linux passes such errors on.
            Err(
                Errno::INTR
                | Errno::CONNABORTED
                | Errno::NETDOWN
                | Errno::PROTO
                | Errno::NOPROTOOPT
                | Errno::HOSTDOWN
                | Errno::NONET
                | Errno::HOSTUNREACH
                | Errno::OPNOTSUPP
                | Errno::NETUNREACH,
            ) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
