//! Ping-pong and bulk streams, alone or side by side, in one epoll loop for each thread.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;

use super::Stream;
use super::gate::{Tally, Worker};
use super::socket::{self, begin, discard, receive, transmit};
use crate::backend::CHUNK;
use crate::measure::histogram::Histogram;
use crate::wire::{ASK, Pattern};

/// How soon a thread with nothing to do sees that the run is over.
const LOOK: Duration = Duration::from_millis(20);
const EVENTS: usize = 256;
/// What a bulk stream moves before the others get their turn, in calls of [`CHUNK`] bytes.
const TURN: usize = 4;

/// How often a paced stream moves a block.
pub const TICK: Duration = Duration::from_millis(1);
/// Bytes in a block of a paced stream: 0.26 GB/s.
pub const BLOCK: usize = 256 * 1024;

impl Stream {
    fn pattern(self) -> Pattern {
        match self {
            Self::Ping(size) => Pattern::Echo { size },
            Self::Download => Pattern::Source,
            Self::Upload | Self::PacedUpload => Pattern::Sink,
            Self::PacedDownload => Pattern::Give { size: BLOCK },
        }
    }

    fn is_paced(self) -> bool {
        matches!(self, Self::PacedDownload | Self::PacedUpload)
    }
}

struct Live {
    socket: TcpStream,
    stream: Stream,
    /// Bytes of the answer that are there.
    received: usize,
    asked: Instant,
    /// Of a block: what is still to come, or to be sent.
    left: usize,
    /// It waits for room to send the rest of a block.
    waits: bool,
}

/// What all streams of a thread share.
struct Bench<'a> {
    buffer: Vec<u8>,
    latency: Histogram,
    tally: &'a Tally,
    measuring: bool,
}

/// Runs this thread's part of `streams`, which are dealt round.
pub fn work(target: SocketAddr, streams: &[Stream], worker: &Worker<'_>) -> Result<Histogram> {
    let mine = streams.iter().skip(worker.index).step_by(worker.threads);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut live = Vec::new();
    for stream in mine {
        let socket = begin(target, None, stream.pattern())?;
        let asked = Instant::now();
        live.push(Live { socket, stream: *stream, received: 0, asked, left: 0, waits: false });
    }
    let mut bench = Bench {
        buffer: vec![0x5a; CHUNK],
        latency: Histogram::default(),
        tally: worker.tally,
        measuring: false,
    };
    if worker.wait_for_start() {
        start(&epoll, &mut live, &bench.buffer)?;
        turn(&epoll, &mut live, &mut bench, worker)?;
    }
    Ok(bench.latency)
}

fn start(epoll: &OwnedFd, live: &mut [Live], buffer: &[u8]) -> Result<()> {
    for (index, one) in live.iter_mut().enumerate() {
        let interest = match one.stream {
            Stream::Ping(size) => {
                one.asked = Instant::now();
                transmit(&one.socket, buffer.get(..size).context("a request that is too large")?)?;
                EventFlags::IN
            }
            Stream::Download | Stream::PacedDownload => EventFlags::IN,
            Stream::Upload => EventFlags::OUT,
            Stream::PacedUpload => EventFlags::empty(),
        };
        epoll::add(epoll, &one.socket, EventData::new_u64(index as u64), interest)?;
    }
    Ok(())
}

fn turn(epoll: &OwnedFd, live: &mut [Live], bench: &mut Bench<'_>, worker: &Worker<'_>) -> Result<()> {
    let mut events = Vec::with_capacity(EVENTS);
    let paced: Vec<usize> =
        (0..live.len()).filter(|index| live.get(*index).is_some_and(|one| one.stream.is_paced())).collect();
    let mut due = Instant::now();
    while !worker.is_over() {
        events.clear();
        let timeout = if paced.is_empty() { LOOK } else { due.saturating_duration_since(Instant::now()) };
        socket::wait(epoll, &mut events, Some(timeout))?;
        if !paced.is_empty() && Instant::now() >= due {
            // What was missed is not made up for.
            due = Instant::now().max(due + TICK);
            for index in &paced {
                live.get_mut(*index).context("a stream of nobody")?.tick(*index, epoll, bench)?;
            }
        }
        bench.measuring = worker.is_measuring();
        for event in &events {
            let index = usize::try_from(event.data.u64())?;
            let one = live.get_mut(index).context("an event of nobody")?;
            one.serve(index, epoll, bench).with_context(|| format!("stream {index}, {:?}", one.stream))?;
        }
    }
    Ok(())
}

