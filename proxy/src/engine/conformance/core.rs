//! A little core around a driver, and peers for it.

use std::collections::{HashMap, HashSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::engine::driver::{Driver, Event, Key, Watched};

/// How long something that must happen may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// How long nothing happens if nothing is going to.
pub(super) const STILL: Duration = Duration::from_millis(60);

/// A little core: passes bytes on between pairs of sockets, keeps those of all others, and notes what happens.
pub(in crate::engine) struct Core<D> {
    pub(in crate::engine) driver: D,
    /// Where the bytes of a socket go.
    pub(in crate::engine) pairs: HashMap<Key, Key>,
    /// What was received of sockets that are no part of a pair.
    got: HashMap<Key, Vec<u8>>,
    /// How much the kernel took for a socket.
    pub(in crate::engine) sent: HashMap<Key, usize>,
    pub(in crate::engine) notes: Vec<(Key, Note)>,
    pub(in crate::engine) watched: Vec<Watched>,
    paused: HashSet<Key>,
    ending: HashSet<Key>,
    pub(in crate::engine) flushes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Note {
    Data,
    End,
    Broken(ErrorKind),
    Connected,
    Sent,
    Quiet,
    Readable,
    Writable,
}

impl<D: Driver> Core<D> {
    pub(in crate::engine) fn new(driver: D) -> Self {
        Self {
            driver,
            pairs: HashMap::new(),
            got: HashMap::new(),
            sent: HashMap::new(),
            notes: Vec::new(),
            watched: Vec::new(),
            paused: HashSet::new(),
            ending: HashSet::new(),
            flushes: true,
        }
    }

    /// A socket of the driver's, and its peer.
    pub(in crate::engine) fn socket(&mut self) -> (Key, TcpStream) {
        let (ours, peer) = tcp_pair();
        let key = self.driver.add(ours).unwrap();
        (key, peer)
    }

    /// Two sockets whose bytes go to each other, and their peers.
    pub(in crate::engine) fn pair(&mut self) -> (TcpStream, TcpStream) {
        let ((a, left), (b, right)) = (self.socket(), self.socket());
        self.pairs.extend([(a, b), (b, a)]);
        (left, right)
    }

    /// One round.
    pub(in crate::engine) fn step(&mut self, timeout: Duration) {
        self.driver.wait(Some(timeout)).unwrap();
        while let Some(event) = self.driver.next() {
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Data(from, chunk) => {
                assert!(chunk.len() > 0);
                assert_eq!(self.driver.bytes(&chunk).len(), chunk.len());
                self.note(from, Note::Data);
                let Some(to) = self.pairs.get(&from).copied() else {
                    self.got.entry(from).or_default().extend_from_slice(self.driver.bytes(&chunk));
                    return self.driver.release(chunk);
                };
                let outcome = self.driver.send(to, chunk).unwrap();
                self.count(to, outcome.now);
                if outcome.full {
                    self.driver.receive(from, false);
                    self.paused.insert(from);
                }
            }
            Event::End(key) => {
                self.note(key, Note::End);
                if let Some(to) = self.pairs.get(&key).copied() {
                    self.ending.insert(to);
                    self.end(to);
                }
            }
            Event::Sent(key, bytes) => {
                self.note(key, Note::Sent);
                self.count(key, bytes);
                if self.flushes && self.driver.has_queued(key) {
                    let outcome = self.driver.flush(key).unwrap();
                    self.count(key, outcome.now);
                }
                self.end(key);
                if let Some(from) = self.pairs.get(&key)
                    && !self.driver.is_full(key)
                    && self.paused.remove(from)
                {
                    self.driver.receive(*from, true);
                }
            }
            Event::Broken(key, error) => self.note(key, Note::Broken(error.kind())),
            Event::Connected(key) => self.note(key, Note::Connected),
            Event::Quiet(key) => self.note(key, Note::Quiet),
            Event::Readable(key) => self.note(key, Note::Readable),
            Event::Writable(key) => self.note(key, Note::Writable),
            Event::Watched(what) => self.watched.push(what),
        }
    }

    /// Passes a FIN on once everything before it is gone.
    fn end(&mut self, to: Key) {
        if !self.driver.has_queued(to) && self.ending.remove(&to) {
            self.driver.shut_down_write(to).unwrap();
        }
    }

    /// Knows nothing of a socket any more, as one that was closed.
    pub(in crate::engine) fn forget(&mut self, key: Key) {
        self.paused.remove(&key);
        self.ending.remove(&key);
        self.notes.retain(|(of, _)| *of != key);
    }

    fn note(&mut self, key: Key, note: Note) {
        let broken = self.notes.iter().any(|(of, note)| *of == key && matches!(note, Note::Broken(_)));
        assert!(!broken, "{note:?} of {key:?} after its end");
        self.notes.push((key, note));
    }

    pub(in crate::engine) fn count(&mut self, key: Key, bytes: usize) {
        *self.sent.entry(key).or_default() += bytes;
    }

    pub(in crate::engine) fn sent(&self, key: Key) -> usize {
        self.sent.get(&key).copied().unwrap_or(0)
    }

    pub(in crate::engine) fn got(&self, key: Key) -> &[u8] {
        self.got.get(&key).map_or(&[], Vec::as_slice)
    }

    /// What happened to a socket, sends and data left out.
    pub(in crate::engine) fn notes(&self, key: Key) -> Vec<Note> {
        let of_key =
            self.notes.iter().filter(|(of, note)| *of == key && !matches!(note, Note::Data | Note::Sent));
        of_key.map(|(_, note)| *note).collect()
    }

    /// Goes on until it is so.
    pub(in crate::engine) fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(
                Instant::now() < end,
                "waited in vain: {what}; {:?}",
                self.notes.iter().rev().take(20).collect::<Vec<_>>()
            );
            self.step(Duration::from_millis(10));
        }
    }

    /// Goes on for a while in which nothing of interest is to happen.
    pub(in crate::engine) fn for_a_while(&mut self) {
        let end = Instant::now() + STILL;
        while Instant::now() < end {
            self.step(Duration::from_millis(10));
        }
    }

    pub(in crate::engine) fn until_note(&mut self, key: Key, note: Note) {
        self.until(&format!("{note:?}"), |core| core.notes(key).contains(&note));
    }

    pub(in crate::engine) fn quieten(&mut self, key: Key) {
        self.driver.receive(key, false);
        self.until_note(key, Note::Quiet);
        self.notes.retain(|(of, note)| *of != key || *note != Note::Quiet);
    }
}

