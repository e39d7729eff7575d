//! What every driver has to do, tried on real sockets of the loopback. [`conformance!`] makes the tests of one driver.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use socket2::SockRef;

use super::driver::{Close, Driver, Progress, Readiness, Watched};

mod core;
pub(super) use self::core::{Core, Dice, Note, reader, reset, slurp, stuff, tcp_pair, writer};
use self::core::{PATIENCE, STILL};

/// The tests of one driver: a module's name, and how such a driver is made.
macro_rules! conformance {
    ($name:ident, $open:expr) => {
        mod $name {
            use super::*;

            $crate::engine::conformance::conformance! { @each $open =>
                bytes_go_both_ways_and_ends_follow_them
                small_messages_keep_their_order
                a_fin_comes_after_all_bytes
                a_reset_is_told_after_the_bytes_before_it
                a_reset_is_noticed_while_nothing_is_received
                a_reset_is_noticed_after_the_end
                an_end_can_be_answered
                stalled_readers_stop_their_senders_and_nobody_else
                nothing_is_sent_without_a_flush
                stopping_is_quiet_after_what_was_received
                stopping_and_resuming_at_once_loses_nothing
                a_poll_tells_of_bytes_and_of_room
                a_connection_is_made
                a_refused_connection_is_broken
                closing_with_a_fin
                closing_with_a_reset
                closing_leaves_no_descriptor
                stale_keys_do_nothing
                a_watched_descriptor_is_told_until_it_is_read
                waiting_has_a_limit
            }
        }
    };
    (@each $open:expr => $($test:ident)*) => {
        $(#[test] fn $test() { $crate::engine::conformance::$test($open); })*
    };
}
pub(super) use conformance;

pub(super) fn bytes_go_both_ways_and_ends_follow_them<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    let mut threads = Vec::new();
    for round in 0..4 {
        let (left, right) = core.pair();
        for (from, to, seed) in [(&left, &right, 1), (&right, &left, 2)] {
            let bytes = Dice(seed + round).bytes(3_000_000 + usize::try_from(round).unwrap());
            let writing = writer(from.try_clone().unwrap(), bytes.clone(), Dice(seed * 7 + round));
            let reading = reader(to.try_clone().unwrap(), Dice(seed * 11 + round));
            threads.push((bytes, writing, reading));
        }
    }
    core.until("the end of all", |_| threads.iter().all(|(_, w, r)| w.is_finished() && r.is_finished()));
    for (bytes, writing, reading) in threads {
        writing.join().unwrap();
        assert!(reading.join().unwrap() == bytes, "other bytes arrived than were sent");
    }
    assert_eq!(core.sent.values().sum::<usize>(), 2 * (4 * 3_000_000 + 6), "what was told of as sent");
}

pub(super) fn small_messages_keep_their_order<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    let (to, mut peer) = core.socket();
    let mut expected = Vec::new();
    for round in 0..200_u32 {
        for part in 0..round % 7 {
            let message = format!("{round}.{part} ");
            let outcome = core.driver.send_bytes(to, message.as_bytes()).unwrap();
            core.count(to, outcome.now);
            expected.extend_from_slice(message.as_bytes());
        }
        core.step(Duration::ZERO);
    }
    core.until("everything is sent", |core| core.sent(to) == expected.len());
    assert!(!core.driver.has_queued(to));
    let mut arrived = vec![0; expected.len()];
    peer.read_exact(&mut arrived).unwrap();
    assert_eq!(String::from_utf8(arrived), String::from_utf8(expected));
}

pub(super) fn a_fin_comes_after_all_bytes<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    let bytes = Dice(3).bytes(300_000);
    let (key, peer) = core.socket();
    let writing = writer(peer, bytes.clone(), Dice(4));
    core.until_note(key, Note::End);
    assert!(core.got(key) == bytes);
    writing.join().unwrap();
    core.for_a_while();
    assert_eq!(core.notes(key), [Note::End], "an end is told once");
}

pub(super) fn a_reset_is_told_after_the_bytes_before_it<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    let (key, mut peer) = core.socket();
    peer.write_all(b"last words").unwrap();
    core.until("the last words", |core| core.got(key) == b"last words");
    reset(peer);
    core.until_note(key, Note::Broken(ErrorKind::ConnectionReset));
    core.for_a_while();
    assert_eq!(core.notes(key), [Note::Broken(ErrorKind::ConnectionReset)]);
    core.driver.close(key, Close::Fin);
}

pub(super) fn a_reset_is_noticed_while_nothing_is_received<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    let (key, peer) = core.socket();
    core.quieten(key);
    reset(peer);
    core.until_note(key, Note::Broken(ErrorKind::ConnectionReset));
    core.for_a_while();
    assert_eq!(core.notes(key), [Note::Broken(ErrorKind::ConnectionReset)]);
}

