//! What happens when descriptors or pipes run out.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::Socket;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::lab::*;
use super::process::{descriptors, engines, is_alone, is_alone_as};
use crate::listener::tests::random::Random;

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn start() -> Self {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN);
        subscriber.with_writer(move || writer.clone()).init();
        log
    }

    fn lines_with(&self, words: &str) -> usize {
        let log = self.0.lock().unwrap();
        String::from_utf8_lossy(&log).lines().filter(|line| line.contains(words)).count()
    }
}

fn on_both(mut test: impl AsyncFnMut(crate::engine::Engine)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        for (_, engine) in engines() {
            test(engine).await;
        }
    });
}

fn limit(descriptors: usize) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(descriptors as u64), maximum }).unwrap();
}

/// Takes every descriptor that is left.
fn all_that_are_left() -> Vec<OwnedFd> {
    let mut taken = vec![OwnedFd::from(std::fs::File::open("/dev/null").unwrap())];
    while let Ok(one) = taken[0].try_clone() {
        taken.push(one);
    }
    taken
}

/// One less than a pipe needs.
fn all_but_one() -> Vec<OwnedFd> {
    let mut taken = all_that_are_left();
    taken.pop();
    taken
}

async fn more_clients_than_descriptors(engine: crate::engine::Engine, log: &Log) {
    const CLIENTS: usize = 60;
    let lab = Lab::on(engine, |_| {});
    let sockets =
        (0..CLIENTS).map(|_| Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap());
    let mut clients: Vec<Socket> = sockets.collect();
    let mut taken = all_that_are_left();
    taken.truncate(taken.len() - 20);
    for client in &clients {
        client.connect(&lab.address().into()).unwrap(); // by the kernel: nobody has accepted it yet
    }
    eventually("accept(2) has failed", || lab.stats.accept_errors.get() > 0).await;
    let inside = lab.stats.sessions.get();
    println!("{inside} sessions");
    assert!((1..CLIENTS as u64).contains(&inside), "{inside} sessions");
    let rounds = || lab.engine.cores().states().map(|core| core.rounds).sum::<u64>();
    let before = rounds();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let spun = rounds() - before;
    assert!(spun < 500, "{spun} rounds in half a second: the cores do not leave the sockets alone");
    assert_eq!(log.lines_with("cannot accept a connection"), 1, "said once");
    // Who leaves makes room for who waits, until all of them have been in.
    for served in (inside..CLIENTS as u64).step_by(10) {
        eventually("those who waited are in", || lab.stats.accepted.get() >= served).await;
        clients.drain(..10.min(clients.len()));
    }
    drop((clients, taken));
    // Those who are still in the kernel's queue are no sessions yet.
    eventually("all of them have been in", || lab.stats.accepted.get() == CLIENTS as u64).await;
    lab.at_rest().await;
    assert_eq!(lab.stats.accepted.get(), CLIENTS as u64);
    log.0.lock().unwrap().clear();
}

#[test]
fn accepting_goes_on_after_descriptors_ran_out() {
    if is_alone("limits::accepting_goes_on_after_descriptors_ran_out") {
        let log = Log::start();
        limit(300);
        on_both(async |engine| more_clients_than_descriptors(engine, &log).await);
    }
}

async fn a_dial_without_descriptors(engine: crate::engine::Engine) {
    let mut lab = Lab::on(engine, |_| {});
    let server = FakeServer::new().await;
    lab.route(&[("n1", server.address, 1)]);
    let mut client = lab.connect().await;
    eventually("it is accepted", || lab.stats.accepted.get() == 1).await;
    let taken = all_that_are_left();
    client.write_all(&startup("alice")).await.unwrap();
    eventually("a dial has failed", || lab.stats.servers().iter().any(|(_, one)| one.dial_errors.get() > 0))
        .await;
    drop(taken);
    let mut far = server.asked(&startup("alice")).await;
    far.write_all(AUTH_OK).await.unwrap();
    read_expected(&mut client, AUTH_OK).await;
    bulk(&mut client, &mut far, 100_000).await;
    drop((client, far));
    lab.at_rest().await;
}

#[test]
fn a_dial_that_found_no_descriptor_is_made_later() {
    if is_alone("limits::a_dial_that_found_no_descriptor_is_made_later") {
        limit(300);
        on_both(a_dial_without_descriptors);
    }
}

/// Sends so much that it would be spliced, both ways at once, and compares it.
async fn bulk(client: &mut TcpStream, far: &mut TcpStream, size: usize) {
    let blocks = [Random(1).bytes(size), Random(2).bytes(size)];
    let (mut client_in, mut client_out) = client.split();
    let (mut far_in, mut far_out) = far.split();
    let (mut got_up, mut got_down) = (vec![0; size], vec![0; size]);
    let all = async {
        tokio::try_join!(
            client_out.write_all(&blocks[0]),
            far_in.read_exact(&mut got_up),
            far_out.write_all(&blocks[1]),
            client_in.read_exact(&mut got_down),
        )
    };
    tokio::time::timeout(LONG, all).await.expect("the transfer hangs").unwrap();
    assert!(got_up == blocks[0] && got_down == blocks[1]);
}

async fn bulk_without_pipes<T>(engine: crate::engine::Engine, log: &Log, use_up: impl FnOnce() -> T) {
    const SAID: &str = "large transfers are copied instead of spliced";
    let mut lab = Lab::on(engine, |_| {});
    let server = FakeServer::new().await;
    lab.route(&[("n1", server.address, 1)]);
    let (mut first, mut first_far) = established(&lab, &server).await;
    let (mut second, mut second_far) = established(&lab, &server).await;
    let taken = use_up();
    let pipes = descriptors("pipe:");
    bulk(&mut first, &mut first_far, 8_000_000).await;
    bulk(&mut second, &mut second_far, 8_000_000).await;
    let cores = lab.engine.cores().states().filter(|core| core.sessions > 0).count();
    let said = log.lines_with(SAID);
    assert!((1..=cores).contains(&said), "said {said} times by {cores} cores");
    assert_eq!(descriptors("pipe:"), pipes, "a pipe that could not be had leaves nothing behind");
    drop(taken);
    bulk(&mut first, &mut first_far, 8_000_000).await;
    assert!(descriptors("pipe:") > pipes || pipes > 100, "spliced again as soon as there are pipes");
    drop((first, first_far, second, second_far));
    lab.at_rest().await;
    log.0.lock().unwrap().clear();
}

#[test]
fn without_descriptors_for_pipes_bulk_is_copied() {
    if is_alone("limits::without_descriptors_for_pipes_bulk_is_copied") {
        let log = Log::start();
        limit(300);
        on_both(async |engine| bulk_without_pipes(engine, &log, all_but_one).await);
    }
}

/// Uses up what a user without privileges may have (fs.pipe-user-pages-soft).
fn all_pages_for_pipes() -> Vec<(OwnedFd, OwnedFd)> {
    let mut pipes = Vec::new();
    while let Ok(pipe) = rustix::pipe::pipe() {
        let grown = rustix::pipe::fcntl_setpipe_size(&pipe.1, 256 * 1024);
        pipes.push(pipe);
        if grown.is_err() {
            return pipes;
        }
    }
    panic!("descriptors ran out before pages, after {} pipes", pipes.len());
}

#[test]
fn without_pages_for_pipes_bulk_is_copied() {
    const NOBODY: u32 = 65534;
    if is_alone_as("limits::without_pages_for_pipes_bulk_is_copied", Some(NOBODY)) {
        let log = Log::start();
        on_both(async |engine| bulk_without_pipes(engine, &log, all_pages_for_pipes).await);
    }
}
