//! Bulk: a pipe between two sockets, so that the bytes never come to us.
//!
//! A stream that fills buffers is spliced; one whose splices become small is copied again, because for small messages the pipe
//! costs more than the copy. Pipes are kept for the next stream by the core; one that still holds bytes never goes back.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// What a pipe holds, in bytes, if each of its pages is filled by itself. A pipe of 64 KiB makes the same stream cost up to twice as much.
const PIPE: usize = 256 * 1024;

/// How much is asked for at once, in bytes: bytes of a socket lie in larger pieces than pages, so that a pipe takes more.
const ASKED: usize = 1024 * 1024;

/// Empty pipes that a core keeps.
const SPARE: usize = 16;

/// A pipe, and how much is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    held: usize,
}

/// What a splice did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// So many bytes.
    Bytes(usize),
    /// Nothing: it would have had to wait.
    Wait,
    /// The source has ended.
    End,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Refused to a process that has used up its pages (fs.pipe-user-pages-soft): then copying is the better way.
        fcntl_setpipe_size(&writer, PIPE)?;
        Ok(Self { reader, writer, held: 0 })
    }

    /// Bytes in the pipe.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// From the source into the empty pipe. Empty, because a full one and an empty source look the same.
    pub(super) fn fill(&mut self, source: impl AsFd) -> io::Result<Moved> {
        let moved = moved(|| splice(&source, None, &self.writer, None, ASKED, flags()))?;
        if let Moved::Bytes(count) = moved {
            self.held += count;
        }
        Ok(moved)
    }

    /// From the pipe to the sink.
    pub(super) fn drain(&mut self, sink: impl AsFd) -> io::Result<Moved> {
        let moved = moved(|| splice(&self.reader, None, &sink, None, self.held, flags()))?;
        if let Moved::Bytes(count) = moved {
            self.held = self.held.saturating_sub(count);
        }
        Ok(moved)
    }
}

fn flags() -> SpliceFlags {
    SpliceFlags::MOVE | SpliceFlags::NONBLOCK
}

fn moved(splice: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<Moved> {
    // A signal is no reason to wait for an edge that may not come.
    match retry_on_intr(splice) {
        Ok(0) => Ok(Moved::End),
        Ok(count) => Ok(Moved::Bytes(count)),
        Err(Errno::AGAIN) => Ok(Moved::Wait),
        Err(error) => Err(error.into()),
    }
}

/// The pipes of one core.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    spare: Vec<Pipe>,
    /// The last try to make one has failed, and it was said.
    short: bool,
    /// Pipes that hold bytes of a session.
    out: usize,
}

impl Pipes {
    /// An empty pipe. `None`: there is none to be had, so the stream is copied.
    pub(super) fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.spare.pop() {
            self.out += 1;
            return Some(pipe);
        }
        match Pipe::new() {
            Ok(pipe) => {
                self.short = false;
                self.out += 1;
                Some(pipe)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.short, true) {
                    tracing::warn!(
                        "large transfers are copied instead of spliced, which costs more CPU: no pipe of 256 KiB to be had \
                         ({error}); see fs.pipe-user-pages-soft and the limit of descriptors"
                    );
                }
                None
            }
        }
    }

    /// How many are in use.
    pub(super) fn out(&self) -> usize {
        self.out
    }

    /// Takes a pipe back. One that holds bytes is closed: they belong to a session that is gone.
    pub(super) fn put(&mut self, pipe: Pipe) {
        self.out = self.out.saturating_sub(1);
        if pipe.held == 0 && self.spare.len() < SPARE {
            self.spare.push(pipe);
        }
    }
}
