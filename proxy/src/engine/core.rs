//! One core: a thread with a driver, the tasks of sessions that are being started, and the table of those that are established.
//!
//! Each round: messages of other threads, timers, tasks, what the tasks have ordered, then the kernel's events. Nothing in a round
//! waits but the driver, and nothing that is done for one session grows with what others do: long walks are made in slices.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::accept::{Accepted, Acceptor, Listeners, Resting};
use super::driver::{Close, Driver, Event, Key, Progress, Watched};
use super::flows::Gathering;
use super::inbox::{Inbox, Message};
use super::local::{Command, Entered, Local, Task, Wire, sleep};
use super::relay::{Session, Side, Ticks};
use super::slots::Slots;
use super::splice::Pipes;
use super::stream::Stream;
use super::walk::Walks;
use crate::shard;

/// What is kept of a peer's bytes for a task that does not take them, before nothing more is received. In bytes.
const UNTAKEN: usize = 32 * 1024;

/// The longest wait for the kernel: a core shows that it lives.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How much more one core may have to do than the least loaded one before a new connection is handed over.
const SLACK: usize = 1;

/// What a socket belongs to.
#[derive(Debug)]
pub(super) enum Owner {
    Nobody,
    Task(Rc<Wire>),
    Session(Key, Side),
}

/// A core.
pub(super) struct Core<D> {
    pub(super) driver: D,
    pub(super) inbox: Arc<Inbox>,
    /// All of them, this one included.
    peers: Arc<[Arc<Inbox>]>,
    local: Rc<Local>,
    tasks: FuturesUnordered<Task>,
    waker: Waker,
    /// Empty: its turn comes when the list of orders is taken.
    orders: Vec<Command>,
    listeners: Listeners,
    accepted: Vec<Accepted>,
    /// There are tasks that have not run yet.
    begun: bool,
    /// Who owns a socket, by the index of its key.
    owners: Vec<Owner>,
    pub(super) sessions: Slots<Session>,
    pub(super) pipes: Pipes,
    pub(super) ticks: Ticks,
    /// Splices that have used up their turn.
    pub(super) unfinished: Vec<(Key, Side)>,
    /// Streams that gather, the one to be looked at first in front.
    pub(super) gathering: VecDeque<Gathering>,
    pub(super) walks: Walks,
    stopping: bool,
    _entered: Entered,
}

impl<D: Driver> Core<D> {
    /// Makes the calling thread a core.
    pub(super) fn new(
        driver: D,
        index: usize,
        peers: Arc<[Arc<Inbox>]>,
        tokio: tokio::runtime::Handle,
    ) -> io::Result<Self> {
        shard::enter(index + 1);
        let inbox = peers.get(index).cloned().ok_or_else(|| io::Error::other("a core without an inbox"))?;
        let (local, entered) = Local::enter(tokio);
        let now = Instant::now();
        let mut core = Self {
            driver,
            waker: Waker::from(Arc::clone(&inbox)),
            inbox,
            peers,
            local,
            tasks: FuturesUnordered::new(),
            orders: Vec::new(),
            listeners: Listeners::default(),
            accepted: Vec::new(),
            begun: false,
            owners: Vec::new(),
            sessions: Slots::default(),
            pipes: Pipes::default(),
            ticks: Ticks::start(now),
            unfinished: Vec::new(),
            gathering: VecDeque::new(),
            walks: Walks::new(now),
            stopping: false,
            _entered: entered,
        };
        core.driver.watch(core.inbox.bell())?;
        Ok(core)
    }

