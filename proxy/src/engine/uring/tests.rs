//! What only this driver has: few buffers, small queues, and faults that the kernel is made to show.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use super::*;
use crate::engine::conformance::{
    Core, Dice, Note, conformance, reader, reset, slurp, stuff, tcp_pair, writer,
};

conformance!(usual, || Uring::open().unwrap());

/// Everything is scarce: two operations at a time, four completions, two small buffers.
const TINY: Size = Size { submissions: 2, completions: 4, buffers: 2, bytes_each: 4096 };

conformance!(tiny, || Uring::with_size(TINY).unwrap());

fn tiny() -> Core<Uring> {
    Core::new(Uring::with_size(TINY).unwrap())
}

fn usual() -> Core<Uring> {
    Core::new(Uring::open().unwrap())
}

/// Sends bytes through a pair of sockets, whose keys it hands to `prepare`, and compares what arrives.
fn relays(core: &mut Core<Uring>, count: usize, prepare: impl Fn(&mut Uring, Key)) {
    let (left, right) = core.pair();
    for key in core.pairs.keys().copied().collect::<Vec<_>>() {
        prepare(&mut core.driver, key);
    }
    let bytes = Dice(21).bytes(count);
    let writing = writer(left, bytes.clone(), Dice(22));
    let reading = reader(right, Dice(23));
    core.until("the end", |_| writing.is_finished() && reading.is_finished());
    writing.join().unwrap();
    assert!(reading.join().unwrap() == bytes, "other bytes arrived than were sent");
}

#[test]
fn who_finds_no_buffer_is_served_when_there_is_one() {
    let mut core = tiny();
    let mut sockets: Vec<_> = (0..20).map(|_| core.socket()).collect();
    core.step(Duration::ZERO);
    let bytes = Dice(20).bytes(9_000);
    for (_, peer) in &mut sockets {
        peer.write_all(&bytes).unwrap();
    }
    let mut starved = 0;
    core.until("all bytes", |core| {
        starved = starved.max(core.driver.starved.len());
        sockets.iter().all(|(key, _)| core.got(*key).len() == bytes.len())
    });
    assert!(sockets.iter().all(|(key, _)| core.got(*key) == bytes));
    assert!(starved > 0, "there were buffers for all: nothing was tried");
    assert_eq!(core.driver.ring.provided(), 2);
}

#[test]
fn a_starved_socket_can_be_stopped_and_closed() {
    let mut core = tiny();
    let mut sockets: Vec<_> = (0..20).map(|_| core.socket()).collect();
    let receiving = |core: &Core<Uring>, key: Key| core.driver.socket(key).map(|socket| socket.receiving);
    let mut round = 0_u32;
    while !sockets.is_empty() {
        for (_, peer) in &mut sockets {
            peer.write_all(&[5; 3000]).unwrap();
        }
        core.until("somebody starves", |core| !core.driver.starved.is_empty());
        let starved = sockets.iter().position(|(key, _)| receiving(&core, *key) == Some(Receiving::Starved));
        let Some(starved) = starved else { continue };
        let (key, _peer) = sockets.swap_remove(starved);
        if round.is_multiple_of(2) {
            core.quieten(key);
        }
        core.driver.close(key, Close::Reset);
        round += 1;
        if round == 10 {
            break;
        }
    }
    assert_eq!(round, 10);
    for (key, _peer) in sockets {
        core.driver.close(key, Close::Fin);
    }
    core.until("all are closed", |core| core.driver.open_sockets() == 0);
    assert_eq!(core.driver.ring.provided(), 2);
}

#[test]
fn short_sends_lose_nothing() {
    for mut core in [usual(), tiny()] {
        relays(&mut core, 200_000, |driver, key| {
            driver.ring.faults.send_at_most.insert(key.index, 777);
        });
    }
}

