//! Revocation, kill, cancel, limits, drain, and what is left behind: nothing.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pointsman_core::close::CloseReason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::lab::*;
use crate::listener::{Context, Listener, Listeners, Reports, Sockets};
use crate::sessions::Session;

/// Writes zeros until the flag is up, then ones, until the connection ends.
async fn write_until_cut(mut client: TcpStream, revoked: Arc<AtomicBool>) -> Instant {
    loop {
        let byte = u8::from(revoked.load(Ordering::SeqCst));
        if client.write_all(&[byte; 3000]).await.is_err() {
            return Instant::now();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_revocation_not_one_byte_more_reaches_the_server() {
    let server = FakeServer::new().await;
    let mut lab = Lab::new();
    lab.route(&[("n1", server.address, 1)]);
    let revoked = Arc::new(AtomicBool::new(false));
    let (mut writers, mut readers) = (JoinSet::new(), JoinSet::new());
    for _ in 0..50 {
        let (client, mut far) = established(&lab, &server).await;
        writers.spawn(write_until_cut(client, Arc::clone(&revoked)));
        readers.spawn(async move {
            let mut seen = 0;
            let mut buffer = vec![0; 10_000];
            while let Ok(count @ 1..) = far.read(&mut buffer).await {
                assert!(buffer[..count].iter().all(|byte| *byte == 0), "a byte from after the revocation");
                seen += count;
            }
            seen
        });
    }
    let busy = |session: &Arc<Session>| session.bytes_in() > 50_000;
    eventually("there is traffic in all of them", || lab.sessions.list().iter().all(busy)).await;
    lab.no_route();
    lab.revoke(1);
    let cut = Instant::now();
    revoked.store(true, Ordering::SeqCst);
    let all = async {
        let ends = writers.join_all().await;
        (ends, readers.join_all().await)
    };
    let (ends, seen) = tokio::time::timeout(LONG, all).await.expect("somebody is not cut");
    let last = ends.into_iter().max().unwrap().duration_since(cut);
    assert!(last < Duration::from_secs(2), "{last:?}");
    assert!(seen.into_iter().all(|bytes| bytes > 0));
    lab.at_rest().await;
    assert_eq!(lab.closes("leader-changed"), 50);
    assert_eq!(lab.stats.server(&member("n1")).cut.get(), 50);
}

#[tokio::test]
async fn a_quiet_session_is_cut_within_milliseconds_and_others_stay() {
    let (old, new) = (FakeServer::new().await, FakeServer::new().await);
    let mut lab = Lab::new();
    lab.route(&[("n1", old.address, 1)]);
    let (mut client, mut far) = established(&lab, &old).await;
    lab.route(&[("n2", new.address, 2)]);
    let (mut kept, mut kept_far) = established(&lab, &new).await;
    far.write_all(b"last words").await.unwrap();
    read_expected(&mut client, b"last words").await;
    let began = Instant::now();
    lab.revoke(1);
    expect_fin(&mut client).await;
    assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
    expect_reset(&mut far).await;
    kept.write_all(b"go on").await.unwrap();
    read_expected(&mut kept_far, b"go on").await;
}

#[tokio::test]
async fn a_session_blocked_on_a_server_that_does_not_read_is_cut_too() {
    let server = FakeServer::new().await;
    let mut lab = Lab::new();
    lab.route(&[("n1", server.address, 1)]);
    let (client, mut far) = established(&lab, &server).await;
    let writer = JoinSet::from_iter([write_until_cut(client, Arc::default())]);
    let mut before = 0;
    let mut still_since = Instant::now();
    while still_since.elapsed() < Duration::from_millis(200) {
        let now = lab.stats.bytes_in.get();
        if now != before {
            (before, still_since) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    lab.revoke(1);
    tokio::time::timeout(LONG, writer.join_all()).await.expect("the client is not cut");
    lab.at_rest().await;
    let (got, end) = read_all(&mut far).await;
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(got.len() as u64 + startup("alice").len() as u64 <= before);
    assert_eq!(lab.stats.bytes_in.get(), before);
}

/// What is in the pipe of a splice has not been handed to the server.
#[tokio::test]
async fn a_spliced_session_blocked_on_a_server_that_does_not_read_is_cut_too() {
    const READ: usize = 8_000_000;
    let server = FakeServer::new().await;
    let mut lab = Lab::new();
    lab.route(&[("n1", server.address, 1)]);
    let (mut client, mut far) = established(&lab, &server).await;
    let block = vec![0; READ];
    let mut got = vec![0; READ];
    tokio::try_join!(client.write_all(&block), far.read_exact(&mut got)).unwrap();
    let writer = JoinSet::from_iter([write_until_cut(client, Arc::default())]);
    let (mut before, mut still_since) = (0, Instant::now());
    while still_since.elapsed() < Duration::from_millis(200) {
        let now = lab.stats.bytes_in.get();
        if now != before {
            (before, still_since) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    lab.revoke(1);
    tokio::time::timeout(LONG, writer.join_all()).await.expect("the client is not cut");
    lab.at_rest().await;
    let (got, end) = read_all(&mut far).await;
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!((READ + got.len() + startup("alice").len()) as u64 <= before);
    assert_eq!(lab.stats.bytes_in.get(), before);
    eventually("the pipes are back", || lab.engine.cores().states().all(|core| core.pipes == 0)).await;
}

#[tokio::test]
async fn a_killed_session_ends_wherever_it_stands() {
    let server = FakeServer::new().await;
    let mut lab = Lab::new();
    lab.route(&[("n1", server.address, 1)]);
    let (mut client, mut far) = established(&lab, &server).await;
    lab.sessions.list()[0].kill(CloseReason::Killed);
    expect_fin(&mut client).await;
    expect_reset(&mut far).await;
    lab.at_rest().await;
    lab.no_route();
    let mut held = lab.connect().await;
    held.write_all(&startup("alice")).await.unwrap();
    eventually("it is held", || lab.stats.held.get() == 1).await;
    lab.sessions.list()[0].kill(CloseReason::VipMoved);
    assert_eq!(read_error(&mut held).await[&'C'], "57P03");
    lab.at_rest().await;
    assert_eq!((lab.closes("killed"), lab.closes("vip-moved")), (1, 1));
}

#[tokio::test]
async fn sessions_of_an_address_that_has_left_end_and_others_go_on() {
    let server = FakeServer::new().await;
    let mut lab = Lab::with(|listener| listener.bind = vec![([0, 0, 0, 0], 0).into()]);
    lab.route(&[("n1", server.address, 1)]);
    let port = lab.address().port();
    let through = async |address: [u8; 4]| {
        let mut client = TcpStream::connect(SocketAddr::from((address, port))).await.unwrap();
        client.write_all(&startup("alice")).await.unwrap();
        let mut far = server.asked(&startup("alice")).await;
        far.write_all(AUTH_OK).await.unwrap();
        read_expected(&mut client, AUTH_OK).await;
        (client, far)
    };
    let (mut moved, mut far) = through([127, 0, 0, 7]).await;
    let mut stays = through([127, 0, 0, 8]).await;
    let count = lab.sessions.end_at([127, 0, 0, 7].into(), &CloseReason::VipMoved);
    lab.engine.cores().sweep();
    assert_eq!(count, 1);
    expect_fin(&mut moved).await;
    expect_reset(&mut far).await;
    stays.0.write_all(b"x").await.unwrap();
    read_expected(&mut stays.1, b"x").await;
    assert_eq!(lab.closes("vip-moved"), 1);

    // One that is held there hears it, too.
    lab.no_route();
    let mut held = TcpStream::connect(SocketAddr::from(([127, 0, 0, 7], port))).await.unwrap();
    held.write_all(&startup("alice")).await.unwrap();
    eventually("it is held", || lab.stats.held.get() == 1).await;
    assert_eq!(lab.sessions.end_at([127, 0, 0, 7].into(), &CloseReason::VipMoved), 1);
    lab.engine.cores().sweep();
    assert_eq!(read_error(&mut held).await[&'C'], "57P03");
    eventually("it is counted", || lab.closes("vip-moved") == 2).await;
}

#[tokio::test]
async fn a_cancel_request_reaches_candidates_and_members_that_still_have_sessions() {
    let (old, new, gone) = (FakeServer::new().await, FakeServer::new().await, nobody().await);
    let mut lab = Lab::new();
    lab.route(&[("n1", old.address, 1)]);
    let (_client, _far) = established(&lab, &old).await;
    lab.route(&[("n2", new.address, 2), ("n3", gone, 3)]);
    let mut request = vec![0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e];
    request.extend_from_slice(&[0, 0, 1, 2, 9, 8, 7, 6]);
    let mut client = lab.connect().await;
    client.write_all(&request).await.unwrap();
    let (to_old, to_new) = (old.asked(&request).await, new.asked(&request).await);
    // Not before the servers have closed: that is how a client knows that it is done.
    let early = tokio::time::timeout(Duration::from_millis(50), client.read_u8()).await;
    assert!(early.is_err(), "closed before the servers have");
    drop((to_old, to_new));
    expect_fin(&mut client).await;
    eventually("it is counted", || lab.closes("cancel-done") == 1).await;
    assert_eq!(lab.stats.cancels.get(), 1);

    // While everybody else is held.
    lab.no_route();
    let mut client = lab.connect().await;
    client.write_all(&request).await.unwrap();
    drop(old.asked(&request).await);
    expect_fin(&mut client).await;
}

#[tokio::test]
async fn limits_are_kept_explained_and_given_back() {
    let server = FakeServer::new().await;
    let mut lab = Lab::with(|listener| listener.max_connections = 2);
    lab.route(&[("n1", server.address, 1)]);
    let first = established(&lab, &server).await;
    let _second = established(&lab, &server).await;
    for requests in [&[][..], &[SSL_REQUEST]] {
        let mut client = lab.connect().await;
        for request in requests {
            client.write_all(request).await.unwrap();
            read_expected(&mut client, b"N").await;
        }
        client.write_all(&startup("alice")).await.unwrap();
        let error = read_error(&mut client).await;
        assert_eq!(error[&'C'], "53300");
        assert!(error[&'M'].contains("listener \"primary\"): too many connections"), "{error:?}");
    }
    assert_eq!(lab.closes("listener-full"), 2);
    drop(first);
    eventually("the place is free", || lab.stats.sessions.get() == 1).await;
    let _third = established(&lab, &server).await;
}

#[tokio::test]
async fn limits_and_networks_of_a_source_change_with_a_reload() {
    let server = FakeServer::new().await;
    let mut lab = Lab::with(|listener| listener.max_connections_per_source = 1.try_into().ok());
    lab.route(&[("n1", server.address, 1)]);
    let _first = established(&lab, &server).await;
    let refused = async |lab: &Lab| {
        let mut client = lab.connect().await;
        client.write_all(&startup("alice")).await.unwrap();
        read_error(&mut client).await.remove(&'C').unwrap()
    };
    assert_eq!(refused(&lab).await, "53300");
    let mut changed = settings();
    changed.listener.deny = vec!["127.0.0.0/8".parse().unwrap()];
    lab.listener.reconfigure(changed.clone());
    assert_eq!(refused(&lab).await, "28000");
    changed.listener.deny.clear();
    changed.listener.allow = vec!["10.0.0.0/8".parse().unwrap()];
    lab.listener.reconfigure(changed.clone());
    assert_eq!(refused(&lab).await, "28000");
    changed.listener.allow.push("127.0.0.1/32".parse().unwrap());
    lab.listener.reconfigure(changed);
    let _second = established(&lab, &server).await;
    assert_eq!((lab.closes("source-limit"), lab.closes("denied")), (1, 2));
}

#[tokio::test]
async fn a_drain_refuses_the_held_waits_for_the_others_and_cuts_at_the_deadline() {
    let server = FakeServer::new().await;
    let mut lab = Lab::new();
    lab.route(&[("n1", server.address, 1)]);
    let (mut finishing, finishing_far) = established(&lab, &server).await;
    let (mut staying, mut staying_far) = established(&lab, &server).await;
    lab.no_route();
    let mut held = lab.connect().await;
    held.write_all(&startup("alice")).await.unwrap();
    eventually("it is held", || lab.stats.held.get() == 1).await;
    let address = lab.address();
    let mut listeners = Listeners::default();
    listeners.add(lab.listener);
    let (began, patience) = (Instant::now(), Duration::from_secs(2));
    let clients = async {
        let error = read_error(&mut held).await;
        assert_eq!(error[&'C'], "57P03");
        assert!(error[&'M'].ends_with(": shutting down"), "{error:?}");
        drop(held);
        let refused = || std::net::TcpStream::connect(address).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
        eventually("nobody listens", refused).await;
        finishing.write_all(b"still here").await.unwrap();
        drop((finishing, finishing_far));
        expect_fin(&mut staying).await;
        expect_reset(&mut staying_far).await;
    };
    let (cut, ()) = tokio::join!(listeners.drain(began + patience), clients);
    assert_eq!(cut, 1);
    assert!(began.elapsed() >= patience && began.elapsed() < patience * 3);
    assert!(lab.sessions.is_empty());
    assert_eq!(lab.stats.closes()["drained"], 2);
}

#[tokio::test]
async fn a_drain_without_sessions_ends_at_once() {
    let lab = Lab::new();
    let far_away = Instant::now() + Duration::from_secs(600);
    let drained = tokio::time::timeout(LONG, lab.listener.drain(far_away)).await;
    assert_eq!(drained, Ok(0));
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let lab = Lab::new();
    let mut same = settings();
    same.listener.bind = vec![lab.address()];
    let context = Context {
        routes: lab.routes.clone(),
        sessions: lab.sessions.clone(),
        stats: lab.stats.clone(),
        reports: Reports::new(tokio::sync::mpsc::channel(1).0, Arc::default()),
        cores: lab.engine.cores().clone(),
    };
    let error = Listener::bind(same, context, &mut Sockets::default()).unwrap_err().to_string();
    let expected = format!("cannot listen on {}: address already in use", lab.address());
    assert!(error.starts_with(&expected), "{error}");
}

/// Sockets of this process whose local or far end is one of these addresses.
fn sockets_of(addresses: &[SocketAddr]) -> usize {
    let ports: HashSet<String> = addresses.iter().map(|address| format!("{:04X}", address.port())).collect();
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let ends_in = |end: &str| end.split(':').nth(1).is_some_and(|port| ports.contains(port));
    let inodes: HashSet<String> = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| ends_in(fields[1]) || ends_in(fields[2]))
        .map(|fields| format!("socket:[{}]", fields[9]))
        .collect();
    let open = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
    let targets = open.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    targets.filter(|target| inodes.contains(&*target.to_string_lossy())).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_sessions_of_every_kind_leave_nothing_behind() {
    let server = FakeServer::new().await;
    let mut lab = Lab::new();
    let dead = nobody().await;
    lab.route(&[("n0", dead, 9), ("n1", server.address, 1)]);
    let addresses = [lab.address(), server.address];
    let before = sockets_of(&addresses);
    assert_eq!(before, 3, "the listening sockets: the server's, ours, and ours to hand on");
    for round in 0..250 {
        let (client, far) = established(&lab, &server).await;
        match round % 5 {
            0 => reset(client),
            1 => reset(far),
            2 => drop(far),
            3 => lab.sessions.list()[0].kill(CloseReason::Killed),
            _ => drop(client),
        }
        drop(lab.connect().await);
        let mut nonsense = lab.connect().await;
        nonsense.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        drop(nonsense);
        let mut leaving = lab.connect().await;
        leaving.write_all(&startup("leaving")).await.unwrap();
        let asked = server.asked(&startup("leaving")).await;
        let left = leaving.local_addr().unwrap();
        reset(leaving);
        // A server that leaves before its client is dialled again, and the next round would take that for its own.
        let gone = || lab.sessions.list().iter().all(|session| session.client() != left);
        eventually("the client's leaving is noticed", gone).await;
        drop(asked);
    }
    lab.at_rest().await;
    eventually("every socket is closed", || sockets_of(&addresses) == before).await;
    assert_eq!(lab.stats.accepted.get(), 1000);
    assert_eq!(lab.stats.closes().values().sum::<u64>(), 1000);
    // The accept loop and the keeper of the queue.
    eventually("every task has ended", || lab.listener.tasks() == 2).await;
}
