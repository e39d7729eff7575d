//! The server behind all proxies: it does what a session's start-up message asks for, and as little as it can.
//!
//! One epoll loop for each thread. The thread that accepts hands connections round, so that few streams are spread evenly.
//! Level-triggered: a socket that is always ready must not keep the loop from the others.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;

use crate::load::socket::{self, discard, receive, transmit};
use crate::wire::{ANSWER, ASK, First, MAX_FIRST_MESSAGE, Pattern, first_message};

const BACKLOG: i32 = 16_384;
/// What a bulk session moves before the others get their turn, in calls of [`CHUNK`] bytes.
const TURN: usize = 4;
/// Bytes in one call of a bulk session.
pub const CHUNK: usize = 256 * 1024;
const EVENTS: usize = 256;

/// Ways into a loop from another thread.
#[derive(Debug)]
struct Door {
    arrived: Mutex<Vec<TcpStream>>,
    bell: OwnedFd,
}

/// Listens on `address`, says so to `ready`, and serves for ever with `threads` loops.
pub fn serve(address: SocketAddr, threads: usize, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    // The standard library's backlog of 128 would be the slowest part of connect-churn.
    rustix::net::listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    let mut doors = Vec::new();
    for _ in 0..threads.max(1) {
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        doors.push(Door { arrived: Mutex::new(Vec::new()), bell });
    }
    let doors: Arc<[Door]> = doors.into();
    for index in 1..doors.len() {
        let doors = Arc::clone(&doors);
        thread::Builder::new()
            .name(format!("backend-{index}"))
            .spawn(move || Loop::new(index, doors, None).map_or_else(Err, Loop::run))?;
    }
    ready(listener.local_addr()?);
    Loop::new(0, doors, Some(listener))?.run()
}

#[derive(Debug)]
struct Session {
    socket: TcpStream,
    state: State,
}

#[derive(Debug)]
enum State {
    Starting(Vec<u8>),
    /// `received` bytes of a request are there.
    Echo {
        size: usize,
        received: usize,
    },
    /// `left` bytes of blocks are still to be sent; `waits`: for room to send them.
    Give {
        size: usize,
        received: usize,
        left: usize,
        waits: bool,
    },
    Source,
    Sink,
}

enum Next {
    Stay,
    /// From now on it is woken when it can receive.
    Receive,
    /// From now on it is woken when it can send.
    Send,
    /// From now on it is woken for both.
    Both,
    End,
}

struct Loop {
    index: usize,
    doors: Arc<[Door]>,
    listener: Option<TcpListener>,
    /// Who gets the next connection.
    turn: usize,
    epoll: OwnedFd,
    sessions: HashMap<u64, Session>,
    buffer: Vec<u8>,
}

const LISTENER: u64 = u64::MAX;
const BELL: u64 = u64::MAX - 1;

impl Loop {
    fn new(index: usize, doors: Arc<[Door]>, listener: Option<TcpListener>) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        if let Some(listener) = &listener {
            epoll::add(&epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        }
        if let Some(door) = doors.get(index) {
            epoll::add(&epoll, &door.bell, EventData::new_u64(BELL), EventFlags::IN)?;
        }
        let sessions = HashMap::new();
        Ok(Self { index, doors, listener, turn: 0, epoll, sessions, buffer: vec![0x5a; CHUNK] })
    }

    fn run(mut self) -> Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            socket::wait(&self.epoll, &mut events, None)?;
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    BELL => self.take_in()?,
                    key => self.serve(key)?,
                }
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let Some(listener) = &self.listener else { return Ok(()) };
            // A client that has gone already, or no more: the next event tells.
            let Ok((accepted, _)) = listener.accept() else { return Ok(()) };
            self.turn = (self.turn + 1) % self.doors.len();
            if self.turn == self.index {
                self.add(accepted)?;
            } else if let Some(door) = self.doors.get(self.turn) {
                door.arrived.lock().unwrap_or_else(PoisonError::into_inner).push(accepted);
                rustix::io::write(&door.bell, &1_u64.to_ne_bytes())?;
            }
        }
    }

    fn take_in(&mut self) -> Result<()> {
        let arrived = match self.doors.get(self.index) {
            Some(door) => {
                // Rung twice before this: the second reading finds nothing, which is all right.
                let _ = rustix::io::read(&door.bell, &mut [0; 8]);
                std::mem::take(&mut *door.arrived.lock().unwrap_or_else(PoisonError::into_inner))
            }
            None => return Ok(()),
        };
        arrived.into_iter().try_for_each(|socket| self.add(socket))
    }

    fn add(&mut self, socket: TcpStream) -> Result<()> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let key = key_of(&socket);
        epoll::add(&self.epoll, &socket, EventData::new_u64(key), EventFlags::IN)?;
        self.sessions.insert(key, Session { socket, state: State::Starting(Vec::new()) });
        Ok(())
    }

    fn serve(&mut self, key: u64) -> Result<()> {
        let Some(session) = self.sessions.get_mut(&key) else { return Ok(()) };
        let interest = match session.serve(&mut self.buffer) {
            Ok(Next::Stay) => return Ok(()),
            Ok(Next::Receive) => EventFlags::IN,
            Ok(Next::Send) => EventFlags::OUT,
            Ok(Next::Both) => EventFlags::IN | EventFlags::OUT,
            // Closing takes it out of the epoll set.
            Ok(Next::End) | Err(_) => {
                self.sessions.remove(&key);
                return Ok(());
            }
        };
        epoll::modify(&self.epoll, &session.socket, EventData::new_u64(key), interest)?;
        Ok(())
    }
}

