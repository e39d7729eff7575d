//! The admin interface over real sockets: what balancers, browsers, operators and attackers get.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{MadeUp, made_up, member, trouble};
use pointsman::admin::{Admin, BindError, TCP_CONNECTIONS};
use pointsman::state::Life;
use pointsman_core::close::CloseReason;
use pointsman_core::event::{AdminMode, Event, Loudness, What};
use pointsman_core::route::NoRoute;
use pointsman_core::status::ClusterStatus;
use pointsman_core::view::MemberRole;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

mod common;

const SOON: Duration = Duration::from_secs(20);

struct Served {
    made_up: MadeUp,
    address: SocketAddr,
    socket: PathBuf,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    _dir: tempfile::TempDir,
}

fn config(socket: PathBuf) -> pointsman_config::Admin {
    pointsman_config::Admin { bind: vec![([127, 0, 0, 1], 0).into()], users: Vec::new(), socket }
}

fn serve(made_up: MadeUp) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("run/admin.sock");
    let admin = Admin::bind(&config(socket.clone())).unwrap();
    let address = admin.addresses()[0];
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(admin.serve(made_up.app.clone(), stop.clone()));
    Served { made_up, address, socket, stop, tasks, _dir: dir }
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// Sends bytes and reads to the end of the connection.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, bytes: &[u8]) -> io::Result<String> {
    stream.write_all(bytes).await?;
    let mut answer = Vec::new();
    match timeout(SOON, stream.read_to_end(&mut answer)).await {
        Ok(Err(error)) if answer.is_empty() => return Err(error),
        Ok(_) => {} // or a reset after the answer: what was not read of our request
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    }
    Ok(String::from_utf8(answer).unwrap())
}

fn reply(text: &str) -> Reply {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).unwrap().parse().unwrap();
    Reply { status, head: head.replace("\r\n", "\n"), body: body.to_owned() }
}

impl Served {
    async fn raw(&self, bytes: &[u8]) -> io::Result<String> {
        exchange(TcpStream::connect(self.address).await?, bytes).await
    }

    async fn ask(&self, method: &str, path: &str) -> Reply {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: lb1\r\nconnection: close\r\n\r\n");
        reply(&self.raw(request.as_bytes()).await.unwrap())
    }

    async fn get(&self, path: &str) -> Reply {
        self.ask("GET", path).await
    }

    async fn operator(&self, method: &str, path: &str) -> Reply {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        reply(&exchange(stream, request.as_bytes()).await.unwrap())
    }

    fn describe(&self, change: impl FnOnce(&mut ClusterStatus)) {
        let mut status = common::status(3);
        change(&mut status);
        self.made_up.cluster.describe(status);
    }
}

fn why(reply: &Reply) -> String {
    let json = reply.json();
    assert_eq!(json["ok"].as_bool(), Some(reply.status == 200), "{json}");
    json["why"].as_array().unwrap().iter().map(|why| why.as_str().unwrap()).collect::<Vec<_>>().join("; ")
}

#[tokio::test]
async fn health_answers_close_the_connection_and_take_the_methods_of_balancers() {
    let served = serve(made_up(3));
    for path in ["/live", "/ready", "/primary", "/replicas", "/ready?cluster=main"] {
        // No "connection: close" in the request: the answer itself closes.
        for method in ["GET", "HEAD", "OPTIONS"] {
            let request = format!("{method} {path} HTTP/1.1\r\nhost: lb1\r\n\r\n");
            let answer = reply(&served.raw(request.as_bytes()).await.unwrap());
            assert_eq!(answer.status, 200, "{method} {path}: {}", answer.body);
            assert_eq!(answer.header("connection"), Some("close"), "{method} {path}");
            assert_eq!(answer.header("cache-control"), Some("no-store"));
            assert_eq!(answer.body.is_empty(), method != "GET", "{method} {path}: {:?}", answer.body);
        }
        assert_eq!(served.ask("POST", path).await.status, 405);
    }
    let old = served.raw(b"GET /ready HTTP/1.0\r\n\r\n").await.unwrap();
    assert!(old.starts_with("HTTP/1.0 200"), "{old}");
    assert_eq!(served.get("/ready?cluster=other").await.status, 404);
}

