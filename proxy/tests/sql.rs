//! Questions over SQL, with fakes that do what a real server cannot be made to do: hang, lie, break off, never end.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use pointsman::ask::Asker;
use pointsman::clock::Clock;
use pointsman_config::{Sql, SqlTls};
use pointsman_core::event::{Answer, AskError, Event, Question, Status, Witness};
use pointsman_core::view::{Address, Lsn, MemberRole, Timeline};
use support::etcd::SOON;
use support::fake::{FakeServer, closed_port};
use support::source::cluster;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

struct Asking {
    asker: Asker,
    events: mpsc::Receiver<Event>,
    _tracker: TaskTracker,
}

impl Asking {
    fn new(tls: SqlTls) -> Self {
        let (sender, events) = mpsc::channel(8);
        let tracker = TaskTracker::new();
        let mut cluster = cluster("endpoints = [\"http://127.0.0.1:1\"]");
        let (user, dbname) = ("pointsman".to_owned(), "postgres".to_owned());
        cluster.sql = Some(Sql { user, dbname, password: None, tls, ca: None, cert_key: None });
        Self {
            asker: Asker::new(&cluster, Clock::start(), sender, tracker.clone()),
            events,
            _tracker: tracker,
        }
    }

    async fn ask_all(&mut self, ports: &[u16], deadline: Duration) -> Result<Status, AskError> {
        let address = |port: &u16| Address { host: "127.0.0.1".to_owned(), port: *port };
        let addresses: Arc<[Address]> = ports.iter().map(address).collect();
        self.asker.ask("n1".into(), Question::Sql(addresses), deadline);
        let event = timeout(SOON, self.events.recv()).await.unwrap().unwrap();
        let Event::Answer(Answer { by, outcome, .. }) = event else { panic!("{event:?}") };
        assert_eq!(by, Witness::Sql);
        outcome
    }