impl Live {
    fn serve(&mut self, index: usize, epoll: &OwnedFd, bench: &mut Bench<'_>) -> Result<()> {
        match self.stream {
            Stream::Ping(size) => self.ping(size, bench),
            Stream::Download => self.download(bench),
            Stream::Upload => self.upload(bench),
            Stream::PacedDownload => {
                let before = bench.tally.count_of_bytes();
                self.download(bench)?;
                let count = usize::try_from(bench.tally.count_of_bytes() - before)?;
                self.left = self.left.checked_sub(count).context("more than was asked for")?;
                Ok(())
            }
            Stream::PacedUpload => self.push(index, epoll, bench),
        }
    }

    /// Time for another block.
    fn tick(&mut self, index: usize, epoll: &OwnedFd, bench: &mut Bench<'_>) -> Result<()> {
        if self.left > 0 {
            return Ok(());
        }
        self.left = BLOCK;
        if self.stream == Stream::PacedUpload {
            return self.push(index, epoll, bench);
        }
        Ok(transmit(&self.socket, bench.buffer.get(..ASK).unwrap_or_default())?)
    }

    /// Sends what is left of a block, as far as there is room.
    fn push(&mut self, index: usize, epoll: &OwnedFd, bench: &mut Bench<'_>) -> Result<()> {
        while self.left > 0 {
            let block = bench.buffer.get(..self.left).unwrap_or(&bench.buffer);
            let Some(count) = socket::send(&self.socket, block)? else { break };
            self.left -= count;
            bench.tally.bytes(count);
        }
        if self.waits != (self.left > 0) {
            self.waits = self.left > 0;
            let interest = if self.waits { EventFlags::OUT } else { EventFlags::empty() };
            epoll::modify(epoll, &self.socket, EventData::new_u64(index as u64), interest)?;
        }
        Ok(())
    }

    fn ping(&mut self, size: usize, bench: &mut Bench<'_>) -> Result<()> {
        match receive(&self.socket, &mut bench.buffer)? {
            Some(0) => bail!(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Some(count) => self.received += count,
            None => return Ok(()),
        }
        if self.received < size {
            return Ok(());
        }
        if self.received > size {
            bail!("an answer of {} bytes to a request of {size}", self.received);
        }
        let now = Instant::now();
        if bench.measuring {
            bench.latency.record(now - self.asked);
        }
        bench.tally.request();
        self.received = 0;
        self.asked = now;
        transmit(&self.socket, bench.buffer.get(..size).unwrap_or_default())?;
        Ok(())
    }

    fn download(&mut self, bench: &mut Bench<'_>) -> Result<()> {
        for _ in 0..TURN {
            match discard(&self.socket, &mut bench.buffer)? {
                Some(0) => bail!(io::Error::from(io::ErrorKind::UnexpectedEof)),
                Some(count) => {
                    bench.tally.bytes(count);
                    if count < CHUNK {
                        break;
                    }
                }
                None => break,
            }
        }
        Ok(())
    }

    fn upload(&mut self, bench: &mut Bench<'_>) -> Result<()> {
        for _ in 0..TURN {
            match socket::send(&self.socket, &bench.buffer)? {
                Some(count) => {
                    bench.tally.bytes(count);
                    if count < CHUNK {
                        break;
                    }
                }
                None => break,
            }
        }
        Ok(())
    }
}