pub(super) fn a_reset_is_noticed_after_the_end<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    let (key, peer) = core.socket();
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    core.until_note(key, Note::End);
    core.driver.watch_after_end(key);
    reset(peer);
    core.until("a reset", |core| matches!(core.notes(key)[..], [Note::End, Note::Broken(_)]));
}

pub(super) fn an_end_can_be_answered<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    let (key, mut peer) = core.socket();
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    core.until_note(key, Note::End);
    core.driver.send_bytes(key, b"an answer").unwrap();
    core.until("it is sent", |core| !core.driver.has_queued(key));
    core.driver.shut_down_write(key).unwrap();
    let mut answer = String::new();
    peer.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "an answer");
    core.for_a_while();
    assert_eq!(core.notes(key), [Note::End], "two ends are no error");
}

pub(super) fn stalled_readers_stop_their_senders_and_nobody_else<D: Driver>(open: impl Fn() -> D) {
    const STALLED: usize = 80;
    let mut core = Core::new(open());
    let stalled: Vec<_> = (0..STALLED).map(|_| core.pair()).collect();
    // The kernel's own buffers are kept small, or it takes long to fill them.
    for fd in core.pairs.keys().filter_map(|key| core.driver.fd(*key)) {
        SockRef::from(&fd).set_send_buffer_size(16 * 1024).unwrap();
        SockRef::from(&fd).set_recv_buffer_size(64 * 1024).unwrap();
    }
    for socket in stalled.iter().flat_map(|(from, to)| [from, to]) {
        SockRef::from(socket).set_send_buffer_size(16 * 1024).unwrap();
        SockRef::from(socket).set_recv_buffer_size(16 * 1024).unwrap();
    }
    let (mut last, mut taken) = (Instant::now(), 0);
    core.until("no sender can go on", |_| {
        let now = stalled.iter().map(|(from, _)| stuff(from)).sum::<usize>();
        if now > 0 {
            (last, taken) = (Instant::now(), taken + now);
        }
        last.elapsed() > STILL
    });
    assert!(taken < STALLED * 512 * 1024, "{taken} bytes were taken for nobody");
    // All of them are stuck; these are not.
    let (left, right) = core.pair();
    let bytes = Dice(5).bytes(2_000_000);
    let writing = writer(left, bytes.clone(), Dice(6));
    let reading = reader(right, Dice(7));
    core.until("the others go on", |_| reading.is_finished());
    writing.join().unwrap();
    assert!(reading.join().unwrap() == bytes);
    // And once the readers read, all bytes arrive.
    let mut rest: Vec<_> = stalled.into_iter().map(|(from, to)| (from, reader(to, Dice(8)))).collect();
    for (from, _) in &rest {
        from.shutdown(std::net::Shutdown::Write).unwrap();
    }
    core.until("all is read", |_| rest.iter().all(|(_, reading)| reading.is_finished()));
    for (_, reading) in rest.drain(..) {
        let bytes = reading.join().unwrap();
        assert!(bytes.len() > 64 * 1024 && bytes.iter().all(|byte| *byte == 7));
    }
}

pub(super) fn nothing_is_sent_without_a_flush<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    core.flushes = false;
    let (to, peer) = core.socket();
    let block = vec![1; 48 * 1024];
    let mut total = 0;
    core.until("the peer's buffers are full", |core| {
        if !core.driver.is_full(to) {
            let outcome = core.driver.send_bytes(to, &block).unwrap();
            core.count(to, outcome.now);
            total += block.len();
        }
        core.driver.is_full(to)
    });
    core.for_a_while();
    let taken = core.sent(to);
    assert!(taken < total && core.driver.has_queued(to));
    core.notes.clear();
    let mut arrived = 0;
    core.until("the peer has read everything, and there is room", |core| {
        arrived += slurp(&peer);
        arrived == taken && core.notes.contains(&(to, Note::Sent))
    });
    core.for_a_while();
    assert_eq!((slurp(&peer), core.sent(to)), (0, taken), "sent though nobody asked the fence");
    core.flushes = true;
    let outcome = core.driver.flush(to).unwrap();
    core.count(to, outcome.now);
    core.until("the rest arrives", |core| {
        arrived += slurp(&peer);
        core.sent(to) == total && arrived == total
    });
    assert!(!core.driver.has_queued(to) && !core.driver.is_full(to));
}

pub(super) fn stopping_is_quiet_after_what_was_received<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    let (key, mut peer) = core.socket();
    peer.write_all(b"one").unwrap();
    core.until("one", |core| core.got(key) == b"one");
    peer.write_all(b"two").unwrap();
    core.driver.receive(key, false);
    core.until_note(key, Note::Quiet);
    let before = core.got(key).len();
    peer.write_all(b"three").unwrap();
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    core.for_a_while();
    assert_eq!((core.got(key).len(), core.notes(key)), (before, vec![Note::Quiet]), "not quiet");
    core.driver.receive(key, true);
    core.until_note(key, Note::End);
    assert_eq!(core.got(key), b"onetwothree");
    assert_eq!(core.notes(key), [Note::Quiet, Note::End]);
}

