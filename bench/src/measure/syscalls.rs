//! How many system calls a proxy makes, counted by perf(1) at the tracepoint `raw_syscalls:sys_enter`.
//!
//! Counting costs every call some time, so it has runs of its own (`--syscalls`), whose CPU times are not to be compared
//! with those of others.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid as RawPid, Signal, kill_process};

use super::processes::Pid;
use crate::load::Edge;
use crate::site::program;

/// perf answers within milliseconds; when it starts, it looks around first.
const DEADLINE: Duration = Duration::from_secs(10);

/// perf, attached to a proxy; it counts between the edges only.
#[derive(Debug)]
pub struct SyscallCounter {
    perf: Child,
    control: File,
    acknowledged: File,
    report: PathBuf,
    failure: Option<anyhow::Error>,
}

impl SyscallCounter {
    /// Attaches to `pids`. `directory` takes its pipes and its report.
    pub fn attach(directory: &Path, pids: &[Pid]) -> Result<Self> {
        let perf = program("perf").context("perf is not installed (Debian: linux-perf)")?;
        let [control, acknowledged] = ["perf-control", "perf-acknowledged"].map(|name| directory.join(name));
        let report = directory.join("perf-report");
        for path in [&control, &acknowledged, &report] {
            // Left by an earlier run, or not there.
            let _ = fs::remove_file(path);
        }
        for path in [&control, &acknowledged] {
            mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).context("cannot make a pipe")?;
        }
        let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
        let pipes = format!("fifo:{},{}", control.display(), acknowledged.display());
        let mut command = Command::new(perf);
        command.args(["stat", "--delay", "-1", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p"]);
        command.arg(pids.join(",")).args(["--control", &pipes, "-o"]).arg(&report);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let perf = command.spawn().context("cannot start perf")?;
        // Open for both ways: opening a pipe for one would wait for the other end.
        let open = |path: &Path| File::options().read(true).write(true).open(path);
        let (control, acknowledged) = (open(&control)?, open(&acknowledged)?);
        let mut counter = Self { perf, control, acknowledged, report, failure: None };
        counter.say("ping")?;
        Ok(counter)
    }

    fn say(&mut self, command: &str) -> Result<()> {
        self.control.write_all(format!("{command}\n").as_bytes())?;
        let deadline = Timespec { tv_sec: i64::try_from(DEADLINE.as_secs())?, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&self.acknowledged, PollFlags::IN)], Some(&deadline))?;
        ensure!(ready > 0, "perf did not answer: may it be used here?");
        let mut answer = [0; 64];
        let count = self.acknowledged.read(&mut answer)?;
        ensure!(answer.get(..count).is_some_and(|said| said.starts_with(b"ack")), "perf does not understand");
        Ok(())
    }

    /// To be called at an edge. An error is kept until [`SyscallCounter::count`].
    pub fn look(&mut self, edge: Edge) {
        let command = match edge {
            Edge::Begin => "enable",
            Edge::End => "disable",
        };
        if let Err(error) = self.say(command) {
            self.failure = Some(error);
        }
    }

    /// How many calls there were between the edges.
    pub fn count(mut self) -> Result<u64> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        if let Some(pid) = RawPid::from_raw(i32::try_from(self.perf.id())?) {
            kill_process(pid, Signal::INT)?;
        }
        self.perf.wait()?;
        let text = fs::read_to_string(&self.report).context("perf has written no report")?;
        parse(&text).with_context(|| format!("a strange report of perf: {text}"))
    }
}

impl Drop for SyscallCounter {
    fn drop(&mut self) {
        // It has ended already when it was asked for its count.
        let _ = self.perf.kill();
        let _ = self.perf.wait();
    }
}

fn parse(report: &str) -> Option<u64> {
    let line = report.lines().find(|line| line.contains("raw_syscalls:sys_enter"))?;
    line.split(',').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_perf() {
        let text = "# started on Sat\n\n3056,,raw_syscalls:sys_enter,35060,100.00,,\n";
        assert_eq!(parse(text), Some(3056));
        assert_eq!(parse("<not counted>,,raw_syscalls:sys_enter,0,0.00,,\n"), None);
        assert_eq!(parse(""), None);
    }
}