fn key_of(socket: &TcpStream) -> u64 {
    u64::try_from(socket.as_fd().as_raw_fd()).unwrap_or_default()
}

impl Session {
    fn serve(&mut self, buffer: &mut [u8]) -> io::Result<Next> {
        match &mut self.state {
            State::Starting(received) => start(&self.socket, received).map(|(state, next)| {
                if let Some(state) = state {
                    self.state = state;
                }
                next
            }),
            State::Echo { size, received } => echo(&self.socket, *size, received, buffer),
            State::Give { size, received, left, waits } => {
                take_requests(&self.socket, *size, received, left, buffer).and_then(|open| {
                    if open { give(&self.socket, left, waits, buffer) } else { Ok(Next::End) }
                })
            }
            State::Source => source(&self.socket, buffer),
            State::Sink => sink(&self.socket, buffer),
        }
    }
}

/// Reads a first message to its end and not beyond: what follows is the session's.
fn start(socket: &TcpStream, received: &mut Vec<u8>) -> io::Result<(Option<State>, Next)> {
    let mut buffer = [0; MAX_FIRST_MESSAGE];
    match receive(socket, &mut buffer)? {
        Some(0) => return Ok((None, Next::End)),
        Some(count) => received.extend_from_slice(buffer.get(..count).unwrap_or_default()),
        None => return Ok((None, Next::Stay)),
    }
    match first_message(received) {
        First::Incomplete => Ok((None, Next::Stay)),
        First::Encryption => {
            received.clear();
            transmit(socket, b"N").map(|()| (None, Next::Stay))
        }
        // Nobody sends a byte before it has the answer.
        First::Startup { pattern, length } if length == received.len() => {
            transmit(socket, &ANSWER)?;
            Ok(match pattern {
                Pattern::Echo { size } => (Some(State::Echo { size, received: 0 }), Next::Stay),
                Pattern::Give { size } => {
                    (Some(State::Give { size, received: 0, left: 0, waits: false }), Next::Stay)
                }
                Pattern::Source => (Some(State::Source), Next::Send),
                Pattern::Sink => (Some(State::Sink), Next::Stay),
            })
        }
        First::Startup { .. } | First::Strange => Ok((None, Next::End)),
    }
}

fn echo(socket: &TcpStream, size: usize, received: &mut usize, buffer: &mut [u8]) -> io::Result<Next> {
    match receive(socket, buffer)? {
        Some(0) => return Ok(Next::End),
        Some(count) => *received += count,
        None => return Ok(Next::Stay),
    }
    while *received >= size {
        *received -= size;
        transmit(socket, buffer.get(..size).unwrap_or_default())?;
    }
    Ok(Next::Stay)
}

/// Counts what is asked for; false at the end.
fn take_requests(
    socket: &TcpStream,
    size: usize,
    received: &mut usize,
    left: &mut usize,
    buffer: &mut [u8],
) -> io::Result<bool> {
    match receive(socket, buffer)? {
        Some(0) => return Ok(false),
        Some(count) => *received += count,
        None => {}
    }
    *left += *received / ASK * size;
    *received %= ASK;
    Ok(true)
}

fn give(socket: &TcpStream, left: &mut usize, waits: &mut bool, buffer: &[u8]) -> io::Result<Next> {
    while *left > 0 {
        let block = buffer.get(..*left).unwrap_or(buffer);
        match socket::send(socket, block)? {
            Some(count) => *left -= count,
            None => break,
        }
    }
    let waited = std::mem::replace(waits, *left > 0);
    Ok(match (waited, *waits) {
        (false, true) => Next::Both,
        (true, false) => Next::Receive,
        (false, false) | (true, true) => Next::Stay,
    })
}

fn source(socket: &TcpStream, buffer: &[u8]) -> io::Result<Next> {
    for _ in 0..TURN {
        if socket::send(socket, buffer)?.is_none_or(|count| count < buffer.len()) {
            break;
        }
    }
    Ok(Next::Stay)
}

fn sink(socket: &TcpStream, buffer: &mut [u8]) -> io::Result<Next> {
    for _ in 0..TURN {
        match discard(socket, buffer)? {
            Some(0) => return Ok(Next::End),
            Some(count) if count == buffer.len() => {}
            Some(_) | None => break,
        }
    }
    Ok(Next::Stay)
}
