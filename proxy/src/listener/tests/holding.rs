//! No route: who waits, in which order they go on, and what they are told in the end.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::lab::*;

#[tokio::test]
async fn the_held_are_released_in_order_and_paced() {
    let server = FakeServer::new().await;
    let mut lab = Lab::with(|listener| listener.release_rate = 50.try_into().unwrap());
    lab.no_route();
    let mut clients = Vec::new();
    for number in 0..12 {
        let mut client = lab.connect().await;
        client.write_all(&startup(&format!("user{number:02}"))).await.unwrap();
        eventually("it is held", || lab.stats.held.get() == number + 1).await;
        clients.push(client);
    }
    let released = Instant::now();
    lab.route(&[("n1", server.address, 1)]);
    let mut kept_open = Vec::new();
    for number in 0..12 {
        kept_open.push(server.asked(&startup(&format!("user{number:02}"))).await);
    }
    // One at once, then one each 20 ms.
    assert!(released.elapsed() >= Duration::from_millis(11 * 20), "{:?}", released.elapsed());
    assert_eq!((lab.stats.held_total.get(), lab.stats.held_for.count()), (12, 12));
    assert_eq!(lab.stats.held.get(), 0);
}

#[tokio::test]
async fn at_the_end_of_the_hold_a_client_is_told_why_in_words_that_arrive() {
    let mut lab = Lab::with(|listener| listener.hold = Duration::from_millis(250));
    lab.no_route();
    for requests in [&[][..], &[SSL_REQUEST], &[GSS_REQUEST, SSL_REQUEST]] {
        let came = Instant::now();
        let mut client = lab.connect().await;
        for request in requests {
            client.write_all(request).await.unwrap();
            read_expected(&mut client, b"N").await;
        }
        let asked = Instant::now();
        client.write_all(&startup("alice")).await.unwrap();
        let error = read_error(&mut client).await;
        assert_eq!((&*error[&'S'], &*error[&'C']), ("FATAL", "57P03"));
        assert!(error[&'M'].contains("cluster \"main\""), "{error:?}");
        assert!(error[&'M'].contains("there is no leader; the last one was n1"), "{error:?}");
        // A quarter of a second, rounded either way; no longer than the client has waited.
        let held: f64 = error[&'D'].split(' ').find_map(|word| word.parse().ok()).unwrap();
        assert!((0.2..came.elapsed().as_secs_f64() + 0.1).contains(&held), "{error:?}");
        assert!(error[&'H'].contains("pointsman members"), "{error:?}");
        assert!(requests.is_empty() == (asked.elapsed() >= Duration::from_millis(250)));
    }
    lab.at_rest().await;
    assert_eq!(lab.closes("held-too-long"), 3);
}

#[tokio::test]
async fn the_error_arrives_although_the_client_has_sent_more_than_was_read() {
    let mut lab = Lab::with(|listener| listener.hold = Duration::from_millis(50));
    lab.no_route();
    let mut client = lab.connect().await;
    let mut eager = startup("alice");
    eager.resize(20_000, b'p');
    client.write_all(&eager).await.unwrap();
    assert_eq!(read_error(&mut client).await[&'C'], "57P03");
}

#[tokio::test]
async fn refuse_close_says_nothing() {
    let mut lab = Lab::with(|listener| {
        listener.hold = Duration::from_millis(50);
        listener.refuse = pointsman_config::Refuse::Close;
    });
    lab.no_route();
    let mut client = lab.connect().await;
    client.write_all(&startup("alice")).await.unwrap();
    expect_fin(&mut client).await;
}

#[tokio::test]
async fn one_too_many_is_refused_at_once_and_a_reload_makes_room() {
    let server = FakeServer::new().await;
    let mut lab = Lab::with(|listener| listener.max_held = 2);
    lab.no_route();
    let mut held = Vec::new();
    for number in 0..2 {
        let mut client = lab.connect().await;
        client.write_all(&startup("alice")).await.unwrap();
        eventually("it is held", || lab.stats.held.get() == number + 1).await;
        held.push(client);
    }
    let mut client = lab.connect().await;
    client.write_all(&startup("alice")).await.unwrap();
    let error = read_error(&mut client).await;
    assert_eq!(error[&'C'], "53300");
    assert_eq!(error[&'D'], "The listener holds 2 connections at once.");
    eventually("it is counted", || lab.closes("queue-full") == 1).await;

    let mut roomy = settings();
    roomy.listener.max_held = 3;
    lab.listener.reconfigure(roomy);
    let mut client = lab.connect().await;
    client.write_all(&startup("carol")).await.unwrap();
    eventually("there is room", || lab.stats.held.get() == 3).await;
    lab.route(&[("n1", server.address, 1)]);
    let _all = (server.accept().await, server.accept().await, server.accept().await);
}

