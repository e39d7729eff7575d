//! Loads: they keep one proxy (or nothing but the kernel) busy for a while and count what came through.
//!
//! Every load opens its sessions first, then warms up, then is measured for a window. An observer is called at both ends
//! of the window, at the instants at which the counters are read; it looks at the clocks of the processes.

pub mod churn;
pub mod gate;
pub mod idle;
pub mod socket;
pub mod streams;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use crate::measure::histogram::Histogram;
use crate::site::Cores;

/// How long, and from where.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Before the window.
    pub warm: Duration,
    /// The window.
    pub window: Duration,
    /// Threads of the load.
    pub threads: usize,
    /// The cores that they may use.
    pub cores: Cores,
}

/// Which end of the window it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    /// The window begins.
    Begin,
    /// The window is over.
    End,
}

/// Called at the ends of the window.
pub type Observer<'a> = &'a mut dyn FnMut(Edge);

/// What came through in the window.
#[derive(Debug, Default, Clone)]
pub struct Outcome {
    /// The window as it was.
    pub elapsed: Duration,
    /// Requests that were answered, or connections that were served.
    pub requests: u64,
    /// Bytes of bulk streams.
    pub bytes: u64,
    /// Of each request, or of each connection from the connect to the answer.
    pub latency: Histogram,
}

/// What one stream of a load does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Requests of so many bytes, one after the other, each answered by as many.
    Ping(usize),
    /// The server sends without end.
    Download,
    /// We send without end.
    Upload,
    /// We ask for [`BLOCK`](streams::BLOCK) bytes every [`TICK`](streams::TICK), unless the last are not there yet.
    PacedDownload,
    /// We send [`BLOCK`](streams::BLOCK) bytes every [`TICK`](streams::TICK), unless the last are not gone yet.
    PacedUpload,
}

/// Runs `streams` against `target`.
pub fn streams(
    target: SocketAddr,
    streams: &[Stream],
    pace: &Pace,
    observer: Observer<'_>,
) -> anyhow::Result<Outcome> {
    gate::run(pace, observer, |worker| streams::work(target, streams, worker))
}

/// Opens and closes sessions, `parallel` at a time.
pub fn churn(
    target: SocketAddr,
    parallel: usize,
    pace: &Pace,
    observer: Observer<'_>,
) -> anyhow::Result<Outcome> {
    gate::run(pace, observer, |worker| churn::work(target, parallel, worker))
}
