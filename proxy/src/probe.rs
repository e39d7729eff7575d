//! Whether a server answers connections ([`Effect::Probe`](pointsman_core::event::Effect::Probe)): connect,
//! send a `GSSENCRequest`, await one byte, close. No credentials and no session are needed.
//!
//! Not an `SSLRequest`: a server with `ssl = on` logs "could not accept SSL connection: EOF detected" for each
//! one that is not followed by a handshake. A `GSSENCRequest` leaves no line in the log (PostgreSQL 15).
//!
//! Each probe is one task of the tracker and ends at its deadline. [`MAX_PROBES`] run at once; the others
//! wait, within their own deadlines.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pointsman_core::event::{DialOutcome, Event};
use pointsman_core::view::{Address, MemberName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::connect;

/// Probes of one cluster that run at the same time.
pub const MAX_PROBES: usize = 64;

/// `GSSENCRequest`: its own length, then 1234 and 5680 (PostgreSQL: "GSSAPI Session Encryption").
const REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];

/// PostgreSQL before version 12 does not know the request. Its error with this SQLSTATE
/// (`feature_not_supported`) is the answer of a server that answers.
const NOT_SUPPORTED: &[u8] = b"\0C0A000\0";

/// No error response at this point is longer.
const MAX_ERROR: u64 = 4096;

/// Probes the servers of one cluster.
#[derive(Clone, Debug)]
pub struct Prober {
    events: Sender<Event>,
    tracker: TaskTracker,
    permits: Arc<Semaphore>,
}

impl Prober {
    /// Results go into `events`; `tracker` owns the tasks.
    pub fn new(events: Sender<Event>, tracker: TaskTracker) -> Self {
        Self { events, tracker, permits: Arc::new(Semaphore::new(MAX_PROBES)) }
    }

    /// Probes a server: its addresses in order, until one answers. Returns at once; exactly one
    /// [`Event::Probe`] follows, at the latest after `deadline`. Dropping the runtime cancels it.
    pub fn probe(&self, member: MemberName, addresses: Arc<[Address]>, deadline: Duration) {
        let (events, permits) = (self.events.clone(), Arc::clone(&self.permits));
        self.tracker.spawn(async move {
            let probing = async {
                let _permit = permits.acquire().await;
                first_to_answer(&addresses).await
            };
            let outcome = timeout(deadline, probing).await.unwrap_or(DialOutcome::TimedOut);
            let _ = events.send(Event::Probe { member, outcome }).await; // nobody listens: shutdown
        });
    }
}

/// Several addresses of one server are alternatives; the last one's failure counts.
async fn first_to_answer(addresses: &[Address]) -> DialOutcome {
    let mut outcome = DialOutcome::Failed;
    for address in addresses {
        outcome = ask(address).await;
        if matches!(outcome, DialOutcome::Served | DialOutcome::NotReady) {
            break;
        }
    }
    outcome
}

async fn ask(address: &Address) -> DialOutcome {
    let mut stream = match connect::tcp(&address.host, address.port).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return DialOutcome::Refused,
        Err(_) => return DialOutcome::Failed,
    };
    exchange(&mut stream).await.unwrap_or(DialOutcome::Failed)
}

async fn exchange(stream: &mut TcpStream) -> io::Result<DialOutcome> {
    stream.write_all(&REQUEST).await?;
    match stream.read_u8().await? {
        b'G' | b'N' | b'S' => Ok(DialOutcome::Served),
        b'E' => {
            let mut error = Vec::new();
            // Whatever ends it, what has come is what counts.
            let _ = stream.take(MAX_ERROR).read_to_end(&mut error).await;
            let old = error.windows(NOT_SUPPORTED.len()).any(|part| part == NOT_SUPPORTED);
            Ok(if old { DialOutcome::Served } else { DialOutcome::NotReady })
        }
        _ => Ok(DialOutcome::Failed),
    }
}
