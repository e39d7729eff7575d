//! CPU time of the whole machine, from `/proc/stat` (see proc(5)), in ticks of 10 ms.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// What all cores have done since the machine started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Machine {
    /// user, nice, system, irq and softirq.
    busy: u64,
    /// irq and softirq alone.
    interrupts: u64,
    /// What the hypervisor took away.
    stolen: u64,
}

/// What they did between two readings.
#[derive(Debug, Clone, Copy, Default)]
pub struct MachineTime {
    /// Everything but idling, interrupts included.
    pub busy: Duration,
    /// Interrupts alone, in part also charged to the processes that they interrupted.
    pub interrupts: Duration,
    /// What the hypervisor took away; not part of `busy`.
    pub stolen: Duration,
}

impl Machine {
    /// Reads `/proc/stat`.
    pub fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Self::parse(&text).context("/proc/stat has no line `cpu`")
    }

    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
        let [user, nice, system, _idle, _iowait, irq, softirq, stolen, ..] = *fields else { return None };
        let interrupts = irq + softirq;
        Some(Self { busy: user + nice + system + interrupts, interrupts, stolen })
    }

    /// What was done since `before`.
    pub fn since(&self, before: &Self) -> MachineTime {
        let tick = Duration::from_secs(1).as_secs_f64() / rustix::param::clock_ticks_per_second() as f64;
        let time =
            |after: u64, before: u64| Duration::from_secs_f64(after.saturating_sub(before) as f64 * tick);
        MachineTime {
            busy: time(self.busy, before.busy),
            interrupts: time(self.interrupts, before.interrupts),
            stolen: time(self.stolen, before.stolen),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_counts() {
        let text = "cpu  10 20 30 4000 50 6 7 8 9 10\ncpu0 1 1 1 1 1 1 1 1 0 0\nintr 5\n";
        let machine = Machine::parse(text).unwrap();
        assert_eq!(machine, Machine { busy: 73, interrupts: 13, stolen: 8 });
        assert_eq!(Machine::parse("cpu0 1 1 1 1 1 1 1 1\n"), None);
        assert_eq!(Machine::parse("cpu  1 2 3\n"), None);
    }

    #[test]
    fn a_busy_thread_is_seen() {
        let before = Machine::now().unwrap();
        let started = std::time::Instant::now();
        while Machine::now().unwrap().since(&before).busy < Duration::from_millis(50) {
            assert!(started.elapsed() < Duration::from_secs(30), "nothing was counted");
        }
    }
}