    /// Runs until it is told to stop.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut messages = Vec::new();
        loop {
            let news = self.inbox.take(&mut messages);
            for message in messages.drain(..) {
                self.told(message);
            }
            if self.stopping {
                return Ok(());
            }
            let now = Instant::now();
            self.ticks.set(now);
            self.inbox.lives(now);
            self.local.fire_timers(now);
            // A task that can go on has said so, or has just begun.
            if news || std::mem::take(&mut self.begun) || self.inbox.has_news() {
                self.run_tasks();
            }
            self.go_on();
            self.look_after_gathering(now);
            self.walk(now);
            let timeout = self.timeout(now);
            let asleep = !timeout.is_zero() && self.inbox.fall_asleep();
            let waited = self.driver.wait(Some(if asleep { timeout } else { Duration::ZERO }));
            self.inbox.awake();
            waited?;
            self.take_events();
            self.inbox.load.store(self.tasks.len() + self.sessions.len(), Ordering::Relaxed);
            self.inbox.sessions.store(self.sessions.len(), Ordering::Relaxed);
            self.inbox.sockets.store(self.driver.open_sockets(), Ordering::Relaxed);
            self.inbox.pipes.store(self.pipes.out(), Ordering::Relaxed);
        }
    }

    /// How long the driver may wait.
    fn timeout(&self, now: Instant) -> Duration {
        if self.driver.is_busy() || !self.unfinished.is_empty() || self.walks.is_busy() {
            return Duration::ZERO;
        }
        let gathering = self.gathering.front().map(|gathering| gathering.until);
        let next = [self.local.next_timer(), self.walks.next(), gathering].into_iter().flatten().min();
        next.map_or(LONGEST_WAIT, |at| at.saturating_duration_since(now).min(LONGEST_WAIT))
    }

    fn told(&mut self, message: Message) {
        match message {
            Message::Accepted(accepted) => self.take_in(accepted),
            Message::Listen(listening) => self.listen(listening),
            Message::Unlisten(listening) => self.listeners.remove(&mut self.driver, &listening),
            Message::Sweep => self.walks.sweep(),
            Message::Look(session) => {
                if let Some(end) = self.sessions.get(session).and_then(|session| session.relayed.stop()) {
                    self.end(session, end);
                }
            }
            Message::Stop => self.stopping = true,
        }
    }

    fn listen(&mut self, listening: Arc<super::accept::Listening>) {
        if let Some(resting) = self.listeners.add(&mut self.driver, listening) {
            self.rest(resting);
        }
    }

    /// Runs every task that can go on, and carries out what they order, until nothing is left to do.
    fn run_tasks(&mut self) {
        loop {
            let mut context = Context::from_waker(&self.waker);
            while let Poll::Ready(Some(())) = self.tasks.poll_next_unpin(&mut context) {}
            // Two lists take turns, so that neither is made anew.
            let mut commands = self.local.commands.replace(std::mem::take(&mut self.orders));
            if commands.is_empty() {
                self.orders = commands;
                return;
            }
            for command in commands.drain(..) {
                self.carry_out(command);
            }
            self.orders = commands;
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Listen(number) => {
                if let Some(resting) = self.listeners.resume(&mut self.driver, number) {
                    self.rest(resting);
                }
            }
            Command::Connect { wire, socket, to } => match self.driver.connect(socket, to) {
                Ok((key, progress)) => {
                    self.own(key, &wire);
                    if progress == Progress::Connected {
                        let mut state = wire.state.borrow_mut();
                        state.connected = true;
                        state.wake();
                    }
                }
                Err(error) => fail(&wire, error),
            },
            Command::Send { wire, bytes } => {
                if let Some(key) = wire.key.get()
                    && let Err(error) = self.driver.send_bytes(key, &bytes)
                {
                    fail(&wire, error);
                }
            }
            Command::ShutDownWrite(wire) => {
                wire.state.borrow_mut().shut_down = true;
                self.shut_down(&wire);
            }
            Command::Receive(wire) => {
                if let Some(key) = wire.key.get() {
                    self.driver.receive(key, true);
                }
            }
            Command::Close { wire, how } => {
                if let Some(key) = wire.key.take() {
                    self.close(key, how);
                }
            }
            Command::Relay { client, server, relayed } => self.establish(&client, &server, relayed),
        }
    }

    fn own(&mut self, key: Key, wire: &Rc<Wire>) {
        wire.key.set(Some(key));
        self.set_owner(key, Owner::Task(Rc::clone(wire)));
    }

    pub(super) fn set_owner(&mut self, key: Key, owner: Owner) {
        let index = key.index as usize;
        if self.owners.len() <= index {
            self.owners.resize_with(index + 1, || Owner::Nobody);
        }
        if let Some(place) = self.owners.get_mut(index) {
            *place = owner;
        }
    }

    pub(super) fn close(&mut self, key: Key, how: Close) {
        self.set_owner(key, Owner::Nobody);
        self.driver.close(key, how);
    }

    /// Sends the FIN that was asked for, once nothing waits before it.
    fn shut_down(&mut self, wire: &Wire) {
        let Some(key) = wire.key.get() else { return };
        if self.driver.has_queued(key) {
            self.driver.hurry();
        } else if let Err(error) = self.driver.shut_down_write(key) {
            fail(wire, error);
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.driver.next() {
            self.happened(event);
        }
    }

    fn happened(&mut self, event: Event) {
        if let Event::Watched(what) = event {
            return match what {
                Watched::Inbox => self.inbox.still(),
                Watched::Listening(number) => self.accept(number),
            };
        }
        let Some(key) = event.key() else { return };
        match self.owners.get(key.index as usize) {
            Some(Owner::Session(session, side)) => {
                let (session, side) = (*session, *side);
                self.relay(session, side, event);
            }
            Some(Owner::Task(wire)) => {
                let wire = Rc::clone(wire);
                self.for_task(key, &wire, event);
            }
            Some(Owner::Nobody) | None => {
                if let Event::Data(_, chunk) = event {
                    self.driver.release(chunk);
                }
            }
        }
    }

    /// An event of a socket that is a task's.
    fn for_task(&mut self, key: Key, wire: &Wire, event: Event) {
        let mut state = wire.state.borrow_mut();
        match event {
            Event::Data(_, chunk) => {
                state.received.extend_from_slice(self.driver.bytes(&chunk));
                self.driver.release(chunk);
                if state.received.len() >= UNTAKEN && !state.paused {
                    state.paused = true;
                    self.driver.receive(key, false);
                }
            }
            Event::End(_) => state.ended = true,
            Event::Broken(_, error) => state.broken = Some(error),
            Event::Connected(_) => state.connected = true,
            Event::Sent(..) => {
                drop(state);
                if self.driver.has_queued(key)
                    && let Err(error) = self.driver.flush(key)
                {
                    return fail(wire, error);
                }
                let waits = wire.state.borrow().shut_down;
                if waits {
                    self.shut_down(wire);
                }
                return;
            }
            Event::Quiet(_) | Event::Readable(_) | Event::Writable(_) | Event::Watched(_) => return,
        }
        state.wake();
    }

    fn accept(&mut self, number: u32) {
        let mut accepted = std::mem::take(&mut self.accepted);
        if let Some(resting) = self.listeners.accept(&mut self.driver, number, &mut accepted) {
            self.rest(resting);
        }
        for one in accepted.drain(..) {
            match self.less_loaded() {
                Some(peer) => {
                    peer.load.fetch_add(1, Ordering::Relaxed); // until it counts for itself
                    peer.post(Message::Accepted(one));
                }
                None => self.take_in(one),
            }
        }
        self.accepted = accepted;
    }

    /// A core that has clearly less to do than this one.
    fn less_loaded(&self) -> Option<Arc<Inbox>> {
        let ours = self.tasks.len() + self.sessions.len();
        let least = self.peers.iter().min_by_key(|peer| peer.load.load(Ordering::Relaxed))?;
        let theirs = least.load.load(Ordering::Relaxed);
        (theirs + SLACK < ours && !Arc::ptr_eq(least, &self.inbox)).then(|| Arc::clone(least))
    }

    /// A connection that this core is going to serve.
    fn take_in(&mut self, accepted: Accepted) {
        let Accepted { listening, socket, client } = accepted;
        // It fails only when the client has gone already.
        let Ok(local) = listening.local(&socket) else { return };
        let acceptor = Arc::clone(&listening.acceptor);
        match self.driver.add(socket) {
            Ok(key) => {
                let (stream, wire) = Stream::adopt(&self.local, key);
                self.set_owner(key, Owner::Task(wire));
                if let Some(task) = Acceptor::accepted(acceptor, stream, client, local) {
                    self.tasks.push(task);
                }
                self.begun = true; // a connection that was refused in silence has left an order, too
            }
            Err(error) => {
                acceptor.failed(&error);
            }
        }
    }

    /// Leaves a listening socket alone for a while.
    fn rest(&mut self, Resting { number, pause }: Resting) {
        let local = Rc::clone(&self.local);
        self.tasks.push(Box::pin(async move {
            sleep(pause).await;
            local.order(Command::Listen(number));
        }));
        self.begun = true;
    }
}

/// Tells a task that its connection is no more.
fn fail(wire: &Wire, error: io::Error) {
    let mut state = wire.state.borrow_mut();
    state.broken = Some(error);
    state.wake();
}
