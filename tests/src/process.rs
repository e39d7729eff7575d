//! One server process: started in its own directory and process group, its output kept in a file.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

use crate::site::{self, Site};
use crate::tools::Account;
use crate::wait;

/// How much of a log an error shows.
const TAIL_LINES: usize = 25;

/// Which account runs a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunAs {
    /// Ours: programs of the checkout, which `postgres` may be unable to reach.
    Caller,
    /// The servers' account.
    Servers,
}

/// A server's process has ended although it should run.
#[derive(Debug)]
pub struct Ended {
    name: String,
    status: ExitStatus,
}

impl Ended {
    pub(crate) fn new(name: &str, status: ExitStatus) -> Self {
        Self { name: name.to_owned(), status }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has ended: {}", self.name, self.status)
    }
}

impl std::error::Error for Ended {}

/// A started server. Dropping it kills it; what it started itself is ended by the [`Site`].
#[derive(Debug)]
pub struct Server {
    name: String,
    directory: PathBuf,
    log: PathBuf,
    child: Child,
}

impl Server {
    /// Starts `program` in `directory` (inside the site) with an environment of its own.
    pub fn start<I>(
        site: &Site,
        run_as: RunAs,
        directory: &Path,
        program: &Path,
        arguments: I,
    ) -> Result<Self>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let name = directory.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
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
            .current_dir(directory)
            .process_group(0)
            .kill_on_drop(true);
        if let (RunAs::Servers, Account::Postgres { uid, gid }) = (run_as, site.account()) {
            command.uid(uid).gid(gid);
        }
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { name, directory: directory.to_owned(), log, child })
    }

    /// The name of its directory, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its working directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The number of the process itself; `None` when it has ended.
    pub fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child.id()?).ok()?)
    }

    /// [`Ended`] when the process has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!(Ended::new(&self.name, status)),
        }
    }

    /// Sends `signal` to the process itself.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().with_context(|| format!("{} has ended", self.name))?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Sends `signal` to everything that runs in its directory.
    pub fn signal_all(&self, signal: Signal) -> usize {
        site::signal_all(&self.directory, signal)
    }

    /// Kills everything that runs in its directory, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<()> {
        let directory = &self.directory;
        wait::until(format!("{} to be gone", self.name), Duration::from_secs(10), async || {
            match site::signal_all(directory, Signal::KILL) {
                0 => Ok(()),
                left => Err(anyhow!("{left} processes are left")),
            }
        })
        .await?;
        self.child.wait().await?;
        Ok(())
    }

    /// Waits until the process has ended by itself; answers its exit code, or the number of the signal that ended it.
    pub async fn ended(&mut self, deadline: Duration) -> Result<i32> {
        let status = tokio::time::timeout(deadline, self.child.wait())
            .await
            .with_context(|| format!("{} still runs after {deadline:?}", self.name))??;
        status.code().or(status.signal()).context("ended in no known way")
    }

    /// The other ends of its established IPv4 connections.
    pub fn peers(&self) -> Result<Vec<SocketAddr>> {
        let process =
            PathBuf::from(format!("/proc/{}", self.pid().context("it has ended")?.as_raw_nonzero()));
        let descriptors = fs::read_dir(process.join("fd"))?.flatten();
        // A descriptor may be closed while we look.
        let targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        let sockets: HashSet<String> = targets.filter_map(|target| socket_inode(&target)).collect();
        let table = fs::read_to_string(process.join("net/tcp"))?;
        Ok(table.lines().filter_map(|line| established(line, &sockets)).collect())
    }

    /// The end of what it printed, for error messages.
    pub fn tail(&self) -> String {
        tail(&self.log)
    }
}

fn socket_inode(target: &Path) -> Option<String> {
    Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
}

/// The remote address of a line of `/proc/PID/net/tcp` (see proc(5)), if it is one of `sockets`.
fn established(line: &str, sockets: &HashSet<String>) -> Option<SocketAddr> {
    let mut fields = line.split_whitespace().skip(2);
    let (remote, state) = (fields.next()?, fields.next()?);
    if state != "01" || !sockets.contains(fields.nth(5)?) {
        return None;
    }
    let (address, port) = remote.split_once(':')?;
    // In the byte order of the machine.
    let address = u32::from_str_radix(address, 16).ok()?.to_ne_bytes();
    Some(SocketAddr::from((address, u16::from_str_radix(port, 16).ok()?)))
}

/// The last lines of a file, below a line that names it.
pub fn tail(log: &Path) -> String {
    let text =
        fs::read(log).map_or_else(|error| error.to_string(), |b| String::from_utf8_lossy(&b).into_owned());
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    format!("--- the end of {}:\n{}", log.display(), lines.get(from..).unwrap_or_default().join("\n"))
}
