//! The kernel's network interfaces and their addresses: asked for, changed, watched (rtnetlink(7)).
//!
//! Requests go through a thread of their own. The kernel does what is asked for while the request is being sent, and makes
//! it wait for whatever else is changing the network at that moment: no time limit of a socket covers that. Whoever asks
//! waits for [`BOUND`] at most, unless it wants otherwise ([`Netlink::waiting`]); a request that is late is still done, and in order.
//!
//! * Thread: `netlink`, one for each [`Netlink`], ends with it. It is scheduled as the thread that opened it.
//! * Bounds: [`WAITING`] requests wait; more are refused ([`NetlinkError::Busy`]).

mod error;
mod events;
mod message;
mod worker;

use std::net::IpAddr;
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
    bound: Duration,
}

/// What is asked for, and where the answer goes.
struct Request {
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
        worker::start(queue)?;
        Ok(Self { requests, bound: BOUND })
    }

    /// The same, for where there is time: it waits for so long instead of [`BOUND`]. When many interfaces come and go (at the
    /// start of a host, or of many containers), the kernel is busy for longer than that.
    #[must_use]
    pub fn waiting(&self, bound: Duration) -> Self {
        Self { requests: self.requests.clone(), bound }
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
        let (answer, answers): (_, Receiver<_>) = sync_channel(1);
        match self.requests.try_send(Request { task, answer }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(NetlinkError::Busy { doing }),
            Err(TrySendError::Disconnected(_)) => return Err(NetlinkError::Ended { doing }),
        }
        match answers.recv_timeout(self.bound) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(NetlinkError::Late { doing, waited: began.elapsed() }),
            Err(RecvTimeoutError::Disconnected) => Err(NetlinkError::Ended { doing }),
        }
    }
}
