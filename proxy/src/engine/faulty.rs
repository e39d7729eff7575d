//! A driver around a real one that behaves as badly as the interface allows, to see whether a core minds.
//!
//! Always: short sends (of nothing at all, too), events that nobody asked for, Quiet and readiness late, waits that end early. With `ROUGH`
//! also what a kernel does in a bad hour: connections that break at any moment, sends, connects and registrations that fail.
//! `POINTSMAN_SEED` fixes the decisions.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::conformance::Dice;
use super::driver::{Chunk, Close, Driver, Event, Key, Progress, Readiness, Sent};

/// How many faults there were in this process: a test that met none has shown nothing.
pub(crate) static INJECTED: AtomicU64 = AtomicU64::new(0);

/// Each driver rolls its own dice.
static OPENED: AtomicU64 = AtomicU64::new(1);

/// How long what is late takes at most, in rounds.
const LATE: usize = 4;

/// What came late is not waited for longer than this, so that rounds go by.
const ROUND: Duration = Duration::from_millis(1);

pub(crate) struct Faulty<D, const ROUGH: bool> {
    inner: D,
    dice: Dice,
    sockets: HashMap<Key, Socket>,
    /// The keys of `sockets`, to choose from.
    open: Vec<Key>,
    /// Events, and the rounds that they still wait.
    later: Vec<(usize, Event)>,
    due: VecDeque<Event>,
}

#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Socket {
    /// What a short send has left.
    kept: Vec<u8>,
    connected: bool,
    receiving: bool,
    ended: bool,
    /// An error was told: nothing more is.
    broken: bool,
    /// A send was made to fail: what comes now is thrown away.
    mute: bool,
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl<D: Driver, const ROUGH: bool> Faulty<D, ROUGH> {
    /// One time in `times`, and counts it.
    fn chance(&mut self, times: usize) -> bool {
        let hit = self.dice.size(times) == 1;
        if hit {
            INJECTED.fetch_add(1, Ordering::Relaxed);
        }
        hit
    }

    fn rough(&mut self, times: usize) -> bool {
        ROUGH && self.chance(times)
    }

    fn adopt(&mut self, key: Key, connected: bool) -> Key {
        self.sockets.insert(key, Socket { connected, receiving: true, ..Socket::default() });
        self.open.push(key);
        key
    }

    /// Sends a part, and keeps the rest.
    fn send_some(&mut self, to: Key, bytes: &[u8]) -> io::Result<Sent> {
        let part = self.dice.size(bytes.len() + 1) - 1;
        let Some((now, rest)) = bytes.split_at_checked(part) else { return Ok(Sent::default()) };
        let sent = if now.is_empty() { Sent::default() } else { self.inner.send_bytes(to, now)? };
        if rest.is_empty() {
            return Ok(sent);
        }
        if let Some(socket) = self.sockets.get_mut(&to) {
            socket.kept.extend_from_slice(rest);
        }
        let late = self.dice.size(LATE);
        self.later.push((late, Event::Sent(to, 0)));
        Ok(Sent { now: sent.now, full: true })
    }

    /// What becomes of a send before the kernel hears of it. `None`: nothing.
    fn spoil(&mut self, to: Key, bytes: impl FnOnce(&D) -> Vec<u8>) -> Option<io::Result<Sent>> {
        let socket = self.sockets.get_mut(&to)?;
        if socket.mute {
            return Some(Ok(Sent::default()));
        }
        if !socket.kept.is_empty() {
            socket.kept.extend(bytes(&self.inner));
            return Some(Ok(Sent { now: 0, full: true }));
        }
        if self.rough(3000) {
            self.sockets.get_mut(&to)?.mute = true;
            return Some(Err(errno(libc::ENOBUFS)));
        }
        if self.chance(5) {
            let bytes = bytes(&self.inner);
            return Some(self.send_some(to, &bytes));
        }
        None
    }

    /// Events out of nothing, for sockets that exist.
    fn invent(&mut self) {
        if self.open.is_empty() || !self.chance(4) {
            return;
        }
        let at = self.dice.size(self.open.len()) - 1;
        let Some(key) = self.open.get(at).copied() else { return };
        if !self.sockets.get(&key).is_some_and(|socket| socket.connected) {
            return;
        }
        let event = match self.dice.size(3) {
            1 => Event::Sent(key, 0),
            2 => Event::Readable(key),
            _ => Event::Writable(key),
        };
        self.due.push_back(event);
        if self.rough(40) {
            self.due.push_back(Event::Broken(key, errno(libc::ECONNRESET)));
        }
    }

    /// Whether an event may be told now; notes what it says.
    fn tell(&mut self, event: &Event) -> bool {
        let Some(key) = event.key() else { return true };
        let Some(socket) = self.sockets.get_mut(&key).filter(|socket| !socket.broken) else { return false };
        match event {
            Event::End(_) => socket.ended = true,
            Event::Broken(..) => socket.broken = true,
            Event::Connected(_) => socket.connected = true,
            Event::Quiet(_) => return !socket.receiving && !socket.ended,
            Event::Data(..)
            | Event::Sent(..)
            | Event::Readable(_)
            | Event::Writable(_)
            | Event::Watched(_) => {}
        }
        true
    }
}

impl<D: Driver, const ROUGH: bool> Driver for Faulty<D, ROUGH> {
    const NAME: &'static str = D::NAME;
    const BUFFER: usize = D::BUFFER;