#[test]
fn what_comes_during_a_send_goes_behind_it() {
    let mut core = usual();
    let (to, mut peer) = core.socket();
    core.driver.ring.faults.send_at_most.insert(to.index, 3);
    let mut expected = String::new();
    for number in 0..20 {
        let (first, second) = (format!("first {number} "), format!("second {number} "));
        core.driver.send_bytes(to, first.as_bytes()).unwrap();
        core.driver.wait(Some(Duration::ZERO)).unwrap();
        // The send has been tried, and took three bytes. Nobody has asked yet.
        core.driver.send_bytes(to, second.as_bytes()).unwrap();
        core.until("all is sent", |core| !core.driver.has_queued(to));
        expected += &(first + &second);
    }
    let mut arrived = vec![0; expected.len()];
    peer.read_exact(&mut arrived).unwrap();
    assert_eq!(String::from_utf8(arrived).unwrap(), expected);
}

#[test]
fn sends_that_come_to_nothing_are_tried_again() {
    for mut core in [usual(), tiny()] {
        relays(&mut core, 300_000, |driver, key| {
            let errors = [libc::EAGAIN, libc::ECANCELED, libc::EINTR, libc::EAGAIN];
            driver.ring.faults.sends_fail.insert(key.index, errors.into());
        });
    }
}

#[test]
fn a_send_that_fails_is_told_after_what_is_received() {
    let mut core = usual();
    let (key, mut peer) = core.socket();
    core.driver.ring.faults.sends_fail.insert(key.index, [libc::ECONNRESET].into());
    core.driver.send_bytes(key, b"into the void").unwrap();
    core.step(Duration::ZERO);
    peer.write_all(b"last words").unwrap();
    core.for_a_while();
    assert_eq!(core.notes(key), [], "told too early");
    // Nothing more is sent, and the bytes do not count as sent.
    core.driver.send_bytes(key, b"more").unwrap();
    reset(peer);
    core.until_note(key, Note::Broken(ErrorKind::ConnectionReset));
    assert_eq!((core.got(key), core.sent(key)), (&b"last words"[..], 0));
    // When nothing is received it is told at once.
    let (key, _peer) = core.socket();
    core.quieten(key);
    core.driver.ring.faults.sends_fail.insert(key.index, [libc::EPIPE].into());
    core.driver.send_bytes(key, b"into the void").unwrap();
    core.until_note(key, Note::Broken(ErrorKind::BrokenPipe));
}

#[test]
fn a_send_that_fails_for_want_of_memory_is_told_though_the_peer_stays() {
    for errno in [libc::ENOBUFS, libc::ENOMEM] {
        let mut core = usual();
        let (key, mut peer) = core.socket();
        peer.write_all(b"before").unwrap();
        core.until("what came before", |core| core.got(key) == b"before");
        core.driver.ring.faults.sends_fail.insert(key.index, [errno].into());
        core.driver.send_bytes(key, b"into the void").unwrap();
        core.until("the error", |core| matches!(core.notes(key)[..], [Note::Broken(_)]));
        drop(peer);
    }
}

/// The kernel gives the error of a reset to whoever asks first: here to a send. The receive then sees what looks like a FIN.
#[test]
fn a_reset_that_a_send_met_is_no_end() {
    for _ in 0..20 {
        let mut core = usual();
        let (key, mut peer) = core.socket();
        core.step(Duration::ZERO);
        peer.write_all(b"last words").unwrap();
        // The kernel throws unread bytes away when it resets on close; here they have been acknowledged.
        core.driver.send_bytes(key, b"crossing").unwrap();
        reset(peer);
        core.until("the end", |core| !core.notes(key).is_empty());
        assert!(matches!(core.notes(key)[..], [Note::Broken(_)]), "{:?}", core.notes(key));
        assert_eq!(core.got(key), b"last words");
    }
}

