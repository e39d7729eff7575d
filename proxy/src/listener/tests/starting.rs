//! From the first byte to the first answer: what a client and a server may do, and what the client sees.

use std::time::Duration;

use pointsman_core::event::{DialOutcome, Event};
use tokio::io::AsyncWriteExt;

use super::lab::*;
use crate::sessions::Phase;

fn dial(name: &str, outcome: DialOutcome) -> Event {
    Event::Dial { member: member(name), outcome }
}

#[tokio::test]
async fn a_session_is_counted_and_reported_while_it_lives_and_when_it_ends() {
    let server = FakeServer::new().await;
    let mut lab = Lab::new();
    lab.route(&[("n1", server.address, 1)]);
    let (client, mut far) = established(&lab, &server).await;
    let session = lab.sessions.list().pop().unwrap();
    assert_eq!(session.phase(), Phase::Established);
    let granted = session.granted().unwrap();
    assert_eq!((granted.member.clone(), granted.server), (member("n1"), server.address));
    let login = session.login().unwrap();
    assert_eq!((login.user.as_deref(), login.database.as_deref()), (Some("alice"), Some("app")));
    let stats = lab.stats.server(&member("n1"));
    assert_eq!((lab.stats.sessions.get(), stats.sessions.get(), stats.sessions_total.get()), (1, 1, 1));
    assert_eq!(stats.bytes_in.get(), startup("alice").len() as u64);
    eventually("the answer is counted", || stats.bytes_out.get() == AUTH_OK.len() as u64).await;
    assert_eq!(stats.dialled_in.count(), 1);
    drop(client);
    expect_fin(&mut far).await;
    drop(far);
    lab.at_rest().await;
    assert_eq!((lab.stats.accepted.get(), lab.closes("client-closed")), (1, 1));
    assert_eq!(lab.reported(), [dial("n1", DialOutcome::Served)]);
}

#[tokio::test]
async fn a_server_that_ends_a_session_is_reported() {
    let server = FakeServer::new().await;
    let mut lab = Lab::new();
    lab.route(&[("n1", server.address, 1)]);
    let (mut client, far) = established(&lab, &server).await;
    drop(far);
    expect_fin(&mut client).await;
    drop(client);
    lab.at_rest().await;
    assert_eq!(lab.closes("server-closed"), 1);
    let closed = Event::ServerClosed { member: member("n1") };
    assert_eq!(lab.reported(), [dial("n1", DialOutcome::Served), closed]);
}

#[tokio::test]
async fn encryption_refused_by_the_server_is_passed_on_and_the_start_up_follows_in_the_clear() {
    let server = FakeServer::new().await;
    let mut lab = Lab::new();
    lab.route(&[("n1", server.address, 1)]);
    let mut client = lab.connect().await;
    client.write_all(GSS_REQUEST).await.unwrap();
    let mut far = server.asked(GSS_REQUEST).await;
    far.write_all(b"N").await.unwrap();
    read_expected(&mut client, b"N").await;
    client.write_all(SSL_REQUEST).await.unwrap();
    read_expected(&mut far, SSL_REQUEST).await;
    far.write_all(b"N").await.unwrap();
    read_expected(&mut client, b"N").await;
    client.write_all(&startup("bob")).await.unwrap();
    read_expected(&mut far, &startup("bob")).await;
    far.write_all(AUTH_OK).await.unwrap();
    read_expected(&mut client, AUTH_OK).await;
    let stats = lab.stats.server(&member("n1"));
    assert_eq!(stats.sessions_total.get(), 1);
    eventually("every byte is counted", || {
        stats.bytes_in.get() == 16 + startup("bob").len() as u64
            && stats.bytes_out.get() == 2 + AUTH_OK.len() as u64
    })
    .await;
}

#[tokio::test]
async fn after_the_server_accepts_encryption_everything_is_between_the_two() {
    let server = FakeServer::new().await;
    let mut lab = Lab::new();
    lab.route(&[("n1", server.address, 1)]);
    let mut client = lab.connect().await;
    client.write_all(SSL_REQUEST).await.unwrap();
    let mut far = server.asked(SSL_REQUEST).await;
    far.write_all(b"S").await.unwrap();
    read_expected(&mut client, b"S").await;
    // No message of ours could be made of this.
    client.write_all(b"GET / HTTP/1.0").await.unwrap();
    read_expected(&mut far, b"GET / HTTP/1.0").await;
    far.write_all(&not_ready(b"57P03")).await.unwrap();
    read_expected(&mut client, &not_ready(b"57P03")).await;
}