    fn open() -> io::Result<Self> {
        let seed = std::env::var("POINTSMAN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0_u64);
        let dice = Dice(seed.wrapping_mul(31).wrapping_add(OPENED.fetch_add(1, Ordering::Relaxed)));
        Ok(Self {
            inner: D::open()?,
            dice,
            sockets: HashMap::new(),
            open: Vec::new(),
            later: Vec::new(),
            due: VecDeque::new(),
        })
    }

    fn watch(&mut self, fd: Arc<OwnedFd>) -> io::Result<()> {
        self.inner.watch(fd)
    }

    fn listen(&mut self, number: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        if self.rough(4) {
            return Err(errno(libc::ENOSPC));
        }
        self.inner.listen(number, socket)
    }

    fn unlisten(&mut self, socket: BorrowedFd<'_>) {
        self.inner.unlisten(socket);
    }

    fn add(&mut self, socket: OwnedFd) -> io::Result<Key> {
        if self.rough(100) {
            return Err(errno(libc::ENOMEM));
        }
        let key = self.inner.add(socket)?;
        Ok(self.adopt(key, true))
    }

    fn connect(&mut self, socket: OwnedFd, to: SocketAddr) -> io::Result<(Key, Progress)> {
        if self.rough(50) {
            return Err(errno(libc::EADDRNOTAVAIL));
        }
        let (key, progress) = self.inner.connect(socket, to)?;
        Ok((self.adopt(key, progress == Progress::Connected), progress))
    }

    fn bytes(&self, chunk: &Chunk) -> &[u8] {
        self.inner.bytes(chunk)
    }

    fn release(&mut self, chunk: Chunk) {
        self.inner.release(chunk);
    }

    fn send(&mut self, to: Key, chunk: Chunk) -> io::Result<Sent> {
        match self.spoil(to, |inner| inner.bytes(&chunk).to_vec()) {
            Some(outcome) => {
                self.inner.release(chunk);
                outcome
            }
            None => self.inner.send(to, chunk),
        }
    }

    fn send_bytes(&mut self, to: Key, bytes: &[u8]) -> io::Result<Sent> {
        match self.spoil(to, |_| bytes.to_vec()) {
            Some(outcome) => outcome,
            None => self.inner.send_bytes(to, bytes),
        }
    }

    fn flush(&mut self, to: Key) -> io::Result<Sent> {
        let mut now = self.inner.flush(to)?.now;
        if !self.inner.has_queued(to)
            && let Some(socket) = self.sockets.get_mut(&to)
            && !socket.kept.is_empty()
        {
            let kept = std::mem::take(&mut socket.kept);
            now += self.send_some(to, &kept)?.now;
        }
        Ok(Sent { now, full: self.is_full(to) })
    }

    fn has_queued(&self, key: Key) -> bool {
        self.inner.has_queued(key) || self.sockets.get(&key).is_some_and(|socket| !socket.kept.is_empty())
    }

    fn is_full(&self, key: Key) -> bool {
        self.inner.is_full(key) || self.sockets.get(&key).is_some_and(|socket| !socket.kept.is_empty())
    }

    fn watch_after_end(&mut self, key: Key) {
        self.inner.watch_after_end(key);
    }

    fn receive(&mut self, key: Key, on: bool) {
        if let Some(socket) = self.sockets.get_mut(&key) {
            socket.receiving = on;
        }
        if on {
            // A Quiet of before must not be taken for one of the next time.
            let stale = |event: &Event| matches!(event, Event::Quiet(quiet) if *quiet == key);
            self.later.retain(|(_, event)| !stale(event));
            self.due.retain(|event| !stale(event));
        }
        self.inner.receive(key, on);
    }

    fn poll(&mut self, key: Key, readiness: Readiness) {
        self.inner.poll(key, readiness);
    }

    fn shut_down_write(&mut self, key: Key) -> io::Result<()> {
        assert!(!self.has_queued(key), "a FIN in front of bytes that wait");
        self.inner.shut_down_write(key)
    }

    fn close(&mut self, key: Key, how: Close) {
        self.sockets.remove(&key);
        self.open.retain(|open| *open != key);
        self.inner.close(key, how);
    }

    fn fd(&self, key: Key) -> Option<BorrowedFd<'_>> {
        self.inner.fd(key)
    }

    fn hurry(&mut self) {
        self.inner.hurry();
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        for (rounds, event) in std::mem::take(&mut self.later) {
            if rounds > 1 { self.later.push((rounds - 1, event)) } else { self.due.push_back(event) }
        }
        self.invent();
        let timeout = match timeout {
            _ if !self.due.is_empty() => Some(Duration::ZERO),
            Some(timeout) if !self.later.is_empty() => Some(timeout.min(ROUND)),
            timeout => timeout,
        };
        // As if a signal had come.
        if self.chance(16) {
            return self.inner.wait(Some(Duration::ZERO));
        }
        self.inner.wait(timeout)
    }

    fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.due.pop_front() {
                if self.tell(&event) {
                    return Some(event);
                }
                continue;
            }
            let event = self.inner.next()?;
            if matches!(event, Event::Quiet(_) | Event::Readable(_) | Event::Writable(_)) && self.chance(2) {
                let late = self.dice.size(LATE);
                self.later.push((late, event));
                continue;
            }
            if self.tell(&event) {
                return Some(event);
            }
            if let Event::Data(_, chunk) = event {
                self.inner.release(chunk);
            }
        }
    }

    fn is_busy(&self) -> bool {
        !self.due.is_empty() || self.inner.is_busy()
    }

    fn open_sockets(&self) -> usize {
        self.inner.open_sockets()
    }
}
