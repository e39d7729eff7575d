//! A proxy that is nothing but its `GET /ready`.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};
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

/// The proxy of one host. Refuses when it is dropped.
#[derive(Debug)]
pub struct FakeProxy {
    shared: Arc<Mutex<(Mood, usize)>>,
}

impl FakeProxy {
    /// Starts it, ready.
    pub(super) fn start(host: &Namespace) -> Result<Self> {
        let shared = Arc::new(Mutex::new((Mood::Ready, 0)));
        let namespace = host.handle()?;
        let (of_thread, first) = (Arc::clone(&shared), host.within(listen)?);
        thread::Builder::new().name("proxy".to_owned()).spawn(move || {
            let entered = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
            let result = entered.map_err(|error| anyhow!(error)).and_then(|()| run(first, &of_thread));
            if let Err(error) = result {
                eprintln!("pointsman-tests: the proxy of the lab: {error:#}");
                std::process::exit(1);
            }
        })?;
        Ok(Self { shared })
    }

    /// Changes what it does from now on.
    pub fn set(&self, mood: Mood) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).0 = mood;
    }

    /// How many questions it has had.
    pub fn questions(&self) -> usize {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

impl Drop for FakeProxy {
    fn drop(&mut self) {
        self.set(Mood::Refuses);
    }
}

fn listen() -> Result<TcpListener> {
    let listener = TcpListener::bind(ADMIN)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn run(first: TcpListener, shared: &Mutex<(Mood, usize)>) -> Result<()> {
    let mut listener = Some(first);
    let mut connections: Vec<TcpStream> = Vec::new();
    loop {
        thread::sleep(LOOK);
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.0 == Mood::Refuses {
            listener = None;
            connections.clear();
            continue;
        }
        let listener = match &mut listener {
            Some(listener) => listener,
            none => none.insert(listen()?),
        };
        while let Ok((connection, _)) = listener.accept() {
            connection.set_nonblocking(true)?;
            connections.push(connection);
        }
        connections.retain_mut(|connection| {
            let mut request = [0; 4096];
            match connection.read(&mut request) {
                Ok(0) => false,
                Ok(_) => {
                    shared.1 += 1;
                    answer(connection, shared.0)
                }
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            }
        });
    }
}

/// A request of the lab's size arrives in one piece.
fn answer(connection: &mut TcpStream, mood: Mood) -> bool {
    let (status, body) = match mood {
        Mood::Ready => ("200 OK", "ready\n"),
        Mood::Unready => ("503 Service Unavailable", "no listener is up\n"),
        Mood::Hangs | Mood::Refuses => return true,
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(answer.as_bytes()).is_ok()
}