#[tokio::test]
async fn ready_is_about_this_host() {
    let served = serve(made_up(3));
    let app = &served.made_up.app;
    for (life, status) in
        [(Life::Starting, 503), (Life::Draining, 503), (Life::Stopping, 503), (Life::Ready, 200)]
    {
        app.set_life(life);
        assert_eq!(served.get("/ready").await.status, status, "{life:?}");
        assert_eq!(served.get("/live").await.status, 200, "{life:?}");
        assert_eq!(served.get("/primary").await.status, status, "{life:?}");
    }
    served.made_up.listener("replicas").set_listening(false);
    assert_eq!(why(&served.get("/ready").await), "the listener replicas does not accept connections");
    served.made_up.listener("replicas").set_listening(true);

    // An election, and a store that is silent for everybody, are not this host's fault.
    served.made_up.cluster.describe(trouble(6));
    let answer = served.get("/ready").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(
        answer.json()["remarks"],
        serde_json::json!([
            "the source of the cluster main does not answer: no endpoint answers: 10.0.0.1:2379 timed out",
            "members of the cluster main out of reach: pg1"
        ])
    );
    // Neither the store nor any member: that is this host.
    served.describe(|status| {
        status.store.state = "lost";
        status.members.iter_mut().for_each(|member| member.health = "down");
    });
    let answer = served.get("/ready").await;
    assert_eq!(answer.status, 503);
    assert!(why(&answer).starts_with("neither the source nor any member"), "{}", answer.body);
    assert_eq!(answer.json()["starting"], false);
}

/// A fixed list where every member takes writes is always "alive": it says nothing of what this host can reach.
#[tokio::test]
async fn a_multi_master_host_that_reaches_nobody_is_not_ready() {
    let served = serve(made_up(2));
    let members = |health: &'static str| {
        let mut status = common::status(2);
        for member in &mut status.members {
            (member.role, member.health, member.answer) = (MemberRole::Writable, health, None);
        }
        status
    };
    served.made_up.cluster.describe(members("up"));
    assert_eq!(served.get("/ready").await.status, 200);
    served.made_up.cluster.describe(members("down"));
    let why = why(&served.get("/ready").await);
    assert!(why.contains("any member of the cluster main is within reach"), "{why}");
}

#[tokio::test]
async fn a_cluster_that_was_never_looked_at_is_not_ready() {
    let served = serve(made_up(3));
    let (events, _wishes) = tokio::sync::mpsc::channel(1);
    let unseen = pointsman::state::ClusterHandle::new(common::main_cluster(), "etcd", events);
    served.made_up.app.parts.store(std::sync::Arc::new(pointsman::state::Parts {
        clusters: vec![std::sync::Arc::new(unseen)],
        listeners: Vec::new(),
    }));
    let ready = served.get("/ready").await;
    assert_eq!(why(&ready), "the cluster main has not been looked at yet");
    assert_eq!(ready.json()["starting"], true, "the virtual IP gives it time");
    assert_eq!(served.get("/primary").await.status, 503);
    assert_eq!(served.get("/api/v1/status").await.json()["clusters"][0]["status"], Value::Null);
}

#[tokio::test]
async fn primary_is_well_while_sessions_are_held_within_bounds() {
    let mut served = serve(made_up(3));
    let gone = |since_ms: u64| {
        move |status: &mut ClusterStatus| {
            status.primary.state = "none";
            status.primary.member = None;
            status.primary.since_ms = since_ms;
            status.routes[0].candidates.clear();
            status.routes[0].why_not = Some(NoRoute::LeaderKeyGone { last: None });
        }
    };
    served.describe(gone(10_000));
    let answer = served.get("/primary").await;
    assert_eq!((answer.status, why(&answer).as_str()), (200, ""));
    assert_eq!(
        answer.json()["remarks"][0],
        "the listener primary holds new sessions (0 now): there is no leader"
    );
    assert_eq!(served.get("/ready").await.status, 200);
    assert_eq!(served.get("/replicas").await.status, 200);

    // The time without a primary goes on through the states of an election…
    served.describe(gone(0));
    let status = served.get("/api/v1/status").await.json();
    let since = status["clusters"][0]["status"]["primary"]["since_ms"].as_u64().unwrap();
    assert!((10_000..60_000).contains(&since), "{since}");
    // …and ends with a confirmed primary. A new one that is longer than `hold` is told.
    served.describe(|_| {});
    served.describe(gone(61_000));
    let answer = served.get("/primary").await;
    assert!(why(&answer).starts_with("there has been no primary for longer"), "{}", answer.body);
    assert_eq!(served.get("/ready").await.status, 200);

    served.describe(|_| {});
    served.describe(gone(10_000));
    (0..10_000).for_each(|_| served.made_up.held("primary"));
    let answer = served.get("/primary").await;
    assert!(why(&answer).contains("holds as many sessions as it may (10000)"), "{}", answer.body);

    served.describe(|status| {
        gone(10)(status);
        status.routes[0].why_not = Some(NoRoute::StandbyCluster);
    });
    assert!(why(&served.get("/primary").await).contains("standby cluster"));
}

