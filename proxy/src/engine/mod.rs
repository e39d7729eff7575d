//! The relay engine: one thread for each core, on which sessions are accepted, started and relayed.
//!
//! * [`driver`]: what a core needs of the kernel; [`epoll`] and [`uring`] are the two backends.
//! * [`core`]: the loop of a core. [`accept`]: listening sockets. [`walk`]: what is done with many sessions at once.
//! * [`local`], [`stream`]: what tasks (sessions that are being started) can do there.
//! * [`relay`], [`flows`], [`splice`]: established sessions.
//! * [`inbox`], [`alarm`]: how other threads reach a core.
//!
//! A session never changes its core. Until it is established it is a task: the code in `listener` is written as if it were alone in
//! the world. Then the task hands its two sockets over and ends, and what is left of the session is an entry in a table.
//!
//! Threads: the cores, owned by [`Engine`], which stops and joins them when it is dropped. tokio does the rest of the process: the
//! store, the admin interface, timers of the hold queues.

mod accept;
mod alarm;
#[cfg(test)]
mod conformance;
mod core;
mod driver;
mod epoll;
#[cfg(test)]
pub(crate) mod faulty;
mod flows;
mod inbox;
mod local;
mod relay;
mod slots;
mod splice;
mod stream;
mod sys;
mod uring;
mod walk;

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

pub(crate) use self::accept::{Acceptor, Listening};
use self::core::Core;
use self::driver::Driver;
use self::epoll::Epoll;
use self::inbox::{Inbox, Message};
pub(crate) use self::local::{Task, now, resolve, timeout_at};
pub(crate) use self::relay::{End, Relayed, Side};
pub(crate) use self::stream::Stream;
use self::uring::Uring;

/// Why there is no relay engine.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the relay engine: {0}")]
pub struct EngineError(#[from] io::Error);

/// The relay engine of a process. Dropping it ends every session that is left.
#[derive(Debug)]
pub struct Engine {
    cores: Cores,
    threads: Vec<JoinHandle<()>>,
}

/// The cores, for those who have something to tell them.
#[derive(Clone, Debug)]
pub struct Cores {
    inboxes: Arc<[Arc<Inbox>]>,
    backend: &'static str,
}

/// A core that has not begun a round for so long is stuck: it begins one each second.
const STUCK: Duration = Duration::from_secs(10);

/// What the cores look like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreState {
    /// Established sessions on it.
    pub sessions: usize,
    /// Sockets on it, those being closed included.
    pub sockets: usize,
    /// Pipes that its splices hold.
    pub pipes: usize,
    /// Rounds of its loop so far: each takes whatever has come, so few rounds for many bytes mean that it is busy.
    pub rounds: u64,
}

impl Engine {
    /// Starts the threads, as many as `relay` says, else one for each core. Within a tokio runtime: names are resolved there.
    ///
    /// Every core tries out what it needs of io_uring. If one of them may not have it (an old kernel, a container that forbids it)
    /// all of them take epoll, and one line of the log says why.
    pub fn start(relay: &pointsman_config::Relay) -> Result<Self, EngineError> {
        let count = match relay.threads {
            Some(threads) => usize::from(threads.get()),
            None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        };
        if relay.engine == pointsman_config::Engine::Epoll {
            return Self::start_with::<Epoll>(count);
        }
        match Self::start_with::<Uring>(count) {
            Err(EngineError(error)) => {
                tracing::warn!("the relay engine uses epoll, because io_uring is not to be had: {error}");
                Self::start_with::<Epoll>(count)
            }
            engine => engine,
        }
    }

    fn start_with<D: Driver + 'static>(count: usize) -> Result<Self, EngineError> {
        crate::shard::fix(count);
        let inboxes: Vec<Arc<Inbox>> =
            (0..count).map(|_| Inbox::new().map(Arc::new)).collect::<Result<_, _>>()?;
        let cores = Cores { inboxes: inboxes.into(), backend: D::NAME };
        let mut engine = Self { cores, threads: Vec::with_capacity(count) };
        let tokio = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        let (started, starts) = mpsc::sync_channel(count);
        for index in 0..count {
            let (cores, tokio, started) = (Arc::clone(&engine.cores.inboxes), tokio.clone(), started.clone());
            let thread = std::thread::Builder::new().name(format!("relay-{index}"));
            // A panic of a core ends the process (release builds abort): its sessions would hang otherwise.
            engine.threads.push(thread.spawn(move || {
                match D::open().and_then(|driver| Core::new(driver, index, cores, tokio)) {
                    Ok(core) => {
                        let _ = started.send(Ok(())); // whoever started us has given up: a stop follows
                        if let Err(error) = core.run() {
                            tracing::error!(core = index, "the relay engine has failed: {error}");
                            std::process::abort();
                        }
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                    }
                }
            })?);
        }
        for _ in 0..count {
            starts.recv().map_err(io::Error::other)??;
        }
        Ok(engine)
    }

    /// On a driver that injects faults around the real one.
    #[cfg(test)]
    pub(crate) fn start_faulty<const ROUGH: bool>(
        backend: pointsman_config::Engine,
    ) -> Result<Self, EngineError> {
        const CORES: usize = 2;
        if backend == pointsman_config::Engine::Epoll {
            Self::start_with::<faulty::Faulty<Epoll, ROUGH>>(CORES)
        } else {
            Self::start_with::<faulty::Faulty<Uring, ROUGH>>(CORES)
        }
    }

    /// Its cores.
    pub fn cores(&self) -> &Cores {
        &self.cores
    }
}

impl Cores {
    /// The backend that is in use: `epoll` or `io_uring`.
    pub fn backend(&self) -> &'static str {
        self.backend
    }

    /// Whether every core goes round. The watchdog asks.
    pub fn are_alive(&self) -> bool {
        self.inboxes.iter().all(|core| core.silence() < STUCK)
    }

    /// What each of them is doing.
    pub fn states(&self) -> impl Iterator<Item = CoreState> + '_ {
        self.inboxes.iter().map(|core| CoreState {
            sessions: core.sessions.load(Ordering::Relaxed),
            sockets: core.sockets.load(Ordering::Relaxed),
            pipes: core.pipes.load(Ordering::Relaxed),
            rounds: core.rounds.load(Ordering::Relaxed),
        })
    }

    /// Has every core accept from this socket.
    pub(crate) fn listen(&self, listening: &Arc<Listening>) {
        for core in self.inboxes.iter() {
            core.post(Message::Listen(Arc::clone(listening)));
        }
    }

    /// Has every core let go of it; the address is free when the last one has.
    pub(crate) fn unlisten(&self, listening: &Arc<Listening>) {
        for core in self.inboxes.iter() {
            core.post(Message::Unlisten(Arc::clone(listening)));
        }
    }

    /// Has the sessions ended whose fences were raised.
    pub(crate) fn sweep(&self) {
        for core in self.inboxes.iter() {
            core.post(Message::Sweep);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for core in self.cores.inboxes.iter() {
            core.post(Message::Stop);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a core of the relay engine has panicked");
            }
        }
    }
}