pub(super) fn stopping_and_resuming_at_once_loses_nothing<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    let (key, peer) = core.socket();
    let bytes = Dice(9).bytes(1_000_000);
    let writing = writer(peer, bytes.clone(), Dice(10));
    let mut dice = Dice(11);
    core.until("the end", |core| {
        for _ in 0..dice.size(5) {
            core.driver.receive(key, false);
            if dice.next().is_multiple_of(4) {
                core.step(Duration::ZERO);
            }
            core.driver.receive(key, true);
        }
        core.notes(key).contains(&Note::End)
    });
    writing.join().unwrap();
    assert!(core.got(key) == bytes);
}

pub(super) fn a_poll_tells_of_bytes_and_of_room<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    let (key, mut peer) = core.socket();
    core.quieten(key);
    core.driver.poll(key, Readiness::Readable);
    core.for_a_while();
    assert_eq!(core.notes(key), []);
    peer.write_all(b"x").unwrap();
    core.until_note(key, Note::Readable);
    core.driver.poll(key, Readiness::Writable);
    core.until_note(key, Note::Writable);
    core.for_a_while();
    assert_eq!(core.notes(key), [Note::Readable, Note::Writable], "told once for each poll");
    // Nobody has read it: it is there still.
    core.driver.poll(key, Readiness::Readable);
    peer.write_all(b"y").unwrap();
    core.until("a second time", |core| core.notes(key).len() == 3);
    core.driver.receive(key, true);
    core.until("both bytes", |core| core.got(key) == b"xy");
}

pub(super) fn a_connection_is_made<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = TcpListener::bind(address) else {
            assert!(address.starts_with('['), "no loopback");
            continue;
        };
        let to = listener.local_addr().unwrap();
        let (key, progress) = core.driver.connect(unconnected(to), to).unwrap();
        if progress == Progress::Waiting {
            core.until_note(key, Note::Connected);
        }
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(b"hello").unwrap();
        core.until("hello", |core| core.got(key) == b"hello");
        core.driver.send_bytes(key, b"world").unwrap();
        core.until("it is sent", |core| !core.driver.has_queued(key));
        let mut word = [0; 5];
        peer.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"world");
    }
}

pub(super) fn a_refused_connection_is_broken<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    // A port that somebody has, and nobody listens at.
    let taken = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    taken.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let to = taken.local_addr().unwrap().as_socket().unwrap();
    let (key, progress) = core.driver.connect(unconnected(to), to).unwrap();
    assert_eq!(progress, Progress::Waiting);
    core.until_note(key, Note::Broken(ErrorKind::ConnectionRefused));
    core.for_a_while();
    assert_eq!(core.notes(key), [Note::Broken(ErrorKind::ConnectionRefused)]);
    core.driver.close(key, Close::Fin);
    core.until("it is closed", |core| core.driver.open_sockets() == 0);
}

fn unconnected(to: SocketAddr) -> OwnedFd {
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

pub(super) fn closing_with_a_fin<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    let (key, mut peer) = core.socket();
    core.driver.send_bytes(key, b"bye").unwrap();
    core.until("it is sent", |core| !core.driver.has_queued(key));
    core.driver.close(key, Close::Fin);
    core.until("it is closed", |core| core.driver.open_sockets() == 0);
    let mut words = String::new();
    peer.read_to_string(&mut words).unwrap();
    assert_eq!(words, "bye");
}