#[tokio::test]
async fn wrong_paths_and_methods_get_a_helpful_answer() {
    let served = serve(made_up(3));
    for path in ["/nothing", "/api", "/api/v1/members/main/pg1", "/ready/x", "/%zz", "//", "/../etc/passwd"] {
        let answer = served.get(path).await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.json()["error"].as_str().unwrap().contains("/api/v1/status"), "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    let answer = served.ask("DELETE", "/metrics").await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD, OPTIONS")));
    assert_eq!(served.ask("OPTIONS", "/api/v1/status").await.status, 204);
    assert_eq!(served.get("/api/v1/sessions?limit=many").await.status, 400);
    assert_eq!(served.get("/api/v1/timeline?since=-1").await.status, 400);
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/stats", "text/html; charset=utf-8"),
        ("/dashboard.js", "text/javascript; charset=utf-8"),
        ("/dashboard.css", "text/css; charset=utf-8"),
        ("/favicon.ico", "image/svg+xml"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
    ] {
        let answer = served.get(path).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(kind)), "{path}");
        assert!(answer.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
        // Nothing comes from elsewhere: a load balancer's host has no way to the Internet.
        let foreign = answer.body.replace("http://www.w3.org/2000/svg", "").contains("://");
        assert!(!foreign || path == "/metrics", "{path}");
        assert!(served.ask("HEAD", path).await.body.is_empty());
    }
}

#[tokio::test]
async fn the_documents_say_what_is_there() {
    let mut made_up = made_up(3);
    made_up.session("primary", 7, "pg1", 5432);
    made_up.session("replicas", 8, "pg2", 5432);
    made_up.traffic("primary", "pg1", 1000);
    made_up.switchover();
    let served = serve(made_up);
    let status = served.get("/api/v1/status").await.json();
    assert_eq!(status["process"]["node"], "lb1");
    assert_eq!(status["process"]["sessions"], 2);
    assert_eq!(status["clusters"][0]["status"]["primary"]["member"], "pg1");
    assert_eq!(status["clusters"][0]["traffic"]["pg1"]["bytes_in"], 1000);
    assert_eq!(status["timeline"], 9);
    let listeners = served.get("/api/v1/listeners").await.json();
    assert_eq!(listeners[0]["state"], "open");
    assert_eq!(listeners[0]["closes"]["client-closed"], 1);
    assert_eq!(listeners[0]["servers"][0]["dial_ms_mean"], 1.7);
    let members = served.get("/api/v1/members").await.json();
    assert_eq!(members[1]["name"], "pg2");
    assert_eq!(members[1]["sessions"], 1);
    let sessions = served.get("/api/v1/sessions?limit=1").await.json();
    assert_eq!((&sessions["total"], sessions["sessions"].as_array().unwrap().len()), (&Value::from(2), 1));
    assert_eq!(sessions["sessions"][0]["login"]["user"], "app");
    let timeline = served.get("/api/v1/timeline?since=7").await.json();
    assert_eq!(timeline["entries"].as_array().unwrap().len(), 2);
    assert_eq!(
        timeline["entries"][0]["text"],
        "pg1 is confirmed as primary (by Patroni's REST, after 163 ms)"
    );
}

