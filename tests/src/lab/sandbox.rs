//! Namespaces of our own: processes, mounts, network.
//!
//! The program starts itself again through `unshare` (util-linux) as the first process of a namespace of processes. When
//! that one ends, however it ends, the kernel kills everything in there, and with it go the networks and the file system in
//! memory: there is nothing to clean up. It ends itself when its standard input closes, which the end of the outer program
//! does, however that came about.

use std::any::type_name;
use std::ffi::OsString;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::mount::{MountFlags, mount};

use super::Lab;
use crate::tools::{self, program};

/// Set in the inner program.
const INSIDE: &str = "POINTSMAN_LAB_INSIDE";
/// What the inner program is told of the outer one's environment: `sudo` drops it.
const PASSED_ON: [&str; 9] = [
    "PATH",
    "POINTSMAN_BIN",
    "POINTSMAN_VIP_BIN",
    "CARGO_TARGET_DIR",
    "RUST_LIB_BACKTRACE",
    "SOAK",
    "SEED",
    "RUNS",
    "LAB_LOGS",
];
/// Directories that are always there and mean nothing to anybody: one of them is where the file system in memory is
/// mounted. Only we see it.
const PLACES: [&str; 3] = ["/mnt", "/srv", "/media"];
/// Before other work on the machine: what is measured here is milliseconds.
const NICE: i32 = -10;
/// A lab that still runs after this long is stuck.
const DEADLINE: Duration = Duration::from_secs(240);

/// Where the machine stood still for so long, hosts may have taken each other for lost (90 ms), and a guard its worker for hung (100 ms).
const STOOD_STILL: Duration = Duration::from_millis(50);
/// How often a test is tried that fails while the machine stands still.
const TRIES: u32 = 3;
const TICK: Duration = Duration::from_millis(2);

/// Who measures is alone in its program; the others may be beside each other.
static MEASURING: RwLock<()> = RwLock::new(());

/// True in the inner program.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs the test that calls this in a lab of its own, beside others of the same program.
///
/// To be called with a closure that is written in the test's function: its name is how the test is found again.
pub fn run<F>(test: F) -> Result<()>
where
    F: FnOnce(&mut Lab) -> Result<()>,
{
    if is_inside() {
        return run_inside(DEADLINE, test);
    }
    let _beside = MEASURING.read().unwrap_or_else(PoisonError::into_inner);
    again(&test_of::<F>()?)
}

/// The same for a test that measures times: no other test of its program runs meanwhile.
pub fn measure<F>(test: F) -> Result<()>
where
    F: FnOnce(&mut Lab) -> Result<()>,
{
    if is_inside() {
        return run_inside(DEADLINE, test);
    }
    let _alone = MEASURING.write().unwrap_or_else(PoisonError::into_inner);
    again(&test_of::<F>()?)
}

/// The same with a deadline of its own, for a test whose length its caller sets.
pub fn run_for<F>(length: Duration, test: F) -> Result<()>
where
    F: FnOnce(&mut Lab) -> Result<()>,
{
    if is_inside() {
        return run_inside(length + DEADLINE, test);
    }
    let _beside = MEASURING.read().unwrap_or_else(PoisonError::into_inner);
    again(&test_of::<F>()?)
}

fn run_inside(deadline: Duration, test: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    inside(deadline, test)
}

/// Starts this program again inside, with the same arguments, and answers how it ended. Its output is ours.
pub fn enter() -> Result<ExitStatus> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut command = command(&arguments)?;
    let mut inner = command.spawn().context("cannot start the inner program")?;
    // Open as long as we live.
    let leash = inner.stdin.take();
    let status = inner.wait()?;
    drop(leash);
    Ok(status)
}

/// The inside of [`enter`]: calls `work` with a lab.
pub fn inside<T>(deadline: Duration, work: impl FnOnce(&mut Lab) -> Result<T>) -> Result<T> {
    prepare(deadline)?;
    let mut lab = Lab::build()?;
    let result = work(&mut lab);
    lab.keep_logs();
    if result.is_err() {
        eprintln!("{}", lab.logs());
    }
    result
}

/// `vip_failover::kill::{{closure}}` is a closure of the test `kill`.
fn test_of<F>() -> Result<String> {
    let name = type_name::<F>();
    let (test, last) = name.rsplit_once("::").unwrap_or(("", name));
    let (_program, test) = test.split_once("::").unwrap_or(("", test));
    ensure!(last == "{{closure}}" && !test.is_empty(), "{name} is not a closure of a test");
    Ok(test.to_owned())
}