/// A connected socket for a driver, and its peer (which blocks, with a deadline).
pub(in crate::engine) fn tcp_pair() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    for stream in [&ours, &peer] {
        stream.set_nodelay(true).unwrap();
    }
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    ours.set_nonblocking(true).unwrap();
    (ours.into(), peer)
}

pub(in crate::engine) fn reset(peer: TcpStream) {
    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
}

/// Numbers that look random and are always the same.
pub(in crate::engine) struct Dice(pub(in crate::engine) u64);

impl Dice {
    pub(in crate::engine) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// From 1 to `most`.
    pub(in crate::engine) fn size(&mut self, most: usize) -> usize {
        usize::try_from(self.next()).unwrap() % most + 1
    }

    pub(in crate::engine) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// Writes in pieces of random sizes, then sends a FIN.
pub(in crate::engine) fn writer(mut peer: TcpStream, bytes: Vec<u8>, mut dice: Dice) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let most = [40, 2_000, 60_000][dice.size(3) - 1];
            let (now, later) = rest.split_at(dice.size(most).min(rest.len()));
            peer.write_all(now).unwrap();
            rest = later;
            if dice.next().is_multiple_of(64) {
                thread::sleep(Duration::from_millis(1));
            }
        }
        peer.shutdown(std::net::Shutdown::Write).unwrap();
    })
}

/// Reads to the end, now and then slowly.
pub(in crate::engine) fn reader(mut peer: TcpStream, mut dice: Dice) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut all, mut buffer) = (Vec::new(), vec![0; 100_000]);
        loop {
            let size = dice.size(buffer.len());
            match peer.read(&mut buffer[..size]).unwrap() {
                0 => return all,
                count => all.extend_from_slice(&buffer[..count]),
            }
            if dice.next().is_multiple_of(32) {
                thread::sleep(Duration::from_millis(2));
            }
        }
    })
}

/// Writes as much as goes without waiting.
pub(in crate::engine) fn stuff(peer: &TcpStream) -> usize {
    peer.set_nonblocking(true).unwrap();
    let (mut total, block) = (0, [7; 16 * 1024]);
    while let Ok(count) = (&mut &*peer).write(&block) {
        total += count;
    }
    peer.set_nonblocking(false).unwrap();
    total
}

/// Reads what is there without waiting.
pub(in crate::engine) fn slurp(peer: &TcpStream) -> usize {
    peer.set_nonblocking(true).unwrap();
    let (mut total, mut buffer) = (0, vec![0; 256 * 1024]);
    while let Ok(count @ 1..) = (&mut &*peer).read(&mut buffer) {
        total += count;
    }
    peer.set_nonblocking(false).unwrap();
    total
}