#[tokio::test]
async fn ages_go_on_between_descriptions() {
    let served = serve(made_up(1));
    let age = async || {
        let status = served.get("/api/v1/status").await.json();
        status["clusters"][0]["status"]["store"]["age_ms"].as_u64().unwrap()
    };
    let first = age().await;
    let until = Instant::now() + SOON;
    while age().await <= first {
        assert!(Instant::now() < until, "the store's age stands still");
    }
}

#[tokio::test]
async fn changes_are_made_through_the_unix_socket_only() {
    let mut served = serve(made_up(3));
    let refused = served.ask("POST", "/api/v1/members/main/pg2/drain").await;
    assert_eq!(refused.status, 403);
    assert!(refused.json()["error"].as_str().unwrap().contains("on the host itself"));
    assert_eq!(served.get("/api/v1/members/main/pg2/drain").await.status, 405);
    assert!(served.made_up.wishes.try_recv().is_err(), "nothing was passed on");

    for (word, mode) in
        [("drain", AdminMode::Drain), ("maint", AdminMode::Maint), ("ready", AdminMode::Ready)]
    {
        let answer = served.operator("POST", &format!("/api/v1/members/main/pg2/{word}")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(served.made_up.wishes.try_recv().unwrap(), Event::Admin { member: "pg2".into(), mode });
    }
    assert_eq!(served.operator("POST", "/api/v1/members/main/pg9/drain").await.status, 404);
    assert_eq!(served.operator("POST", "/api/v1/members/other/pg2/drain").await.status, 404);
    assert_eq!(served.operator("POST", "/api/v1/members/main/pg2/explode").await.status, 404);

    // The control task does not take its events: the operator is told, nothing waits.
    for _ in 0..4 {
        served.operator("POST", "/api/v1/members/main/pg2/drain").await;
    }
    assert_eq!(served.operator("POST", "/api/v1/members/main/pg2/drain").await.status, 503);
}

#[tokio::test]
async fn a_member_may_have_any_name() {
    let mut status = common::status(1);
    let mut odd = member(2);
    odd.name = "a/b é".into();
    status.members.push(odd);
    let mut served = serve(made_up(3));
    served.made_up.cluster.describe(status);
    let answer = served.operator("POST", "/api/v1/members/main/a%2Fb%20%C3%A9/drain").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let wish = Event::Admin { member: "a/b é".into(), mode: AdminMode::Drain };
    assert_eq!(served.made_up.wishes.try_recv().unwrap(), wish);
}

#[tokio::test]
async fn sessions_are_killed_by_number_and_by_member() {
    let mut made_up = made_up(3);
    for client in 1..=3 {
        made_up.session("replicas", client, if client == 1 { "pg2" } else { "pg3" }, 5432);
    }
    let served = serve(made_up);
    let sessions = &served.made_up.sessions;
    let path = format!("/api/v1/sessions/{}/kill", sessions[0].id.0);
    assert_eq!(served.ask("POST", &path).await.status, 403);
    assert!(!sessions[0].is_killed());
    assert_eq!(served.operator("POST", &path).await.status, 200);
    assert_eq!(sessions[0].killed().await, CloseReason::Killed);
    assert!(!sessions[1].is_killed());
    let answer = served.operator("POST", "/api/v1/members/main/pg3/kill").await;
    assert_eq!(answer.json()["sessions"], 2);
    assert!(sessions[1].is_killed() && sessions[2].is_killed());
    assert_eq!(served.operator("POST", "/api/v1/sessions/999/kill").await.status, 404);
    assert_eq!(served.operator("POST", "/api/v1/sessions/x/kill").await.status, 400);
}

#[tokio::test]
async fn sessions_of_an_address_that_has_left_end() {
    let mut made_up = made_up(3);
    for client in 1..=3 {
        made_up.session("replicas", client, "pg2", 5432);
    }
    made_up.sessions[2].kill(CloseReason::Killed);
    let served = serve(made_up);
    let sessions = &served.made_up.sessions;
    let left = |address: &str| format!("/api/v1/addresses/left?address={address}");
    assert_eq!(served.ask("POST", &left("10.0.0.11")).await.status, 403);
    assert_eq!(served.operator("POST", &left("10.0.0.12")).await.json()["sessions"], 0);
    assert!(!sessions[0].is_killed());
    let answer = served.operator("POST", &left("10.0.0.11")).await;
    assert_eq!((answer.status, &answer.json()["sessions"]), (200, &Value::from(2)));
    assert_eq!(sessions[1].killed().await, CloseReason::VipMoved);
    assert_eq!(sessions[2].killed().await, CloseReason::Killed);
    for wrong in ["", "?address=lb1", "?address=10.0.0.11/24"] {
        let path = format!("/api/v1/addresses/left{wrong}");
        assert_eq!(served.operator("POST", &path).await.status, 400, "{wrong}");
    }
}

/// A made-up pointsman-vip, which counts how often it is asked.
fn pointsman_vip(socket: &std::path::Path) -> std::sync::Arc<std::sync::atomic::AtomicUsize> {
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let asked = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let count = std::sync::Arc::clone(&asked);
    let tasks = tokio_util::task::TaskTracker::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let body = "{\"node\":\"lb1\"}";
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    asked
}

#[tokio::test]
async fn the_virtual_ip_of_this_host_is_asked_once_a_second() {
    let served = serve(made_up(1));
    let (dir, vip) = (tempfile::tempdir().unwrap(), &served.made_up.app.vip);
    let state = async || served.get("/api/v1/vip").await.json()["state"].clone();
    assert_eq!(state().await, "none");
    let text = "node = \"lb1\"\n[vrrp]\nsocket = \"vip.sock\"\n[[vips]]\ninterface = \"eth0\"\nrouter_id = 1\n\
                priority = 100\naddresses = [\"10.0.0.1/24\"]\n";
    vip.set_socket(&pointsman_config::Config::parse(text, "x", dir.path()).unwrap());
    tokio::time::sleep(Duration::from_millis(1050)).await;
    assert_eq!(state().await, "absent");
    let asked = pointsman_vip(&dir.path().join("vip.sock"));
    tokio::time::sleep(Duration::from_millis(1050)).await;
    for _ in 0..5 {
        let answer = served.get("/api/v1/vip").await.json();
        assert_eq!((&answer["state"], &answer["status"]["node"]), (&"running".into(), &"lb1".into()));
    }
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 1);
    // One that takes the connection and says nothing costs half a second.
    std::fs::remove_file(dir.path().join("vip.sock")).unwrap();
    let _silent = std::os::unix::net::UnixListener::bind(dir.path().join("vip.sock")).unwrap();
    tokio::time::sleep(Duration::from_millis(1050)).await;
    let answer = served.get("/api/v1/vip").await.json();
    assert_eq!(answer["state"], "broken");
    assert_eq!(answer["why"], "pointsman-vip gave no usable answer: nothing came for 0.5 s");
}

