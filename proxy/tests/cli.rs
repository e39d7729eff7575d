//! The command line as people and scripts use it: the real program against a made-up process.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use common::{MadeUp, made_up, trouble};
use pointsman::admin::Admin;
use pointsman_core::event::{AdminMode, Event, Loudness, What};
use pointsman_core::route::NoRoute;
use pointsman_core::view::MemberName;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

mod common;

/// A made-up process behind its socket, on a runtime of its own.
struct Served {
    made_up: MadeUp,
    socket: PathBuf,
    stop: CancellationToken,
    runtime: Option<Runtime>,
    dir: tempfile::TempDir,
}

fn serve(made_up: MadeUp) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let stop = CancellationToken::new();
    let (app, token) = (made_up.app.clone(), stop.clone());
    let config = pointsman_config::Admin { bind: Vec::new(), users: Vec::new(), socket: socket.clone() };
    let admin = runtime.block_on(async { Admin::bind(&config) }).unwrap();
    let tasks = tokio_util::task::TaskTracker::new();
    tasks.spawn_on(admin.serve(app, token), runtime.handle());
    Served { made_up, socket, stop, runtime: Some(runtime), dir }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

fn pointsman(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pointsman"));
    command.args(arguments).env_remove("POINTSMAN_CONFIG").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    pointsman(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

impl Served {
    fn ask(&self, arguments: &[&str]) -> Output {
        pointsman(arguments).arg("--socket").arg(&self.socket).output().unwrap()
    }

    /// What a command that succeeds prints, with what changes from run to run made equal.
    fn table(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    }
}

/// Replaces each number by 0, and runs of spaces by one: ages and their width are not the point.
fn calm(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '0'..='9' => {
                if !out.ends_with('0') {
                    out.push('0');
                }
            }
            ' ' => {
                if !out.ends_with(' ') {
                    out.push(' ');
                }
            }
            c => out.push(c),
        }
    }
    out
}

/// What a made-up pointsman-vip says of itself.
const VIP: &str = r#"{"routers":[
    {"state":"active","addresses":["10.0.0.1/24","10.0.0.2/24"],"holder":null,"alarms":[]},
    {"state":"backup","addresses":["fd00::1/64"],"holder":{"node":"lb2","address":"fe80::1"},"alarms":[{"text":"x"}]},
    {"state":"backup","addresses":["10.0.0.3/24"],"holder":{"node":null,"address":"10.0.0.9"},"alarms":[]},
    {"state":"initialize","addresses":["10.0.0.4/24"],"holder":null,"alarms":[]}]}"#;

#[test]
fn status_has_a_line_for_the_virtual_ip() {
    let served = serve(made_up(1));
    let text = "[[vips]]\ninterface = \"eth0\"\nrouter_id = 1\npriority = 100\naddresses = [\"10.0.0.1/24\"]\n\
                [vrrp]\nsocket = \"vip.sock\"\n";
    let config = pointsman_config::Config::parse(text, "x", served.dir.path()).unwrap();
    let line = |served: &Served| {
        let text = served.table(&["status"]);
        text.lines().find(|line| line.starts_with("virtual IP")).map(str::to_owned)
    };
    assert_eq!(line(&served), None);
    served.made_up.app.vip.set_socket(&config);
    std::thread::sleep(Duration::from_millis(1050));
    assert_eq!(line(&served).unwrap(), "virtual IP: pointsman-vip does not run on this host");
    let listener = std::os::unix::net::UnixListener::bind(served.dir.path().join("vip.sock")).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = std::io::Read::read(&mut stream, &mut [0; 1024]);
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{VIP}", VIP.len());
        let _ = std::io::Write::write_all(&mut stream, answer.as_bytes());
    });
    std::thread::sleep(Duration::from_millis(1050));
    assert_eq!(
        line(&served).unwrap(),
        "virtual IP: 10.0.0.1/24, 10.0.0.2/24 on this host; fd00::1/64 on lb2, ALARM: see pointsman-vip status; \
         10.0.0.3/24 on 10.0.0.9; 10.0.0.4/24 held by nobody who is heard"
    );
}