    async fn ask(&mut self, port: u16) -> Result<Status, AskError> {
        self.ask_all(&[port], Duration::from_secs(5)).await
    }
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

fn error(state: &str) -> Vec<u8> {
    message(b'E', format!("SFATAL\0VFATAL\0C{state}\0Mnot now\0\0").as_bytes())
}

/// A row of text columns, with its description and its end.
fn row(columns: &[Option<&str>]) -> Vec<u8> {
    let count = i16::try_from(columns.len()).unwrap().to_be_bytes();
    let field =
        [b"c\0".as_slice(), &[0; 6], &25_i32.to_be_bytes(), &(-1_i16).to_be_bytes(), &[0; 6]].concat();
    let description = [count.as_slice(), &field.repeat(columns.len())].concat();
    let value = |column: Option<&str>| match column {
        None => (-1_i32).to_be_bytes().to_vec(),
        Some(text) => [&i32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat(),
    };
    let data = [count.to_vec(), columns.iter().copied().flat_map(value).collect()].concat();
    let parts = [
        message(b'C', b"SET\0"),
        message(b'T', &description),
        message(b'D', &data),
        message(b'C', b"SELECT 1\0"),
    ];
    [parts.concat(), message(b'Z', b"I")].concat()
}

fn primary() -> Vec<u8> {
    row(&[Some("f"), Some("0/3000000"), Some("000000020000000000000003"), None, None])
}

/// Lets a client in that has asked for TLS in vain, if it has asked.
async fn let_in(stream: &mut TcpStream) -> Option<()> {
    let mut body = startup(stream).await?;
    if body.starts_with(&[4, 210, 22, 47]) {
        stream.write_all(b"N").await.ok()?;
        body = startup(stream).await?;
    }
    assert!(body.windows(9).any(|part| part == b"pointsman"), "the session bears our name");
    let welcome = [message(b'R', &[0; 4]), message(b'Z', b"I")].concat();
    stream.write_all(&welcome).await.ok()
}

async fn startup(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let length = usize::try_from(stream.read_u32().await.ok()?).unwrap();
    let mut body = vec![0; length - 4];
    stream.read_exact(&mut body).await.ok()?;
    Some(body)
}

/// Reads one query.
async fn query(stream: &mut TcpStream) -> Option<String> {
    let kind = stream.read_u8().await.ok()?;
    let body = startup(stream).await?;
    (kind == b'Q').then(|| String::from_utf8(body).unwrap())
}

/// A server that answers every query in the same way, on every connection.
async fn server(answer: Vec<u8>) -> FakeServer {
    FakeServer::start(move |_, mut stream| {
        let answer = answer.clone();
        async move {
            let _: Option<()> = async {
                let_in(&mut stream).await?;
                while let Some(text) = query(&mut stream).await {
                    assert!(
                        text.contains("statement_timeout") && text.contains("pg_is_in_recovery"),
                        "{text}"
                    );
                    stream.write_all(&answer).await.ok()?;
                }
                None
            }
            .await;
        }
    })
    .await
}

#[tokio::test]
async fn a_server_is_asked_on_one_connection() {
    let server = server(primary()).await;
    let mut asking = Asking::new(SqlTls::Prefer);
    for _ in 0..3 {
        let status = asking.ask(server.port).await.unwrap();
        assert_eq!((status.role, status.timeline), (MemberRole::Primary, Some(Timeline(2))));
        assert_eq!(status.position, Some(Lsn(0x300_0000)));
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_server_without_tls_is_not_asked_where_tls_is_demanded() {
    let server = server(primary()).await;
    assert_eq!(Asking::new(SqlTls::Require).ask(server.port).await, Err(AskError::Unreachable));
    assert!(Asking::new(SqlTls::Disable).ask(server.port).await.is_ok());
}

#[tokio::test]
async fn a_connection_that_dies_is_replaced_within_the_question() {
    let server = FakeServer::start(|number, mut stream| async move {
        let_in(&mut stream).await;
        query(&mut stream).await;
        let _ = stream.write_all(&primary()).await;
        if number == 0 {
            return; // closed after the first answer
        }
        query(&mut stream).await;
        let _ = stream.write_all(&primary()).await;
    })
    .await;
    let mut asking = Asking::new(SqlTls::Disable);
    assert!(asking.ask(server.port).await.is_ok());
    assert!(asking.ask(server.port).await.is_ok());
    assert!(asking.ask(server.port).await.is_ok());
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_server_that_hangs_costs_its_deadline_and_no_late_answer_is_taken() {
    let server = FakeServer::start(|number, mut stream| async move {
        let_in(&mut stream).await;
        query(&mut stream).await;
        if number == 0 {
            std::future::pending::<()>().await;
        }
        let _ = stream.write_all(&primary()).await;
    })
    .await;
    let mut asking = Asking::new(SqlTls::Disable);
    let start = Instant::now();
    assert_eq!(asking.ask_all(&[server.port], Duration::from_millis(100)).await, Err(AskError::TimedOut));
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(asking.ask(server.port).await.is_ok());
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn several_addresses_are_tried_in_order() {
    let server = server(primary()).await;
    let hung = FakeServer::start(|_, _stream| std::future::pending()).await;
    let ports = [closed_port().await, hung.port, server.port];
    assert!(Asking::new(SqlTls::Disable).ask_all(&ports, Duration::from_secs(5)).await.is_ok());
}

#[tokio::test]
async fn failures_have_their_kinds() {
    let mut asking = Asking::new(SqlTls::Disable);
    assert_eq!(asking.ask(closed_port().await).await, Err(AskError::Refused));
    let states = [
        ("57P03", AskError::NotReady),
        ("57P01", AskError::NotReady),
        ("57P02", AskError::NotReady),
        ("28P01", AskError::Denied),
        ("28000", AskError::Denied),
        ("3D000", AskError::Denied),
        ("53300", AskError::Denied),
        ("XX000", AskError::Nonsense),
    ];
    for (state, kind) in states {
        let server = FakeServer::start(move |_, mut stream| async move {
            startup(&mut stream).await;
            let _ = stream.write_all(&error(state)).await;
        })
        .await;
        assert_eq!(asking.ask(server.port).await, Err(kind), "{state}");
    }
    let late = server([error("57014"), message(b'Z', b"I")].concat()).await;
    assert_eq!(asking.ask(late.port).await, Err(AskError::TimedOut));
}

#[tokio::test]
async fn nonsense_is_called_so() {
    let mut asking = Asking::new(SqlTls::Disable);
    let answers = [
        row(&[Some("f")]),
        row(&[Some("x"), None, None, None, None]),
        [message(b'C', b"SET\0"), message(b'Z', b"I")].concat(),
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
    ];
    for answer in answers {
        let server = server(answer.clone()).await;
        let outcome = asking.ask_all(&[server.port], Duration::from_millis(700)).await;
        // What looks like a part of a long message is waited for.
        assert!(matches!(outcome, Err(AskError::Nonsense | AskError::TimedOut)), "{answer:?}: {outcome:?}");
    }
}

/// A message of 1 GiB is announced and sent: no more than a part of it is taken in.
#[tokio::test]
async fn an_answer_without_end_is_given_up() {
    let server = FakeServer::start(|_, mut stream| async move {
        let_in(&mut stream).await;
        let _ = stream.write_all(&[b'D', 0x40, 0, 0, 0]).await;
        while stream.write_all(&[0; 4096]).await.is_ok() {}
    })
    .await;
    assert_eq!(Asking::new(SqlTls::Disable).ask(server.port).await, Err(AskError::Nonsense));
}