#[tokio::test]
async fn garbage_ends_its_own_connection_and_nothing_else() {
    let served = serve(made_up(3));
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(500));
    let requests: [&[u8]; 11] = [
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f", // PostgreSQL's SSLRequest
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", // a TLS handshake
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: \xff\r\n\r\n",
        b"CONNECT lb1:5000 HTTP/1.1\r\nhost: lb1:5000\r\n\r\n",
        b"GET http://elsewhere/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"POST /api/v1/members/main/pg2/drain HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZZZ\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
        long.as_bytes(),
        many.as_bytes(),
    ];
    for request in requests {
        // An answer or an end, but soon, and never the end of the process.
        match served.raw(request).await {
            Ok(_) => {}
            Err(error) => assert_ne!(error.kind(), io::ErrorKind::TimedOut, "{request:?}"),
        }
        assert_eq!(served.get("/live").await.status, 200, "after {request:?}");
    }
    let absolute =
        served.raw(b"GET http://x/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(absolute.starts_with("HTTP/1.1 200"), "{absolute}");
}

#[tokio::test]
async fn a_request_with_a_body_is_the_last_of_its_connection() {
    let served = serve(made_up(3));
    let smuggled = b"GET /live HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n";
    let answer = served.raw(smuggled).await.unwrap();
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let served = serve(made_up(3));
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    stream.write_all(b"GET /ready HTTP/1.1\r\nx: ").await.unwrap();
    let began = Instant::now();
    let mut answer = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut answer)).await.expect("the connection is ended");
    assert!((4..10).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_full_house_turns_away_and_lets_operators_in() {
    let served = serve(made_up(3));
    let mut idle = Vec::new();
    for _ in 0..TCP_CONNECTIONS {
        idle.push(TcpStream::connect(served.address).await.unwrap());
    }
    let answer = served.raw(b"").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(served.operator("GET", "/live").await.status, 200);
    drop(idle);
    let until = Instant::now() + SOON;
    loop {
        let live = served.raw(b"GET /live HTTP/1.0\r\n\r\n").await;
        if live.is_ok_and(|answer| answer.starts_with("HTTP/1.0 200")) {
            return;
        }
        assert!(Instant::now() < until, "the places of closed connections are not given back");
    }
}

/// Reads the stream until it holds `wanted`.
async fn until(stream: &mut TcpStream, text: &mut String, wanted: &str) {
    let mut buffer = [0; 4096];
    while !text.contains(wanted) {
        let count = timeout(SOON, stream.read(&mut buffer))
            .await
            .unwrap_or_else(|_| panic!("no {wanted:?} in {text}"));
        let count = count.unwrap();
        assert_ne!(count, 0, "ended without {wanted:?}: {text}");
        text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
}

#[tokio::test]
async fn events_come_as_they_happen_and_again_after_a_reconnect() {
    let made_up = made_up(3);
    made_up.switchover();
    let mut served = serve(made_up);
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    stream.write_all(b"GET /api/v1/events?since=8 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut text = String::new();
    until(&mut stream, &mut text, "id: 9\nevent: note\ndata: {\"seq\":9,").await;
    assert!(text.contains("content-type: text/event-stream") && !text.contains("id: 8\n"), "{text}");
    served.made_up.note(Duration::ZERO, Loudness::Warn, Some("pg1"), What::LeaderKeyGone);
    until(&mut stream, &mut text, "\"text\":\"pg1 is no longer the leader, and nobody else is\"}\n\n").await;

    // A browser says where it was.
    let mut again = TcpStream::connect(served.address).await.unwrap();
    again
        .write_all(b"GET /api/v1/events?since=0 HTTP/1.1\r\nhost: x\r\nLast-Event-ID: 9\r\n\r\n")
        .await
        .unwrap();
    let mut text = String::new();
    until(&mut again, &mut text, "id: 10\n").await;
    assert!(!text.contains("id: 9\n"), "{text}");

    // The end of the process ends the streams.
    served.stop.cancel();
    let mut rest = Vec::new();
    timeout(SOON, again.read_to_end(&mut rest)).await.expect("the stream ends").unwrap();
    timeout(SOON, served.tasks.join_next()).await.expect("the admin interface ends").unwrap().unwrap();
    assert!(!served.socket.exists(), "the socket's file is removed");
}

#[tokio::test]
async fn a_reader_that_is_too_slow_is_told_what_it_missed() {
    let served = serve(made_up(3));
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut text = String::new();
    until(&mut stream, &mut text, "retry: 1000").await;
    // Within one turn of this thread, so that the stream's task cannot keep up.
    for _ in 0..600 {
        served.made_up.note(Duration::ZERO, Loudness::Info, Some("pg1"), What::ReplicaIn);
    }
    until(&mut stream, &mut text, "event: missed\ndata: {\"missed\":").await;
    until(&mut stream, &mut text, "id: 600\n").await;
}

#[tokio::test]
async fn the_socket_replaces_a_stale_one_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a").join("admin.sock");
    let first = Admin::bind(&config(path.clone())).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert!(matches!(Admin::bind(&config(path.clone())), Err(BindError::InUse { .. })));
    drop(first);
    assert!(!path.exists());

    drop(std::os::unix::net::UnixListener::bind(&path).unwrap()); // as a crash leaves it
    let second = Admin::bind(&config(path.clone())).unwrap();
    drop(second);

    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Admin::bind(&config(path.clone())), Err(BindError::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    let left: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1, "no draft is left: {left:?}");
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let served = serve(made_up(1));
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path().join("admin.sock"));
    config.bind = vec![served.address];
    let error = Admin::bind(&config).unwrap_err().to_string();
    assert!(error.starts_with(&format!("admin.bind: cannot listen on {}: ", served.address)), "{error}");
}
