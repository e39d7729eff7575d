//! The server of the members that take turns at leading: it notes when each message arrived and when it was written.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;

use super::{MESSAGE, Nanos, since};
use crate::load::socket::{self, receive, transmit};
use crate::site::Cores;
use crate::wire::{ANSWER, First, MAX_FIRST_MESSAGE, first_message};

const BACKLOG: i32 = 16_384;
const EVENTS: usize = 1_024;
const LISTENER: u64 = u64::MAX;
/// How soon it sees that it shall end.
const LOOK: Duration = Duration::from_millis(20);

/// What arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// When our server had it.
    pub read: Nanos,
    /// When the client wrote it.
    pub written: Nanos,
}

/// What the server has seen since it was last asked.
#[derive(Debug, Default)]
pub struct Seen {
    /// Messages, in the order in which they were read.
    pub arrivals: Vec<Arrival>,
    /// When sessions ended.
    pub ends: Vec<Nanos>,
}

/// A thread with a server.
#[derive(Debug)]
pub struct OldServer {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl OldServer {
    /// Serves on `port` of every address, until it is dropped.
    pub fn start(port: u16, epoch: Instant, cores: Cores) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        rustix::net::listen(&listener, BACKLOG)?;
        listener.set_nonblocking(true)?;
        let (seen, stop): (Arc<Mutex<Seen>>, Arc<AtomicBool>) = Default::default();
        let mut serving = Serving {
            listener,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sessions: HashMap::new(),
            epoch,
        };
        let (their_seen, their_stop) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = thread::Builder::new().name("old-server".to_owned()).spawn(move || {
            let ended = cores.confine_this_thread().and_then(|()| serving.run(&their_seen, &their_stop));
            if let Err(error) = ended {
                eprintln!("pointsman-bench: the server behind the fence failed: {error:#}");
            }
        })?;
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    /// Takes what it has seen.
    pub fn take(&self) -> Seen {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for OldServer {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // It says itself why it failed.
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Session {
    socket: TcpStream,
    started: bool,
    received: Vec<u8>,
}

struct Serving {
    listener: TcpListener,
    epoll: OwnedFd,
    sessions: HashMap<u64, Session>,
    epoch: Instant,
}

impl Serving {
    fn run(&mut self, seen: &Mutex<Seen>, stop: &AtomicBool) -> Result<()> {
        epoll::add(&self.epoll, &self.listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        let mut events = Vec::with_capacity(EVENTS);
        while !stop.load(Relaxed) {
            events.clear();
            socket::wait(&self.epoll, &mut events, Some(LOOK))?;
            let mut news = Seen::default();
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    key => self.serve(key, &mut news),
                }
            }
            if !(news.arrivals.is_empty() && news.ends.is_empty()) {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.arrivals.append(&mut news.arrivals);
                seen.ends.append(&mut news.ends);
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        while let Ok((socket, _)) = self.listener.accept() {
            socket.set_nonblocking(true)?;
            let key = u64::try_from(socket.as_raw_fd()).unwrap_or_default();
            epoll::add(&self.epoll, &socket, EventData::new_u64(key), EventFlags::IN)?;
            self.sessions.insert(key, Session { socket, started: false, received: Vec::new() });
        }
        Ok(())
    }

    fn serve(&mut self, key: u64, news: &mut Seen) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let mut buffer = [0; 4096];
        let count = match receive(&session.socket, &mut buffer) {
            Ok(None) => return,
            Ok(Some(count)) if count > 0 => count,
            // A reset is an end, too.
            Ok(Some(_)) | Err(_) => {
                if session.started {
                    news.ends.push(since(self.epoch));
                }
                self.sessions.remove(&key);
                return;
            }
        };
        session.received.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if session.started {
            let read = since(self.epoch);
            news.arrivals.extend(session.messages().map(|written| Arrival { read, written }));
        } else if session.start().is_err() {
            self.sessions.remove(&key);
        }
    }
}

impl Session {
    fn start(&mut self) -> Result<()> {
        match first_message(&self.received) {
            First::Incomplete if self.received.len() < MAX_FIRST_MESSAGE => {}
            First::Encryption => {
                self.received.clear();
                transmit(&self.socket, b"N")?;
            }
            First::Startup { length, .. } => {
                self.received.drain(..length);
                self.started = true;
                transmit(&self.socket, &ANSWER)?;
            }
            First::Incomplete | First::Strange => anyhow::bail!("a strange first message"),
        }
        Ok(())
    }

    /// Takes the whole messages out: when each was written.
    fn messages(&mut self) -> impl Iterator<Item = Nanos> {
        let whole = self.received.len() / MESSAGE * MESSAGE;
        let taken: Vec<u8> = self.received.drain(..whole).collect();
        let written: Vec<Nanos> = taken
            .chunks_exact(MESSAGE)
            .filter_map(|message| Some(Nanos::from_be_bytes(*message.first_chunk()?)))
            .collect();
        written.into_iter()
    }
}
