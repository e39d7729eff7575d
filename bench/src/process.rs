//! A server or proxy: started as the servers' account, on its cores, its output in a file; gone when dropped.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Signal, kill_process};

use crate::measure::processes::{Pid, family};
use crate::site::{Account, Cores};

/// How long a process may take to end when asked to.
const STOP_DEADLINE: Duration = Duration::from_secs(3);
/// Lines of its output in an error message.
const TAIL_LINES: usize = 4;

/// A running process with all that it has started.
#[derive(Debug)]
pub struct Server {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts `program` in `directory`, whose `log` takes its output.
    pub fn start<A: AsRef<OsStr>>(
        directory: &Path,
        account: Option<Account>,
        cores: &Cores,
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = directory.join("log");
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", directory)
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .current_dir(directory);
        if let Some(Account { uid, gid }) = account {
            command.uid(uid).gid(gid);
        }
        let child = spawn_on(cores, &mut command).with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, child, log })
    }

    /// The numbers of the process and of all its descendants.
    pub fn family(&self) -> Vec<Pid> {
        family(self.child.id())
    }

    /// Waits until `ready` says yes; an error when the process ends before, or after `deadline`.
    pub fn wait_until(
        &mut self,
        what: &str,
        deadline: Duration,
        mut ready: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let started = Instant::now();
        loop {
            let Err(error) = ready() else { return Ok(()) };
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}): {}", self.name, self.tail());
            }
            if started.elapsed() > deadline {
                bail!("{}: {what} took more than {deadline:?}: {error:#}; {}", self.name, self.tail());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it listens on `address`.
    pub fn wait_listening(&mut self, address: SocketAddr, deadline: Duration) -> Result<()> {
        self.wait_until("to listen", deadline, || {
            TcpStream::connect(address).map(drop).with_context(|| format!("cannot connect to {address}"))
        })
    }

    /// The end of its output.
    pub fn tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default().join(" | ")
    }

    fn end(&mut self) -> io::Result<()> {
        let family = self.family();
        signal(&[self.child.id()], Signal::TERM);
        let started = Instant::now();
        while self.child.try_wait()?.is_none() && started.elapsed() < STOP_DEADLINE {
            thread::sleep(Duration::from_millis(5));
        }
        // Whoever is left: the process itself, or workers whose parent is gone.
        signal(&family, Signal::KILL);
        self.child.wait().map(drop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("pointsman-bench: {} did not end: {error}", self.name);
        }
    }
}

fn signal(pids: &[Pid], signal: Signal) {
    let pids = pids.iter().filter_map(|pid| rustix::process::Pid::from_raw(i32::try_from(*pid).ok()?));
    for pid in pids {
        // Fails only when it has just ended.
        let _ = kill_process(pid, signal);
    }
}

/// Starts a command on `cores`. A child inherits the cores of the thread that starts it.
pub fn spawn_on(cores: &Cores, command: &mut Command) -> Result<Child> {
    thread::scope(|scope| {
        let starter = scope.spawn(|| {
            cores.confine_this_thread()?;
            command.spawn().context("cannot start a process")
        });
        starter.join().map_err(|_| anyhow!("the thread that starts processes panicked"))?
    })
}

/// Runs a command to its end; its standard output. An error says what it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("{} failed ({}): {said}", command.get_program().display(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