#[tokio::test]
async fn a_client_that_leaves_while_it_is_held_is_noticed_at_once_and_makes_room() {
    let server = FakeServer::new().await;
    let mut lab = Lab::with(|listener| listener.max_held = 1);
    lab.no_route();
    // A FIN; a FIN behind bytes that were not read as part of the first message; an RST.
    for (extra, rst) in [(0, false), (5000, false), (5000, true)] {
        let mut client = lab.connect().await;
        let mut bytes = startup("alice");
        bytes.resize(bytes.len() + extra, b'x');
        client.write_all(&bytes).await.unwrap();
        eventually("it is held", || lab.stats.held.get() == 1).await;
        if rst {
            reset(client);
        } else {
            drop(client);
        }
        lab.at_rest().await;
    }
    // Who speaks on and on before anybody has answered is no PostgreSQL client.
    let mut client = lab.connect().await;
    client.write_all(&startup("alice")).await.unwrap();
    eventually("it is held", || lab.stats.held.get() == 1).await;
    let _ = client.write_all(&vec![b'x'; 100_000]).await; // may be cut short
    lab.at_rest().await;
    eventually("all are counted", || lab.closes("left-while-held") == 3).await;
    assert_eq!(lab.closes("bad-startup"), 1);
    // Nobody of them is dialled for.
    lab.route(&[("n1", server.address, 1)]);
    let _session = established(&lab, &server).await;
}

#[tokio::test]
async fn a_session_that_cannot_be_dialled_waits_with_its_first_deadline_and_does_not_spin() {
    let mut lab = Lab::with(|listener| listener.hold = Duration::from_millis(900));
    lab.route(&[("n1", nobody().await, 1)]);
    let began = Instant::now();
    let mut client = lab.connect().await;
    client.write_all(&startup("alice")).await.unwrap();
    let error = read_error(&mut client).await;
    assert_eq!(error[&'C'], "57P03");
    assert!(error[&'M'].contains("no server could be reached after"), "{error:?}");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(900) && took < Duration::from_millis(1800), "{took:?}");
    // 20, 40, 80, 160, 320 ms, then 500: six pauses at most.
    let dials = lab.stats.server(&member("n1")).dial_errors.get();
    assert!((3..=7).contains(&dials), "{dials}");
    lab.at_rest().await;
    assert_eq!((lab.closes("dial-failed"), lab.stats.held_total.get()), (1, 1));
}

#[tokio::test]
async fn without_a_hold_a_client_is_refused_at_once() {
    let mut lab = Lab::with(|listener| listener.hold = Duration::ZERO);
    lab.no_route();
    let began = Instant::now();
    let mut client = lab.connect().await;
    client.write_all(&startup("alice")).await.unwrap();
    let error = read_error(&mut client).await;
    assert!(began.elapsed() < Duration::from_millis(500));
    assert_eq!(error[&'C'], "57P03");
    assert!(
        error[&'M'].ends_with("no server is available: there is no leader; the last one was n1"),
        "{error:?}"
    );
    assert_eq!(error.get(&'D'), None, "it was not held");
}

/// A standby cluster has no primary, however long one waits: who is held is told, who comes is told at once.
#[tokio::test]
async fn nobody_waits_in_vain() {
    let mut lab = Lab::new();
    lab.no_route();
    let mut held = lab.connect().await;
    held.write_all(&startup("alice")).await.unwrap();
    eventually("it is held", || lab.stats.held.get() == 1).await;
    lab.no_route_ever();
    assert!(read_error(&mut held).await[&'M'].contains("standby cluster"));
    let mut late = lab.connect().await;
    late.write_all(&startup("bob")).await.unwrap();
    let error = read_error(&mut late).await;
    assert!(error[&'M'].ends_with("no server is available: this is a standby cluster: it has no primary"));
    assert_eq!(error.get(&'D'), None, "it was not held");
    lab.at_rest().await;
    assert_eq!(lab.stats.held_total.get(), 1);
}
