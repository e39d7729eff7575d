//! Clients that never stop writing: each message says when it was written. And one that counts how long another cluster's
//! round trips take meanwhile.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;

use super::{MESSAGE, Nanos, since};
use crate::load::socket::{self, DEADLINE, begin, receive, send, transmit};
use crate::wire::Pattern;

/// Messages a second, of all sessions together, each in its turn.
pub const WRITES_PER_SECOND: u32 = 10_000;
const EVENTS: usize = 256;
/// How long the writer may sleep.
const TICK: Duration = Duration::from_millis(1);
/// Between two round trips of the other cluster.
const PING_EVERY: Duration = Duration::from_micros(500);
const PING: usize = 64;

/// What the clients did and saw.
#[derive(Debug, Default)]
pub struct Told {
    /// When messages were written.
    pub writes: Vec<Nanos>,
    /// When sessions were seen to end.
    pub ends: Vec<Nanos>,
}

/// Writes until each session has ended or `stop` is set.
pub fn write_on(sessions: Vec<TcpStream>, epoch: Instant, stop: &AtomicBool) -> Result<Told> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (index, session) in sessions.iter().enumerate() {
        epoll::add(&epoll, session, EventData::new_u64(index as u64), EventFlags::IN | EventFlags::RDHUP)?;
    }
    let mut writer = Writer {
        live: sessions.len(),
        sessions: sessions.into_iter().map(Some).collect(),
        next: 0,
        epoch,
        told: Told::default(),
    };
    writer.run(&epoll, stop)?;
    Ok(writer.told)
}

struct Writer {
    sessions: Vec<Option<TcpStream>>,
    live: usize,
    next: usize,
    epoch: Instant,
    told: Told,
}

impl Writer {
    fn run(&mut self, epoll: &OwnedFd, stop: &AtomicBool) -> Result<()> {
        let every = Duration::from_secs(1) / WRITES_PER_SECOND;
        let mut due = Instant::now();
        let mut events = Vec::with_capacity(EVENTS);
        while self.live > 0 && !stop.load(Relaxed) {
            events.clear();
            socket::wait(epoll, &mut events, Some(TICK))?;
            for event in &events {
                self.look(usize::try_from(event.data.u64())?);
            }
            let now = Instant::now();
            // After a pause of the machine it does not write all at once.
            due = due.max(now.checked_sub(10 * TICK).unwrap_or(now));
            while due <= now && self.live > 0 {
                due += every;
                self.write();
            }
        }
        Ok(())
    }

    /// The server says nothing: what can be read is an end.
    fn look(&mut self, index: usize) {
        let Some(Some(session)) = self.sessions.get(index) else { return };
        if !matches!(receive(session, &mut [0; 16]), Ok(None | Some(1..))) {
            self.end(index);
        }
    }

    fn end(&mut self, index: usize) {
        if self.sessions.get_mut(index).and_then(Option::take).is_some() {
            self.live -= 1;
            self.told.ends.push(since(self.epoch));
        }
    }

    /// The next session that lives writes a message.
    fn write(&mut self) {
        for _ in 0..self.sessions.len() {
            let index = self.next;
            self.next = (self.next + 1) % self.sessions.len();
            let Some(Some(session)) = self.sessions.get(index) else { continue };
            let now = since(self.epoch);
            let mut message = [0; MESSAGE];
            if let Some(head) = message.first_chunk_mut() {
                *head = now.to_be_bytes();
            }
            match send(session, &message) {
                // No room, or a part: the proxy takes nothing any more, and the session will not write again.
                Ok(_) => self.told.writes.push(now),
                Err(_) => self.end(index),
            }
            return;
        }
    }
}

/// One round trip: when it was due, and how long after that it was done.
#[derive(Debug, Clone, Copy)]
pub struct RoundTrip {
    /// When it should have begun.
    pub due: Nanos,
    /// Until the answer was there.
    pub took: Duration,
}

/// A round trip every half millisecond until `stop` is set. One that comes late because the one before it did counts from
/// when it was due.
pub fn ping(target: SocketAddr, epoch: Instant, stop: &AtomicBool) -> Result<Vec<RoundTrip>> {
    let socket = begin(target, None, Pattern::Echo { size: PING })?;
    let mut trips = Vec::new();
    let mut due = Instant::now();
    while !stop.load(Relaxed) {
        let now = Instant::now();
        if due > now {
            thread::sleep(due - now);
            // What the sleep takes too long is not the proxy's.
            due = Instant::now();
        }
        transmit(&socket, &[0; PING]).context("a session of the other cluster broke")?;
        await_answer(&socket)?;
        let due_since = due.saturating_duration_since(epoch);
        trips.push(RoundTrip {
            due: Nanos::try_from(due_since.as_nanos()).unwrap_or(Nanos::MAX),
            took: due.elapsed(),
        });
        due += PING_EVERY;
    }
    Ok(trips)
}

fn await_answer(socket: &TcpStream) -> Result<()> {
    let (mut received, began) = (0, Instant::now());
    while received < PING {
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&second))?;
        match receive(socket, &mut [0; PING])? {
            Some(0) => bail!("a session of the other cluster was closed"),
            Some(count) => received += count,
            None if began.elapsed() > DEADLINE => bail!("no answer in the other cluster"),
            None => {}
        }
    }
    Ok(())
}
