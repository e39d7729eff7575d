//! Options of the sockets that carry sessions: both sides get the same ones.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use pointsman_config::{Keepalive, Listener};
use rustix::net::RecvFlags;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;

/// Connections that the kernel keeps ready for accept(2); `net.core.somaxconn` caps it.
pub(crate) const BACKLOG: i32 = 4096;

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

    /// `TCP_NODELAY`, keepalive, `TCP_USER_TIMEOUT`. An error means that the peer has gone already.
    pub(crate) fn apply(self, stream: &TcpStream) -> io::Result<()> {
        let socket = SockRef::from(stream);
        socket.set_tcp_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(self.keepalive.idle)
            .with_interval(self.keepalive.interval)
            .with_retries(self.keepalive.probes.get().into());
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(self.user_timeout)
    }
}

/// A listening socket. The address may be one that this host does not have yet (a virtual IP elsewhere).
pub(crate) fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    } else {
        socket.set_freebind_v4(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Closes with an RST instead of a FIN: what the peer has not received yet is thrown away.
pub(crate) fn reset(stream: TcpStream) {
    // Fails only on a socket that is closed already; dropping it is right either way.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}

/// Sends a FIN; the peer may go on sending.
pub(crate) fn shut_down_write(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).shutdown(std::net::Shutdown::Write)
}

/// Reads without waiting. Like [`TcpStream::try_read`], but a short read also clears the readiness, which
/// saves the read that would only say that there is nothing more.
pub(crate) fn read_now(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut short = None;
    let result = stream.try_io(tokio::io::Interest::READABLE, || {
        let room = buffer.len();
        let (count, _) = rustix::net::recv(stream, &mut *buffer, RecvFlags::empty())?;
        if count > 0 && count < room {
            short = Some(count);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(count)
    });
    match short {
        Some(count) => Ok(count),
        None => result,
    }
}

/// Reads to the end, within bounds, and forgets what it read: unread input would turn our close into an
/// RST, which destroys what we have just written.
pub(crate) async fn discard(stream: &TcpStream, limit: usize, patience: Duration) {
    let reading = async {
        let mut scrap = [0; 1024];
        let mut seen = 0;
        while seen < limit && stream.readable().await.is_ok() {
            match stream.try_read(&mut scrap) {
                Ok(0) => return,
                Ok(count) => seen += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    let _ = tokio::time::timeout(patience, reading).await; // patience has an end, that is all
}

/// Writes everything, waiting as long as it takes: the caller has a deadline.
pub(crate) async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
