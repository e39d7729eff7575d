//! A listener with fake servers behind it, on loopback, with routes published by hand.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pointsman_config::{
    Balance, ClusterName, Fallback, Keepalive, ListenerName, ListenerTls, OnPromote, Refuse, Target,
};
use pointsman_core::event::Event;
use pointsman_core::route::{
    Candidate, GrantRole, NoRoute, Revocation, RevokeReason, Route, RouteTable, Term,
};
use pointsman_core::view::{Address, MemberName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::engine::Engine;
use crate::listener::{Context, Listener, Reports, Settings, Sockets};
use crate::routes::Routes;
use crate::sessions::Sessions;
use crate::stats::ListenerStats;

/// No test waits longer than this for anything.
pub(super) const LONG: Duration = Duration::from_secs(20);

/// AuthenticationOk: what a server that trusts everybody says first.
pub(super) const AUTH_OK: &[u8] = &[b'R', 0, 0, 0, 8, 0, 0, 0, 0];
pub(super) const SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
pub(super) const GSS_REQUEST: &[u8] = &[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];

pub(super) struct Lab {
    pub(super) listener: Listener,
    pub(super) routes: Arc<Routes>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) stats: Arc<ListenerStats>,
    pub(super) events: mpsc::Receiver<Event>,
    generation: u64,
    pub(super) engine: Engine,
}

impl Lab {
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(super) fn with(change: impl FnOnce(&mut pointsman_config::Listener)) -> Self {
        Self::on(super::engine(), change)
    }

    pub(super) fn on(engine: Engine, change: impl FnOnce(&mut pointsman_config::Listener)) -> Self {
        let mut settings = settings();
        change(&mut settings.listener);
        let (sender, events) = mpsc::channel(1024);
        let (routes, sessions, stats) = <(Arc<Routes>, Arc<Sessions>, Arc<ListenerStats>)>::default();
        let context = Context {
            routes: routes.clone(),
            sessions: sessions.clone(),
            stats: stats.clone(),
            reports: Reports::new(sender, Arc::default()),
            cores: engine.cores().clone(),
        };
        let mut listener = Listener::bind(settings, context, &mut Sockets::default()).unwrap();
        listener.start();
        Self { engine, listener, routes, sessions, stats, events, generation: 0 }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.listener.addresses()[0]
    }

    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address()).await.unwrap()
    }

    /// Publishes these members (name, address, term) as candidates.
    pub(super) fn route(&mut self, members: &[(&str, SocketAddr, u64)]) {
        let candidates = members.iter().map(|(name, address, term)| Candidate {
            member: (*name).into(),
            addresses: Arc::new([Address { host: address.ip().to_string(), port: address.port() }]),
            role: GrantRole::Primary,
            term: Term(*term),
            weight: 1,
        });
        self.publish(Ok(candidates.collect()));
    }

    pub(super) fn no_route(&mut self) {
        self.publish(Err(NoRoute::LeaderKeyGone { last: Some("n1".into()) }));
    }

    pub(super) fn no_route_ever(&mut self) {
        self.publish(Err(NoRoute::StandbyCluster));
    }

    fn publish(&mut self, candidates: Result<Arc<[Candidate]>, NoRoute>) {
        self.generation += 1;
        let route = Route { target: Target::Primary, candidates };
        let routes = BTreeMap::from([(name(), route)]);
        self.routes.publish(Arc::new(RouteTable { generation: self.generation, routes }));
    }

    pub(super) fn revoke(&self, term: u64) {
        let reason = RevokeReason::LeaderChanged;
        self.routes.revoke(&Revocation { term: Term(term), member: "n1".into(), reason });
    }

    pub(super) fn closes(&self, label: &str) -> u64 {
        self.stats.closes().get(label).copied().unwrap_or(0)
    }

    /// Every report so far.
    pub(super) fn reported(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }

    /// Waits until the listener has nothing left, and checks that every gauge says so.
    pub(super) async fn at_rest(&self) {
        eventually("all sessions have ended", || self.stats.sessions.get() == 0).await;
        assert_eq!(self.stats.held.get(), 0);
        eventually("the register is empty", || self.sessions.is_empty()).await;
        for (member, server) in self.stats.servers() {
            eventually(&format!("{member} has no session"), || server.sessions.get() == 0).await;
        }
    }
}

pub(super) fn name() -> ListenerName {
    ListenerName::new("primary").unwrap()
}

pub(super) fn settings() -> Settings {
    let secs = Duration::from_secs;
    let listener = pointsman_config::Listener {
        name: name(),
        bind: vec!["127.0.0.1:0".parse().unwrap()],
        cluster: ClusterName::new("main").unwrap(),
        target: Target::Primary,
        balance: Balance::First,
        hold: secs(60),
        max_held: 1000,
        release_rate: 100_000.try_into().unwrap(),
        refuse: Refuse::Explain,
        max_lag: None,
        on_promote: OnPromote::Drain,
        fallback: Fallback::None,
        tags: BTreeMap::new(),
        max_connections: 5000,
        max_connections_per_source: None,
        allow: Vec::new(),
        deny: Vec::new(),
        connect_timeout: secs(3),
        startup_timeout: secs(10),
        idle_timeout: None,
        keepalive: Keepalive { idle: secs(30), interval: secs(10), probes: 3.try_into().unwrap() },
        user_timeout: Some(secs(30)),
        accept_proxy: false,
        send_proxy: None,
        tls: ListenerTls::Passthrough,
        server_tls: None,
    };
    Settings { listener, balancers: 1.try_into().unwrap(), log_sessions: true }
}

