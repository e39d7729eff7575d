//! A connection in the hands of a task: until its session is established, or until the client was told why not.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Poll;

use super::driver::{Close, Key};
use super::local::{Command, Local, Wire};
use super::relay::Relayed;

/// A connection on the core of its task. Dropping it closes it, with a FIN.
#[derive(Debug)]
pub(crate) struct Stream {
    wire: Rc<Wire>,
    local: Rc<Local>,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Local")
    }
}

impl Stream {
    /// One that the driver has already.
    pub(super) fn adopt(local: &Rc<Local>, key: Key) -> (Self, Rc<Wire>) {
        let wire = Rc::new(Wire::default());
        wire.key.set(Some(key));
        wire.state.borrow_mut().connected = true;
        (Self { wire: Rc::clone(&wire), local: Rc::clone(local) }, wire)
    }

    /// Connects a non-blocking socket. Cancel-safe: dropping the future ends the attempt. The caller has a deadline.
    pub(crate) async fn connect(socket: OwnedFd, to: SocketAddr) -> io::Result<Self> {
        let local = Local::here()?;
        let stream = Self { wire: Rc::default(), local };
        stream.local.order(Command::Connect { wire: Rc::clone(&stream.wire), socket, to });
        poll_fn(|context| {
            let mut state = stream.wire.state.borrow_mut();
            if state.connected {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = state.broken.take() {
                return Poll::Ready(Err(error));
            }
            state.wait(context);
            Poll::Pending
        })
        .await?;
        Ok(stream)
    }

    /// Sends, without waiting for the peer to take it: what waits is bounded by what a start-up consists of. A failure shows when
    /// something is received next.
    pub(crate) fn send(&self, bytes: &[u8]) {
        self.local.order(Command::Send { wire: Rc::clone(&self.wire), bytes: bytes.to_vec() });
    }

    /// Sends a FIN, after everything that was sent before.
    pub(crate) fn shut_down_write(&self) {
        self.local.order(Command::ShutDownWrite(Rc::clone(&self.wire)));
    }

    /// Adds up to `most` bytes of the peer's to `into`, and returns how many; 0 after its FIN. What came before an error comes
    /// first. Cancel-safe.
    pub(crate) async fn receive(&self, into: &mut Vec<u8>, most: usize) -> io::Result<usize> {
        poll_fn(|context| {
            let mut state = self.wire.state.borrow_mut();
            if !state.received.is_empty() {
                let count = most.min(state.received.len());
                into.extend(state.received.drain(..count));
                if state.received.is_empty() {
                    state.received = Vec::new();
                    if std::mem::take(&mut state.paused) {
                        self.local.order(Command::Receive(Rc::clone(&self.wire)));
                    }
                }
                return Poll::Ready(Ok(count));
            }
            if let Some(error) = &state.broken {
                return Poll::Ready(Err(again(error)));
            }
            if state.ended {
                return Poll::Ready(Ok(0));
            }
            state.wait(context);
            Poll::Pending
        })
        .await
    }

    /// Waits until there is something to receive: bytes, an end or an error. Cancel-safe.
    pub(crate) async fn readable(&self) {
        poll_fn(|context| {
            let mut state = self.wire.state.borrow_mut();
            if state.received.is_empty() && !state.ended && state.broken.is_none() {
                state.wait(context);
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Puts bytes back that were taken last: they come first again.
    pub(crate) fn put_back(&self, bytes: Vec<u8>) {
        let mut state = self.wire.state.borrow_mut();
        let later = std::mem::replace(&mut state.received, bytes);
        state.received.extend(later);
    }

    /// Hands an established session to the relay of this core. What was received of either and not taken yet is passed on first.
    pub(crate) fn relay(client: &Self, server: &Self, relayed: Box<dyn Relayed>) {
        client.local.order(Command::Relay {
            client: Rc::clone(&client.wire),
            server: Rc::clone(&server.wire),
            relayed,
        });
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // After a hand-over the wire has no key any more: nothing is closed then.
        self.local.order(Command::Close { wire: Rc::clone(&self.wire), how: Close::Fin });
    }
}

/// The same error once more: an [`io::Error`] cannot be cloned.
fn again(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}
