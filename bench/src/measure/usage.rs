//! Who used how much CPU between the two edges of a window.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::machine::Machine;
use super::processes::{CpuTime, Pid, cpu_of, cpu_of_all};
use crate::load::Edge;

/// Whose clocks are read.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// The proxy's processes.
    pub proxy: Vec<Pid>,
    /// The server's; their children too, when they have been waited for.
    pub server: Vec<Pid>,
    /// The load's.
    pub load: Vec<Pid>,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    proxy: CpuTime,
    server: CpuTime,
    load: CpuTime,
    everybody: CpuTime,
    machine: Machine,
}

/// CPU time of one window.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// How long it was.
    pub elapsed: Duration,
    /// Of the proxy.
    pub proxy: Duration,
    /// Of the server behind it.
    pub server: Duration,
    /// Of the load.
    pub load: Duration,
    /// Of all cores, interrupts included.
    pub machine: Duration,
    /// Interrupts; in part also in the above.
    pub interrupts: Duration,
    /// What no process of ours has used: threads of the kernel, interrupts of an idle core, and other people's work.
    pub elsewhere: Duration,
    /// What the hypervisor took away.
    pub stolen: Duration,
}

/// Reads clocks at both edges.
#[derive(Debug)]
pub struct Meter {
    watched: Watched,
    begin: Option<Reading>,
    end: Option<Reading>,
    failure: Option<anyhow::Error>,
}

impl Meter {
    /// Nothing is read yet.
    pub fn new(watched: Watched) -> Self {
        Self { watched, begin: None, end: None, failure: None }
    }

    /// To be called at an edge. An error is kept until [`Meter::usage`].
    pub fn look(&mut self, edge: Edge) {
        match (self.read(), edge) {
            (Ok(reading), Edge::Begin) => self.begin = Some(reading),
            (Ok(reading), Edge::End) => self.end = Some(reading),
            (Err(error), _) => self.failure = Some(error),
        }
    }

    fn read(&self) -> Result<Reading> {
        Ok(Reading {
            at: Instant::now(),
            proxy: cpu_of(&self.watched.proxy),
            server: cpu_of(&self.watched.server),
            load: cpu_of(&self.watched.load),
            everybody: cpu_of_all(),
            machine: Machine::now()?,
        })
    }

    /// What was used between the edges.
    pub fn usage(self) -> Result<Usage> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        let (begin, end) = self.begin.zip(self.end).context("the clocks were not read at both edges")?;
        let machine = end.machine.since(&begin.machine);
        let everybody = end.everybody.since(&begin.everybody);
        Ok(Usage {
            elapsed: end.at - begin.at,
            proxy: end.proxy.since(&begin.proxy),
            server: end.server.since(&begin.server),
            load: end.load.since(&begin.load),
            machine: machine.busy,
            interrupts: machine.interrupts,
            elsewhere: machine.busy.saturating_sub(everybody),
            stolen: machine.stolen,
        })
    }
}
