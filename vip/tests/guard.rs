//! The guard and what it cleans up, in network namespaces.
//!
//! This program is all of it: the tests, and, started by them, a guard, and, started by that, a worker which holds two addresses
//! as the real one would.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command as Program, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use pointsman_config::{Config, VipName};
use pointsman_vip::guard::{self, BAD_CONFIGURATION, Command, Cover, Farewell, GuardLink};
use pointsman_vip::netlink::{BOUND, Lifetime, Netlink, NetlinkEvent, NetlinkEvents, REFRESH};
use pointsman_vip::privileges;
use pointsman_vip::raw::{self, Family, VrrpSocket};
use pointsman_vrrp::advert::{Envelope, GROUP_V4};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use support::{Host, ip, patient_netlink, runtime};

/// What the worker is to do: in its environment.
const MODE: &str = "POINTSMAN_TEST_MODE";
/// The configuration; of a host that owns an address, too.
const CONFIG: &str = r#"
    [[vips]]
    name = "main"
    interface = "v0"
    router_id = 51
    priority = 100
    addresses = ["10.99.0.50/24"]
    [[vips]]
    name = "six"
    interface = "v0"
    router_id = 52
    priority = 100
    addresses = ["fd99::50/64"]
    [[vips]]
    name = "owned"
    interface = "v0"
    router_id = 53
    priority = 255
    addresses = ["10.99.0.60/24"]
"#;
const ADDRESSES: [&str; 2] = ["10.99.0.50/24", "fd99::50/64"];
/// An advert of version 3 with priority 0; here only its bytes matter.
const FAREWELL: &[u8] = &[0x31, 51, 0, 1, 0, 10, 0, 0, 10, 99, 0, 50];
/// The worker says that it beats this often, which makes for a limit of 300 ms ...
const EVERY: Duration = Duration::from_millis(100);
/// ... and beats much more often, because the machine that tests may be busy.
const BEAT: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(20);

const TESTS: &[(&str, fn())] = &[
    ("a_killed_worker_leaves_nothing_behind", a_killed_worker_leaves_nothing_behind),
    ("a_hung_worker_is_killed_and_leaves_nothing_behind", a_hung_worker_is_killed_and_leaves_nothing_behind),
    ("a_worker_learns_of_the_guards_death", a_worker_learns_of_the_guards_death),
    ("the_kernel_cleans_up_behind_both", the_kernel_cleans_up_behind_both),
    ("a_pause_of_the_guard_does_not_blame_the_worker", a_pause_of_the_guard_does_not_blame_the_worker),
    (
        "a_worker_that_dies_while_the_guard_pauses_leaves_nothing_behind",
        a_worker_that_dies_while_the_guard_pauses_leaves_nothing_behind,
    ),
    ("a_bad_configuration_is_not_tried_again", a_bad_configuration_is_not_tried_again),
    (
        "a_worker_that_fails_is_started_again_ever_more_slowly",
        a_worker_that_fails_is_started_again_ever_more_slowly,
    ),
    ("orders_are_passed_on_and_systemd_is_told", orders_are_passed_on_and_systemd_is_told),
    ("what_an_earlier_run_left_is_removed", what_an_earlier_run_left_is_removed),
    ("a_hook_may_do_nothing", a_hook_may_do_nothing),
    ("it_runs_as_an_ordinary_user", it_runs_as_an_ordinary_user),
    ("without_its_privileges_it_says_so", without_its_privileges_it_says_so),
    ("a_file_that_breaks_later_does_not_end_the_guard", a_file_that_breaks_later_does_not_end_the_guard),
    (
        "it_is_scheduled_first_and_stays_in_memory_where_it_may",
        it_is_scheduled_first_and_stays_in_memory_where_it_may,
    ),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["guard", file] => guard(file),
        ["worker", "--config", file, "--link", link] => {
            ExitCode::from(worker(&std::env::var(MODE).unwrap(), file, link.parse().unwrap()))
        }
        ["--exact", name, "--nocapture", "--include-ignored"] => run_inside(name),
        _ => run_all(&words),
    }
}