pub(super) fn closing_with_a_reset<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    for paused in [false, true] {
        let (key, mut peer) = core.socket();
        if paused {
            core.quieten(key);
        }
        core.driver.close(key, Close::Reset);
        core.until("it is closed", |core| core.driver.open_sockets() == 0);
        let error = peer.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

/// Whether the process still has this socket open.
fn is_open(inode: &str) -> bool {
    let mut links = std::fs::read_dir("/proc/self/fd").unwrap();
    links.any(|link| {
        let target = link.and_then(|link| std::fs::read_link(link.path()));
        target.is_ok_and(|target| target.to_string_lossy() == inode)
    })
}

fn inode(fd: &impl AsRawFd) -> String {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
    link.to_string_lossy().into_owned()
}

pub(super) fn closing_leaves_no_descriptor<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    let mut dice = Dice(12);
    let (mut inodes, mut keys, mut peers) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..120_u32 {
        let (ours, mut peer) = tcp_pair();
        inodes.push(inode(&ours));
        let key = core.driver.add(ours).unwrap();
        // Everything that can be in flight: a receive, one being stopped, polls, sends that do not fit, bytes, ends and resets nobody has seen.
        if number.is_multiple_of(2) {
            core.driver.receive(key, false);
        }
        if number.is_multiple_of(3) {
            core.driver.poll(key, Readiness::Readable);
        }
        if number.is_multiple_of(5) {
            core.driver.poll(key, Readiness::Writable);
        }
        if number.is_multiple_of(4) {
            core.driver.send_bytes(key, &vec![3; 3_000_000]).unwrap();
        }
        if number.is_multiple_of(7) {
            peer.write_all(&[4; 5000]).unwrap();
        }
        match number % 11 {
            3 => peer.shutdown(std::net::Shutdown::Write).unwrap(),
            4 => reset(peer.try_clone().unwrap()),
            _ => {}
        }
        peers.push(peer);
        keys.push(key);
        if dice.next().is_multiple_of(8) {
            core.step(Duration::ZERO);
        }
        if dice.next().is_multiple_of(2) {
            let key = keys.swap_remove(dice.size(keys.len()) - 1);
            core.driver.close(key, if dice.next().is_multiple_of(2) { Close::Fin } else { Close::Reset });
        }
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let to = listener.local_addr().unwrap();
    for _ in 0..8 {
        let socket = unconnected(to);
        inodes.push(inode(&socket));
        keys.push(core.driver.connect(socket, to).unwrap().0);
    }
    for key in keys {
        core.driver.close(key, Close::Fin);
    }
    core.until("all are closed", |core| core.driver.open_sockets() == 0);
    let open: Vec<_> = inodes.iter().filter(|inode| is_open(inode)).collect();
    assert!(open.is_empty(), "still open: {open:?}");
    // Dropping a driver closes what it has.
    let (ours, peer) = tcp_pair();
    let inode = inode(&ours);
    let key = core.driver.add(ours).unwrap();
    core.driver.send_bytes(key, &vec![5; 3_000_000]).unwrap();
    core.step(Duration::ZERO);
    drop(core);
    assert!(!is_open(&inode), "still open after the driver is gone");
    drop(peer);
}

pub(super) fn stale_keys_do_nothing<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    let (stale, _gone) = core.socket();
    core.driver.close(stale, Close::Fin);
    core.until("it is closed", |core| core.driver.open_sockets() == 0);
    let (key, mut peer) = core.socket();
    assert_ne!(key, stale);
    let driver = &mut core.driver;
    driver.receive(stale, false);
    driver.poll(stale, Readiness::Writable);
    driver.send_bytes(stale, b"nobody's").unwrap();
    driver.flush(stale).unwrap();
    driver.shut_down_write(stale).unwrap();
    assert!(driver.fd(stale).is_none() && !driver.has_queued(stale) && !driver.is_full(stale));
    driver.close(stale, Close::Reset);
    peer.write_all(b"mine").unwrap();
    core.until("the new one receives", |core| core.got(key) == b"mine");
    core.driver.send_bytes(key, b"yours").unwrap();
    core.until("the new one sends", |core| !core.driver.has_queued(key));
    let mut word = [0; 5];
    peer.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"yours");
    assert_eq!(core.notes(key), []);
}

pub(super) fn a_watched_descriptor_is_told_until_it_is_read<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    let event = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap());
    core.driver.watch(Arc::clone(&event)).unwrap();
    core.for_a_while();
    assert_eq!(core.watched, []);
    let other = Arc::clone(&event);
    let waker = thread::spawn(move || {
        thread::sleep(Duration::from_millis(30));
        rustix::io::write(&*other, &1_u64.to_ne_bytes()).unwrap();
    });
    core.driver.wait(Some(PATIENCE)).unwrap();
    core.until("it is told", |core| core.watched == [Watched::Inbox]);
    waker.join().unwrap();
    core.until("it is told again", |core| core.watched.len() >= 3);
    rustix::io::read(&*event, &mut [0; 8]).unwrap();
    core.step(Duration::ZERO);
    core.watched.clear();
    core.for_a_while();
    assert_eq!(core.watched, [], "told though it was read");
    rustix::io::write(&*event, &1_u64.to_ne_bytes()).unwrap();
    core.until("it is told of the next", |core| !core.watched.is_empty());
}

pub(super) fn waiting_has_a_limit<D: Driver>(open: impl Fn() -> D) {
    let mut core = Core::new(open());
    let (_key, _peer) = core.socket();
    let start = Instant::now();
    core.driver.wait(Some(Duration::ZERO)).unwrap();
    while core.driver.next().is_some() {}
    core.driver.wait(Some(Duration::from_millis(50))).unwrap();
    assert!(core.driver.next().is_none());
    let took = start.elapsed();
    assert!((Duration::from_millis(45)..Duration::from_secs(5)).contains(&took), "{took:?}");
}