#[test]
fn status_of_a_healthy_cluster() {
    let mut made_up = made_up(3);
    made_up.session("primary", 7, "pg1", 5432);
    made_up.traffic("primary", "pg1", 1 << 20);
    let served = serve(made_up);
    let text = served.table(&["status"]);
    assert_eq!(
        text.lines().skip(4).collect::<Vec<_>>(),
        [
            "  members  3 known, 3 in use",
            "",
            "LISTENER  ADDRESS                  TARGET    STATE  SESSIONS  HELD  ACCEPTED       IN      OUT  ROUTED TO",
            "primary   0.0.0.0:5000, [::]:5000  primary   open          1     0         1  1.0 MiB  7.0 MiB  pg1",
            "replicas  0.0.0.0:5001, [::]:5001  replicas  open          0     0         0        0        0  pg2, pg3",
        ]
    );
    let head: Vec<_> = text.lines().take(4).map(calm).collect();
    assert!(
        head[0].starts_with("lb0: ready, up 0") && head[0].contains(", 0 session, pointsman 0.0.0 (pid 0)"),
        "{text}"
    );
    assert_eq!(head[2], "cluster main (etcd: alive, 0 ms ago)");
    assert_eq!(head[3], " primary pg0 at 0.0.0.0:0, confirmed for 0 min 0 s (by Patroni's REST, 0 ms ago)");
}

#[test]
fn status_tells_of_connections_that_nobody_accepted() {
    let made_up = made_up(3);
    made_up.app.listen_overflows.add(3);
    let text = serve(made_up).table(&["status"]);
    let second = text.lines().nth(1);
    assert_eq!(
        second,
        Some("3 connections were dropped by the kernel: an accept queue of this host was full"),
        "{text}"
    );
}

#[test]
fn status_in_trouble_says_so() {
    let served = serve(made_up(6));
    served.made_up.cluster.describe(trouble(6));
    served.made_up.app.set_reload(Err("line 12: unknown key".to_owned()));
    let text = served.table(&["status"]);
    for line in [
        "the last reload failed and the old configuration stays:",
        "  line 12: unknown key",
        "  source   no endpoint answers: 10.0.0.1:2379 timed out",
        "  ALARM    the source has been silent for 34 s; the last routes stay",
        "  source   members/<script>alert(1)</script> was not understood: conn_url has no port",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line:?} in\n{text}");
    }
    assert!(text.contains("  primary  none for 12."), "{text}");
    assert!(
        text.contains("held          0     0         0   0    0  there is no leader; the last one was pg1"),
        "{text}"
    );
}

#[test]
fn status_says_why_there_is_no_primary() {
    let served = serve(made_up(3));
    for (reason, member, line) in [
        (NoRoute::StandbyCluster, Some("pg1"), "  primary  none: this is a standby cluster"),
        (NoRoute::Discovering, None, "  primary  none: nothing has been learned of the cluster yet"),
    ] {
        let mut status = common::status(3);
        status.primary.state = if member.is_some() { "pending" } else { "none" };
        status.primary.member = member.map(MemberName::from);
        status.primary.why_not = Some(reason);
        served.made_up.cluster.describe(status);
        let text = served.table(&["status"]);
        assert!(text.lines().any(|found| found == line), "no {line:?} in\n{text}");
    }
}

#[test]
fn members_say_why_they_are_not_used() {
    let served = serve(made_up(6));
    served.made_up.cluster.describe(trouble(6));
    assert_eq!(
        served.table(&["members"]).lines().collect::<Vec<_>>(),
        [
            "MEMBER    ROLE            STATE             ADDRESS         TL       LAG  HEALTH  ADMIN  SESSIONS  TOTAL  SERVES    REMARKS",
            "main/pg1  primary         running           10.0.0.21:5432   7         -  down    ready         0      0",
            "main/pg2  replica (sync)  running           10.0.0.22:5432   7         0  up      ready         0      0  replicas",
            "main/pg3  replica         running           10.0.0.23:5432   7  12.0 KiB  up      drain         0      0",
            "main/pg4  replica         running           10.0.0.24:5432   7         0  up      maint         0      0",
            "main/pg5  replica         creating replica  10.0.0.25:5432   7         0  up      ready         0      0            its state is creating replica",
            "main/pg6  replica         running           10.0.0.26:5432   7  24.0 KiB  up      ready         0      0            it is 48 MiB behind, more than the listener's 16 MiB",
        ]
    );
    served.made_up.cluster.describe(common::status(0));
    assert_eq!(served.table(&["members"]), "no member has been seen yet\n");
}

