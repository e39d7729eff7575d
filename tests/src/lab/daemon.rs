//! A router's processes: started in its namespace, killed, frozen and thawed as a whole or in part.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group, waitpid};

use super::namespace::Namespace;
use super::wait;
use crate::process::{Ended, tail};

/// `keepalived` or `pointsman-vip` on one host.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    log: PathBuf,
    child: Child,
    /// What the main process has started, as far as we have seen: ours to reap when it is gone.
    descendants: HashSet<Pid>,
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
        Ok(Self { name: namespace.name().to_owned(), log, child, descendants: HashSet::new() })
    }

    /// The main process: of keepalived the parent, of `pointsman-vip` the guard.
    pub fn main(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What does the work: the only child of the main process. Waits for it, a second at most.
    pub fn worker(&mut self) -> Result<Pid> {
        let worker = wait::until(format!("the worker of {}", self.name), Duration::from_secs(1), || {
            children(self.main()).first().copied().context("there is none")
        })?;
        self.descendants.insert(worker);
        Ok(worker)
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
        self.wait_reaped(Duration::from_secs(5))?;
        Ok(at)
    }

    /// SIGKILL to the main process alone.
    pub fn kill_main(&self) -> Result<Instant> {
        self.signal(self.main(), Signal::KILL)
    }

    /// SIGKILL to the worker alone.
    pub fn kill_worker(&mut self) -> Result<Instant> {
        let worker = self.worker()?;
        self.signal(worker, Signal::KILL)
    }

    /// SIGSTOP to the worker alone.
    pub fn freeze_worker(&mut self) -> Result<Instant> {
        let worker = self.worker()?;
        self.signal(worker, Signal::STOP)
    }

    /// SIGSTOP to everything.
    pub fn freeze(&mut self) -> Result<Instant> {
        let all = self.all();
        let at = Instant::now();
        for process in &all {
            kill_process(*process, Signal::STOP)?;
        }
        Ok(at)
    }

    /// SIGCONT to everything.
    pub fn thaw(&mut self) -> Result<Instant> {
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
        self.all();
        let child = &mut self.child;
        let status = wait::until(format!("{} to end", self.name), deadline, || {
            child.try_wait()?.ok_or_else(|| anyhow!("it still runs"))
        })?;
        self.reap();
        Ok(status)
    }

    /// We are the first process here: whoever loses its parent becomes our child, and a zombie when it has ended, which
    /// a keepalived that is started again takes for itself. Answers how many have not ended.
    fn reap(&mut self) -> usize {
        self.descendants.retain(|process| {
            let _ = waitpid(Some(*process), WaitOptions::NOHANG);
            exists(*process)
        });
        self.descendants.len()
    }

    fn wait_reaped(&mut self, deadline: Duration) -> Result<()> {
        let name = self.name.clone();
        wait::until(format!("all of {name} to be gone"), deadline, || {
            let left = self.reap();
            ensure!(left == 0, "{left} processes are left");
            Ok(())
        })
    }

    /// Fails when the main process has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(anyhow!(Ended::new(&self.name, status))),
        }
    }

    /// The end of what it printed.
    pub fn tail(&self) -> String {
        tail(&self.log)
    }

    /// The main process and everything that it has started.
    fn all(&mut self) -> Vec<Pid> {
        let mut all = vec![self.main()];
        let mut next = 0;
        while let Some(process) = all.get(next).copied() {
            all.extend(children(process));
            next += 1;
        }
        self.descendants.extend(all.iter().skip(1));
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
        // What has ended already is only reaped; what is left ends with the lab.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.kill();
        }
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

fn exists(process: Pid) -> bool {
    Path::new(&format!("/proc/{}", process.as_raw_nonzero())).exists()
}