#[test]
fn a_receive_that_ends_by_itself_is_begun_again() {
    let mut core = usual();
    let (key, mut peer) = core.socket();
    for number in 0..10 {
        core.driver.ring.cancel(key.index, Operation::Receive);
        peer.write_all(&[number]).unwrap();
        core.until("the byte", |core| core.got(key).len() == usize::from(number) + 1);
    }
    assert_eq!(core.notes(key), []);
}

#[test]
fn what_is_closed_in_the_same_round_is_not_sent() {
    let mut core = usual();
    for how in [Close::Fin, Close::Reset] {
        let ((from, mut source), (to, peer)) = (core.socket(), core.socket());
        core.driver.send_bytes(to, b"nor this").unwrap();
        core.driver.close(to, how);
        core.until("it is closed", |core| core.driver.open_sockets() == 1);
        assert_eq!(slurp(&peer), 0);
        // The same for a chunk.
        let (to, mut peer) = core.socket();
        source.write_all(b"not to be sent").unwrap();
        core.driver.wait(Some(Duration::from_secs(5))).unwrap();
        let Some(Event::Data(_, chunk)) = core.driver.next() else { panic!("no data") };
        core.driver.send(to, chunk).unwrap();
        core.driver.close(to, how);
        core.driver.close(from, Close::Fin);
        core.until("all are closed", |core| core.driver.open_sockets() == 0);
        let got = peer.read(&mut [0; 99]);
        match how {
            Close::Fin => assert_eq!(got.unwrap(), 0),
            Close::Reset => assert_eq!(got.unwrap_err().kind(), ErrorKind::ConnectionReset),
        }
        assert_eq!(core.driver.ring.provided(), usize::from(SIZE.buffers));
    }
}

#[test]
fn ends_of_many_are_done_in_their_round() {
    // What is left for later would stand before everybody else's bytes, and more of it after each round.
    let mut core = usual();
    let sockets: Vec<_> = (0..100).map(|_| core.socket()).collect();
    core.step(Duration::ZERO);
    for (key, _) in &sockets {
        core.driver.close(*key, Close::Fin);
    }
    core.step(Duration::ZERO);
    assert_eq!(core.driver.open_sockets(), 0);
}

#[test]
fn a_stalled_reader_holds_no_buffer() {
    let mut core = usual();
    let stalled: Vec<(TcpStream, TcpStream)> = (0..40).map(|_| core.pair()).collect();
    let mut still = 0;
    core.until("all are stuck", |core| {
        let written: usize = stalled.iter().map(|(from, _)| stuff(from)).sum();
        still = if written == 0 { still + 1 } else { 0 };
        still > 3 && core.pairs.keys().filter(|key| core.driver.is_full(**key)).count() == 40
    });
    assert_eq!(core.driver.ring.provided(), usize::from(SIZE.buffers));
    let sockets = &core.driver.sockets;
    let kept =
        sockets.iter().filter_map(|socket| socket.waiting.as_ref()).map(|waiting| waiting.bytes.capacity());
    let most = kept.max().unwrap();
    let bound = FULL as usize + usize::from(SIZE.buffers) * SIZE.bytes_each as usize;
    assert!(most <= bound, "{most} bytes for one stalled reader");
}