fn run_inside(name: &str) -> ExitCode {
    let (name, test) = TESTS.iter().find(|(known, _)| *known == name).unwrap();
    assert!(support::inside(name));
    test();
    ExitCode::SUCCESS
}

/// Runs those whose name contains one of the arguments, side by side.
fn run_all(arguments: &[&str]) -> ExitCode {
    let filters: Vec<&&str> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(**filter));
    if arguments.contains(&"--list") {
        for (name, _) in TESTS {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let started: Vec<_> = TESTS
        .iter()
        .filter(|(name, _)| wanted(name))
        .map(|(name, _)| (name, thread::spawn(|| support::inside(name))))
        .collect();
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in started {
        let ok = test.join().is_ok();
        *(if ok { &mut passed } else { &mut failed }) += 1;
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
    }
    // As the usual harness says it, for whoever counts.
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The guard, as `pointsman-vip run` would be.
fn guard(file: &str) -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).without_time().init();
    let config = Config::load(Path::new(file)).unwrap();
    guard::run(&config, Path::new(file))
}

/// Says something to the test, if that still listens.
macro_rules! say {
    ($($what:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($what)*);
    }};
}

/// A worker that holds the addresses. What it does it says on standard output.
fn worker(mode: &str, file: &str, link: i32) -> u8 {
    say!("start {}", std::process::id());
    match mode {
        "hold-if-good" if Config::load(Path::new(file)).is_err() => return BAD_CONFIGURATION,
        "hold" | "hold-if-good" => {}
        "bad-configuration" => return BAD_CONFIGURATION,
        "bad-configuration-slowly" => {
            runtime().block_on(async { drop(GuardLink::from_fd(link).unwrap()) });
            thread::sleep(Duration::from_millis(200));
            return BAD_CONFIGURATION;
        }
        "fail" => return 1,
        "hook" => privileges::keep_for_worker().unwrap(),
        _ => panic!("no such mode: {mode}"),
    }
    if mode == "hook" {
        Program::new("grep").args(["^Cap", "/proc/self/status"]).status().unwrap();
    }
    runtime().block_on(hold(link));
    0
}

async fn hold(link: i32) {
    let mut link = GuardLink::from_fd(link).unwrap();
    let index = patient_netlink().link("v0").unwrap().unwrap().index;
    // The kernel may be busy with other tests' interfaces; meanwhile the heart has to beat.
    let netlink = Netlink::open().unwrap();
    let cover = cover(index);
    let add = || netlink.add_all(index, &cover.addresses, Lifetime::HELD);
    link.describe(std::slice::from_ref(&cover)).unwrap();
    link.held(&cover.router, true);
    while add().is_err() {
        link.heartbeat(EVERY);
    }
    link.status("holds main");
    link.ready();
    link.heartbeat(EVERY);
    say!("ready {}", std::process::id());
    let (mut beat, mut refresh) = (tokio::time::interval(BEAT), tokio::time::interval(REFRESH));
    loop {
        tokio::select! {
            _ = beat.tick() => link.heartbeat(EVERY),
            _ = refresh.tick() => drop(add()),
            command = link.command() => match command {
                Command::Reload => {
                    say!("reload");
                    link.ready();
                }
                end @ (Command::Stop | Command::Gone) => {
                    say!("{end:?}");
                    let addresses = || cover.addresses.iter().map(|address| (index, *address)).collect();
                    while netlink.remove_all(addresses()).is_err() {
                        link.heartbeat(EVERY);
                    }
                    link.held(&cover.router, false);
                    return;
                }
            },
        }
    }
}

fn cover(index: u32) -> Cover {
    let envelope =
        Envelope { source: "10.99.0.11".parse().unwrap(), destination: IpAddr::V4(GROUP_V4), hop_limit: 255 };
    Cover {
        router: VipName::new("main").unwrap(),
        index,
        interface: "v0".to_owned(),
        addresses: ADDRESSES.map(|address| address.parse().unwrap()).to_vec(),
        farewells: vec![Farewell { envelope, packet: FAREWELL.to_vec() }],
    }
}

