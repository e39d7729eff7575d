//! A router's processes: started in its namespace, killed, frozen and thawed as a whole or in part.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::namespace::Namespace;
use super::wait;
use crate::process::tail;

/// `keepalived` or `pointsman-vip` on one host.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Daemon {
    /// Starts it in `namespace` and `directory`, in a process group of its own.
    pub(super) fn start(
        namespace: &Namespace,
        directory: &Path,
        program: &Path,
        arguments: &[String],
    ) -> Result<Self> {
        let log = directory.join("log");
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = namespace.command(program)?;
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
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { name: namespace.name().to_owned(), log, child })
    }

    /// The main process: of keepalived the parent, of `pointsman-vip` the guard.
    pub fn main(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What does the work: the only child of the main process. Waits for it, a second at most.
    pub fn worker(&self) -> Result<Pid> {
        wait::until(format!("the worker of {}", self.name), Duration::from_secs(1), || {
            children(self.main()).first().copied().context("there is none")
        })
    }

    /// SIGKILL to everything at the same time, so that no part can act on the end of another.
    pub fn kill(&mut self) -> Result<Instant> {
        let all = self.all();
        let at = Instant::now();
        kill_process_group(self.main(), Signal::KILL)?;
        for process in &all {
            // Whoever has left the group. The others have ended already.
            let _ = kill_process(*process, Signal::KILL);
        }
        self.child.wait()?;
        wait::until(format!("{} to be gone", self.name), Duration::from_secs(5), || {
            let left = all.iter().filter(|process| is_alive(**process)).count();
            ensure!(left == 0, "{left} of its processes are left");
            Ok(())
        })?;
        Ok(at)
    }

    /// SIGKILL to the main process alone.
    pub fn kill_main(&self) -> Result<Instant> {
        self.signal(self.main(), Signal::KILL)
    }

    /// SIGKILL to the worker alone.
    pub fn kill_worker(&self) -> Result<Instant> {
        let worker = self.worker()?;
        self.signal(worker, Signal::KILL)
    }

    /// SIGSTOP to the worker alone.
    pub fn freeze_worker(&self) -> Result<Instant> {
        let worker = self.worker()?;
        self.signal(worker, Signal::STOP)
    }

    /// SIGSTOP to everything.
    pub fn freeze(&self) -> Result<Instant> {
        let all = self.all();
        let at = Instant::now();
        for process in &all {
            kill_process(*process, Signal::STOP)?;
        }
        Ok(at)
    }

    /// SIGCONT to everything.
    pub fn thaw(&self) -> Result<Instant> {
        let all = self.all();
        let at = Instant::now();
        for process in &all {
            // One that was killed meanwhile needs no thawing.
            let _ = kill_process(*process, Signal::CONT);
        }
        Ok(at)
    }

    /// SIGTERM to the main process.
    pub fn terminate(&self) -> Result<Instant> {
        self.signal(self.main(), Signal::TERM)
    }

    /// SIGHUP to the main process.
    pub fn reload(&self) -> Result<Instant> {
        self.signal(self.main(), Signal::HUP)
    }

    /// Waits until the main process has ended.
    pub fn wait_ended(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        wait::until(format!("{} to end", self.name), deadline, || {
            child.try_wait()?.ok_or_else(|| anyhow!("it still runs"))
        })
    }

    /// Fails when the main process has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(anyhow!("{} has ended: {status}\n{}", self.name, self.tail())),
        }
    }

    /// The end of what it printed.
    pub fn tail(&self) -> String {
        tail(&self.log)
    }

    /// The main process and everything that it has started.
    fn all(&self) -> Vec<Pid> {
        let mut all = vec![self.main()];
        let mut next = 0;
        while let Some(process) = all.get(next).copied() {
            all.extend(children(process));
            next += 1;
        }
        all
    }

    fn signal(&self, process: Pid, signal: Signal) -> Result<Instant> {
        let at = Instant::now();
        kill_process(process, signal).with_context(|| format!("cannot signal {}", self.name))?;
        Ok(at)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // What is left ends with the lab.
        let _ = self.kill();
    }
}

/// The children of a process that have not ended, the oldest first.
fn children(of: Pid) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let parents: HashMap<i32, i32> = numbers.filter_map(|number| Some((number, parent(number)?))).collect();
    let mut children: Vec<i32> = parents
        .into_iter()
        .filter(|(_, parent)| *parent == of.as_raw_nonzero().get())
        .map(|(child, _)| child)
        .collect();
    children.sort_unstable();
    children.into_iter().filter_map(Pid::from_raw).collect()
}

/// The parent of a process that has not ended (see proc(5), `stat`).
fn parent(process: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.next()?.parse().ok() }
}

fn is_alive(process: Pid) -> bool {
    parent(process.as_raw_nonzero().get()).is_some()
}
