//! The kernel's network interfaces and their addresses: asked for, changed, watched (rtnetlink(7)).
//!
//! Requests go through a thread of their own. The kernel does what is asked for while the request is being sent, and makes
//! it wait for whatever else is changing the network at that moment: no time limit of a socket covers that. Whoever asks
//! waits for [`BOUND`] at most, unless it wants otherwise ([`Netlink::waiting`]). A change that is late is still made, in its
//! order; while one is, the next ones are taken and not waited for at all, and nothing is read: so a kernel that is busy for
//! long costs whoever asks for many things not much more than one bound.
//!
//! * Thread: `netlink`, one for each [`Netlink`], ends with it. It is scheduled as the thread that opened it.
//! * Bounds: [`WAITING`] requests wait; more are refused ([`NetlinkError::Busy`]).

mod error;
mod events;
mod message;
mod worker;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use pointsman_vrrp::frame::Mac;

pub use error::{Doing, NetlinkError};
pub use events::{NetlinkEvent, NetlinkEvents};

/// How long whoever asks waits for the kernel.
pub const BOUND: Duration = Duration::from_millis(20);
/// How many requests may wait for the one that the kernel is busy with.
pub const WAITING: usize = 64;

/// How long the kernel keeps an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is removed.
    Permanent,
    /// For so long (whole seconds, at least one) after it was last added. IPv6: it is never chosen as a source address.
    For(Duration),
}

impl Lifetime {
    /// Of the addresses that we hold: they vanish by themselves when nobody is left to remove them.
    pub const HELD: Self = Self::For(Duration::from_secs(2));
}

/// How often an address with [`Lifetime::HELD`] is added again.
pub const REFRESH: Duration = Duration::from_millis(500);

/// A network interface without its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// Its number. An interface that is deleted and made again has another one.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address, if it has one.
    pub mac: Option<Mac>,
    /// It is set up.
    pub up: bool,
    /// It has a carrier: a cable and somebody at the other end.
    pub carrier: bool,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address, if it has one.
    pub mac: Option<Mac>,
    /// It is set up.
    pub up: bool,
    /// It has a carrier.
    pub carrier: bool,
    /// Its addresses, in the kernel's order.
    pub addresses: Vec<Address>,
}

impl LinkInfo {
    /// The address that adverts come from: of those which are not `virtual_addresses`, the first (IPv4) or the link-local one
    /// (IPv6).
    pub fn source(&self, ipv6: bool, virtual_addresses: &[IpNet]) -> Option<IpAddr> {
        let is_own = |address: &Address| {
            address.usable && !virtual_addresses.iter().any(|other| other.addr() == address.net.addr())
        };
        let is_source = |address: &IpAddr| match address {
            IpAddr::V4(_) => !ipv6,
            IpAddr::V6(address) => ipv6 && address.is_unicast_link_local(),
        };
        self.addresses
            .iter()
            .filter(|address| is_own(address))
            .map(|address| address.net.addr())
            .find(is_source)
    }
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// With its prefix.
    pub net: IpNet,
    /// Packets can come from it: it does not wait for the check that nobody else has it (IPv6), and has not failed that.
    pub usable: bool,
    /// IPv4: not the first one of its network on this interface.
    pub secondary: bool,
    /// How long the kernel keeps it from now on, in whole seconds.
    pub lifetime: Lifetime,
}

/// Requests to the kernel. Dropping it waits for nothing: what is under way is still done.
#[derive(Debug)]
pub struct Netlink {
    requests: SyncSender<Request>,
    progress: Arc<Progress>,
    bound: Duration,
}

/// How far the thread is, in requests.
#[derive(Debug, Default)]
struct Progress {
    asked: AtomicU64,
    /// The last one that whoever asked did not wait for any longer.
    given_up: AtomicU64,
    done: AtomicU64,
}

impl Progress {
    /// The thread has not come to the end of what took too long.
    fn is_behind(&self) -> bool {
        self.given_up.load(Ordering::Acquire) > self.done.load(Ordering::Acquire)
    }
}

/// What is asked for, and where the answer goes.
struct Request {
    number: u64,
    task: Task,
    answer: SyncSender<Result<Answer, NetlinkError>>,
}

#[derive(Debug)]
enum Task {
    /// In one go, so that the kernel is entered once.
    Add(u32, Vec<IpNet>, Lifetime),
    Remove(Vec<(u32, IpNet)>),
    Addresses(u32),
    Link(String),
    LinkState(u32),
}

enum Answer {
    Done,
    Addresses(Vec<Address>),
    Link(Option<LinkInfo>),
    LinkState(Option<LinkState>),
}

impl Netlink {
    /// Opens it in the network namespace of this thread.
    pub fn open() -> Result<Self, NetlinkError> {
        let (requests, queue) = sync_channel(WAITING);
        let progress = Arc::new(Progress::default());
        worker::start(queue, Arc::clone(&progress))?;
        Ok(Self { requests, progress, bound: BOUND })
    }

    /// The same, for where there is time: it waits for so long instead of [`BOUND`]. When many interfaces come and go (at the
    /// start of a host, or of many containers), the kernel is busy for longer than that.
    #[must_use]
    pub fn waiting(&self, bound: Duration) -> Self {
        Self { requests: self.requests.clone(), progress: Arc::clone(&self.progress), bound }
    }