/// A host with a guard, and a neighbour that listens.
struct Scene {
    guard: Child,
    said: Receiver<(Instant, String)>,
    /// Addresses that were removed here, farewells that were heard there.
    events: Receiver<(Instant, Seen)>,
    file: std::path::PathBuf,
    _neighbour: Host,
    _directory: tempfile::TempDir,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Gone(IpNet),
    /// A farewell, and how many addresses there were at that moment.
    Farewell(usize),
}

impl Scene {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(adapt: impl FnOnce(&mut Program)) -> Self {
        Self::start("hold", adapt)
    }

    fn start(mode: &str, adapt: impl FnOnce(&mut Program)) -> Self {
        let neighbour = Host::connected();
        ip("address add 10.99.0.11/24 dev v0");
        Self::start_with(neighbour, mode, &[], adapt)
    }

    /// `under`: a program that starts the guard, with its arguments.
    fn start_with(neighbour: Host, mode: &str, under: &[&str], adapt: impl FnOnce(&mut Program)) -> Self {
        let events = watch(&neighbour);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pointsman.toml");
        std::fs::write(&file, CONFIG).unwrap();
        let mut program = Program::new(under.first().copied().unwrap_or("/proc/self/exe"));
        if let Some(arguments) = under.get(1..) {
            program.args(arguments).arg(std::env::current_exe().unwrap());
        }
        program.arg("guard").arg(&file).env(MODE, mode).stdout(Stdio::piped());
        adapt(&mut program);
        let mut guard = program.spawn().unwrap();
        let lines = BufReader::new(guard.stdout.take().unwrap()).lines();
        let (sender, said) = channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Self { guard, said, events, file, _neighbour: neighbour, _directory: directory }
    }

    /// Waits for the worker to say something that begins so; when, and the rest of it.
    fn hears(&self, beginning: &str) -> (Instant, String) {
        let deadline = Instant::now() + LONG;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (when, line) = self.said.recv_timeout(left).expect("the worker says it");
            if let Some(rest) = line.strip_prefix(beginning) {
                return (when, rest.trim().to_owned());
            }
        }
    }

    /// Waits for a worker that holds the addresses; its process.
    fn worker(&self) -> Pid {
        let (_, pid) = self.hears("ready ");
        assert_eq!(present(), ADDRESSES.len());
        Pid::from_raw(pid.parse().unwrap()).unwrap()
    }

    fn guard_pid(&self) -> Pid {
        Pid::from_child(&self.guard)
    }

    /// Waits until the addresses are gone and (if it is wanted) the farewell was heard: when each of it was.
    fn clean(&self, with_farewell: bool) -> (Instant, Option<(Instant, usize)>) {
        let (mut gone, mut farewell) = (Vec::new(), None);
        while gone.len() < ADDRESSES.len() || (with_farewell && farewell.is_none()) {
            match self.events.recv_timeout(LONG).expect("it is cleaned up") {
                (when, Seen::Gone(_)) => gone.push(when),
                (when, Seen::Farewell(left)) => farewell = Some((when, left)),
            }
        }
        (gone.into_iter().max().unwrap(), farewell)
    }

    /// Nothing more is seen for so long.
    fn is_quiet_for(&self, time: Duration) -> bool {
        self.events.recv_timeout(time).is_err()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.guard.kill();
        let _ = self.guard.wait();
    }
}

/// How many of the addresses are there.
fn present() -> usize {
    present_by(&patient_netlink())
}

fn present_by(netlink: &Netlink) -> usize {
    let link = netlink.link("v0").unwrap().unwrap();
    let is_ours = |net: &IpNet| ADDRESSES.iter().any(|ours| ours.parse() == Ok(*net));
    link.addresses.iter().filter(|address| is_ours(&address.net)).count()
}

