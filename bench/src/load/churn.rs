//! Connect-churn: connect, start-up message, answer, close by the client; several at a time.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;

use super::gate::Worker;
use super::socket::{self, dial, receive, transmit};
use crate::measure::histogram::Histogram;
use crate::wire::{ANSWER, Pattern, startup};

const LOOK: Duration = Duration::from_millis(20);
const EVENTS: usize = 256;

/// One connection at a time, again and again.
struct Slot {
    socket: TcpStream,
    began: Instant,
    asked: bool,
    received: usize,
}

/// Runs this thread's part of `parallel` slots.
pub fn work(target: SocketAddr, parallel: usize, worker: &Worker<'_>) -> Result<Histogram> {
    let mut latency = Histogram::default();
    let message = startup("bench", &Pattern::Sink.to_string());
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    if !worker.wait_for_start() {
        return Ok(latency);
    }
    let mine = (0..parallel).skip(worker.index).step_by(worker.threads).count();
    let mut slots = Vec::new();
    for index in 0..mine {
        slots.push(Slot::open(target, &epoll, index)?);
    }
    let mut events = Vec::with_capacity(EVENTS);
    while !worker.is_over() {
        events.clear();
        socket::wait(&epoll, &mut events, Some(LOOK))?;
        let measuring = worker.is_measuring();
        for event in &events {
            let index = usize::try_from(event.data.u64())?;
            let slot = slots.get_mut(index).context("an event of nobody")?;
            if slot.serve(&epoll, index, &message)? {
                if measuring {
                    latency.record(slot.began.elapsed());
                }
                worker.tally.request();
                // Closes the old one.
                *slot = Slot::open(target, &epoll, index)?;
            }
        }
    }
    Ok(latency)
}

impl Slot {
    fn open(target: SocketAddr, epoll: &OwnedFd, index: usize) -> Result<Self> {
        let began = Instant::now();
        let socket = dial(target).with_context(|| format!("cannot connect to {target}"))?;
        epoll::add(epoll, &socket, EventData::new_u64(index as u64), EventFlags::OUT)?;
        Ok(Self { socket, began, asked: false, received: 0 })
    }

    /// True when the whole answer is there.
    fn serve(&mut self, epoll: &OwnedFd, index: usize, message: &[u8]) -> Result<bool> {
        if !self.asked {
            transmit(&self.socket, message).context("a connection was refused")?;
            epoll::modify(epoll, &self.socket, EventData::new_u64(index as u64), EventFlags::IN)?;
            self.asked = true;
            return Ok(false);
        }
        let mut answer = [0; ANSWER.len() + 1];
        match receive(&self.socket, &mut answer).context("a connection broke before the answer")? {
            Some(0) => bail!("a connection was closed before the answer"),
            Some(count) if answer.get(..count) == ANSWER.get(self.received..self.received + count) => {
                self.received += count;
            }
            Some(_) => bail!("a strange answer to a start-up message"),
            None => {}
        }
        Ok(self.received == ANSWER.len())
    }
}