#[tokio::test]
async fn a_tls_handshake_in_pieces_reaches_the_server_whole() {
    let server = FakeServer::new().await;
    let mut lab = Lab::with(|listener| listener.connect_timeout = Duration::from_secs(20));
    lab.route(&[("n1", server.address, 1)]);
    let mut hello = vec![0x16, 3, 1, 0x10, 0];
    hello.extend((0..0x1000_u32).map(|n| n.to_le_bytes()[0]));
    let mut client = lab.connect().await;
    for piece in hello.chunks(700) {
        client.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut far = server.asked(&hello).await;
    far.write_all(b"\x16server hello").await.unwrap();
    read_expected(&mut client, b"\x16server hello").await;
    client.write_all(b"more").await.unwrap();
    read_expected(&mut far, b"more").await;
    eventually("every byte is counted", || lab.stats.bytes_in.get() == hello.len() as u64 + 4).await;
}

#[tokio::test]
async fn a_dial_that_fails_goes_on_with_the_next_candidate_and_the_client_sees_nothing() {
    let (silent, closing, good) = (FakeServer::new().await, FakeServer::new().await, FakeServer::new().await);
    let mut lab = Lab::with(|listener| listener.connect_timeout = Duration::from_millis(300));
    lab.route(&[
        ("n1", nobody().await, 1),
        ("n2", silent.address, 2),
        ("n3", closing.address, 3),
        ("n4", good.address, 4),
    ]);
    let mut client = lab.connect().await;
    client.write_all(&startup("alice")).await.unwrap();
    let _kept_open = silent.asked(&startup("alice")).await;
    drop(closing.asked(&startup("alice")).await);
    let mut far = good.asked(&startup("alice")).await;
    far.write_all(AUTH_OK).await.unwrap();
    read_expected(&mut client, AUTH_OK).await;
    let outcomes = [
        dial("n1", DialOutcome::Refused),
        dial("n2", DialOutcome::TimedOut),
        dial("n3", DialOutcome::Failed),
        dial("n4", DialOutcome::Served),
    ];
    assert_eq!(lab.reported(), outcomes);
    let stats = lab.stats.server(&member("n4"));
    // Only what the client sent once is counted, and the load of those who failed is gone.
    assert_eq!(stats.bytes_in.get(), startup("alice").len() as u64);
    assert_eq!(lab.stats.bytes_in.get(), startup("alice").len() as u64);
    for (name, load) in [("n1", 0), ("n2", 0), ("n3", 0), ("n4", 1)] {
        assert_eq!(lab.stats.server(&member(name)).sessions.get(), load, "{name}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_ready_is_invisible_and_the_session_goes_to_the_then_right_member() {
    for sqlstate in [b"57P03", b"57P01", b"57P02"] {
        let (old, new) = (FakeServer::new().await, FakeServer::new().await);
        let mut lab = Lab::new();
        lab.route(&[("n1", old.address, 1)]);
        let mut client = lab.connect().await;
        client.write_all(&startup("alice")).await.unwrap();
        let mut far = old.asked(&startup("alice")).await;
        far.write_all(&not_ready(sqlstate)).await.unwrap();
        eventually("the session is held", || lab.stats.held.get() == 1).await;
        assert_eq!(lab.reported()[0], dial("n1", DialOutcome::NotReady));
        lab.route(&[("n2", new.address, 2)]);
        let mut far = new.asked(&startup("alice")).await;
        far.write_all(AUTH_OK).await.unwrap();
        read_expected(&mut client, AUTH_OK).await;
        assert_eq!(lab.stats.held_total.get(), 1);
    }
}

#[tokio::test]
async fn after_a_refused_encryption_the_start_up_alone_is_dialled_again() {
    let (old, new) = (FakeServer::new().await, FakeServer::new().await);
    let mut lab = Lab::new();
    lab.route(&[("n1", old.address, 1)]);
    let mut client = lab.connect().await;
    client.write_all(SSL_REQUEST).await.unwrap();
    let mut far = old.asked(SSL_REQUEST).await;
    far.write_all(b"N").await.unwrap();
    read_expected(&mut client, b"N").await;
    client.write_all(&startup("alice")).await.unwrap();
    read_expected(&mut far, &startup("alice")).await;
    lab.route(&[("n2", new.address, 2)]);
    far.write_all(&not_ready(b"57P03")).await.unwrap();
    drop(far);
    let mut far = new.asked(&startup("alice")).await;
    far.write_all(AUTH_OK).await.unwrap();
    read_expected(&mut client, AUTH_OK).await;
}

#[tokio::test]
async fn a_revocation_between_two_start_up_messages_is_invisible() {
    let (old, new) = (FakeServer::new().await, FakeServer::new().await);
    let mut lab = Lab::new();
    lab.route(&[("n1", old.address, 1)]);
    let mut waiting = lab.connect().await;
    waiting.write_all(SSL_REQUEST).await.unwrap();
    let mut far = old.asked(SSL_REQUEST).await;
    far.write_all(b"N").await.unwrap();
    read_expected(&mut waiting, b"N").await;
    let mut asking = lab.connect().await;
    asking.write_all(&startup("bob")).await.unwrap();
    let mut unanswering = old.asked(&startup("bob")).await;

    lab.route(&[("n2", new.address, 2)]);
    lab.revoke(1);
    let mut bob = new.asked(&startup("bob")).await;
    bob.write_all(AUTH_OK).await.unwrap();
    read_expected(&mut asking, AUTH_OK).await;
    // The old server is let go before the client says another word.
    expect_fin(&mut far).await;
    expect_fin(&mut unanswering).await;
    waiting.write_all(&startup("alice")).await.unwrap();
    let mut alice = new.asked(&startup("alice")).await;
    alice.write_all(AUTH_OK).await.unwrap();
    read_expected(&mut waiting, AUTH_OK).await;
    assert!(
        lab.reported()
            .iter()
            .all(|event| *event == dial("n1", DialOutcome::Served)
                || *event == dial("n2", DialOutcome::Served))
    );
}

#[tokio::test]
async fn any_other_error_of_a_server_belongs_to_the_client() {
    let server = FakeServer::new().await;
    let mut lab = Lab::new();
    lab.route(&[("n1", server.address, 1)]);
    let mut client = lab.connect().await;
    client.write_all(&startup("alice")).await.unwrap();
    let mut far = server.asked(&startup("alice")).await;
    far.write_all(&not_ready(b"53300")).await.unwrap();
    drop(far);
    assert_eq!(read_error(&mut client).await[&'C'], "53300");
}

#[tokio::test]
async fn nonsense_is_answered_and_costs_one_small_buffer() {
    let lab = Lab::with(|listener| listener.startup_timeout = Duration::from_millis(300));
    let cases: [(&[u8], &str); 4] = [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP"),
        (&[0x40, 0, 0, 0, 0, 3, 0, 0], "1073741824 bytes is too long"),
        (&[0, 0, 0, 3], "too short"),
        (&[0, 0, 0, 8, 0, 2, 0, 0], "unsupported frontend protocol 2.0"),
    ];
    for (bytes, words) in cases {
        let mut client = lab.connect().await;
        client.write_all(bytes).await.unwrap();
        let error = read_error(&mut client).await;
        assert!(error[&'M'].contains(words), "{error:?}");
    }
    // Unread input must not destroy the answer.
    let mut client = lab.connect().await;
    let mut post = b"POST / HTTP/1.1\r\n".to_vec();
    post.resize(40_000, b'x');
    client.write_all(&post).await.unwrap();
    assert_eq!(read_error(&mut client).await[&'C'], "08P01");
    drop(client);
    lab.at_rest().await;
    assert_eq!(lab.closes("bad-startup"), 5);
}

#[tokio::test]
async fn who_says_nothing_or_half_a_message_ends_at_the_deadline() {
    let lab = Lab::with(|listener| listener.startup_timeout = Duration::from_millis(300));
    let began = tokio::time::Instant::now();
    let (mut silent, mut half) = (lab.connect().await, lab.connect().await);
    half.write_all(&startup("alice")[..20]).await.unwrap();
    expect_fin(&mut silent).await;
    expect_fin(&mut half).await;
    assert!(began.elapsed() >= Duration::from_millis(300));
    lab.at_rest().await;
    assert_eq!(lab.closes("startup-timeout"), 2);
}

#[tokio::test]
async fn a_health_check_that_connects_and_closes_is_counted_and_nothing_else() {
    let mut lab = Lab::new();
    drop(lab.connect().await);
    lab.at_rest().await;
    eventually("it is counted", || lab.closes("client-closed") == 1).await;
    assert_eq!(lab.reported(), []);
}