/// What happens here to addresses, and what the neighbour hears, each with its time.
fn watch(neighbour: &Host) -> Receiver<(Instant, Seen)> {
    let (sender, events) = channel();
    let (ready, is_ready) = channel();
    let removals = sender.clone();
    let ready_too = ready.clone();
    thread::spawn(move || {
        runtime().block_on(async {
            let mut events = NetlinkEvents::open().unwrap();
            ready_too.send(()).unwrap();
            while let Ok(event) = events.next().await {
                let NetlinkEvent::AddressRemoved { address, .. } = event else { continue };
                let is_ours = ADDRESSES.iter().any(|ours| ours.parse() == Ok(address.net));
                if is_ours && removals.send((Instant::now(), Seen::Gone(address.net))).is_err() {
                    return;
                }
            }
        });
    });
    let process = neighbour.process();
    thread::spawn(move || {
        let here = patient_netlink();
        support::enter(&process);
        runtime().block_on(async {
            let index = patient_netlink().link("v1").unwrap().unwrap().index;
            let mut socket = VrrpSocket::open(Family::V4, index, "v1").unwrap();
            ready.send(()).unwrap();
            let mut buffer = [0; raw::BUFFER];
            loop {
                while let Some((envelope, payload)) = socket.try_receive(&mut buffer).unwrap() {
                    let when = Instant::now();
                    assert_eq!(envelope.to_string(), "10.99.0.11 to 224.0.0.18, hop limit 255");
                    assert_eq!(payload, FAREWELL);
                    if sender.send((when, Seen::Farewell(present_by(&here)))).is_err() {
                        return;
                    }
                }
                socket.readable().await.unwrap();
            }
        });
    });
    is_ready.recv_timeout(LONG).unwrap();
    is_ready.recv_timeout(LONG).unwrap();
    events
}

fn milliseconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1000.0
}

fn a_killed_worker_leaves_nothing_behind() {
    let scene = Scene::new();
    let (mut gone_after, mut farewell_after) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let worker = scene.worker();
        let killed = Instant::now();
        kill_process(worker, Signal::KILL).unwrap();
        let (gone, farewell) = scene.clean(true);
        let (farewell, left) = farewell.unwrap();
        gone_after.push(milliseconds(killed, gone));
        farewell_after.push(milliseconds(killed, farewell));
        // The kernel may be busy with other tests' interfaces: longer than this it is not waited for.
        assert!(left == 0 || farewell - killed >= BOUND, "first the addresses go");
        assert!(farewell - killed < Duration::from_millis(500));
    }
    println!(
        "worker killed: addresses gone after {gone_after:.2?} ms, priority 0 heard after {farewell_after:.2?} ms"
    );
    scene.worker();
}

fn a_hung_worker_is_killed_and_leaves_nothing_behind() {
    let scene = Scene::new();
    let worker = scene.worker();
    let stopped = Instant::now();
    kill_process(worker, Signal::STOP).unwrap();
    let (gone, farewell) = scene.clean(true);
    let (farewell, _) = farewell.unwrap();
    println!(
        "worker stopped: addresses gone after {:.1} ms, priority 0 heard after {:.1} ms (limit {} ms)",
        milliseconds(stopped, gone),
        milliseconds(stopped, farewell),
        3 * EVERY.as_millis(),
    );
    assert!(gone - stopped > 2 * EVERY);
    assert!(farewell - stopped < Duration::from_millis(1500));
    while test_kill_process(worker).is_ok() {
        assert!(stopped.elapsed() < LONG, "it is dead, and will not wake up");
    }
    scene.worker();
}

fn a_worker_learns_of_the_guards_death() {
    let mut scene = Scene::new();
    scene.worker();
    let killed = Instant::now();
    scene.guard.kill().unwrap();
    let (heard, what) = scene.hears("");
    println!("guard killed: the worker knows after {:.2} ms ({what})", milliseconds(killed, heard));
    assert!(what == "Gone" || what == "Stop");
    let (gone, _) = scene.clean(false);
    println!("guard killed: addresses gone after {:.2} ms", milliseconds(killed, gone));
    assert!(gone - killed < Duration::from_millis(500));
}

fn the_kernel_cleans_up_behind_both() {
    let mut scene = Scene::new();
    let worker = scene.worker();
    kill_process(scene.guard_pid(), Signal::STOP).unwrap();
    kill_process(worker, Signal::KILL).unwrap();
    scene.guard.kill().unwrap();
    let killed = Instant::now();
    let (gone, _) = scene.clean(false);
    println!("both killed: addresses gone after {:.0} ms", milliseconds(killed, gone));
    // At most 2.5 s on a machine that is not busy: two, and what the kernel's timers add.
    assert!(gone - killed < Duration::from_secs(4));
}

