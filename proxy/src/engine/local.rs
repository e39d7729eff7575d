//! What the tasks of a core share with its loop: commands to the driver, and timers.
//!
//! A task never calls the driver. It leaves a command, and the core carries it out as soon as the tasks that can run have run; what
//! comes of it reaches the task through the [`Wire`] of its stream.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::driver::{Close, Key};
use super::relay::Relayed;

/// A task of a core: the start of a session, or a refusal. It stays on its core.
pub(crate) type Task = Pin<Box<dyn Future<Output = ()>>>;

/// What a task asks of its core.
pub(super) enum Command {
    Connect {
        wire: Rc<Wire>,
        socket: OwnedFd,
        to: SocketAddr,
    },
    Send {
        wire: Rc<Wire>,
        bytes: Vec<u8>,
    },
    /// Send a FIN, after what waits.
    ShutDownWrite(Rc<Wire>),
    /// There is room for more of the peer's bytes.
    Receive(Rc<Wire>),
    Close {
        wire: Rc<Wire>,
        how: Close,
    },
    Relay {
        client: Rc<Wire>,
        server: Rc<Wire>,
        relayed: Box<dyn Relayed>,
    },
    /// Accept again from the listening socket of this number.
    Listen(u32),
}

/// A socket before its session is established: what the core knows of it, and what its task wants to know.
#[derive(Debug, Default)]
pub(super) struct Wire {
    /// `None`: not handed to the driver yet, or closed.
    pub(super) key: Cell<Option<Key>>,
    pub(super) state: RefCell<WireState>,
}

#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one socket")]
pub(super) struct WireState {
    pub(super) connected: bool,
    /// Received, and not taken by the task.
    pub(super) received: Vec<u8>,
    /// The core has stopped to receive: too much was not taken.
    pub(super) paused: bool,
    pub(super) ended: bool,
    pub(super) broken: Option<io::Error>,
    /// A FIN follows what waits to be sent.
    pub(super) shut_down: bool,
    waker: Option<Waker>,
}

impl WireState {
    /// Wakes the task, if it waits for this socket.
    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Has the task woken at the next event.
    pub(super) fn wait(&mut self, context: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
    }
}

/// The part of a core that its tasks can reach.
pub(super) struct Local {
    pub(super) commands: RefCell<Vec<Command>>,
    timers: RefCell<Timers>,
    /// The time, read once in each round.
    now: Cell<Instant>,
    /// Names are resolved, and what blocks is done, over there.
    tokio: tokio::runtime::Handle,
}

thread_local! {
    static LOCAL: RefCell<Option<Rc<Local>>> = const { RefCell::new(None) };
}

impl Local {
    /// Makes this thread a core, until the guard is dropped.
    pub(super) fn enter(tokio: tokio::runtime::Handle) -> (Rc<Self>, Entered) {
        let local = Rc::new(Self {
            commands: RefCell::default(),
            timers: RefCell::default(),
            now: Cell::new(Instant::now()),
            tokio,
        });
        LOCAL.set(Some(Rc::clone(&local)));
        (local, Entered)
    }

    /// Of the core that this task runs on.
    pub(super) fn here() -> io::Result<Rc<Self>> {
        LOCAL.with_borrow(Option::clone).ok_or_else(|| io::Error::other("not on a core of the relay engine"))
    }

    pub(super) fn order(&self, command: Command) {
        self.commands.borrow_mut().push(command);
    }

    /// The moment of the next timer.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.borrow().waiting.first_key_value().map(|((at, _), _)| *at)
    }

    /// Sets the time, and wakes whose time has come.
    pub(super) fn fire_timers(&self, now: Instant) {
        self.now.set(now);
        let mut timers = self.timers.borrow_mut();
        while let Some(first) = timers.waiting.first_entry().filter(|first| first.key().0 <= now) {
            first.remove().wake();
        }
    }
}

/// Ends the thread's life as a core when dropped.
pub(super) struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        LOCAL.set(None);
    }
}

/// The time as this core knows it: when its round began. Reading it costs nothing; it is for deadlines, not for measuring.
pub(crate) fn now() -> Instant {
    LOCAL.with_borrow(|local| local.as_ref().map(|local| local.now.get())).unwrap_or_else(Instant::now)
}

/// Who waits for a moment. One entry for each wait that has begun.
#[derive(Default)]
struct Timers {
    waiting: BTreeMap<(Instant, u64), Waker>,
    newest: u64,
}

/// Waits until a moment. Cancel-safe.
pub(crate) struct Sleep {
    at: Instant,
    /// Where it waits.
    place: Option<(Rc<Local>, u64)>,
}

/// Waits until `at`, on the core of this task.
pub(crate) fn sleep_until(at: Instant) -> Sleep {
    Sleep { at, place: None }
}

/// Waits for this long, on the core of this task.
pub(crate) fn sleep(duration: Duration) -> Sleep {
    sleep_until(now() + duration)
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if now() >= self.at {
            return Poll::Ready(());
        }
        let at = self.at;
        if let Some((local, number)) = &self.place {
            local.timers.borrow_mut().waiting.insert((at, *number), context.waker().clone());
            return Poll::Pending;
        }
        // Outside a core nobody would wake us: then it is better not to wait.
        let Ok(local) = Local::here() else { return Poll::Ready(()) };
        let number = {
            let mut timers = local.timers.borrow_mut();
            timers.newest += 1;
            let number = timers.newest;
            timers.waiting.insert((at, number), context.waker().clone());
            number
        };
        self.place = Some((local, number));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((local, number)) = &self.place {
            local.timers.borrow_mut().waiting.remove(&(self.at, *number));
        }
    }
}

/// The deadline of a wait has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elapsed;

/// Waits for `future`, at most until `deadline`. As cancel-safe as the future is.
pub(crate) async fn timeout_at<F: Future>(deadline: Instant, future: F) -> Result<F::Output, Elapsed> {
    let mut future = std::pin::pin!(future);
    let mut sleep = std::pin::pin!(sleep_until(deadline));
    std::future::poll_fn(move |context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        sleep.as_mut().poll(context).map(|()| Err(Elapsed))
    })
    .await
}

/// The addresses of a host name, from the system's resolver: it blocks, so it does so elsewhere.
pub(crate) async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let local = Local::here()?;
    let host = host.to_owned();
    let lookup = local.tokio.spawn(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) });
    tokio_util::task::AbortOnDropHandle::new(lookup)
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the resolver was stopped")))
}
