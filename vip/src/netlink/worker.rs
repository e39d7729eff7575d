//! The thread that enters the kernel.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netdevice, recvfrom, sendto,
    socket_with,
};

use super::message::{self, Content};
use super::{Address, Answer, Doing, Lifetime, LinkInfo, LinkState, NetlinkError, Progress, Request, Task};
use crate::sys::socket::set_netlink_strict;

/// How long the thread itself waits for an answer: the kernel has done all of a request by the time that it is sent, so
/// this never passes unless the answer was lost.
const PATIENCE: Duration = Duration::from_millis(500);
/// The kernel never makes a datagram of a list longer than this.
const BUFFER: usize = 32 * 1024;
/// How often a list is read again that changed while it was read.
const TRIES: u32 = 5;

/// Starts the thread. It ends when nobody can send requests any more.
pub(super) fn start(queue: Receiver<Request>, progress: Arc<Progress>) -> Result<(), NetlinkError> {
    let mut worker = Worker::open().map_err(|source| NetlinkError::Open { source })?;
    let first = crate::sys::process::is_scheduled_first();
    thread::Builder::new()
        .name("netlink".to_owned())
        .spawn(move || {
            if first {
                // Whoever waits for this thread was scheduled first and must not be held up by it. It was possible a moment
                // ago, and if it is not now, it only is slower.
                let _ = crate::privileges::take_realtime();
            }
            while let Ok(Request { number, task, answer }) = queue.recv() {
                let result = worker.perform(&task);
                progress.done.store(number, Ordering::Release);
                let _ = answer.try_send(result); // whoever asked may have given up waiting
            }
        })
        .map(|_| ())
        .map_err(|source| NetlinkError::Open { source })
}

/// A netlink socket, bound.
pub(super) fn open_socket(groups: u32, flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    // No protocol is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// Takes the next datagram that comes from the kernel itself: any process may send to a netlink socket.
pub(super) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        let (length, _, sender) = recvfrom(socket, &mut *buffer, RecvFlags::empty())?;
        let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
        if sender.is_some_and(|sender| sender.pid() == 0) {
            return Ok(length);
        }
    }
}

