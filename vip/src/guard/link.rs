//! The worker's side: what it tells the guard, and hears from it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;

use pointsman_config::VipName;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::sockopt::socket_type;
use rustix::net::{RecvFlags, SendFlags, SocketType, recv, send};
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use super::wire::{Cover, Order, WireError, Word};
use crate::readiness;

/// Why there is no link to the guard.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The descriptor is none of the guard's.
    #[error(
        "descriptor {descriptor} is no link to a guard ({source}): the worker is started by `pointsman-vip run` only"
    )]
    Descriptor {
        /// Its number.
        descriptor: RawFd,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The worker's description of a virtual router cannot be sent.
    #[error("cannot tell the guard of the virtual router {router}: {source}")]
    Cover {
        /// The virtual router.
        router: VipName,
        /// Why.
        source: WireError,
    },
}

/// What the guard wants, or whoever sends SIGTERM to the worker itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Hand over and end.
    Stop,
    /// Read the configuration anew, then say [`GuardLink::ready`].
    Reload,
    /// The guard is dead: hand over and end, a new one is to start afresh.
    Gone,
}

/// The link to the guard. Nothing here waits.
///
/// A message that finds no room (the guard is stopped, say) is not lost: all that was said before is said again as soon as
/// there is room. That the guard is gone is told by [`GuardLink::command`], and by nothing else.
#[derive(Debug)]
pub struct GuardLink {
    socket: AsyncFd<OwnedFd>,
    terminate: Signals,
    /// Taken so that they do no harm: Ctrl-C and `pkill -HUP` reach the guard, too, and that is who tells us.
    _ignored: [Signals; 2],
    told: BTreeMap<VipName, Told>,
    /// No more told, and the guard may not know yet.
    forgotten: Vec<VipName>,
    ready: bool,
    status: Option<String>,
    behind: bool,
}

/// What the guard should know of a virtual router.
#[derive(Debug)]
struct Told {
    cover: Cover,
    held: bool,
}