#[test]
fn buffers_and_descriptors_come_back_whatever_happens() {
    for (mut core, buffers) in [(usual(), SIZE.buffers), (tiny(), TINY.buffers)] {
        let mut dice = Dice(31);
        let mut open: Vec<(Key, TcpStream)> = Vec::new();
        for _ in 0..3_000 {
            match dice.size(12) {
                1 | 2 if open.len() < 30 => {
                    let (left, right) = core.pair();
                    let mut keys: Vec<Key> = core.pairs.keys().copied().collect();
                    keys.retain(|key| open.iter().all(|(known, _)| known != key));
                    for (key, peer) in keys.into_iter().zip([left, right]) {
                        open.push((key, peer));
                    }
                }
                3 | 4 if !open.is_empty() => {
                    let (key, _peer) = open.swap_remove(dice.size(open.len()) - 1);
                    if let Some(other) = core.pairs.remove(&key) {
                        core.pairs.remove(&other);
                    }
                    core.driver.close(key, if dice.size(2) == 1 { Close::Fin } else { Close::Reset });
                    core.forget(key);
                }
                5..=8 if !open.is_empty() => {
                    let count = dice.size(30_000);
                    let chosen = dice.size(open.len()) - 1;
                    let (_, peer) = &mut open[chosen];
                    peer.set_nonblocking(true).unwrap();
                    let _ = peer.write(&vec![1; count]);
                }
                9 if !open.is_empty() => {
                    let (key, _) = open[dice.size(open.len()) - 1];
                    core.driver.receive(key, dice.size(2) == 1);
                }
                10 if !open.is_empty() => {
                    slurp(&open[dice.size(open.len()) - 1].1);
                }
                _ => core.step(Duration::ZERO),
            }
        }
        for (key, _peer) in open {
            core.driver.close(key, Close::Fin);
            core.forget(key);
        }
        core.until("all are closed", |core| core.driver.open_sockets() == 0);
        core.step(Duration::ZERO);
        assert_eq!(core.driver.ring.provided(), usize::from(buffers));
    }
}

#[test]
fn a_number_that_was_made_up_does_no_harm() {
    let mut ring = Ring::open(TINY).unwrap();
    let (ours, _peer) = tcp_pair();
    let index = ring.adopt(ours).unwrap();
    for buffer in [0, 1, 2, u16::MAX] {
        assert!(ring.bytes(buffer, 4096).is_empty(), "the kernel's own");
        assert!(!ring.append(buffer, 0, 1, 10));
        assert!(!ring.send_buffer(index, buffer, 10));
    }
    assert!(
        !ring.receive(7) && !ring.poll(7, Operation::Hangup) && !ring.watch_again(1) && !ring.watch_again(9)
    );
    assert!(ring.fd(7).is_none() && !ring.dismiss(7));
    assert!(ring.receive(index) && !ring.receive(index), "a second one");
    assert!(!ring.poll(index, Operation::Send), "no poll");
    ring.dismiss(index);
    assert!(!ring.receive(index) && ring.fd(index).is_none() && !ring.dismiss(index));
}

#[test]
fn what_a_kernel_refuses_is_said() {
    let error = Ring::open(Size { buffers: 3, ..TINY }).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let error = Ring::open(Size { submissions: 0, ..TINY }).err().unwrap();
    assert!(error.to_string().starts_with("io_uring_setup: "), "{error}");
    let denied =
        crate::engine::sys::ring::refused("io_uring_setup", &io::Error::from_raw_os_error(libc::EPERM));
    assert!(denied.to_string().contains("kernel.io_uring_disabled"), "{denied}");
}

/// With more ends at once than completions fit, the kernel ends polls that were to go on. Nobody may try to begin them anew while completions
/// are still being looked at: there would be no end of it.
#[test]
fn more_ends_at_once_than_completions_are_all_told() {
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut core = tiny();
        let sockets: Vec<_> = (0..100).map(|_| core.socket()).collect();
        core.step(Duration::ZERO);
        for (_, peer) in &sockets {
            peer.shutdown(std::net::Shutdown::Write).unwrap();
        }
        core.until("all ends", |core| sockets.iter().all(|(key, _)| core.notes(*key) == [Note::End]));
        for (key, _) in &sockets {
            core.driver.watch_after_end(*key);
        }
        core.for_a_while();
        let (keys, peers): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
        peers.into_iter().for_each(reset);
        core.until("all resets", |core| {
            keys.iter().all(|key| matches!(core.notes(*key)[..], [_, Note::Broken(_)]))
        });
        done.send(()).unwrap();
    });
    is_done.recv_timeout(Duration::from_secs(30)).expect("a round without an end");
}
