//! Listening sockets on the cores: every core accepts from every one of them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::SocketFlags;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::driver::Driver;
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
    pub(crate) _held: TaskTrackerToken,
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
#[derive(Debug, Default)]
pub(super) struct Listeners {
    all: Vec<Entry>,
    newest: u32,
}

#[derive(Debug)]
struct Entry {
    number: u32,
    listening: Arc<Listening>,
    /// How many connections to look for at once: as many as there were lately.
    batch: u32,
}

/// A connection that was accepted.
#[derive(Debug)]
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
    pub(super) fn add(&mut self, driver: &mut impl Driver, listening: Arc<Listening>) -> Option<Resting> {
        self.newest += 1;
        if let Err(error) = driver.listen(self.newest, listening.socket.as_fd()) {
            return Some(Resting { pause: listening.acceptor.failed(&error), listening });
        }
        self.all.push(Entry { number: self.newest, listening, batch: 1 });
        None
    }

    pub(super) fn remove(&mut self, driver: &mut impl Driver, listening: &Arc<Listening>) {
        if let Some(at) = self.all.iter().position(|entry| Arc::ptr_eq(&entry.listening, listening)) {
            // The socket may live on in another core or at a successor: the driver would go on telling us.
            driver.unlisten(self.all.swap_remove(at).listening.socket.as_fd());
        }
    }

    /// Accepts what is there, as far as it is fair. `Some`: the socket cannot go on for now.
    pub(super) fn accept(
        &mut self,
        driver: &mut impl Driver,
        number: u32,
        accepted: &mut Vec<Accepted>,
    ) -> Option<Resting> {
        let entry = self.all.iter_mut().find(|entry| entry.number == number)?;
        let error = entry.accept(accepted).err()?;
        let listening = Arc::clone(&entry.listening);
        self.remove(driver, &listening);
        Some(Resting { pause: listening.acceptor.failed(&error), listening })
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
                let Some(client) = client.and_then(|client| SocketAddr::try_from(client).ok()) else {
                    continue;
                };
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