    /// Adds an address to an interface, or makes the life of one that is there as long as this says. IPv6: without waiting
    /// for a check that nobody else has it.
    pub fn add(&self, index: u32, address: IpNet, lifetime: Lifetime) -> Result<(), NetlinkError> {
        self.add_all(index, &[address], lifetime)
    }

    /// [`Self::add`] for several addresses at once. All are tried; the answer is the first error.
    pub fn add_all(&self, index: u32, addresses: &[IpNet], lifetime: Lifetime) -> Result<(), NetlinkError> {
        self.ask(Task::Add(index, addresses.to_vec(), lifetime)).map(|_| ())
    }

    /// Removes an address from an interface. One that is not there is no error, nor is an interface that is gone.
    pub fn remove(&self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        self.remove_all(vec![(index, address)])
    }

    /// [`Self::remove`] for several addresses at once. All are tried; the answer is the first error.
    pub fn remove_all(&self, addresses: Vec<(u32, IpNet)>) -> Result<(), NetlinkError> {
        self.ask(Task::Remove(addresses)).map(|_| ())
    }

    /// The addresses of an interface; none when there is no such interface.
    pub fn addresses(&self, index: u32) -> Result<Vec<Address>, NetlinkError> {
        match self.ask(Task::Addresses(index))? {
            Answer::Addresses(addresses) => Ok(addresses),
            Answer::Done | Answer::Link(_) | Answer::LinkState(_) => Ok(Vec::new()),
        }
    }

    /// An interface with its addresses; `None` when there is none of this name.
    pub fn link(&self, name: &str) -> Result<Option<LinkInfo>, NetlinkError> {
        match self.ask(Task::Link(name.to_owned()))? {
            Answer::Link(link) => Ok(link),
            Answer::Done | Answer::Addresses(_) | Answer::LinkState(_) => Ok(None),
        }
    }

    /// An interface without its addresses; `None` when it is gone.
    ///
    /// Cheap, and newer than any event: the kernel may hold back the event of a lost carrier for up to a second when there
    /// was another one a moment ago, while this shows it at once.
    pub fn link_state(&self, index: u32) -> Result<Option<LinkState>, NetlinkError> {
        match self.ask(Task::LinkState(index))? {
            Answer::LinkState(state) => Ok(state),
            Answer::Done | Answer::Addresses(_) | Answer::Link(_) => Ok(None),
        }
    }

    fn ask(&self, task: Task) -> Result<Answer, NetlinkError> {
        let began = Instant::now();
        let doing = Doing::of(&task);
        let is_behind = self.bound <= BOUND && self.progress.is_behind();
        if is_behind && !task.is_change() {
            return Err(NetlinkError::Busy { doing });
        }
        let number = self.progress.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let (answer, answers): (_, Receiver<_>) = sync_channel(1);
        match self.requests.try_send(Request { number, task, answer }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(NetlinkError::Busy { doing }),
            Err(TrySendError::Disconnected(_)) => return Err(NetlinkError::Ended { doing }),
        }
        let bound = if is_behind { Duration::ZERO } else { self.bound };
        match answers.recv_timeout(bound) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                self.progress.given_up.fetch_max(number, Ordering::AcqRel);
                Err(NetlinkError::Late { doing, waited: began.elapsed() })
            }
            Err(RecvTimeoutError::Disconnected) => Err(NetlinkError::Ended { doing }),
        }
    }
}

impl Task {
    /// Worth doing even if nobody waits for it.
    fn is_change(&self) -> bool {
        matches!(self, Self::Add(..) | Self::Remove(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_the_kernel_is_busy_changes_are_taken_and_nobody_waits_twice() {
        let (requests, queue) = sync_channel(WAITING);
        let netlink = Netlink { requests, progress: Arc::default(), bound: BOUND };
        let net: IpNet = "192.0.2.1/24".parse().unwrap();
        let is_late = |result| matches!(result, Err(NetlinkError::Late { .. }));
        let began = Instant::now();
        assert!(is_late(netlink.add(1, net, Lifetime::HELD)));
        assert!(began.elapsed() >= BOUND);
        let began = Instant::now();
        for _ in 0..20 {
            assert!(is_late(netlink.remove(1, net)));
            assert!(matches!(netlink.link_state(1), Err(NetlinkError::Busy { .. })));
        }
        assert!(began.elapsed() < 20 * BOUND);

        let taken: Vec<Request> = queue.try_iter().collect();
        assert_eq!(taken.len(), 21, "changes are, what would only read is not");
        netlink.progress.done.store(taken.last().unwrap().number, Ordering::Release);
        let began = Instant::now();
        assert!(is_late(netlink.add(1, net, Lifetime::HELD)));
        assert!(began.elapsed() >= BOUND, "it waits again");

        while !matches!(netlink.remove(1, net), Err(NetlinkError::Busy { .. })) {}
        drop(queue);
        assert!(matches!(netlink.remove(1, net), Err(NetlinkError::Ended { .. })));
    }
}