fn a_pause_of_the_guard_does_not_blame_the_worker() {
    let scene = Scene::new();
    let worker = scene.worker();
    for both in [false, true] {
        kill_process(scene.guard_pid(), Signal::STOP).unwrap();
        if both {
            kill_process(worker, Signal::STOP).unwrap();
        }
        thread::sleep(Duration::from_secs(1));
        kill_process(scene.guard_pid(), Signal::CONT).unwrap();
        if both {
            thread::sleep(BEAT); // it has a little less time than the guard
            kill_process(worker, Signal::CONT).unwrap();
        }
        assert!(scene.is_quiet_for(Duration::from_millis(700)));
        test_kill_process(worker).expect("it lives");
        assert_eq!(present(), ADDRESSES.len());
    }
}

fn a_worker_that_dies_while_the_guard_pauses_leaves_nothing_behind() {
    let scene = Scene::new();
    let worker = scene.worker();
    kill_process(scene.guard_pid(), Signal::STOP).unwrap();
    kill_process(worker, Signal::KILL).unwrap();
    assert!(scene.is_quiet_for(Duration::from_millis(100)));
    let awake = Instant::now();
    kill_process(scene.guard_pid(), Signal::CONT).unwrap();
    let (gone, _) = scene.clean(true);
    assert!(gone - awake < Duration::from_secs(1), "not only when their time is over");
}

fn a_bad_configuration_is_not_tried_again() {
    // The second closes the link some time before it ends, as a program does that has a log to write.
    for mode in ["bad-configuration", "bad-configuration-slowly"] {
        let mut scene = Scene::start(mode, |_| {});
        scene.hears("start ");
        let status = scene.guard.wait().unwrap();
        assert_eq!(status.code(), Some(BAD_CONFIGURATION.into()));
        assert!(scene.said.recv_timeout(LONG).is_err(), "no other worker, and the end of all output");
        drop(scene);
        ip("link del v0");
    }
}

fn a_file_that_breaks_later_does_not_end_the_guard() {
    let scene = Scene::start("hold-if-good", |_| {});
    let worker = scene.worker();
    std::fs::write(&scene.file, "broken").unwrap();
    kill_process(worker, Signal::KILL).unwrap();
    for _ in 0..3 {
        scene.hears("start ");
    }
    std::fs::write(&scene.file, CONFIG).unwrap();
    scene.hears("ready "); // somebody has put it right
}

fn a_worker_that_fails_is_started_again_ever_more_slowly() {
    let mut scene = Scene::start("fail", |_| {});
    let starts: Vec<Instant> = (0..5).map(|_| scene.hears("start ").0).collect();
    let waits: Vec<f64> = starts.windows(2).map(|pair| milliseconds(pair[0], pair[1])).collect();
    println!("worker fails: started again after {waits:.0?} ms");
    for (wait, least) in waits.iter().zip([100.0, 200.0, 400.0, 800.0]) {
        assert!(*wait >= least * 0.95, "{waits:?}"); // the first line is said some time after the start
    }
    let asked = Instant::now();
    kill_process(scene.guard_pid(), Signal::TERM).unwrap();
    assert_eq!(scene.guard.wait().unwrap().code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(1), "not only after the wait");
}

fn orders_are_passed_on_and_systemd_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd.set_read_timeout(Some(LONG)).unwrap();
    let told = |wanted: &str| {
        let mut buffer = [0; 1024];
        loop {
            let length = systemd.recv(&mut buffer).expect(wanted);
            if String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == wanted) {
                return;
            }
        }
    };
    let mut scene = Scene::with(|program| {
        program.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000").env_remove("WATCHDOG_PID");
    });
    scene.worker();
    told("STATUS=holds main");
    told("READY=1");
    told("WATCHDOG=1");
    told("WATCHDOG=1");
    kill_process(scene.guard_pid(), Signal::HUP).unwrap();
    scene.hears("reload");
    told("RELOADING=1");
    told("READY=1");
    kill_process(scene.guard_pid(), Signal::TERM).unwrap();
    scene.hears("Stop");
    told("STOPPING=1");
    assert_eq!(scene.guard.wait().unwrap().code(), Some(0));
    assert_eq!(present(), 0);
    scene.clean(false);
    assert!(scene.is_quiet_for(Duration::from_millis(50)), "the worker itself says farewell");
}

