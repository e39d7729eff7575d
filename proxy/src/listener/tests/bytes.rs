//! Every byte, every end, both ways.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::lab::*;
use crate::listener::tests::random::{Random, seeds};

/// Sends `total` bytes of the stream `content` in pieces, then a FIN.
async fn send(mut to: OwnedWriteHalf, content: u64, mut random: Random, total: usize) -> OwnedWriteHalf {
    let mut content = Random(content);
    let mut sent = 0;
    while sent < total {
        // Whole words, so that the reader's stream has the same order.
        let piece = (random.size().div_ceil(8) * 8).min(total - sent);
        to.write_all(&content.bytes(piece)).await.unwrap();
        sent += piece;
        random.pause().await;
    }
    to.shutdown().await.unwrap();
    to
}

/// Reads to the end and compares every byte.
async fn receive(mut from: OwnedReadHalf, content: u64, mut random: Random, total: usize) -> OwnedReadHalf {
    // Some readers come late, when everything on the way is full.
    if random.below(2) == 0 {
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    let mut content = Random(content);
    let mut expected: Vec<u8> = Vec::new();
    let mut seen = 0;
    loop {
        let mut buffer = vec![0; random.size()];
        let count = from.read(&mut buffer).await.unwrap();
        if count == 0 {
            break;
        }
        if expected.len() < count {
            let more = (count - expected.len()).div_ceil(8) * 8;
            expected.extend(content.bytes(more));
        }
        assert!(buffer[..count] == expected[..count], "wrong bytes after {seen}");
        expected.drain(..count);
        seen += count;
        random.pause().await;
    }
    assert_eq!(seen, total);
    from
}

/// Which direction waits for the end of the other one.
#[derive(Clone, Copy, Debug)]
enum Order {
    Both,
    UpFirst,
    DownFirst,
}

async fn exchange(lab: &Lab, server: &FakeServer, seed: u64, up: usize, down: usize, order: Order) {
    let (client, far) = established(lab, server).await;
    // Little room at the far ends: the relay must keep what they do not take. (Less than this, and loopback
    // with its segments of 64 KiB lives on timers.)
    for stream in [&client, &far] {
        socket2::SockRef::from(stream).set_recv_buffer_size(200_000).unwrap();
    }
    let ((client_in, client_out), (far_in, far_out)) = (client.into_split(), far.into_split());
    let random = |salt: u64| Random(seed ^ (salt << 56));
    let sent_up = send(client_out, seed, random(1), up);
    let got_up = receive(far_in, seed, random(2), up);
    let sent_down = send(far_out, !seed, random(3), down);
    let got_down = receive(client_in, !seed, random(4), down);
    // The ends are kept until all is done: only FINs are exchanged, no RST may come of a drop.
    let all = async {
        match order {
            Order::Both => drop(tokio::join!(sent_up, got_up, sent_down, got_down)),
            Order::UpFirst => {
                let _ends = tokio::join!(sent_up, got_up);
                drop(tokio::join!(sent_down, got_down));
            }
            Order::DownFirst => {
                let _ends = tokio::join!(sent_down, got_down);
                drop(tokio::join!(sent_up, got_up));
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(120), all).await.expect("the exchange hangs");
    lab.at_rest().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_arrives_in_order_in_both_directions_and_each_half_ends_by_itself() {
    let server = FakeServer::new().await;
    for seed in seeds(12) {
        let mut lab = Lab::new();
        lab.route(&[("n1", server.address, 1)]);
        let mut random = Random(seed);
        // One direction ends long before the other one, or carries nothing at all.
        let (up, down) =
            (random.below(9_000_000) * random.below(2), random.below(9_000_000) * random.below(2));
        let order = [Order::Both, Order::UpFirst, Order::DownFirst][random.below(3)];
        exchange(&lab, &server, seed, up, down, order).await;
        let overhead = (startup("alice").len() as u64, AUTH_OK.len() as u64);
        assert_eq!(lab.stats.bytes_in.get(), up as u64 + overhead.0);
        assert_eq!(lab.stats.bytes_out.get(), down as u64 + overhead.1);
        assert_eq!(lab.closes("client-closed") + lab.closes("server-closed"), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_megabytes_each_way_arrive_unchanged() {
    let server = FakeServer::new().await;
    let mut lab = Lab::new();
    lab.route(&[("n1", server.address, 1)]);
    for seed in seeds(1) {
        exchange(&lab, &server, seed, 30_000_000, 30_000_001, Order::Both).await;
    }
}

#[tokio::test]
async fn a_reset_is_passed_on_as_a_reset_also_after_a_fin() {
    let server = FakeServer::new().await;
    let mut lab = Lab::new();
    lab.route(&[("n1", server.address, 1)]);

    let (client, mut far) = established(&lab, &server).await;
    reset(client);
    expect_reset(&mut far).await;
    let (mut client, far) = established(&lab, &server).await;
    reset(far);
    expect_reset(&mut client).await;
    lab.at_rest().await;
    assert_eq!((lab.closes("client-reset"), lab.closes("server-reset")), (1, 1));

    let (mut client, mut far) = established(&lab, &server).await;
    client.shutdown().await.unwrap();
    expect_fin(&mut far).await;
    reset(client);
    expect_broken(&far).await;
    let (mut client, mut far) = established(&lab, &server).await;
    far.shutdown().await.unwrap();
    expect_fin(&mut client).await;
    reset(far);
    expect_broken(&client).await;
    lab.at_rest().await;
    assert_eq!((lab.closes("client-reset"), lab.closes("server-reset")), (2, 2));
}

#[tokio::test]
async fn what_a_server_said_before_its_reset_still_arrives() {
    const ROUNDS: u64 = 100;
    let server = FakeServer::new().await;
    let mut lab = Lab::new();
    lab.route(&[("n1", server.address, 1)]);
    for round in 0..ROUNDS {
        let (mut client, mut far) = established(&lab, &server).await;
        // The server says why, and closes with unread input: the kernel sends an RST right behind the words.
        client.write_all(b"a query that is never read").await.unwrap();
        far.readable().await.unwrap();
        far.write_all(b"terminating connection").await.unwrap();
        drop(far);
        let mut words = Vec::new();
        let _ = client.read_to_end(&mut words).await; // the RST may be seen as an error or not at all
        assert_eq!(String::from_utf8_lossy(&words), "terminating connection", "round {round}");
    }
    lab.at_rest().await;
    assert_eq!(lab.closes("server-reset") + lab.closes("server-closed"), ROUNDS);
}

#[tokio::test]
async fn a_reset_behind_spliced_bytes_is_no_orderly_end() {
    let server = FakeServer::new().await;
    let mut lab = Lab::new();
    lab.route(&[("n1", server.address, 1)]);
    for round in 0..10_u32 {
        let (mut client, mut far) = established(&lab, &server).await;
        let block = Random(u64::from(round)).bytes(6_000_000 + 1000 * round as usize);
        let mut got = vec![0; block.len()];
        tokio::try_join!(far.write_all(&block), client.read_exact(&mut got)).unwrap();
        assert!(got == block);
        reset(far);
        expect_reset(&mut client).await;
    }
    lab.at_rest().await;
    assert_eq!(lab.closes("server-reset"), 10);
}

#[tokio::test]
async fn a_reset_behind_a_reader_that_stands_still_is_passed_on_all_the_same() {
    let server = FakeServer::new().await;
    let mut lab = Lab::new();
    lab.route(&[("n1", server.address, 1)]);
    let (mut client, far) = established(&lab, &server).await;
    let block = Random(9).bytes(1 << 20);
    let (mut sent, mut still_since) = (0, tokio::time::Instant::now());
    while still_since.elapsed() < Duration::from_millis(300) {
        match far.try_write(&block[sent % block.len()..]) {
            Ok(count) => {
                sent += count;
                still_since = tokio::time::Instant::now();
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    let began = tokio::time::Instant::now();
    reset(far);
    lab.at_rest().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(lab.closes("server-reset"), 1);
    let (got, end) = read_all(&mut client).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(got.len() < sent && got.chunks(block.len()).all(|chunk| chunk == &block[..chunk.len()]));
}

#[tokio::test]
async fn a_slow_reader_stops_the_writer_and_loses_nothing() {
    let server = FakeServer::new().await;
    let mut lab = Lab::new();
    lab.route(&[("n1", server.address, 1)]);
    let (mut client, far) = established(&lab, &server).await;
    let mut content = Random(7);
    let block = content.bytes(1 << 20);
    let mut sent = 0;
    // Nobody reads: the writer is stopped once buffers on the way are full.
    let mut still_since = tokio::time::Instant::now();
    while still_since.elapsed() < Duration::from_millis(300) {
        match far.try_write(&block[sent % block.len()..]) {
            Ok(count) => {
                sent += count;
                still_since = tokio::time::Instant::now();
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
        assert!(sent < 64 << 20, "nothing holds the writer back");
    }
    drop(far);
    let (got, end) = read_all(&mut client).await;
    end.unwrap();
    assert_eq!(got.len(), sent);
    assert!(got.chunks(block.len()).all(|chunk| chunk == &block[..chunk.len()]));
}

#[tokio::test]
async fn an_idle_session_is_cut_and_a_busy_one_is_not() {
    let server = FakeServer::new().await;
    let mut lab = Lab::with(|listener| listener.idle_timeout = Some(Duration::from_millis(400)));
    lab.route(&[("n1", server.address, 1)]);
    let (mut idle, mut idle_far) = established(&lab, &server).await;
    let (mut busy, mut busy_far) = established(&lab, &server).await;
    let chat = async {
        loop {
            busy.write_all(b"ping").await.unwrap();
            read_expected(&mut busy_far, b"ping").await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = expect_fin(&mut idle) => {}
        () = chat => {}
    }
    expect_reset(&mut idle_far).await;
    assert_eq!((lab.closes("idle-timeout"), lab.stats.sessions.get()), (1, 1));
    assert_eq!(lab.stats.server(&member("n1")).cut.get(), 1);
}