#[test]
fn sessions_are_listed_and_cannot_steer_the_terminal() {
    let mut made_up = made_up(3);
    made_up.session("primary", 7, "pg1", 5432);
    made_up.session("replicas", 8, "pg2", 5432);
    let served = serve(made_up);
    let text = served.table(&["sessions", "--limit", "1"]);
    let lines: Vec<_> = text.lines().collect();
    let head = "SESSION LISTENER CLIENT STATE MEMBER AGE IN OUT USER DATABASE APPLICATION";
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>().join(" "), head);
    assert!(lines[1].starts_with("      1  primary   10.0.5.7:40007  established  pg1     "), "{text}");
    assert!(lines[1].ends_with("  2.0 KiB  5.0 MiB  app   shop      checkout\u{fffd}[31m"), "{text}");
    assert_eq!(lines[2], "(1 of 2 sessions; --limit shows more)");
    let empty = serve(common::made_up(1));
    assert_eq!(empty.table(&["sessions"]), "no sessions\n");
}

#[test]
fn events_are_told_and_followed() {
    let served = serve(made_up(3));
    assert_eq!(served.table(&["events"]), "nothing has happened since the start\n");
    served.made_up.switchover();
    let all = served.table(&["events"]);
    assert_eq!(all.lines().count(), 9);
    let line = served.table(&["events", "--since", "7"]).lines().next().unwrap().to_owned();
    assert!(
        line.starts_with("     8  20")
            && line.ends_with("Z    main: pg1 is confirmed as primary (by Patroni's REST, after 163 ms)"),
        "{line}"
    );

    let mut command = pointsman(&["events", "--follow", "--since", "9", "--socket"]);
    let child = command.arg(&served.socket).stdout(Stdio::piped()).spawn().unwrap();
    let mut child = Reaped(child);
    served.made_up.note(Duration::ZERO, Loudness::Warn, Some("pg1"), What::LeaderKeyGone);
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(
        line.starts_with("    10  ")
            && line.ends_with("Z  ! main: pg1 is no longer the leader, and nobody else is\n"),
        "{line}"
    );
}

/// A child that does not outlive its test.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn scripts_get_json() {
    let served = serve(made_up(3));
    served.made_up.switchover();
    for (command, pointer) in [
        ("status", "/process/node"),
        ("members", "/0/name"),
        ("sessions", "/total"),
        ("events", "/entries/0/text"),
    ] {
        let output = served.ask(&[command, "--json"]);
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(value.pointer(pointer).is_some(), "{command}: {value}");
    }
}

