//! Many sessions whose clients do not read: what they take, and what the others notice of them.

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{SockRef, Socket};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::lab::*;
use super::process::{descriptors, engines, is_alone, resident};

/// What a server says to a client that does not read: more than fits into the small buffers of the sockets and into what the relay keeps.
const MUCH: usize = 100 * 1024;

/// What a stalled session may take, in bytes: the relay keeps 64 KiB, and what was received before the source was stopped.
const MOST: usize = 160 * 1024;

/// The same for one that was stopped in the middle of a bulk transfer: what came in the round in which its sink was full is kept.
const MOST_BULK: usize = 1024 * 1024;

/// Each takes four descriptors of this process.
fn room_for(sessions: usize) -> usize {
    let wanted = sessions as u64 * 4 + 500;
    let more = Rlimit { current: Some(wanted), maximum: Some(wanted) };
    if getrlimit(Resource::Nofile).maximum.is_some_and(|most| most < wanted) {
        let _ = setrlimit(Resource::Nofile, more); // needs a right that few have
    }
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    sessions.min((most - 500) / 4)
}

/// A session whose client has small buffers.
async fn small(lab: &Lab, server: &FakeServer) -> (TcpStream, TcpStream) {
    let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&lab.address().into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut client = TcpStream::from_std(socket.into()).unwrap();
    client.write_all(&startup("alice")).await.unwrap();
    let mut far = server.asked(&startup("alice")).await;
    far.write_all(AUTH_OK).await.unwrap();
    read_expected(&mut client, AUTH_OK).await;
    (client, far)
}

async fn round_trips(client: &mut TcpStream, far: &mut TcpStream, count: usize) -> Vec<Duration> {
    let mut took = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        client.write_all(b"ping").await.unwrap();
        read_expected(far, b"ping").await;
        far.write_all(b"pong").await.unwrap();
        read_expected(client, b"pong").await;
        took.push(began.elapsed());
    }
    took.sort();
    took
}

/// Writes `MUCH`, or as much as anybody takes.
async fn talk(far: &mut TcpStream, bulk: bool) -> usize {
    if !bulk {
        SockRef::from(&*far).set_send_buffer_size(MUCH).unwrap();
        far.write_all(&vec![7; MUCH]).await.unwrap();
        return MUCH;
    }
    let (block, mut sent, mut still_since) = (vec![7; MUCH], 0, Instant::now());
    while still_since.elapsed() < Duration::from_millis(30) {
        if let Ok(count) = far.try_write(&block) {
            (sent, still_since) = (sent + count, Instant::now());
        } else {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    sent
}

/// `bulk`: the servers say as much as anybody takes.
async fn stalled(engine: crate::engine::Engine, sessions: usize, bulk: bool) {
    let backend = engine.cores().backend();
    let mut lab = Lab::on(engine, |listener| listener.max_connections = 20_000);
    for socket in lab.listener.bound.share().iter() {
        SockRef::from(socket).set_send_buffer_size(4096).unwrap(); // inherited
    }
    let server = FakeServer::new().await;
    lab.route(&[("n1", server.address, 1)]);
    let (mut active, mut active_far) = established(&lab, &server).await;
    // The cores keep pipes for the next one.
    let open = || (descriptors("socket:"), descriptors("") - descriptors("pipe:"));
    let before = open();
    let mut crowd = Vec::new();
    for _ in 0..sessions {
        crowd.push(small(&lab, &server).await);
    }
    let idle = resident();
    let mut stuck = Vec::new();
    for (client, mut far) in crowd {
        let sent = talk(&mut far, bulk).await;
        stuck.push((client, far, sent));
    }
    // Until nothing moves any more.
    let mut moved = 0;
    let mut still_since = Instant::now();
    while still_since.elapsed() < Duration::from_millis(300) {
        let now = lab.stats.bytes_out.get();
        if now != moved {
            (moved, still_since) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let taken = usize::try_from(moved).unwrap();
    let said = stuck.iter().map(|(.., sent)| sent).sum::<usize>();
    assert!(taken < said / 2, "the clients' kernels took {taken} bytes: nobody is stalled");
    let each = resident().saturating_sub(idle) / sessions;
    let took = round_trips(&mut active, &mut active_far, 200).await;
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    println!(
        "{backend}: {sessions} stalled sessions, {each} bytes of memory each; a round trip beside them: {median:?}, at most {worst:?}"
    );
    assert!(each > 8 * 1024, "{each} bytes for a stalled session: the measurement is wrong");
    assert!(each <= if bulk { MOST_BULK } else { MOST }, "{each} bytes for a stalled session");
    assert!(median < Duration::from_millis(20) && worst < Duration::from_secs(1), "{median:?}, {worst:?}");
    // Some are read after all, the rest are left by their clients or servers.
    for (number, (mut client, far, sent)) in stuck.into_iter().enumerate() {
        match number % 10 {
            0 => {
                drop(far);
                let (got, end) = read_all(&mut client).await;
                end.unwrap();
                assert!(got.len() == sent && got.iter().all(|byte| *byte == 7));
            }
            1..5 => drop((far, client)),
            _ => drop((client, far)),
        }
    }
    eventually("the sessions have ended", || lab.stats.sessions.get() == 1).await;
    eventually("the cores know it", || {
        lab.engine.cores().states().map(|core| core.sessions).sum::<usize>() == 1
    })
    .await;
    eventually("every socket is closed", || open() == before).await;
    round_trips(&mut active, &mut active_far, 1).await;
    drop((active, active_far));
    lab.at_rest().await;
}

fn on_both(sessions: usize, bulk: bool) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let sessions = room_for(sessions);
        for (_, engine) in engines() {
            stalled(engine, sessions, bulk).await;
        }
    });
}

#[test]
fn a_stalled_session_takes_little_and_delays_nobody() {
    if is_alone("crowd::a_stalled_session_takes_little_and_delays_nobody") {
        on_both(500, false);
    }
}

#[test]
fn a_bulk_transfer_that_stalls_is_bounded_too() {
    if is_alone("crowd::a_bulk_transfer_that_stalls_is_bounded_too") {
        on_both(40, true);
    }
}

#[test]
#[ignore = "takes a minute, and more than a gigabyte of kernel memory"]
fn ten_thousand_stalled_sessions() {
    if is_alone("crowd::ten_thousand_stalled_sessions") {
        on_both(10_000, false);
    }
}
