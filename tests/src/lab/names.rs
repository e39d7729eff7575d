//! A tiny server on each host that answers every connection with the number of its host.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, accept_with, bind, listen, send, socket_with, sockopt,
};

use super::namespace::Namespace;

/// Where it listens.
pub const PORT: u16 = 5000;
/// So many connections stay open for their clients to read the answer: clients close first.
const OPEN: usize = 64;

/// Starts the servers of all hosts in one thread, which ends with the program.
pub(super) fn serve(hosts: &[&Namespace]) -> Result<()> {
    let mut listeners: Vec<(u8, OwnedFd)> = Vec::new();
    for (number, host) in hosts.iter().enumerate() {
        for address in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let listener = host.within(|| listener(SocketAddr::from((address, PORT))))?;
            listeners.push((u8::try_from(number)?, listener));
        }
    }
    thread::Builder::new().name("names".to_owned()).spawn(move || {
        if let Err(error) = answer(&listeners) {
            eprintln!("pointsman-tests: the servers of the lab: {error:#}");
            std::process::exit(1);
        }
    })?;
    Ok(())
}

fn listener(address: SocketAddr) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::of(address), SocketType::STREAM, flags, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Accepted sockets inherit it: no connection leaves anything behind when it is closed.
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    bind(&socket, &address).context("cannot bind the server of a host")?;
    listen(&socket, 512)?;
    Ok(socket)
}

trait Of {
    fn of(address: SocketAddr) -> Self;
}

impl Of for AddressFamily {
    fn of(address: SocketAddr) -> Self {
        if address.is_ipv6() { Self::INET6 } else { Self::INET }
    }
}

fn answer(listeners: &[(u8, OwnedFd)]) -> Result<()> {
    let mut open: VecDeque<OwnedFd> = VecDeque::new();
    loop {
        let mut waiting: Vec<PollFd<'_>> = listeners
            .iter()
            .map(|(_, listener)| PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN))
            .collect();
        poll(&mut waiting, None)?;
        let ready: Vec<bool> = waiting.iter().map(|entry| !entry.revents().is_empty()).collect();
        for ((number, listener), _) in listeners.iter().zip(ready).filter(|(_, ready)| *ready) {
            // A client that has gone meanwhile is no error.
            let Ok(socket) = accept_with(listener, SocketFlags::CLOEXEC) else { continue };
            let _ = send(&socket, &[*number], SendFlags::NOSIGNAL);
            open.push_back(socket);
            if open.len() > OPEN {
                open.pop_front();
            }
        }
    }
}
