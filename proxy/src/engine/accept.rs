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

    /// No descriptor is left for another session: whoever comes is turned away.
    fn is_full(&self) -> bool {
        false
    }
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
    /// It is left alone: the driver does not listen.
    rests: bool,
}

/// A connection that was accepted.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) listening: Arc<Listening>,
    pub(super) socket: OwnedFd,
    pub(super) client: SocketAddr,
}

/// The socket of this number is to be left alone for a while. It may be given up meanwhile.
pub(super) struct Resting {
    pub(super) number: u32,
    pub(super) pause: Duration,
}

impl Listeners {
    pub(super) fn add(&mut self, driver: &mut impl Driver, listening: Arc<Listening>) -> Option<Resting> {
        self.newest += 1;
        self.all.push(Entry { number: self.newest, listening, batch: 1, rests: true });
        self.resume(driver, self.newest)
    }

    /// Listens again, unless the socket was given up.
    pub(super) fn resume(&mut self, driver: &mut impl Driver, number: u32) -> Option<Resting> {
        let entry = self.all.iter_mut().find(|entry| entry.number == number && entry.rests)?;
        match driver.listen(number, entry.listening.socket.as_fd()) {
            Ok(()) => {
                entry.rests = false;
                None
            }
            Err(error) => Some(Resting { number, pause: entry.listening.acceptor.failed(&error) }),
        }
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
        let entry = self.all.iter_mut().find(|entry| entry.number == number && !entry.rests)?;
        let error = entry.accept(accepted).err()?;
        driver.unlisten(entry.listening.socket.as_fd());
        entry.rests = true;
        Some(Resting { number, pause: entry.listening.acceptor.failed(&error) })
    }
}

impl Entry {
    /// Twice as many as were there the last time: a lone connection costs one call, a rush is taken in batches. One at a
    /// time where they are turned away for want of descriptors: a batch of them on each core would take those that are kept
    /// for the cluster and for operators.
    fn accept(&mut self, accepted: &mut Vec<Accepted>) -> io::Result<()> {
        if self.listening.acceptor.is_full() {
            self.batch = 1;
        }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::engine::driver::{Event, Watched};
    use crate::engine::epoll::Epoll;
    use crate::engine::uring::Uring;

    #[derive(Default)]
    struct Counter {
        failed: AtomicUsize,
        full: AtomicBool,
    }

    impl Acceptor for Counter {
        fn accepted(self: Arc<Self>, _: Stream, _: SocketAddr, _: SocketAddr) -> Option<Task> {
            None
        }

        fn failed(&self, _: &io::Error) -> Duration {
            self.failed.fetch_add(1, Ordering::Relaxed);
            Duration::from_millis(1)
        }

        fn works(&self) {}

        fn is_full(&self) -> bool {
            self.full.load(Ordering::Relaxed)
        }
    }

    fn tells_of_a_client(driver: &mut impl Driver) -> bool {
        driver.wait(Some(Duration::from_millis(50))).unwrap();
        let mut told = false;
        while let Some(event) = driver.next() {
            told |= matches!(event, Event::Watched(Watched::Listening(_)));
        }
        told
    }

    /// Another core holds the socket longer than this one, as it happens when it is busy.
    fn given_up_while_it_rests<D: Driver>() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let (acceptor, tracker) = (Arc::new(Counter::default()), TaskTracker::new());
        let listening = Arc::new(Listening { socket, address, acceptor, _held: tracker.token() });
        let (mut driver, mut listeners) = (D::open().unwrap(), Listeners::default());
        assert!(listeners.add(&mut driver, Arc::clone(&listening)).is_none());
        let _waits = std::net::TcpStream::connect(address).unwrap();
        assert!(tells_of_a_client(&mut driver));
        let rest = |driver: &mut D, listeners: &mut Listeners| {
            // As after an error of accept(2).
            driver.unlisten(listening.socket.as_fd());
            listeners.all.iter_mut().for_each(|entry| entry.rests = true);
        };
        rest(&mut driver, &mut listeners);
        assert!(!tells_of_a_client(&mut driver));
        assert!(listeners.resume(&mut driver, 1).is_none());
        assert!(tells_of_a_client(&mut driver), "it goes on after its rest");
        rest(&mut driver, &mut listeners);
        listeners.remove(&mut driver, &listening);
        assert!(listeners.resume(&mut driver, 1).is_none());
        assert!(!tells_of_a_client(&mut driver), "it was given up");
        assert_eq!(Arc::strong_count(&listening), 1, "nobody else keeps the address");
    }

    #[test]
    fn a_socket_that_is_given_up_while_it_rests_stays_given_up() {
        given_up_while_it_rests::<Epoll>();
        given_up_while_it_rests::<Uring>();
    }

    #[test]
    fn a_rush_is_taken_in_batches_until_there_is_no_room() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let (acceptor, tracker) = (Arc::new(Counter::default()), TaskTracker::new());
        let handle: Arc<dyn Acceptor> = Arc::<Counter>::clone(&acceptor);
        let listening = Arc::new(Listening { socket, address, acceptor: handle, _held: tracker.token() });
        let mut entry = Entry { number: 1, listening, batch: 1, rests: false };
        let _rush: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let mut taken = || {
            let mut accepted = Vec::new();
            entry.accept(&mut accepted).unwrap();
            accepted.len()
        };
        assert_eq!([taken(), taken(), taken()], [1, 2, 4]);
        acceptor.full.store(true, Ordering::Relaxed);
        assert_eq!([taken(), taken()], [1, 1]);
        acceptor.full.store(false, Ordering::Relaxed);
        assert_eq!(taken(), 2);
    }
}