/// Runs one test of this program inside. When it fails and the machine stood still meanwhile, that proves nothing: three hosts,
/// their network and their client were one machine, and all of them stopped at once. It is told, and the test is run again.
fn again(test: &str) -> Result<()> {
    let mut tries = 1;
    loop {
        let watch = Stillness::watch()?;
        let result = once(test);
        let longest = watch.longest();
        if result.is_ok() || longest < STOOD_STILL || tries == TRIES {
            return result;
        }
        // Always seen: a test that passes only at its second try is worth a look.
        super::say(&format!("{test}: the machine stood still for {longest:?}: once more"));
        tries += 1;
    }
}

/// How long this process, which wants to run all the time, was not run.
struct Stillness {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Duration>,
}

impl Stillness {
    fn watch() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("stillness".to_owned()).spawn(move || {
            let (mut longest, mut last) = (Duration::ZERO, Instant::now());
            while !stopped.load(Ordering::Relaxed) {
                thread::sleep(TICK);
                longest = longest.max(last.elapsed().saturating_sub(TICK));
                last = Instant::now();
            }
            longest
        })?;
        Ok(Self { stop, thread })
    }

    fn longest(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

fn once(test: &str) -> Result<()> {
    let mut command = command(&[test, "--exact", "--nocapture", "--test-threads=1"].map(OsString::from))?;
    let mut inner = command.stdout(Stdio::piped()).spawn().context("cannot start the inner program")?;
    let leash = inner.stdin.take();
    let mut output = Vec::new();
    inner.stdout.take().context("no output")?.read_to_end(&mut output)?;
    let status = inner.wait()?;
    drop(leash);
    // What went wrong was printed on standard error. A test that was not found would pass as well.
    let passed = String::from_utf8_lossy(&output).contains("1 passed");
    ensure!(status.success() && passed, "{test}, inside: {status}");
    Ok(())
}

fn command(arguments: &[OsString]) -> Result<Command> {
    let mut words: Vec<OsString> = Vec::new();
    if !rustix::process::geteuid().is_root() {
        let sudo = program("sudo").context("needs root for namespaces, and there is no sudo")?;
        words.extend([sudo.into_os_string(), "--non-interactive".into()]);
    }
    words.push(program("env")?.into_os_string());
    for name in PASSED_ON {
        if let Some(value) = std::env::var_os(name) {
            let mut word = OsString::from(format!("{name}="));
            word.push(value);
            words.push(word);
        }
    }
    words.push(format!("{INSIDE}=1").into());
    words.push(program("unshare")?.into_os_string());
    words.extend(["--net", "--ipc", "--mount", "--propagation", "private"].map(OsString::from));
    words.extend(["--pid", "--fork", "--kill-child=KILL", "--mount-proc"].map(OsString::from));
    words.push(std::env::current_exe()?.into_os_string());
    words.extend_from_slice(arguments);
    let (first, rest) = words.split_first().context("no words")?;
    let mut command = Command::new(first);
    command.args(rest).stdin(Stdio::piped());
    Ok(command)
}

/// Puts the inner program on its leash, gives it precedence and a file system in memory.
fn prepare(deadline: Duration) -> Result<()> {
    ensure!(std::process::id() == 1, "not in a namespace of its own: {INSIDE} is not for people");
    thread::Builder::new().name("leash".to_owned()).spawn(|| {
        // Nobody writes: it ends when the outer program does.
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    })?;
    thread::Builder::new().name("deadline".to_owned()).spawn(move || {
        thread::sleep(deadline);
        eprintln!("pointsman-tests: the lab is stuck: it still runs after {deadline:?}");
        std::process::exit(1);
    })?;
    take_precedence();
    let place = place()?;
    mount("pointsman-lab", &place, "tmpfs", MountFlags::NOSUID, c"mode=0755")
        .context("cannot mount a file system in memory")
}

/// Where the file system in memory is mounted.
pub(super) fn place() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let used = [tools::repository(), own, super::vip::program()];
    let free = |place: &&&str| Path::new(place).is_dir() && used.iter().all(|path| !path.starts_with(place));
    match PLACES.iter().find(free) {
        Some(place) => Ok(PathBuf::from(place)),
        None => bail!("none of {} can be hidden", PLACES.join(", ")),
    }
}

/// A nice value counts inside a session only where the scheduler groups tasks by session (autogroup, see sched(7)), and
/// the session has one of its own. Only a privileged root may: without, it must do.
fn take_precedence() {
    let _ = rustix::process::setsid();
    let _ = rustix::process::setpriority_process(None, NICE);
    let _ = fs::write("/proc/self/autogroup", NICE.to_string());
}