fn what_an_earlier_run_left_is_removed() {
    let neighbour = Host::connected();
    ip("address add 10.99.0.11/24 dev v0");
    // With another prefix, and a life of its own.
    ip("address add 10.99.0.50/32 dev v0");
    ip("address add fd99::50/64 dev v0 nodad");
    ip("address add 10.99.0.60/24 dev v0");
    let scene = Scene::start_with(neighbour, "fail", &[], |_| {});
    scene.hears("start ");
    let link = patient_netlink().link("v0").unwrap().unwrap();
    let left: Vec<String> = link
        .addresses
        .iter()
        .map(|address| address.net.to_string())
        .filter(|address| !address.starts_with("fe80"))
        .collect();
    assert_eq!(left, ["10.99.0.11/24", "10.99.0.60/24"], "what is ours alone, and what it owns");
}

fn a_hook_may_do_nothing() {
    let scene = Scene::start("hook", |_| {});
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(scene.hears(set).1, "0000000000000000", "{set}");
    }
    scene.worker();
}

/// As under systemd with `User=` and `AmbientCapabilities=`: being root means nothing, what is ambient is all there is.
fn it_runs_as_an_ordinary_user() {
    let neighbour = Host::connected();
    ip("address add 10.99.0.11/24 dev v0");
    let needed = "-all,+net_admin,+net_raw";
    let under = ["setpriv", "--securebits", "+noroot,+noroot_locked", "--inh-caps", needed];
    let under: Vec<&str> =
        under.into_iter().chain(["--ambient-caps", needed, "--bounding-set", needed]).collect();
    let scene = Scene::start_with(neighbour, "hook", &under, |_| {});
    for set in ["CapInh:", "CapPrm:", "CapEff:"] {
        assert_eq!(scene.hears(set).1, "0000000000000000", "{set}");
    }
    let (_, bounding) = scene.hears("CapBnd:");
    assert_eq!(bounding, "0000000000003000", "nobody may take from it, and it gives nothing");
    assert_eq!(scene.hears("CapAmb:").1, "0000000000000000");
    let worker = scene.worker();
    kill_process(worker, Signal::KILL).unwrap();
    scene.clean(true);
}

fn without_its_privileges_it_says_so() {
    let under = ["setpriv", "--securebits", "+noroot,+noroot_locked", "--inh-caps", "-all"];
    let mut scene = Scene::start_with(Host::connected(), "hold", &under, |program| {
        program.stderr(Stdio::piped());
    });
    let output = std::io::read_to_string(scene.guard.stderr.take().unwrap()).unwrap();
    assert!(output.contains("needs CAP_NET_ADMIN and CAP_NET_RAW"), "{output}");
    assert_eq!(scene.guard.wait().unwrap().code(), Some(77));
}

fn it_is_scheduled_first_and_stays_in_memory_where_it_may() {
    match privileges::take_realtime() {
        Ok(()) => {
            // As the kernel tells it (proc(5)): the 41st field, the 39th behind the name; 1 is SCHED_FIFO.
            let policy = || {
                let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
                let (_, fields) = stat.rsplit_once(')').unwrap();
                fields.split_whitespace().nth(38).unwrap().to_owned()
            };
            assert_eq!(policy(), "1");
            assert_eq!(thread::spawn(policy).join().unwrap(), "0", "it is not handed on");
        }
        Err(error) => assert!(error.to_string().contains("LimitRTPRIO="), "{error}"),
    }
    match privileges::lock_memory() {
        Ok(()) => {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
            assert_ne!(locked.split_whitespace().next(), Some("0"), "{locked}");
            privileges::keep_for_worker().unwrap();
            let much = vec![1_u8; 64 << 20];
            assert_eq!(much.last(), Some(&1), "there is still no limit");
        }
        Err(error) => assert!(error.to_string().contains("LimitMEMLOCK=infinity"), "{error}"),
    }
}
