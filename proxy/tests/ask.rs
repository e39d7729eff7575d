//! Questions to Patroni's REST interface, with fakes that answer well, badly, late or not at all.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use pointsman::ask::Asker;
use pointsman::clock::Clock;
use pointsman_config::{ClientTls, Config, Rest, Verify};
use pointsman_core::event::{Answer, AskError, Event, Question, Status};
use pointsman_core::view::{Address, ApiUrl, MemberRole};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use support::certs::Certs;
use support::etcd::SOON;
use support::fake::{FakeServer, closed_port, request, respond};
use support::source::cluster;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_util::task::TaskTracker;

const BODY: &str = r#"{"state":"running","role":"primary","xlog":{"location":5},"timeline":1,
    "patroni":{"version":"4.1.5","scope":"demo","name":"n1"}}"#;

struct Asking {
    asker: Asker,
    events: mpsc::Receiver<Event>,
    tracker: TaskTracker,
}

impl Asking {
    fn new(rest: Rest) -> Self {
        let (sender, events) = mpsc::channel(8);
        let tracker = TaskTracker::new();
        let mut cluster = cluster("endpoints = [\"http://127.0.0.1:1\"]");
        cluster.rest = rest;
        Self { asker: Asker::new(&cluster, Clock::start(), sender, tracker.clone()), events, tracker }
    }

    fn ask(&mut self, port: u16, tls: bool, deadline: Duration) {
        let address = Address { host: "127.0.0.1".to_owned(), port };
        self.asker.ask("n1".into(), Question::Rest(ApiUrl { tls, address }), deadline);
    }

    async fn answer(&mut self) -> Answer {
        let event = timeout(SOON, self.events.recv()).await.unwrap().unwrap();
        let Event::Answer(answer) = event else { panic!("{event:?}") };
        answer
    }

    async fn question(&mut self, port: u16) -> Result<Status, AskError> {
        self.ask(port, false, Duration::from_secs(5));
        self.answer().await.outcome
    }
}

