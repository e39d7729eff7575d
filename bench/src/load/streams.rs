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
use crate::wire::Pattern;

/// How soon a thread with nothing to do sees that the run is over.
const LOOK: Duration = Duration::from_millis(20);
const EVENTS: usize = 256;
/// What a bulk stream moves before the others get their turn, in calls of [`CHUNK`] bytes.
const TURN: usize = 4;

impl Stream {
    fn pattern(self) -> Pattern {
        match self {
            Self::Ping(size) => Pattern::Echo { size },
            Self::Download => Pattern::Source,
            Self::Upload => Pattern::Sink,
        }
    }
}

struct Live {
    socket: TcpStream,
    stream: Stream,
    /// Bytes of the answer that are there.
    received: usize,
    asked: Instant,
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
        live.push(Live { socket, stream: *stream, received: 0, asked: Instant::now() });
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
            Stream::Download => EventFlags::IN,
            Stream::Upload => EventFlags::OUT,
        };
        epoll::add(epoll, &one.socket, EventData::new_u64(index as u64), interest)?;
    }
    Ok(())
}

fn turn(epoll: &OwnedFd, live: &mut [Live], bench: &mut Bench<'_>, worker: &Worker<'_>) -> Result<()> {
    let mut events = Vec::with_capacity(EVENTS);
    while !worker.is_over() {
        events.clear();
        socket::wait(epoll, &mut events, Some(LOOK))?;
        bench.measuring = worker.is_measuring();
        for event in &events {
            let index = usize::try_from(event.data.u64())?;
            let one = live.get_mut(index).context("an event of nobody")?;
            one.serve(bench).with_context(|| format!("stream {index}, {:?}", one.stream))?;
        }
    }
    Ok(())
}

impl Live {
    fn serve(&mut self, bench: &mut Bench<'_>) -> Result<()> {
        match self.stream {
            Stream::Ping(size) => self.ping(size, bench),
            Stream::Download => self.download(bench),
            Stream::Upload => self.upload(bench),
        }
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
