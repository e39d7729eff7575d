//! System calls of the load generator and of the server, one wrapper for each.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::event::epoll::{self, Event};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrV4, SocketFlags, SocketType, bind, connect, recv,
    send as send_to_kernel, socket_with,
};

use crate::wire::{ANSWER, Pattern, startup};

/// How long anything may take that normally takes microseconds.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for events and appends them to `events`. `None`: for ever. A signal is no error.
pub fn wait(epoll: impl AsFd, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    match epoll::wait(epoll, rustix::buffer::spare_capacity(events), timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Reads what is there. `None`: nothing yet; 0: the end.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    some(recv(socket, buffer, RecvFlags::empty()).map(|(_, count)| count))
}

/// As [`receive`], but the bytes are thrown away in the kernel (`MSG_TRUNC`, see tcp(7)): the reader's memory must not
/// be what limits a bulk stream.
pub fn discard(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    some(recv(socket, buffer, RecvFlags::TRUNC).map(|(_, count)| count))
}

/// Sends as much as there is room for. `None`: there is none.
pub fn send(socket: impl AsFd, bytes: &[u8]) -> io::Result<Option<usize>> {
    some(send_to_kernel(socket, bytes, SendFlags::NOSIGNAL))
}

fn some(outcome: Result<usize, Errno>) -> io::Result<Option<usize>> {
    match outcome {
        Ok(count) => Ok(Some(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sends all of a small message. There is always room for the one message that is on its way; should there be none,
/// it waits.
pub fn transmit(socket: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    let mut deadline = None;
    while !rest.is_empty() {
        if let Some(count) = send(&socket, rest)? {
            rest = rest.get(count..).unwrap_or_default();
            continue;
        }
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + DEADLINE);
        if Instant::now() > deadline {
            return Err(ErrorKind::TimedOut.into());
        }
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&second))?;
    }
    Ok(())
}

/// A new socket that connects without blocking; it may still be on its way.
pub fn dial(target: SocketAddr) -> io::Result<TcpStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::of(target), SocketType::STREAM, flags, None)?;
    match connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket.into()),
        Err(error) => Err(error.into()),
    }
}

/// Opens a session and waits for the answer to its start-up. `source`: our address; there are not enough ports for tens
/// of thousands of sessions between two addresses.
pub fn begin(target: SocketAddr, source: Option<Ipv4Addr>, pattern: Pattern) -> Result<TcpStream> {
    let socket = socket_with(AddressFamily::of(target), SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    if let Some(source) = source {
        bind(&socket, &SocketAddrV4::new(source, 0))?;
    }
    connect(&socket, &target).with_context(|| format!("cannot connect to {target}"))?;
    let socket = TcpStream::from(socket);
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.set_nodelay(true)?;
    transmit(&socket, &startup("bench", &pattern.to_string()))?;
    let mut answer = [0; ANSWER.len()];
    io::Read::read_exact(&mut &socket, &mut answer)
        .with_context(|| format!("no answer to a start-up message through {target}"))?;
    ensure!(answer == ANSWER, "a strange answer to a start-up message through {target}");
    socket.set_nonblocking(true)?;
    Ok(socket)
}

trait FamilyOf {
    fn of(address: SocketAddr) -> Self;
}

impl FamilyOf for AddressFamily {
    fn of(address: SocketAddr) -> Self {
        if address.is_ipv4() { Self::INET } else { Self::INET6 }
    }
}