impl GuardLink {
    /// Takes over the descriptor that the guard left us, within a tokio runtime. Once only.
    ///
    /// From here on the death of the guard ends this process: the kernel sends it SIGTERM, which [`Self::command`] answers with
    /// [`Command::Stop`], or with [`Command::Gone`]. SIGINT and SIGHUP are ignored.
    pub fn from_fd(descriptor: RawFd) -> Result<Self, LinkError> {
        let take = || -> io::Result<Self> {
            let socket = crate::sys::process::adopt(descriptor)?;
            if socket_type(&socket)? != SocketType::SEQPACKET {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
            // Without it the worker would be called "exe". It is for people only.
            let _ = std::fs::write("/proc/self/comm", super::NAME);
            // A guard that died before this is seen by the end of the link.
            set_parent_process_death_signal(Some(Signal::TERM))?;
            Self::over(socket)
        };
        take().map_err(|source| LinkError::Descriptor { descriptor, source })
    }

    fn over(socket: OwnedFd) -> io::Result<Self> {
        let flags = fcntl_getfl(&socket)?;
        fcntl_setfl(&socket, flags | OFlags::NONBLOCK)?;
        Ok(Self {
            socket: crate::sys::socket::watch(socket)?,
            terminate: signal(SignalKind::terminate())?,
            _ignored: [signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?],
            told: BTreeMap::new(),
            forgotten: Vec::new(),
            ready: false,
            status: None,
            behind: false,
        })
    }

    /// Tells what there is to clean up behind us, all of it: virtual routers that are not among these are forgotten.
    /// To be called before any of them is held (and after those that go away are held no more), and again when anything in it changes (the interface's index, our source
    /// address, the configuration).
    ///
    /// What was described for a router that is held stays known to the guard until it is held no more, so that no address
    /// slips through between an old and a new description.
    pub fn describe(&mut self, covers: &[Cover]) -> Result<(), LinkError> {
        for cover in covers {
            let refused = |source| LinkError::Cover { router: cover.router.clone(), source };
            Word::Cover(cover.clone()).encode().map_err(refused)?;
        }
        let gone: Vec<VipName> = self
            .told
            .keys()
            .filter(|name| !covers.iter().any(|cover| cover.router == **name))
            .cloned()
            .collect();
        for name in gone {
            self.told.remove(&name);
            self.say(&Word::Forget(name.clone()));
            if self.behind {
                self.forgotten.push(name);
            }
        }
        for cover in covers {
            self.forgotten.retain(|name| *name != cover.router);
            let held = self.told.get(&cover.router).is_some_and(|told| told.held);
            if self.told.get(&cover.router).is_some_and(|told| told.cover == *cover) {
                continue;
            }
            self.told.insert(cover.router.clone(), Told { cover: cover.clone(), held });
            self.say(&Word::Cover(cover.clone()));
        }
        Ok(())
    }

    /// Says that the addresses of a virtual router are about to be added (true), or have been removed.
    pub fn held(&mut self, router: &VipName, held: bool) {
        if let Some(told) = self.told.get_mut(router) {
            told.held = held;
        }
        self.say(&Word::Held(router.clone(), held));
    }

    /// A sign of life. The next one comes within `every`: three of them missing, and at least 100 ms of silence, count as a
    /// hang, and the guard kills this process. The first one starts that.
    pub fn heartbeat(&mut self, every: Duration) {
        self.say(&Word::Heartbeat(every));
    }

    /// Says that we have started, or that a reload is over (well or badly).
    pub fn ready(&mut self) {
        self.ready = true;
        self.say(&Word::Ready);
    }

    /// A line for `systemctl status`.
    pub fn status(&mut self, line: &str) {
        // One line, of a length that a person reads.
        let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
        self.status = Some(line.clone());
        self.say(&Word::Status(line));
    }

    /// The guard's next order. Cancel-safe. After [`Command::Gone`] it answers that for ever.
    pub async fn command(&mut self) -> Command {
        loop {
            if let Some(command) = self.try_command() {
                return command;
            }
            tokio::select! {
                biased;
                ready = self.socket.readable() => match ready {
                    Ok(mut ready) => ready.retain_ready(),
                    Err(_) => return Command::Gone,
                },
                _ = self.terminate.recv() => return Command::Stop,
            }
        }
    }

    /// The guard's next order, if there is one now.
    fn try_command(&self) -> Option<Command> {
        loop {
            let mut buffer = [0; 16];
            let next = readiness::take(&self.socket, |socket| {
                Ok(recv(socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT)?.0)
            });
            let length = match next {
                Ok(Some(0)) => return Some(Command::Gone),
                Ok(Some(length)) => length,
                Ok(None) => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Some(Command::Gone),
            };
            match Order::decode(buffer.get(..length).unwrap_or_default()) {
                Ok(Order::Stop) => return Some(Command::Stop),
                Ok(Order::Reload) => return Some(Command::Reload),
                Err(error) => tracing::warn!("The guard says what makes no sense: {error}"),
            }
        }
    }

    /// Says something, after what could not be said before.
    fn say(&mut self, word: &Word) {
        if self.behind && self.say_all_again() {
            self.behind = false;
            self.forgotten.clear();
        }
        if !self.behind {
            self.behind = !self.try_say(word);
        }
    }

    /// The whole truth: it does no harm to hear it twice. False when there is no room for all of it.
    fn say_all_again(&self) -> bool {
        let forgotten = self.forgotten.iter().cloned().map(Word::Forget);
        let told = self
            .told
            .iter()
            .flat_map(|(name, told)| [Word::Cover(told.cover.clone()), Word::Held(name.clone(), told.held)]);
        let ready = self.ready.then_some(Word::Ready);
        let status = self.status.clone().map(Word::Status);
        forgotten.chain(told).chain(ready).chain(status).all(|word| self.try_say(&word))
    }

    /// False when there is no room for it.
    fn try_say(&self, word: &Word) -> bool {
        let Ok(bytes) = word.encode() else {
            tracing::error!("A message for the guard is too long and is dropped");
            return true;
        };
        match send(self.socket.get_ref(), &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => false,
            // Sent; or the guard is gone, which is said elsewhere.
            Ok(_) | Err(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, socketpair};

    use super::*;

    fn cover(name: &str, index: u32) -> Cover {
        Cover {
            router: VipName::new(name).unwrap(),
            index,
            interface: "eth0".to_owned(),
            addresses: vec!["192.0.2.1/24".parse().unwrap()],
            farewells: Vec::new(),
        }
    }

    fn pair() -> (GuardLink, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap();
        (GuardLink::over(ours).unwrap(), theirs)
    }

    fn heard(guard: &OwnedFd) -> Vec<Word> {
        let mut buffer = [0; 1024];
        let mut words = Vec::new();
        while let Ok((length, _)) = recv(guard, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
            words.push(Word::decode(&buffer[..length]).unwrap());
        }
        words
    }

    #[tokio::test]
    async fn only_what_is_new_is_told() {
        let (mut link, guard) = pair();
        let (a, b) = (cover("a", 1), cover("b", 1));
        link.describe(&[a.clone(), b.clone()]).unwrap();
        link.held(&a.router, true);
        assert_eq!(
            heard(&guard),
            [Word::Cover(a.clone()), Word::Cover(b.clone()), Word::Held(a.router.clone(), true)]
        );
        let a = cover("a", 2);
        link.describe(std::slice::from_ref(&a)).unwrap();
        assert_eq!(heard(&guard), [Word::Forget(b.router), Word::Cover(a)]);
    }

    #[tokio::test]
    async fn what_found_no_room_is_said_again() {
        let (mut link, guard) = pair();
        let (a, b) = (cover("a", 1), cover("b", 1));
        link.describe(&[a.clone(), b.clone()]).unwrap();
        while !link.behind {
            link.heartbeat(Duration::from_millis(30));
        }
        link.held(&a.router, true);
        link.describe(std::slice::from_ref(&a)).unwrap();
        link.ready();
        assert!(!heard(&guard).contains(&Word::Held(a.router.clone(), true)), "there was no room");
        link.heartbeat(Duration::from_millis(30));
        let expected = [
            Word::Forget(b.router),
            Word::Cover(a.clone()),
            Word::Held(a.router, true),
            Word::Ready,
            Word::Heartbeat(Duration::from_millis(30)),
        ];
        assert_eq!(heard(&guard), expected);
    }

    #[tokio::test]
    async fn orders_arrive_and_so_does_the_end() {
        let (mut link, guard) = pair();
        for order in [Order::Reload, Order::Stop] {
            send(&guard, &order.encode(), SendFlags::NOSIGNAL).unwrap();
        }
        assert_eq!(link.command().await, Command::Reload);
        assert_eq!(link.command().await, Command::Stop);
        drop(guard);
        assert_eq!(link.command().await, Command::Gone);
        assert_eq!(link.command().await, Command::Gone);
        link.heartbeat(Duration::from_millis(30)); // harmless
    }
}
