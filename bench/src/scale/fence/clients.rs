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

/// A round trip every half millisecond until `stop` is set, or when the one before it is done. Those that a slow one kept from
/// beginning are noted as if they had waited for it, too: a pause must not count once only because nobody could ask meanwhile.
pub fn ping(target: SocketAddr, epoch: Instant, stop: &AtomicBool) -> Result<Vec<RoundTrip>> {
    let socket = begin(target, None, Pattern::Echo { size: PING })?;
    let mut trips = Vec::new();
    while !stop.load(Relaxed) {
        let began = Instant::now();
        transmit(&socket, &[0; PING]).context("a session of the other cluster broke")?;
        await_answer(&socket)?;
        note(&mut trips, began.saturating_duration_since(epoch), began.elapsed());
        thread::sleep(PING_EVERY.saturating_sub(began.elapsed()));
    }
    Ok(trips)
}

fn note(trips: &mut Vec<RoundTrip>, began: Duration, took: Duration) {
    let (mut began, mut took) = (began, took);
    loop {
        trips.push(RoundTrip { due: Nanos::try_from(began.as_nanos()).unwrap_or(Nanos::MAX), took });
        began += PING_EVERY;
        match took.checked_sub(PING_EVERY) {
            Some(rest) if !rest.is_zero() => took = rest,
            Some(_) | None => return,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_round_trip_stands_for_those_that_it_kept_away() {
        let mut trips = Vec::new();
        note(&mut trips, Duration::from_millis(7), PING_EVERY);
        assert_eq!(trips.len(), 1);
        note(&mut trips, Duration::from_millis(8), PING_EVERY * 3);
        let noted: Vec<_> = trips.iter().skip(1).map(|trip| (trip.due, trip.took)).collect();
        assert_eq!(
            noted,
            [(8_000_000, PING_EVERY * 3), (8_500_000, PING_EVERY * 2), (9_000_000, PING_EVERY)]
        );
    }
}
