//! CPU time of processes, from `/proc` (see proc(5)).
//!
//! Two clocks: `task/TID/schedstat` counts nanoseconds but forgets threads that have ended; `stat` keeps them, and the
//! waited-for children, in ticks of 10 ms. The finer one is taken unless it has missed something.
//!
//! On kernels without `CONFIG_IRQ_TIME_ACCOUNTING` both include the interrupts (network receive, mostly) that were
//! handled while the process ran. That is what is wanted here: on loopback they are its own sends.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// The number of a process.
pub type Pid = u32;

/// CPU time of some processes until now.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuTime {
    /// Of the threads that live.
    fine: Duration,
    /// Of all that have ever been, rounded.
    coarse: Duration,
}

/// What rounding explains: a tick for each of the two readings, twice (user and system time).
const ROUNDING: Duration = Duration::from_millis(40);

impl CpuTime {
    /// What was used since `before`.
    pub fn since(&self, before: &Self) -> Duration {
        let fine = self.fine.saturating_sub(before.fine);
        let coarse = self.coarse.saturating_sub(before.coarse);
        if coarse > fine + ROUNDING { coarse } else { fine }
    }
}

/// The parts of `/proc/PID/stat` that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    parent: Pid,
    /// User and system time, own and of waited-for children, in ticks.
    ticks: u64,
}

/// The name of the program stands in brackets and may hold anything, brackets included.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    // Field 3, the state, is the first one here.
    let ticks = (11..=14).map(number).sum::<Option<u64>>()?;
    Some(Stat { parent: u32::try_from(number(1)?).ok()?, ticks })
}

/// The first number of `schedstat`: time on a CPU in nanoseconds.
fn parse_schedstat(text: &str) -> Option<Duration> {
    Some(Duration::from_nanos(text.split_whitespace().next()?.parse().ok()?))
}

fn stat_of(pid: Pid) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn fine_of(process: &Path) -> Duration {
    let tasks = fs::read_dir(process.join("task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| parse_schedstat(&fs::read_to_string(task.path().join("schedstat")).ok()?)).sum()
}

fn ticks(count: u64) -> Duration {
    Duration::from_secs_f64(count as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// `root` and everything that descends from it.
pub fn family(root: Pid) -> Vec<Pid> {
    let mut children: HashMap<Pid, Vec<Pid>> = HashMap::new();
    for pid in all() {
        if let Some(stat) = stat_of(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.get(pid).into_iter().flatten());
        next += 1;
    }
    found
}

fn all() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// CPU time of `pids`. A process that has ended counts nothing.
pub fn cpu_of(pids: &[Pid]) -> CpuTime {
    let mut sum = CpuTime::default();
    for pid in pids {
        sum.fine += fine_of(Path::new(&format!("/proc/{pid}")));
        sum.coarse += stat_of(*pid).map_or(Duration::ZERO, |stat| ticks(stat.ticks));
    }
    sum
}

/// CPU time of this process.
pub fn cpu_of_self() -> Result<Duration> {
    let pid = std::process::id();
    stat_of(pid).context("/proc/PID/stat cannot be read")?;
    Ok(cpu_of(&[pid]).fine)
}

/// CPU time of everybody in our namespace of processes.
pub fn cpu_of_all() -> CpuTime {
    cpu_of(&all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_of_a_program_with_a_strange_name() {
        let text = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 2 3 4 100 20 3 1 20 0 5 0 99 1000 50";
        assert_eq!(parse_stat(text), Some(Stat { parent: 7, ticks: 124 }));
        assert_eq!(parse_stat("42 (short) S 7"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn schedstat_begins_with_nanoseconds() {
        assert_eq!(parse_schedstat("88421579 17948980 627\n"), Some(Duration::from_nanos(88_421_579)));
        assert_eq!(parse_schedstat(""), None);
    }

    #[test]
    fn what_the_fine_clock_forgot_is_taken_from_the_coarse_one() {
        let time = |fine, coarse| CpuTime {
            fine: Duration::from_millis(fine),
            coarse: Duration::from_millis(coarse),
        };
        assert_eq!(time(1500, 1530).since(&time(0, 0)), Duration::from_millis(1500));
        assert_eq!(time(1500, 2500).since(&time(0, 0)), Duration::from_millis(2500));
        // A thread ended: its nanoseconds are gone.
        assert_eq!(time(100, 900).since(&time(300, 300)), Duration::from_millis(600));
    }

    #[test]
    fn a_child_is_family_and_its_work_is_measured() {
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; read line"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        assert!(family(std::process::id()).contains(&child.id()));
        let user_time = || stat_of(child.id()).unwrap().ticks;
        let started = std::time::Instant::now();
        // It is done when it waits for a line.
        let waits = || fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap().contains(") S ");
        while !(waits() && cpu_of(&[child.id()]).fine > Duration::from_millis(10)) {
            assert!(started.elapsed() < Duration::from_secs(60), "it never ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        let fine = cpu_of(&[child.id()]).fine;
        let coarse = ticks(user_time());
        assert!(fine <= started.elapsed());
        assert!(fine.abs_diff(coarse) <= ROUNDING, "{fine:?} against {coarse:?}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