/// A server whose connections the test plays itself.
pub(super) struct FakeServer {
    socket: TcpListener,
    pub(super) address: SocketAddr,
}

impl FakeServer {
    pub(super) async fn new() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        Self { socket, address }
    }

    pub(super) async fn accept(&self) -> TcpStream {
        let accepted = tokio::time::timeout(LONG, self.socket.accept()).await;
        accepted.expect("nobody connects to the fake server").unwrap().0
    }

    /// The next connection, however late it comes.
    pub(super) async fn accept_any(&self) -> TcpStream {
        self.socket.accept().await.unwrap().0
    }

    /// Accepts, and takes the start-up message `expected`.
    pub(super) async fn asked(&self, expected: &[u8]) -> TcpStream {
        let mut stream = self.accept().await;
        read_expected(&mut stream, expected).await;
        stream
    }
}

/// An address on which nobody listens.
pub(super) async fn nobody() -> SocketAddr {
    FakeServer::new().await.address
}

/// A StartupMessage.
pub(super) fn startup(user: &str) -> Vec<u8> {
    let mut body = 196_608_u32.to_be_bytes().to_vec();
    for text in ["user", user, "database", "app", "application_name", "lab"] {
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    let mut message = u32::try_from(body.len() + 4).unwrap().to_be_bytes().to_vec();
    message.append(&mut body);
    message
}

/// What a server answers that is not ready: ErrorResponse.
pub(super) fn not_ready(sqlstate: &[u8]) -> Vec<u8> {
    use pointsman_core::error_response::{ErrorResponse, SqlState};
    let state = SqlState::parse(sqlstate).unwrap();
    ErrorResponse::new(state, "the database system is starting up").encode()
}

pub(super) async fn read_expected(stream: &mut TcpStream, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    tokio::time::timeout(LONG, stream.read_exact(&mut got)).await.expect("nothing comes").unwrap();
    assert_eq!(got, expected);
}

/// Everything until the end, and how it ended.
pub(super) async fn read_all(stream: &mut TcpStream) -> (Vec<u8>, std::io::Result<()>) {
    let mut got = Vec::new();
    let end = tokio::time::timeout(LONG, stream.read_to_end(&mut got)).await.expect("no end comes");
    (got, end.map(|_| ()))
}

pub(super) async fn expect_fin(stream: &mut TcpStream) {
    let (got, end) = read_all(stream).await;
    end.expect("a FIN, not an RST");
    assert_eq!(got, b"");
}

pub(super) async fn expect_reset(stream: &mut TcpStream) {
    let (got, end) = read_all(stream).await;
    assert_eq!(end.expect_err("an RST, not a FIN").kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(got, b"");
}

/// An RST comes, after a FIN perhaps.
pub(super) async fn expect_broken(stream: &TcpStream) {
    let broken = tokio::time::timeout(LONG, stream.ready(tokio::io::Interest::ERROR)).await;
    assert!(broken.expect("no RST comes").unwrap().is_error());
}

/// The fields of one ErrorResponse, and nothing behind it but a FIN.
pub(super) async fn read_error(stream: &mut TcpStream) -> BTreeMap<char, String> {
    let (got, end) = read_all(stream).await;
    end.expect("the error arrives, then a FIN");
    assert!(stream.take_error().unwrap().is_none(), "an RST behind the FIN could have destroyed the error");
    assert_eq!(got[0], b'E', "{got:?}");
    assert_eq!(u32::from_be_bytes(got[1..5].try_into().unwrap()) as usize + 1, got.len());
    let fields = got[5..].split(|byte| *byte == 0).filter(|field| !field.is_empty());
    fields.map(|field| (char::from(field[0]), String::from_utf8(field[1..].to_vec()).unwrap())).collect()
}

/// Sends an RST.
pub(super) fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// A session that is established through the listener: the client's end and the server's.
pub(super) async fn established(lab: &Lab, server: &FakeServer) -> (TcpStream, TcpStream) {
    let mut client = lab.connect().await;
    client.write_all(&startup("alice")).await.unwrap();
    let mut far = server.asked(&startup("alice")).await;
    far.write_all(AUTH_OK).await.unwrap();
    read_expected(&mut client, AUTH_OK).await;
    (client, far)
}

/// Waits until something holds.
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + LONG;
    while !holds() {
        assert!(tokio::time::Instant::now() < end, "it never happened that {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(super) fn member(name: &str) -> MemberName {
    name.into()
}
