//! A running worker, as the guard sees it.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::ledger::Ledger;
use super::vigil::Vigil;
use super::wire::{LONGEST, Order, WireError, Word};
use super::{LINK_OPTION, NAME, WorkerProgram};

/// How many messages are taken in a row, before the guard looks at the rest of the world.
const IN_A_ROW: u32 = 256;
/// What may be under way from the worker to us, in bytes as the kernel counts them.
const QUEUE: usize = 1 << 20;

/// A worker, and what it has told.
#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    /// Readable when it is dead, all its threads.
    pub(super) pidfd: OwnedFd,
    pub(super) link: OwnedFd,
    pub(super) ledger: Ledger,
    pub(super) vigil: Vigil,
    pub(super) started: Instant,
    buffer: Vec<u8>,
}

/// What came from the worker.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Anything at all.
    pub(super) anything: bool,
    /// It has started, or a reload is over.
    pub(super) ready: bool,
    pub(super) status: Option<String>,
    pub(super) senseless: Option<WireError>,
    /// Its end of the link is closed: it is dying, or has lost its senses.
    pub(super) closed: bool,
}

impl Worker {
    /// Starts one. This thread must not end before it does: that would be our death in its eyes.
    pub(super) fn start(program: &WorkerProgram) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (link, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        set_socket_send_buffer_size(&theirs, QUEUE)?;
        // Nobody else in this process starts programs, so only the worker inherits it.
        fcntl_setfd(&theirs, FdFlags::empty())?;
        let mut child = Command::new(&program.program)
            .arg0(NAME)
            .args(&program.arguments)
            .arg(LINK_OPTION)
            .arg(theirs.as_raw_fd().to_string())
            .env_remove("NOTIFY_SOCKET") // systemd hears the guard alone
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::null())
            .spawn()?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self {
                child,
                pidfd,
                link,
                ledger: Ledger::default(),
                vigil: Vigil::new(),
                started: Instant::now(),
                buffer: vec![0; LONGEST],
            }),
            Err(error) => {
                // Nobody would watch over it. It holds nothing yet.
                child.kill()?;
                child.wait()?;
                Err(error.into())
            }
        }
    }

    /// Takes what it has said.
    pub(super) fn listen(&mut self) -> Heard {
        let mut heard = Heard::default();
        for _ in 0..IN_A_ROW {
            let length = match recv(&self.link, self.buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((0, _)) => {
                    heard.closed = true;
                    break;
                }
                Ok((length, _)) => length,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    heard.closed = true;
                    break;
                }
            };
            heard.anything = true;
            match Word::decode(self.buffer.get(..length).unwrap_or_default()) {
                Ok(word) => self.note(word, &mut heard),
                Err(error) => heard.senseless = Some(error),
            }
        }
        heard
    }

    fn note(&mut self, word: Word, heard: &mut Heard) {
        match word {
            Word::Ready => heard.ready = true,
            Word::Heartbeat(every) => self.vigil.heard(every),
            Word::Cover(cover) => self.ledger.cover(cover),
            Word::Forget(router) => self.ledger.forget(&router),
            Word::Held(router, held) => self.ledger.held(&router, held),
            Word::Status(line) => heard.status = Some(line),
        }
    }

    /// Orders something. A worker that does not listen is found out by its silence.
    pub(super) fn order(&self, order: Order) {
        let _ = send(&self.link, &order.encode(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    /// Kills it. From here on it runs no more code of its own, whatever it was doing.
    pub(super) fn kill(&self) {
        // An error means that it is dead already.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Waits until it is dead; false when it is not after so long.
    pub(super) fn is_dead_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut descriptors = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match poll(&mut descriptors, Timespec::try_from(left).ok().as_ref()) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// How it ended, if it is dead.
    pub(super) fn ending(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}
