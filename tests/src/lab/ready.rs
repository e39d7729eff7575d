//! A proxy that is nothing but its `GET /ready`, and the socket on which it hears that an address has left.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::namespace::Namespace;

/// `[admin] bind` of the lab's configurations.
const ADMIN: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 7000);
const LOOK: Duration = Duration::from_millis(2);

/// What it does with a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// 200.
    Ready,
    /// 503.
    Unready,
    /// It takes the question and says nothing.
    Hangs,
    /// Nobody listens; what was connected is closed.
    Refuses,
}

#[derive(Debug)]
struct State {
    mood: Mood,
    questions: usize,
    told: Vec<String>,
}

/// The proxy of one host. Refuses when it is dropped.
#[derive(Debug)]
pub struct FakeProxy {
    state: Arc<Mutex<State>>,
}

impl FakeProxy {
    /// Starts it, ready. Its socket is `socket`.
    pub(super) fn start(host: &Namespace, socket: &Path) -> Result<Self> {
        let state = Arc::new(Mutex::new(State { mood: Mood::Ready, questions: 0, told: Vec::new() }));
        let namespace = host.handle()?;
        let doors = Doors { ready: Some(host.within(listen)?), admin: UnixListener::bind(socket)? };
        doors.admin.set_nonblocking(true)?;
        let of_thread = Arc::clone(&state);
        thread::Builder::new().name("proxy".to_owned()).spawn(move || {
            let entered = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
            let result = entered.map_err(|error| anyhow!(error)).and_then(|()| run(doors, &of_thread));
            if let Err(error) = result {
                eprintln!("pointsman-tests: the proxy of the lab: {error:#}");
                std::process::exit(1);
            }
        })?;
        Ok(Self { state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what it does from now on.
    pub fn set(&self, mood: Mood) {
        self.state().mood = mood;
    }

    /// How often it was asked for `/ready`.
    pub fn questions(&self) -> usize {
        self.state().questions
    }

    /// The first lines of what it was told on its socket.
    pub fn told(&self) -> Vec<String> {
        self.state().told.clone()
    }
}

impl Drop for FakeProxy {
    fn drop(&mut self) {
        self.set(Mood::Refuses);
    }
}

struct Doors {
    ready: Option<TcpListener>,
    admin: UnixListener,
}

trait Connection: Read + Write + Send {}
impl<T: Read + Write + Send> Connection for T {}

fn listen() -> Result<TcpListener> {
    let listener = TcpListener::bind(ADMIN)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn run(mut doors: Doors, state: &Mutex<State>) -> Result<()> {
    let mut connections: Vec<Box<dyn Connection>> = Vec::new();
    loop {
        thread::sleep(LOOK);
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.mood == Mood::Refuses {
            doors.ready = None;
            connections.clear();
            continue;
        }
        let ready = match &mut doors.ready {
            Some(listener) => listener,
            none => none.insert(listen()?),
        };
        while let Ok((connection, _)) = ready.accept() {
            connection.set_nonblocking(true)?;
            connections.push(Box::new(connection));
        }
        while let Ok((connection, _)) = doors.admin.accept() {
            connection.set_nonblocking(true)?;
            connections.push(Box::new(connection));
        }
        connections.retain_mut(|connection| {
            let mut request = [0; 4096];
            match connection.read(&mut request) {
                Ok(0) => false,
                Ok(length) => {
                    let request = String::from_utf8_lossy(request.get(..length).unwrap_or_default());
                    answer(connection, &request, &mut state)
                }
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            }
        });
    }
}

/// A request of the lab's size arrives in one piece.
fn answer(connection: &mut Box<dyn Connection>, request: &str, state: &mut State) -> bool {
    let line = request.lines().next().unwrap_or_default();
    if !line.starts_with("GET /ready") {
        state.told.push(line.to_owned());
        return write(connection, "200 OK", "{\"sessions\":0}");
    }
    state.questions += 1;
    match state.mood {
        Mood::Ready => write(connection, "200 OK", "ready\n"),
        Mood::Unready => write(connection, "503 Service Unavailable", "no listener is up\n"),
        Mood::Hangs | Mood::Refuses => true,
    }
}

fn write(connection: &mut Box<dyn Connection>, status: &str, body: &str) -> bool {
    let kind = if body.starts_with('{') { "application/json" } else { "text/plain" };
    let length = body.len();
    let answer =
        format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}");
    connection.write_all(answer.as_bytes()).is_ok()
}