struct Worker {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// What went wrong, before it is known with what.
enum Failure {
    Kernel(io::Error),
    Senseless(String),
}

impl Failure {
    /// Of a code that the kernel has answered.
    fn of(code: i32) -> Self {
        Self::Kernel(io::Error::from_raw_os_error(code))
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::Kernel(error.into())
    }
}

impl Worker {
    fn open() -> io::Result<Self> {
        let socket = open_socket(0, SocketFlags::empty())?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        // Kernels before 4.20 do not know it and send more than was asked for, which is sorted out below.
        let _ = set_netlink_strict(socket.as_fd());
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    fn perform(&mut self, task: &Task) -> Result<Answer, NetlinkError> {
        let (result, interface) = match task {
            Task::Add(index, addresses, lifetime) => {
                (self.add(*index, addresses, *lifetime).map(|()| Answer::Done), self.name(*index))
            }
            Task::Remove(addresses) => match self.remove(addresses) {
                Ok(()) => return Ok(Answer::Done),
                Err((index, failure)) => (Err(failure), self.name(index)),
            },
            Task::Addresses(index) => (self.addresses(*index).map(Answer::Addresses), self.name(*index)),
            Task::Link(name) => (self.link(name).map(Answer::Link), name.clone()),
            Task::LinkState(index) => {
                let bytes = message::get_link(*index, self.next());
                (self.one_link(&bytes).map(Answer::LinkState), self.name(*index))
            }
        };
        let doing = || Doing::of(task);
        result.map_err(|failure| match failure {
            Failure::Kernel(source) => NetlinkError::Refused { doing: doing(), interface, source },
            Failure::Senseless(problem) => NetlinkError::Answer { doing: doing(), problem },
        })
    }

    /// For messages only.
    fn name(&self, index: u32) -> String {
        netdevice::index_to_name(&self.socket, index).unwrap_or_else(|_| format!("number {index}"))
    }

    fn add(&mut self, index: u32, nets: &[IpNet], lifetime: Lifetime) -> Result<(), Failure> {
        let present =
            if nets.iter().any(|net| net.addr().is_ipv6()) { self.addresses(index)? } else { Vec::new() };
        let mut batch = Vec::new();
        for net in nets {
            let shares_route = present.iter().any(|other| brings_route(other, net));
            batch.extend(message::add(index, *net, lifetime, shares_route, self.next()));
        }
        self.change(&batch, nets.len(), &[]).map_or(Ok(()), |(_, failure)| Err(failure))
    }

    fn remove(&mut self, addresses: &[(u32, IpNet)]) -> Result<(), (u32, Failure)> {
        let mut batch = Vec::new();
        for (index, net) in addresses {
            batch.extend(message::remove(*index, *net, self.next()));
        }
        match self.change(&batch, addresses.len(), &[libc::EADDRNOTAVAIL, libc::ENODEV]) {
            None => Ok(()),
            Some((place, failure)) => Err((addresses.get(place).map_or(0, |(index, _)| *index), failure)),
        }
    }

    /// Sends changes, the last one with the current number; the first that failed, with its place.
    fn change(&mut self, batch: &[u8], count: usize, harmless: &[i32]) -> Option<(usize, Failure)> {
        if count == 0 {
            return None;
        }
        if let Err(error) = self.send(batch) {
            return Some((0, error.into()));
        }
        let first = self.sequence.wrapping_sub(u32::try_from(count - 1).unwrap_or(0));
        let mut failure: Option<(usize, Failure)> = None;
        let mut open = count;
        while open > 0 {
            let messages = match self.receive() {
                Ok(messages) => messages,
                Err(error) => return Some(failure.unwrap_or((0, error.into()))),
            };
            for message in messages {
                let place = usize::try_from(message.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                let Content::Acknowledged(code) = message.content else { continue };
                if place >= count {
                    continue; // late, of a request that was given up
                }
                open -= 1;
                if code != 0 && failure.is_none() && !harmless.contains(&code) {
                    failure = Some((place, Failure::of(code)));
                }
            }
        }
        failure
    }

    fn addresses(&mut self, index: u32) -> Result<Vec<Address>, Failure> {
        for _ in 0..TRIES {
            let bytes = message::list_addresses(index, self.next());
            self.send(&bytes)?;
            match self.read_addresses(index) {
                Err(Failure::Kernel(error)) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(Failure::Kernel(error)) if error.raw_os_error() == Some(libc::ENODEV) => {
                    return Ok(Vec::new());
                }
                result => return result,
            }
        }
        Err(Failure::Senseless("the list changed each time that it was read".to_owned()))
    }

    fn read_addresses(&mut self, index: u32) -> Result<Vec<Address>, Failure> {
        let mut addresses = Vec::new();
        loop {
            for message in self.receive()? {
                if message.sequence != self.sequence {
                    continue;
                }
                match message.content {
                    Content::Address(of, address) if of == index => addresses.push(address),
                    Content::Acknowledged(0) | Content::End(0) => return Ok(addresses),
                    Content::Acknowledged(code) | Content::End(code) => {
                        return Err(Failure::of(code));
                    }
                    Content::Senseless(problem) => return Err(Failure::Senseless(problem)),
                    Content::Address(..)
                    | Content::AddressGone(..)
                    | Content::Link(_)
                    | Content::LinkGone(_)
                    | Content::Other => {}
                }
            }
        }
    }

    fn link(&mut self, name: &str) -> Result<Option<LinkInfo>, Failure> {
        let bytes = message::get_link_by_name(name, self.next());
        let Some(LinkState { index, name, mac, up, carrier }) = self.one_link(&bytes)? else {
            return Ok(None);
        };
        let addresses = self.addresses(index)?;
        Ok(Some(LinkInfo { index, name, mac, up, carrier, addresses }))
    }

    fn one_link(&mut self, request: &[u8]) -> Result<Option<LinkState>, Failure> {
        self.send(request)?;
        let mut link = None;
        loop {
            for message in self.receive()? {
                if message.sequence != self.sequence {
                    continue;
                }
                match message.content {
                    Content::Link(state) => link = Some(state),
                    Content::Acknowledged(0) | Content::End(0) => return Ok(link),
                    Content::Acknowledged(libc::ENODEV) => return Ok(None),
                    Content::Acknowledged(code) | Content::End(code) => {
                        return Err(Failure::of(code));
                    }
                    Content::Senseless(problem) => return Err(Failure::Senseless(problem)),
                    Content::Address(..)
                    | Content::AddressGone(..)
                    | Content::LinkGone(_)
                    | Content::Other => {}
                }
            }
        }
    }

    fn next(&mut self) -> u32 {
        // Events have 0.
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        sendto(&self.socket, bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0)).map(|_| ())
    }

    fn receive(&mut self) -> Result<Vec<message::Incoming>, Errno> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match receive(&self.socket, &mut self.buffer) {
                Ok(length) => return Ok(message::read(&self.buffer[..length])),
                Err(Errno::INTR) if Instant::now() < deadline => {}
                Err(Errno::AGAIN) => return Err(Errno::TIMEDOUT),
                Err(error) => return Err(error),
            }
        }
    }
}

/// True when this address of the interface brings the route to the network of `net`, and for longer than ours would.
fn brings_route(other: &Address, net: &IpNet) -> bool {
    let lasts = match (other.lifetime, Lifetime::HELD) {
        (Lifetime::For(time), Lifetime::For(held)) => time > held,
        (Lifetime::Permanent, _) | (_, Lifetime::Permanent) => true,
    };
    lasts && other.net.addr() != net.addr() && other.net.trunc() == net.trunc()
}
