//! The side thread as a whole, over real sockets, with a made-up router thread and a made-up proxy.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use pointsman_config::NodeName;
use pointsman_vrrp::event::{LinkFault, State};
use pointsman_vrrp::note::{Alarm, Loss, PeerNews, Reason, Repair, Transition};
use pointsman_vrrp::status::{Foreign, Holder, PeerState, PeerStatus, ProxyState, RouterStatus, Said};

use super::counters::HookOutcome;
use super::*;

const SOON: Duration = Duration::from_secs(10);

/// A side thread, and the files around it.
struct Lab {
    dir: tempfile::TempDir,
    address: SocketAddr,
    side: Option<Side>,
    ends: Ends,
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A configuration whose proxy is at `proxy`, with a hook that appends what it is told to `told`.
fn config(dir: &Path, address: SocketAddr, proxy: SocketAddr, hook: &str) -> Arc<Config> {
    use std::os::unix::fs::PermissionsExt as _;
    let program = dir.join("notify.sh");
    // Under another name first: a program that is open for writing cannot be run.
    std::fs::write(dir.join("draft"), format!("#!/bin/sh\n{hook}\n")).unwrap();
    std::fs::set_permissions(dir.join("draft"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(dir.join("draft"), &program).unwrap();
    let text = format!(
        "node = \"lb1\"\n[clusters.main]\ndiscovery = {{ etcd = {{ endpoints = [\"http://10.0.0.1:2379\"] }} }}\n\
         [[listeners]]\nbind = \"0.0.0.0:5000\"\ntarget = \"primary\"\n\
         [admin]\nbind = \"{proxy}\"\nsocket = \"admin.sock\"\n\
         [vrrp]\nsocket = \"vip.sock\"\nbind = \"{address}\"\n\
         [[vips]]\nname = \"write\"\ninterface = \"eth0\"\nrouter_id = 51\npriority = 150\n\
         addresses = [\"192.168.60.110/24\", \"192.168.60.111/24\"]\nnotify = \"notify.sh\"\n\
         [[vips]]\nname = \"read\"\ninterface = \"eth0\"\nrouter_id = 52\npriority = 100\n\
         addresses = [\"192.168.60.120/24\"]\n"
    );
    Arc::new(Config::parse(&text, "pointsman.toml", dir).unwrap())
}

fn lab(proxy: SocketAddr, hook: &str) -> Lab {
    let dir = tempfile::tempdir().unwrap();
    let address = free();
    let config = config(dir.path(), address, proxy, hook);
    let (ends, side) = start(&config).unwrap();
    ends.show(Arc::new(status()));
    Lab { dir, address, side: Some(side), ends }
}

/// Waits until it is so.
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn name(text: &str) -> VipName {
    VipName::new(text).unwrap()
}

fn router(vip: &str, state: State) -> RouterStatus {
    RouterStatus {
        name: name(vip),
        interface: "eth0".to_owned(),
        router_id: 51.try_into().unwrap(),
        version: 3,
        addresses: vec!["192.168.60.110/24".to_owned()],
        state,
        since_ms: 5,
        base_priority: 150,
        priority: 150,
        fit: true,
        unfit: None,
        yielded: false,
        holder: Some(Holder {
            address: "10.0.0.12".parse().unwrap(),
            priority: 100,
            node: Some(NodeName::new("lb2").unwrap()),
        }),
        source: Some("10.0.0.11".parse().unwrap()),
        link_fault: None,
        counters: pointsman_vrrp::status::Counters::new(["length", "hop-limit"]),
        holders_seen: 1,
        alarms: Vec::new(),
    }
}

fn status() -> Status {
    let mut status = Status::new(NodeName::new("lb1").unwrap());
    status.routers = vec![router("write", State::Active), router("read", State::Backup)];
    status
}

impl Lab {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn get(&self, path: &str) -> (u16, String) {
        exchange(TcpStream::connect(self.address).unwrap(), "GET", path)
    }

    fn operator(&self, method: &str, path: &str) -> (u16, String) {
        exchange(UnixStream::connect(self.path("vip.sock")).unwrap(), method, path)
    }

    fn transition(&self, to: State, reason: Reason) {
        let transition = Transition { router: name("write"), from: State::Backup, to, reason, priority: 150 };
        self.ends.tell(Notice::Note(Note::Transition(transition)));
    }

    fn left(&self, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.ends.tell(Notice::Left { router: name("write"), addresses });
    }

    fn told(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("told")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn stop(&mut self) {
        self.side.take();
    }
}

fn exchange(mut stream: impl std::io::Read + std::io::Write, method: &str, path: &str) -> (u16, String) {
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn the_state_is_shown_with_its_age() {
    let mut lab = lab(free(), "true");
    thread::sleep(Duration::from_millis(30));
    let (code, body) = lab.get("/api/v1/status");
    let body = json(&body);
    assert_eq!((code, &body["node"], &body["alive"]), (200, &"lb1".into(), &true.into()));
    let write = &body["routers"][0];
    assert_eq!((&write["name"], &write["state"]), (&"write".into(), &"active".into()));
    assert!(write["since_ms"].as_u64().unwrap() >= 35, "{write}");
    assert_eq!(write["adverts"]["rejected"]["length"], 0);
    assert_eq!(write["transitions"]["handed-over"], 0);
    assert_eq!(lab.get("/live").0, 200);
    let (code, body) = lab.get("/nonsense");
    assert!(code == 404 && body.contains("/api/v1/status"), "{body}");
    assert_eq!(lab.operator("GET", "/api/v1/status").0, 200);
    lab.stop();
    assert!(!lab.path("vip.sock").exists(), "the socket goes with the process");
}

#[test]
fn the_socket_is_for_operators() {
    use std::os::unix::fs::PermissionsExt as _;
    let lab = lab(free(), "true");
    let mode = std::fs::metadata(lab.path("vip.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let (code, body) = exchange(TcpStream::connect(lab.address).unwrap(), "POST", "/api/v1/yield");
    assert!(code == 403 && body.contains("pointsman-vip yield"), "{code} {body}");
    assert_eq!(lab.operator("GET", "/api/v1/yield").0, 405);
    assert_eq!(lab.operator("POST", "/api/v1/yield?router=nobody").0, 404);
    // Another process cannot take the socket.
    let config = config(lab.dir.path(), lab.address, free(), "true");
    let error = start(&config).unwrap_err().to_string();
    assert!(error.starts_with("vrrp."), "{error}");
}

#[test]
fn a_wish_is_passed_on_and_answered_with_what_came_of_it() {
    let mut lab = lab(free(), "true");
    let socket = lab.path("vip.sock");
    let asked = thread::spawn(move || {
        let stream = UnixStream::connect(socket).unwrap();
        exchange(stream, "POST", "/api/v1/yield?router=write")
    });
    let command = lab.ends.commands.blocking_recv().unwrap();
    let Command::Yield { router, answer } = command else { panic!("{command:?}") };
    assert_eq!(router, Some(name("write")));
    answer.send(()).unwrap();
    let mut status = status();
    status.routers[0].state = State::Backup;
    lab.ends.show(Arc::new(status));
    let (code, body) = asked.join().unwrap();
    assert_eq!((code, json(&body)["done"].as_str()), (200, Some("write: lb2 holds the addresses")));
}

#[test]
fn a_router_thread_that_does_not_listen_is_told() {
    let lab = lab(free(), "true");
    let (code, body) = lab.operator("POST", "/api/v1/resume");
    assert!(code == 503 && body.contains("busy or gone"), "{code} {body}");
}

#[test]
fn hooks_are_told_everything_and_in_order() {
    let hook = "echo \"$@\" \"$POINTSMAN_EVENT $POINTSMAN_STATE $POINTSMAN_ROUTER $POINTSMAN_INTERFACE \
        $POINTSMAN_ROUTER_ID $POINTSMAN_PRIORITY $POINTSMAN_NODE [$POINTSMAN_ADDRESSES] $POINTSMAN_REASON\" \
        >> \"$(dirname \"$0\")/told\"";
    let mut lab = lab(free(), hook);
    let told = |lab: &Lab, count: usize| eventually("a hook", || lab.told().len() == count);
    lab.transition(State::Active, Reason::Owner);
    told(&lab, 1);
    lab.transition(State::Backup, Reason::Yielded { to: None });
    told(&lab, 2);
    lab.transition(State::Initialize, Reason::LinkLost(LinkFault::Down("eth0".to_owned())));
    told(&lab, 3);
    lab.ends.tell(Notice::Note(Note::Repaired { router: name("write"), by: Repair::Return }));
    lab.ends.tell(Notice::Note(Note::Repaired { router: name("write"), by: Repair::Advert }));
    told(&lab, 4);
    lab.ends.tell(Notice::Note(Note::Repaired { router: name("read"), by: Repair::Advert })); // it has no hook
    lab.transition(State::Initialize, Reason::Stopped { to: None });
    lab.stop(); // what was told before the end still has its hook
    let vip = "write eth0 51 150 lb1 [192.168.60.110/24 192.168.60.111/24]";
    assert_eq!(
        lab.told(),
        [
            format!(
                "INSTANCE write ACTIVE 150 become-active active {vip} this host owns the addresses (priority 255)"
            ),
            format!(
                "INSTANCE write BACKUP 150 become-backup backup {vip} an operator wished it; nobody took over directly"
            ),
            format!("INSTANCE write FAULT 150 fault initialize {vip} the interface eth0 is down"),
            format!(
                "INSTANCE write CLAIM 150 claim active {vip} another host sent an advert of lower priority"
            ),
            format!("INSTANCE write STOP 150 stop initialize {vip} pointsman-vip stops"),
        ]
    );
}

#[test]
fn the_newest_state_wins_while_a_hook_runs() {
    let hook = "echo \"$3\" >> \"$(dirname \"$0\")/told\"; while [ -e \"$(dirname \"$0\")/wait\" ]; do sleep 0.01; done";
    let lab = lab(free(), hook);
    std::fs::write(lab.path("wait"), "").unwrap();
    lab.transition(State::Active, Reason::Owner);
    eventually("the first hook", || lab.told() == ["ACTIVE"]);
    for _ in 0..3 {
        lab.transition(State::Backup, Reason::Reconfigured);
        lab.transition(State::Active, Reason::Owner);
    }
    lab.ends.tell(Notice::Note(Note::Repaired { router: name("write"), by: Repair::Neighbour }));
    lab.transition(State::Backup, Reason::Reconfigured);
    let superseded = |lab: &Lab| lab.ends.counters.hooks(&name("write"), HookOutcome::Superseded);
    eventually("the queue", || superseded(&lab) == 6);
    std::fs::remove_file(lab.path("wait")).unwrap();
    eventually("the rest", || lab.told() == ["ACTIVE", "BACKUP", "CLAIM"]);
    let ok = |lab: &Lab| lab.ends.counters.hooks(&name("write"), HookOutcome::Ok);
    eventually("their end", || ok(&lab) == 3);
}

#[test]
fn hooks_that_fail_or_cannot_be_run_are_counted() {
    let lab = lab(free(), "echo something; echo wrong >&2; exit 3");
    let count = |lab: &Lab, outcome| lab.ends.counters.hooks(&name("write"), outcome);
    lab.transition(State::Active, Reason::Owner);
    eventually("the failure", || count(&lab, HookOutcome::Failed) == 1);
    std::fs::remove_file(lab.path("notify.sh")).unwrap();
    lab.transition(State::Backup, Reason::Reconfigured);
    eventually("the absence", || count(&lab, HookOutcome::NotStarted) == 1);
}

#[test]
fn a_hook_that_hangs_is_killed_with_its_children() {
    let lab = lab(free(), "sleep 300 & echo $! > \"$(dirname \"$0\")/told\"; wait");
    lab.transition(State::Active, Reason::Owner);
    eventually("the hook", || !lab.told().is_empty());
    let child = PathBuf::from(format!("/proc/{}", lab.told()[0]));
    assert!(child.exists());
    let count = |lab: &Lab| lab.ends.counters.hooks(&name("write"), HookOutcome::Timeout);
    let deadline = Instant::now() + Duration::from_secs(20);
    while count(&lab) == 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(count(&lab), 1);
    let is_dead = |path: &Path| {
        let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    eventually("the death of its child", || is_dead(&child));
}

/// A proxy that answers `/ready` as it is told to: 0 takes connections and says nothing.
struct MadeUpProxy {
    address: SocketAddr,
    code: Arc<AtomicU16>,
    stop: Arc<AtomicBool>,
}

impl MadeUpProxy {
    fn start(code: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (code, stop) = (Arc::new(AtomicU16::new(code)), Arc::new(AtomicBool::new(false)));
        let (answer, end) = (Arc::clone(&code), Arc::clone(&stop));
        thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let code = answer.load(Ordering::Relaxed);
                if code == 0 {
                    silent.push(stream);
                    continue;
                }
                let _ = stream.read(&mut [0; 1024]);
                let body = format!("{{\"ok\":{},\"life\":\"ready\",\"why\":[\"no member\"]}}", code == 200);
                let _ = write!(
                    stream,
                    "HTTP/1.1 {code} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        Self { address, code, stop }
    }

    fn answers(&self, code: u16) {
        self.code.store(code, Ordering::Relaxed);
    }
}

impl Drop for MadeUpProxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

#[test]
fn the_proxy_is_followed() {
    let proxy = MadeUpProxy::start(200);
    let mut lab = lab(proxy.address, "true");
    let mut next = || lab.ends.proxy.blocking_recv().unwrap();
    assert_eq!(next(), Proxy::Well);
    let began = Instant::now();
    proxy.answers(503);
    assert_eq!(next(), Proxy::Unwell { why: "no member".to_owned() });
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    proxy.answers(200);
    let began = Instant::now();
    assert_eq!(next(), Proxy::Well);
    assert!(began.elapsed() > Duration::from_millis(800), "{:?}", began.elapsed());
    proxy.answers(0);
    assert_eq!(next(), Proxy::Unwell { why: "it takes connections and does not answer".to_owned() });
}

#[test]
fn a_proxy_that_is_not_there_has_its_grace() {
    let mut lab = lab(free(), "true");
    let began = Instant::now();
    let news = lab.ends.proxy.blocking_recv().unwrap();
    assert!(
        matches!(&news, Proxy::Unwell { why } if why.starts_with("nobody answers at 127.0.0.1:")),
        "{news:?}"
    );
    assert!(began.elapsed() > Duration::from_millis(1800), "{:?}", began.elapsed());
}

/// An admin socket that answers this, and what it was asked.
fn admin_socket(path: PathBuf, code: u16) -> std::sync::mpsc::Receiver<String> {
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    let (asked, questions) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 1024];
            let count = stream.read(&mut head).unwrap();
            let line = String::from_utf8_lossy(&head[..count]).lines().next().unwrap_or_default().to_owned();
            let body = "{\"done\":\"x\",\"sessions\":2,\"error\":\"no\"}";
            let _ = write!(stream, "HTTP/1.1 {code} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            if asked.send(line).is_err() {
                return;
            }
        }
    });
    questions
}

#[test]
fn the_proxy_is_told_that_an_address_has_left_and_again_if_it_was_away() {
    let lab = lab(free(), "true");
    lab.left(&["192.168.60.110", "fd00::1"]);
    thread::sleep(Duration::from_millis(100)); // the first try finds nobody
    let questions = admin_socket(lab.path("admin.sock"), 200);
    let mut asked: Vec<_> = (0..2).map(|_| questions.recv_timeout(SOON).unwrap()).collect();
    asked.sort();
    assert_eq!(
        asked,
        [
            "POST /api/v1/addresses/left?address=192.168.60.110 HTTP/1.1",
            "POST /api/v1/addresses/left?address=fd00%3A%3A1 HTTP/1.1",
        ]
    );
    eventually("both are told", || lab.ends.counters.farewells() == (2, 0));
}

#[test]
fn an_address_that_is_back_is_not_said_good_bye_to() {
    let lab = lab(free(), "true");
    lab.left(&["192.168.60.110"]);
    thread::sleep(Duration::from_millis(50));
    lab.ends.tell(Notice::Took { router: name("write") });
    thread::sleep(Duration::from_millis(50));
    let questions = admin_socket(lab.path("admin.sock"), 200);
    assert!(questions.recv_timeout(Duration::from_millis(600)).is_err());
    assert_eq!(lab.ends.counters.farewells(), (0, 0));
}

#[test]
fn a_refusal_is_final() {
    let lab = lab(free(), "true");
    let questions = admin_socket(lab.path("admin.sock"), 404);
    lab.left(&["192.168.60.120"]);
    questions.recv_timeout(SOON).unwrap();
    eventually("it is counted", || lab.ends.counters.farewells() == (0, 1));
    assert!(questions.recv_timeout(Duration::from_millis(400)).is_err());
}

#[test]
fn a_full_queue_costs_notes_and_no_time() {
    let lab = lab(free(), "true");
    let began = Instant::now();
    for _ in 0..20 * NOTICES {
        lab.transition(State::Backup, Reason::Started);
    }
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    eventually("it is worked off", || lab.get("/live").0 == 200);
}

#[test]
fn every_sample_is_as_prometheus_wants_it() {
    let lab = lab(free(), "true");
    let mut status = status();
    status.proxy.state = ProxyState::Unwell;
    let alarm = Alarm::TwoHolders { other: "10.0.0.12".parse().unwrap(), priority: 7 };
    status.routers[0].alarms.push(Said::from(&alarm));
    status.routers[0].counters.transition(&Reason::Owner);
    status.peers.push(PeerStatus {
        node: NodeName::new("lb2").unwrap(),
        address: "10.0.0.12:7001".parse().unwrap(),
        state: PeerState::Alive,
        how: None,
        heard_ms: Some(1500),
    });
    status.foreign.push(Foreign {
        interface: "et\"h\\0".to_owned(),
        router_id: 9.try_into().unwrap(),
        from: "10.0.0.99".parse().unwrap(),
        count: 3,
    });
    lab.ends.show(Arc::new(status));
    lab.ends.tell(Notice::Note(Note::Peer {
        node: NodeName::new("lb2").unwrap(),
        news: PeerNews::Lost(Loss::Ended),
    }));
    let (code, text) = lab.get("/metrics");
    assert_eq!(code, 200);
    for line in [
        "pointsman_vip_state{router=\"write\",state=\"active\"} 1",
        "pointsman_vip_state{router=\"write\",state=\"backup\"} 0",
        "pointsman_vip_transitions_total{router=\"write\",reason=\"owner\"} 1",
        "pointsman_vip_adverts_total{router=\"read\",direction=\"sent\"} 0",
        "pointsman_vip_adverts_rejected_total{router=\"read\",reason=\"hop-limit\"} 0",
        "pointsman_vip_foreign_adverts_total{interface=\"et\\\"h\\\\0\",router_id=\"9\"} 3",
        "pointsman_vip_conflict_repairs_total{router=\"write\",by=\"neighbour\"} 0",
        "pointsman_vip_alarm{router=\"write\",kind=\"two-holders\"} 1",
        "pointsman_vip_alarm{router=\"read\",kind=\"two-holders\"} 0",
        "pointsman_vip_peer_up{peer=\"lb2\"} 1",
        "pointsman_vip_proxy_state{state=\"unwell\"} 1",
        "pointsman_vip_hooks_total{router=\"write\",outcome=\"timeout\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    promtool(&text);
}

/// What Prometheus's own tool has to say, where it is installed.
fn promtool(text: &str) {
    let mut tool = Program::new("promtool");
    tool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut tool) = tool.spawn() else { return };
    tool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = tool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn a_reload_changes_what_is_run_and_a_bad_one_is_shown() {
    let lab = lab(free(), "echo old >> \"$(dirname \"$0\")/told\"");
    assert_eq!(json(&lab.get("/api/v1/status").1)["reload"], serde_json::Value::Null);
    lab.ends.tell(Notice::BadConfiguration("no such key".to_owned()));
    let reload = |lab: &Lab| json(&lab.get("/api/v1/status").1)["reload"].clone();
    eventually("the failure", || reload(&lab)["text"] == "no such key");
    let mut config = Config::clone(&config(lab.dir.path(), lab.address, free(), "true"));
    config.vips[0].notify = None;
    lab.ends.tell(Notice::Configuration(Box::new(config)));
    eventually("the success", || reload(&lab)["ok"] == true);
    lab.transition(State::Active, Reason::Owner);
    thread::sleep(Duration::from_millis(100));
    assert!(lab.told().is_empty());
}