#[test]
fn members_are_drained_and_taken_back() {
    let mut served = serve(made_up(3));
    for (word, mode) in
        [("drain", AdminMode::Drain), ("maint", AdminMode::Maint), ("ready", AdminMode::Ready)]
    {
        assert_eq!(served.table(&[word, "main/pg2"]), format!("main/pg2 is set to {word}\n"));
        assert_eq!(served.made_up.wishes.try_recv().unwrap(), Event::Admin { member: "pg2".into(), mode });
    }
    let refused = served.ask(&["drain", "main/pg9"]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(text(&refused.stderr), "pointsman: the cluster main has no member \"pg9\"\n");
    assert_eq!(served.ask(&["drain", "pg2"]).status.code(), Some(2), "a member is named with its cluster");
}

#[test]
fn sessions_are_killed() {
    let mut made_up = made_up(3);
    (1..=3).for_each(|client| made_up.session("replicas", client, "pg2", 5432));
    let served = serve(made_up);
    let killed = |at: usize| served.made_up.sessions[at].is_killed();
    let output = served.ask(&["kill", "999", "2"]);
    assert_eq!(output.status.code(), Some(1), "one of them is not there");
    assert_eq!(text(&output.stdout), "session 2 ends now\n");
    assert_eq!((killed(0), killed(1), killed(2)), (false, true, false));
    assert_eq!(served.table(&["kill", "--member", "main/pg2"]), "3 sessions end now on main/pg2\n");
    assert!(killed(0) && killed(2));
    assert_eq!(served.ask(&["kill"]).status.code(), Some(2));
}

#[test]
fn nobody_there_is_said_plainly() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.sock");
    let output = run(&["status", "--socket", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(69));
    let expected = format!("pointsman: cannot reach pointsman at {}: is it running? (", path.display());
    assert!(text(&output.stderr).starts_with(&expected), "{}", text(&output.stderr));
}

#[test]
fn the_socket_of_the_configuration_file_is_the_default() {
    let served = serve(made_up(3));
    let file = served.dir.path().join("pointsman.toml");
    std::fs::write(&file, "[admin]\nsocket = \"admin.sock\"\n").unwrap();
    let by_option = run(&["members", "--config", file.to_str().unwrap()]);
    assert!(by_option.status.success(), "{}", text(&by_option.stderr));
    let by_variable = pointsman(&["members"]).env("POINTSMAN_CONFIG", &file).output().unwrap();
    assert_eq!(by_variable.stdout, by_option.stdout);
}

fn write(dir: &Path, content: &str) -> String {
    let file = dir.join("pointsman.toml");
    std::fs::write(&file, content).unwrap();
    file.to_str().unwrap().to_owned()
}

const GOOD: &str = r#"
node = "lb1"
[clusters.main]
discovery = { etcd = { endpoints = ["http://127.0.0.1:2379"] } }
[[listeners]]
bind = "127.0.0.1:5000"
target = "primary"
[[listeners]]
bind = "127.0.0.1:5001"
target = "replicas"
"#;

#[test]
fn check_says_fine_or_everything_that_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), GOOD);
    let output = run(&["check", "--config", &file]);
    assert_eq!(text(&output.stderr), "");
    assert_eq!(
        text(&output.stdout),
        format!("{file}: the configuration is fine: 2 listeners, 1 cluster, node lb1\n")
    );

    let vip =
        "[[vips]]\ninterface = \"lo\"\nrouter_id = 51\npriority = 100\naddresses = [\"192.0.2.10/24\"]\n";
    let output = run(&["check", "--config", &write(dir.path(), &format!("{GOOD}{vip}"))]);
    let said = text(&output.stdout);
    assert!(said.contains("1 virtual IP: the business of pointsman-vip"), "{said}");

    let file = write(dir.path(), &GOOD.replace("target", "targt").replace("2379", "port"));
    let output = run(&["check", "--config", &file]);
    assert_eq!(output.status.code(), Some(78));
    let errors = text(&output.stderr);
    assert!(errors.matches("targt").count() >= 2 && errors.contains("port"), "{errors}");

    let output = run(&["check", "--config", "/nowhere/pointsman.toml"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output.stderr).contains("cannot read the file"), "{}", text(&output.stderr));
}

#[test]
fn what_is_not_built_yet_is_refused_by_check_and_run() {
    let dir = tempfile::tempdir().unwrap();
    let more = "accept_proxy = true\n[log]\nformat = \"haproxy\"\n";
    let file = write(dir.path(), &(GOOD.to_owned() + more));
    for command in ["check", "run"] {
        let output = run(&[command, "--config", &file]);
        assert_eq!(output.status.code(), Some(78), "{command}");
        assert_eq!(
            text(&output.stderr),
            format!(
                "{file}: this version cannot run this configuration yet:\n  \
                 listeners.replicas.accept_proxy: the PROXY protocol is not built yet\n  \
                 log.format = \"haproxy\": not built yet; there is \"text\" and \"json\"\n"
            ),
            "{command}"
        );
    }
}

#[test]
fn completions_and_manual_pages_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success() && text(&output.stdout).contains("maint"), "{shell}");
    }
    assert!(text(&run(&["man"]).stdout).contains(".TH pointsman 1"));
    let dir = tempfile::tempdir().unwrap();
    assert!(run(&["man", "--out", dir.path().to_str().unwrap()]).status.success());
    for page in ["pointsman.1", "pointsman-run.1", "pointsman-events.1"] {
        assert!(dir.path().join(page).exists(), "no {page}");
    }
    let new = dir.path().join("share/man1");
    assert!(run(&["man", "--out", new.to_str().unwrap()]).status.success(), "the directory is made");
    assert!(new.join("pointsman.1").exists());
    let below_a_file = new.join("pointsman.1/man1");
    assert_eq!(run(&["man", "--out", below_a_file.to_str().unwrap()]).status.code(), Some(1));
}

#[test]
fn help_explains() {
    let help = text(&run(&["--help"]).stdout);
    for word in ["Examples:", "pointsman events --follow", "Exit codes:", "drain", "completions"] {
        assert!(help.contains(word), "no {word:?} in\n{help}");
    }
    assert!(text(&run(&["kill", "--help"]).stdout).contains("--member main/pg2"));
    assert!(text(&run(&["--version"]).stdout).starts_with("pointsman 0."));
}