/// One that answers every request, with a status that must not matter.
async fn healthy() -> FakeServer {
    FakeServer::start(|_, mut stream| async move {
        while let Some(head) = request(&mut stream).await {
            assert!(head.starts_with("GET /patroni HTTP/1.1\r\n"), "{head}");
            respond(&mut stream, 503, BODY).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_connection_is_kept() {
    let server = healthy().await;
    let mut asking = Asking::new(Rest::default());
    let mut last = None;
    for _ in 0..10 {
        asking.ask(server.port, false, Duration::from_secs(5));
        let answer = asking.answer().await;
        assert!(answer.outcome.unwrap().writable());
        assert!(last < Some(answer.asked_at));
        last = Some(answer.asked_at);
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_member_that_moves_is_asked_at_its_new_address() {
    let (old, new) = (healthy().await, healthy().await);
    let mut asking = Asking::new(Rest::default());
    asking.question(old.port).await.unwrap();
    asking.question(new.port).await.unwrap();
    assert_eq!((old.connections(), new.connections()), (1, 1));
}

/// A server that closes after each answer, without saying so: no question fails.
#[tokio::test]
async fn a_closed_connection_is_replaced_at_once() {
    let server = FakeServer::start(|_, mut stream| async move {
        request(&mut stream).await;
        respond(&mut stream, 200, BODY).await;
    })
    .await;
    let mut asking = Asking::new(Rest::default());
    for _ in 0..20 {
        asking.question(server.port).await.unwrap();
    }
    assert_eq!(server.connections(), 20);
}

#[tokio::test]
async fn nobody_listens() {
    assert_eq!(Asking::new(Rest::default()).question(closed_port().await).await, Err(AskError::Refused));
    let mut asking = Asking::new(Rest::default());
    let address = Address { host: "255.255.255.255".to_owned(), port: 1 }; // no TCP goes there
    asking.asker.ask("n1".into(), Question::Rest(ApiUrl { tls: false, address }), SOON);
    assert_eq!(asking.answer().await.outcome, Err(AskError::Unreachable));
}

/// A hung server costs the deadline and no more; its late answer is not taken for the next one.
#[tokio::test]
async fn a_hung_server_and_its_late_answer() {
    let server = FakeServer::start(|number, mut stream| async move {
        if number == 0 {
            request(&mut stream).await;
            request(&mut stream).await; // hangs until the client gives up
        }
        while request(&mut stream).await.is_some() {
            respond(&mut stream, 200, BODY).await;
        }
    })
    .await;
    let mut asking = Asking::new(Rest::default());
    asking.ask(server.port, false, Duration::from_millis(100));
    assert_eq!(asking.answer().await.outcome, Err(AskError::TimedOut));
    asking.question(server.port).await.unwrap();
    assert_eq!(server.connections(), 2);
}

/// Slow, but within the deadline.
#[tokio::test]
async fn a_slow_answer_in_pieces() {
    let server = FakeServer::start(|_, mut stream| async move {
        request(&mut stream).await;
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{BODY}", BODY.len());
        for piece in head.as_bytes().chunks(20) {
            stream.write_all(piece).await.unwrap();
            stream.flush().await.unwrap();
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(Asking::new(Rest::default()).question(server.port).await.unwrap().role, MemberRole::Primary);
}

#[tokio::test]
async fn bad_answers() {
    let half = format!("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{BODY}");
    let huge = format!("HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n{}", "x".repeat(300_000));
    let endless = format!("HTTP/1.0 200 OK\r\n\r\n{}", " ".repeat(1 << 20));
    let answer = |body: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    for (text, wanted) in [
        ("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), AskError::Nonsense),
        (half, AskError::Refused),
        (huge, AskError::Nonsense),
        (endless, AskError::Nonsense),
        (answer("<html>"), AskError::Nonsense),
        (answer(&BODY.replace("\"n1\"", "\"n2\"")), AskError::Stranger),
        (answer(&BODY.replace("demo", "prod")), AskError::Stranger),
        (String::new(), AskError::Refused),
    ] {
        let reply = text.clone();
        let server = FakeServer::start(move |_, mut stream| {
            let reply = reply.clone();
            async move {
                request(&mut stream).await;
                let _ = stream.write_all(reply.as_bytes()).await;
            }
        })
        .await;
        let got = Asking::new(Rest::default()).question(server.port).await;
        assert_eq!(got, Err(wanted), "{text:.60}");
    }
}

/// However many questions there are, each has its answer, and the server sees one at a time.
#[tokio::test]
async fn every_question_has_one_answer() {
    let server = healthy().await;
    let mut asking = Asking::new(Rest::default());
    let mut outcomes = Vec::new();
    (0..5).for_each(|_| asking.ask(server.port, false, Duration::from_secs(5)));
    for _ in 0..5 {
        outcomes.push(asking.answer().await.outcome.is_ok());
    }
    assert!(outcomes.contains(&true) && outcomes.contains(&false), "{outcomes:?}");
    assert_eq!(server.connections(), 1);
    drop(asking.asker);
    asking.tracker.close();
    timeout(SOON, asking.tracker.wait()).await.expect("tasks end with their asker");
    assert!(asking.events.recv().await.is_none(), "no question is answered twice");
}

#[tokio::test(start_paused = true)]
async fn an_idle_task_ends() {
    let server = healthy().await;
    let mut asking = Asking::new(Rest::default());
    asking.question(server.port).await.unwrap();
    assert_eq!(asking.tracker.len(), 1);
    asking.tracker.close();
    timeout(Duration::from_secs(70), asking.tracker.wait()).await.expect("a minute is enough");
    asking.question(server.port).await.unwrap();
}

fn tls_server(certs: &Certs) -> TlsAcceptor {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certs.path("ca.pem")).unwrap()).unwrap();
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let chain = vec![CertificateDer::from_pem_file(certs.path("server.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(certs.path("server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn over_tls_with_a_client_certificate() {
    let certs = Certs::new(&["127.0.0.1".to_owned()]);
    let acceptor = tls_server(&certs);
    let server = FakeServer::start(move |_, stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            while request(&mut stream).await.is_some() {
                respond(&mut stream, 200, BODY).await;
            }
        }
    })
    .await;
    let tls = |ca: &str, cert: bool| ClientTls {
        ca: Some(certs.path(ca).into()),
        cert_key: cert.then(|| (certs.path("client.pem").into(), certs.path("client.key").into())),
        server_name: None,
        verify: Verify::Full,
    };
    for (tls, wanted) in [
        (tls("ca.pem", true), Ok(MemberRole::Primary)),
        (tls("ca.pem", false), Err(AskError::Unreachable)),
        (tls("other-ca.pem", true), Err(AskError::Unreachable)),
        (tls("missing.pem", true), Err(AskError::Unreachable)),
    ] {
        let mut asking = Asking::new(Rest { tls: Some(tls.clone()), credentials: None });
        asking.ask(server.port, true, Duration::from_secs(5));
        let outcome = asking.answer().await.outcome.map(|status| status.role);
        assert_eq!(outcome, wanted, "{tls:?}");
    }
}

#[tokio::test]
async fn with_a_password_that_changes() {
    let server = FakeServer::start(|number, mut stream| async move {
        let head = request(&mut stream).await.unwrap();
        // base64 of "admin:first" and "admin:second"
        let wanted = ["Basic YWRtaW46Zmlyc3Q=", "Basic YWRtaW46c2Vjb25k"][number];
        let fit = head.contains(&format!("authorization: {wanted}\r\n"));
        respond(&mut stream, 200, if fit { BODY } else { "unauthorized" }).await;
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "first\n").unwrap();
    let text = format!(
        "[clusters.demo]\nrest = {{ user = \"admin\", password_file = {file:?} }}\n\
         discovery = {{ etcd = {{ endpoints = [\"http://127.0.0.1:1\"] }} }}\n\
         [[listeners]]\nbind = \"127.0.0.1:5000\"\ntarget = \"primary\"\n"
    );
    let config = Config::parse(&text, "test.toml", dir.path()).unwrap_or_else(|wrong| panic!("{wrong}"));
    let mut asking = Asking::new(config.clusters[0].rest.clone());
    asking.question(server.port).await.unwrap();
    std::fs::write(&file, "second\n").unwrap();
    asking.question(server.port).await.unwrap();
}
