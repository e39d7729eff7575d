//! Sockets that are asked without waiting, and waited for.

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Asks a non-blocking socket for its next datagram, whether or not the runtime has noticed it yet: what is queued is seen
/// before any timer. When there is none, the runtime is told, so that its next `readable()` waits.
pub(crate) fn take<S: AsRawFd, T>(
    socket: &AsyncFd<S>,
    mut receive: impl FnMut(&S) -> io::Result<T>,
) -> io::Result<Option<T>> {
    let result = match receive(socket.get_ref()) {
        // Once more, now so that the runtime sees the outcome; one that comes in between is found.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.try_io(Interest::READABLE, receive),
        result => result,
    };
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
