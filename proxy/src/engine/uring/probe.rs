//! Whether this kernel does what the driver needs, tried out from the thread that will ask for it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::{Completion, Operation, Payload, Ring, Waiting};
use crate::engine::sys::ring::refused;

/// Each step is done at once, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(1);

/// Receives twice with one multishot operation, sends from a buffer, fills the socket, cancels, closes. The error says what does not work.
pub(super) fn probe(ring: &mut Ring) -> io::Result<()> {
    let (ours, mut theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_read_timeout(Some(PATIENCE))?;
    let index = ring.adopt(ours.into()).ok_or_else(|| failed("descriptors"))?;
    ring.receive(index);
    for word in [b"one", b"two"] {
        theirs.write_all(word)?;
        let buffer = receive_once(ring, word)?;
        send_once(ring, index, buffer, &mut theirs, word)?;
    }
    fill(ring, index)?;
    ring.cancel(index, Operation::Receive);
    match next(ring)? {
        Some(Completion::Received { result, more: false, .. }) if result == -libc::ECANCELED => {}
        other => return Err(unexpected("cancel", other.as_ref())),
    }
    if !ring.dismiss(index) {
        match next(ring)? {
            Some(Completion::Closed) => {}
            other => return Err(unexpected("close", other.as_ref())),
        }
    }
    Ok(())
}

/// The next completion that comes in time.
fn next(ring: &mut Ring) -> io::Result<Option<Completion>> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(completion) = ring.next() {
            return Ok(Some(completion));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        ring.wait(1, Some(left)).map_err(|error| refused("io_uring_enter", &error))?;
    }
}

fn receive_once(ring: &mut Ring, word: &[u8]) -> io::Result<u16> {
    match next(ring)? {
        Some(Completion::Received { result, buffer: Some(buffer), more: true, .. })
            if u32::try_from(result).is_ok_and(|length| ring.bytes(buffer, length) == word) =>
        {
            Ok(buffer)
        }
        other => Err(unexpected("multishot receive", other.as_ref())),
    }
}

fn send_once(ring: &mut Ring, index: u32, buffer: u16, to: &mut UnixStream, word: &[u8]) -> io::Result<()> {
    let length = u32::try_from(word.len()).unwrap_or(0);
    if !ring.send_buffer(index, buffer, length) {
        return Err(failed("send"));
    }
    match next(ring)? {
        Some(Completion::Sent { result, payload: Payload::Buffer(buffer, _), .. })
            if usize::try_from(result) == Ok(word.len()) =>
        {
            ring.give_back(buffer);
        }
        other => return Err(unexpected("send", other.as_ref())),
    }
    let mut got = [0; 3];
    to.read_exact(&mut got)?;
    if got == *word { Ok(()) } else { Err(failed("send")) }
}

/// A send that finds no room has to say so at once: one that waited in the kernel would go on by itself.
fn fill(ring: &mut Ring, index: u32) -> io::Result<()> {
    const MUCH: usize = 64 * 1024 * 1024;
    let mut sent = 0;
    while sent < MUCH {
        let block = Box::new(Waiting { bytes: vec![0; 64 * 1024], from: 0 });
        ring.send_owned(index, block).map_err(|_| failed("send"))?;
        match next(ring)? {
            Some(Completion::Sent { result, .. }) if result > 0 => {
                sent += usize::try_from(result).unwrap_or(0);
            }
            Some(Completion::Sent { result, .. }) if result == -libc::EAGAIN => return Ok(()),
            other => return Err(unexpected("send without waiting", other.as_ref())),
        }
    }
    Err(failed("send without waiting"))
}

fn failed(step: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("io_uring {step} does not work"))
}

/// What came instead of what was expected.
fn unexpected(step: &str, completion: Option<&Completion>) -> io::Error {
    let result = match completion {
        Some(
            Completion::Received { result, .. }
            | Completion::Sent { result, .. }
            | Completion::Polled { result, .. },
        ) => *result,
        Some(Completion::NotCancelled { .. } | Completion::Watched(_) | Completion::Closed) => 0,
        None => {
            return io::Error::new(io::ErrorKind::TimedOut, format!("io_uring {step}: no completion came"));
        }
    };
    if result < 0 {
        let error = io::Error::from_raw_os_error(-result);
        return refused(&format!("io_uring {step}"), &error);
    }
    failed(step)
}
