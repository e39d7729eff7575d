//! Options of the sockets that carry sessions: both sides get the same ones.
//!
//! A listening socket gets them once, and the connections that are accepted from it inherit them: no system call for each. A
//! connection to a server gets at once what its first messages need, and the rest when the session has lived for a moment: most of
//! the work of a short session would be options that it does not live to use.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use pointsman_config::{Keepalive, Listener};
pub(crate) use pointsman_process::bind::{BACKLOG, listen};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::engine::{Stream, timeout_at};

/// How dead peers are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpOptions {
    keepalive: Keepalive,
    user_timeout: Option<Duration>,
}

impl TcpOptions {
    pub(crate) fn of(listener: &Listener) -> Self {
        Self { keepalive: listener.keepalive, user_timeout: listener.user_timeout }
    }

    /// Everything: for a listening socket.
    pub(crate) fn apply(self, socket: impl AsFd) -> io::Result<()> {
        SockRef::from(&socket).set_tcp_nodelay(true)?;
        self.apply_late(socket)
    }

    /// What finds a dead peer of a session that has lived for a moment: keepalive and `TCP_USER_TIMEOUT`.
    pub(crate) fn apply_late(self, socket: impl AsFd) -> io::Result<()> {
        let socket = SockRef::from(&socket);
        let keepalive = TcpKeepalive::new()
            .with_time(self.keepalive.idle)
            .with_interval(self.keepalive.interval)
            .with_retries(self.keepalive.probes.get().into());
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(self.user_timeout)
    }
}

/// A socket that is to be connected to a server.
pub(crate) fn to_connect(address: SocketAddr) -> io::Result<OwnedFd> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new_raw(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// Reads to the end, within bounds, and forgets what it read: unread input would turn our close into an
/// RST, which destroys what we have just written.
pub(crate) async fn discard(stream: &Stream, limit: usize, patience: Duration) {
    let reading = async {
        let mut scrap = Vec::new();
        let mut seen = 0;
        while seen < limit {
            scrap.clear();
            match stream.receive(&mut scrap, limit - seen).await {
                Ok(0) | Err(_) => return,
                Ok(count) => seen += count,
            }
        }
    };
    let _ = timeout_at(Instant::now() + patience, reading).await; // patience has an end, that is all
}
