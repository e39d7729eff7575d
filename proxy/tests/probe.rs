//! Probes of servers, with fakes for each way in which a server can answer.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use std::time::{Duration, Instant};

use pointsman::probe::{MAX_PROBES, Prober};
use pointsman_core::event::{DialOutcome, Event};
use pointsman_core::view::Address;
use support::etcd::SOON;
use support::fake::{FakeServer, closed_port};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// One that answers a `GSSENCRequest` with this, and closes.
async fn answering(answer: &'static [u8]) -> FakeServer {
    FakeServer::start(move |_, mut stream| async move {
        let mut request = [0; 8];
        stream.read_exact(&mut request).await.unwrap();
        assert_eq!(request, [0, 0, 0, 8, 4, 210, 22, 48]);
        let _ = stream.write_all(answer).await;
    })
    .await
}

/// One that accepts and says nothing.
async fn hung() -> FakeServer {
    FakeServer::start(|_, stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await
}

fn at(port: u16) -> Address {
    Address { host: "127.0.0.1".to_owned(), port }
}

async fn probe(addresses: &[Address], deadline: Duration) -> DialOutcome {
    let (sender, mut events) = mpsc::channel(1);
    Prober::new(sender, TaskTracker::new()).probe("n1".into(), addresses.into(), deadline);
    let event = timeout(SOON, events.recv()).await.unwrap().unwrap();
    let Event::Probe { member, outcome } = event else { panic!("{event:?}") };
    assert_eq!(member.as_str(), "n1");
    outcome
}

#[tokio::test]
async fn every_answer_has_its_outcome() {
    for (answer, wanted) in [
        (&b"G"[..], DialOutcome::Served),
        (b"S", DialOutcome::Served),
        (b"N", DialOutcome::Served),
        (b"E\0\0\0\x20SFATAL", DialOutcome::NotReady),
        // As PostgreSQL 11 answers what it does not know.
        (b"E\0\0\0\x30SFATAL\0VFATAL\0C0A000\0Munsupported\0\0", DialOutcome::Served),
        (b"E\0\0\0\x20SFATAL\0VFATAL\0C57P03\0Mno\0\0", DialOutcome::NotReady),
        (b"HTTP/1.1 400", DialOutcome::Failed),
        (b"", DialOutcome::Failed),
    ] {
        let server = answering(answer).await;
        assert_eq!(probe(&[at(server.port)], SOON).await, wanted, "{answer:?}");
    }
    assert_eq!(probe(&[at(closed_port().await)], SOON).await, DialOutcome::Refused);
    assert_eq!(probe(&[], SOON).await, DialOutcome::Failed);
    let broadcast = Address { host: "255.255.255.255".to_owned(), port: 1 }; // no TCP goes there
    assert_eq!(probe(&[broadcast], SOON).await, DialOutcome::Failed);
}

#[tokio::test]
async fn a_hung_server_costs_the_deadline() {
    let server = hung().await;
    let start = Instant::now();
    assert_eq!(probe(&[at(server.port)], Duration::from_millis(100)).await, DialOutcome::TimedOut);
    assert!(start.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn addresses_are_alternatives() {
    let (good, closed) = (answering(b"S").await, closed_port().await);
    assert_eq!(probe(&[at(closed), at(good.port)], SOON).await, DialOutcome::Served);
    assert_eq!(good.connections(), 1);
    let loopback = Address { host: "localhost".to_owned(), port: good.port };
    assert_eq!(probe(&[loopback, at(closed)], SOON).await, DialOutcome::Served);
}

/// More probes than may run at once: those that wait are answered by their own deadlines.
#[tokio::test]
async fn too_many_probes() {
    let server = hung().await;
    let (sender, mut events) = mpsc::channel(1);
    let tracker = TaskTracker::new();
    let prober = Prober::new(sender, tracker.clone());
    let count = MAX_PROBES + 20;
    for number in 0..count {
        let deadline = Duration::from_millis(if number < MAX_PROBES { 500 } else { 100 });
        prober.probe("n1".into(), [at(server.port)].into(), deadline);
    }
    for _ in 0..count {
        let event = timeout(SOON, events.recv()).await.unwrap().unwrap();
        assert_eq!(event, Event::Probe { member: "n1".into(), outcome: DialOutcome::TimedOut });
    }
    assert!(server.connections() <= MAX_PROBES, "{}", server.connections());
    tracker.close();
    timeout(SOON, tracker.wait()).await.expect("no task is left");
}
