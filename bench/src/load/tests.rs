//! The load generator against its own server, on loopback and without a proxy: what it counts must be true.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::*;
use crate::backend;
use crate::load::socket::begin;
use crate::measure::processes::cpu_of_self;
use crate::wire::{ANSWER, Pattern};

/// A server of our own. It lives as long as the test process.
fn server(threads: usize) -> SocketAddr {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        backend::serve(any, threads, |address| sender.send(address).unwrap())
    });
    receiver.recv_timeout(Duration::from_secs(10)).unwrap()
}

fn pace(threads: usize) -> Pace {
    Pace { warm: Duration::from_millis(50), window: Duration::from_millis(300), threads, cores: Cores::all() }
}

/// A forwarder of one connection that counts the bytes each way: the independent witness.
fn counted(target: SocketAddr) -> (SocketAddr, thread::JoinHandle<(u64, u64)>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let witness = thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let server = TcpStream::connect(target).unwrap();
        let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let there = thread::spawn(move || {
            let count = forward(&mut from_client, &mut to_server);
            // The load closes with an answer under way: the server has nobody to tell.
            let _ = to_server.shutdown(std::net::Shutdown::Write);
            count
        });
        let (mut from_server, mut to_client) = (server, client);
        let back = forward(&mut from_server, &mut to_client);
        (there.join().unwrap(), back)
    });
    (address, witness)
}

/// Until one of them is gone: the load closes with bytes unread, and the kernel makes a reset of that. Answers how many.
fn forward(from: &mut TcpStream, to: &mut TcpStream) -> u64 {
    let mut forwarded = 0;
    let mut buffer = vec![0; 65536];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
        forwarded += count as u64;
    }
    forwarded
}

#[test]
fn every_request_that_is_counted_went_over_the_wire() {
    let (address, witness) = counted(server(1));
    let mut counted = 0;
    // The whole life of the load is the window: what is on the wire is what is counted, but for the last request.
    let pace = Pace { warm: Duration::ZERO, ..pace(1) };
    let outcome = streams(address, &[Stream::Ping(1000)], &pace, &mut |_| counted += 1).unwrap();
    let (there, back) = witness.join().unwrap();
    let startup = crate::wire::startup("bench", "echo-1000").len() as u64;
    let requests = (there - startup) / 1000;
    assert_eq!((there - startup) % 1000, 0);
    assert_eq!(counted, 2);
    assert!(outcome.requests > 10, "{outcome:?}");
    assert_eq!(back, ANSWER.len() as u64 + requests * 1000);
    // Before and after the window a handful go uncounted.
    assert!(outcome.requests <= requests, "{} counted, {requests} sent", outcome.requests);
    assert!(outcome.requests * 100 >= requests * 80, "{} counted, {requests} sent", outcome.requests);
}

#[test]
fn bulk_bytes_are_counted_at_both_ends() {
    for stream in [Stream::Download, Stream::Upload] {
        let (address, witness) = counted(server(1));
        let pace = Pace { warm: Duration::ZERO, ..pace(1) };
        let outcome = streams(address, &[stream], &pace, &mut |_| ()).unwrap();
        let (there, back) = witness.join().unwrap();
        let seen = if stream == Stream::Download { back } else { there };
        assert!(outcome.bytes > 1_000_000, "{outcome:?}");
        // Buffers on the way hold the difference, and the run goes on for a moment after the window.
        assert!(outcome.bytes <= seen + 16_000_000, "{} counted, {seen} seen", outcome.bytes);
        assert!(outcome.bytes * 2 >= seen, "{} counted, {seen} seen", outcome.bytes);
    }
}

#[test]
fn the_server_echoes_exact_bytes_however_they_come() {
    let target = server(2);
    let mut socket = begin(target, None, Pattern::Echo { size: 3000 }).unwrap();
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for part in [1, 999, 2000] {
        socket.write_all(&vec![7; part]).unwrap();
    }
    let mut answer = vec![0; 3000];
    socket.read_exact(&mut answer).unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(socket.read(&mut answer).unwrap(), 0, "more than was asked for");
}

#[test]
fn streams_are_dealt_to_all_threads_and_latencies_are_kept() {
    let mixture = [Stream::Ping(64), Stream::Ping(64), Stream::Ping(64), Stream::Download, Stream::Upload];
    let outcome = streams(server(2), &mixture, &pace(2), &mut |_| ()).unwrap();
    assert!(outcome.requests > 10 && outcome.bytes > 1_000_000, "{outcome:?}");
    assert!(outcome.latency.count() > 0);
    assert!(outcome.latency.quantile(0.5) <= outcome.latency.quantile(0.99));
}

#[test]
fn paced_streams_keep_their_pace() {
    let mixture = [Stream::PacedDownload, Stream::PacedUpload, Stream::Ping(64)];
    let outcome = streams(server(1), &mixture, &pace(1), &mut |_| ()).unwrap();
    let allowed =
        2.0 * streams::BLOCK as f64 * (outcome.elapsed.as_secs_f64() / streams::TICK.as_secs_f64() + 2.0);
    assert!(outcome.bytes > 2 * streams::BLOCK as u64, "{outcome:?}");
    assert!(outcome.bytes as f64 <= allowed, "{} bytes, and {allowed} are allowed", outcome.bytes);
    assert!(outcome.requests > 10);
}

#[test]
fn churn_opens_and_closes() {
    let outcome = churn(server(1), 4, &pace(1), &mut |_| ()).unwrap();
    assert!(outcome.requests > 10, "{outcome:?}");
    assert!(outcome.latency.count() > 0);
}

#[test]
fn a_target_that_refuses_is_an_error_and_no_wait() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let error = streams(free, &[Stream::Ping(64)], &pace(2), &mut |_| ()).unwrap_err();
    assert!(format!("{error:#}").contains("cannot connect"), "{error:#}");
}

#[test]
fn idle_sessions_stay_open() {
    let sessions = idle::open(server(1), 20).unwrap();
    assert_eq!(sessions.len(), 20);
    for session in &sessions {
        let mut byte = [0];
        assert!(socket::receive(session, &mut byte).unwrap().is_none(), "closed, or a byte came");
    }
}

#[test]
fn cpu_time_is_what_was_burnt() {
    // This thread sleeps while it waits: its share must be far below the wall clock; a busy one takes all of it.
    let before = cpu_of_self().unwrap();
    let busy = std::time::Instant::now();
    while busy.elapsed() < Duration::from_millis(200) {
        std::hint::spin_loop();
    }
    let burnt = cpu_of_self().unwrap().saturating_sub(before);
    assert!(burnt >= Duration::from_millis(20), "{burnt:?}");
}
