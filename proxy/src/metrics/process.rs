//! The process: build, life, descriptors, memory, processor time.

use std::fs;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::{Family, Scrape};
use crate::backlog::Overflows;
use crate::state::{App, Life};

const fn family(name: &'static str, help: &'static str) -> Family {
    Family { name, help }
}

/// Copies the process's numbers.
pub(super) fn write(scrape: &Scrape, app: &App) {
    let build = family("pointsman_build_info", "Always 1; the labels tell the version and this host.");
    scrape.flag(build, &[("version", env!("CARGO_PKG_VERSION")), ("node", app.node.as_str())], true);
    let start =
        family("pointsman_process_start_time_seconds", "When the process started, in seconds since 1970.");
    scrape.gauge(start, &[], app.started_at.0 as f64 / 1000.0);
    let cpu = family("pointsman_process_cpu_seconds_total", "Processor time, user and system.");
    scrape.seconds_total(cpu, &[], cpu_time());
    if let Some(open) = open_descriptors() {
        let fds = family("pointsman_process_open_fds", "Open file descriptors.");
        scrape.gauge(fds, &[], open as f64);
    }
    if let Some(max) = max_descriptors() {
        let fds = family("pointsman_process_max_fds", "The limit of open file descriptors.");
        scrape.gauge(fds, &[], max as f64);
    }
    if let Some(bytes) = resident_bytes() {
        let memory = family("pointsman_process_resident_memory_bytes", "Resident memory.");
        scrape.gauge(memory, &[], bytes as f64);
    }
    if let Some(drops) = Overflows::read() {
        let full = family(
            "pointsman_host_listen_overflows_total",
            "Connections that the kernel dropped because an accept queue was full, whoever's, on this host.",
        );
        scrape.counter(full, &[], drops.overflows);
        let all = family(
            "pointsman_host_listen_drops_total",
            "Connections that the kernel dropped at a listening socket for any reason, on this host.",
        );
        scrape.counter(all, &[], drops.drops);
    }
    write_cores(scrape, app);
    write_life(scrape, app);
}

fn write_cores(scrape: &Scrape, app: &App) {
    let Some(cores) = app.cores() else { return };
    let backend =
        family("pointsman_relay_engine_info", "Always 1; the label tells the backend of the relay engine.");
    scrape.flag(backend, &[("backend", cores.backend())], true);
    for (number, core) in cores.states().enumerate() {
        let number = number.to_string();
        let labels = [("core", number.as_str())];
        let sessions =
            family("pointsman_relay_core_sessions", "Established sessions of a core of the relay engine.");
        scrape.gauge(sessions, &labels, core.sessions as f64);
        let sockets =
            family("pointsman_relay_core_sockets", "Open sockets of a core, those being closed included.");
        scrape.gauge(sockets, &labels, core.sockets as f64);
        let pipes =
            family("pointsman_relay_core_pipes", "Pipes that hold bytes of large transfers, by core.");
        scrape.gauge(pipes, &labels, core.pipes as f64);
        let rounds = family(
            "pointsman_relay_core_rounds_total",
            "Rounds of a core's loop; each takes whatever has come since the last one.",
        );
        scrape.counter(rounds, &labels, core.rounds);
    }
}

fn write_life(scrape: &Scrape, app: &App) {
    let life = family("pointsman_life", "Where the process stands: 1 for the state that holds now.");
    scrape.one_of(life, &[], "state", &Life::ALL.map(Life::as_str), Some(app.life().as_str()));
    let reloads = family("pointsman_reloads_total", "Reloads of the configuration, by result.");
    scrape.counter(reloads, &[("result", "ok")], app.reloads_ok.get());
    scrape.counter(reloads, &[("result", "failed")], app.reloads_failed.get());
    let last = family("pointsman_last_reload_ok", "Whether the last reload (or the start) took effect.");
    scrape.flag(last, &[], app.reload().is_none_or(|reload| reload.ok));
    let sessions = family("pointsman_sessions", "Live connections of clients, over all listeners.");
    scrape.gauge(sessions, &[], app.sessions.len() as f64);
    let dropped = family("pointsman_log_lines_dropped_total", "Log lines that nobody took in time.");
    scrape.counter(dropped, &[], app.log_lines_dropped());
}

/// Processor time of all threads.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// How many descriptors are open; the one that counts them is not counted.
pub(crate) fn open_descriptors() -> Option<usize> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1))
}

/// The soft limit of descriptors. `None`: there is none.
pub(crate) fn max_descriptors() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Resident memory, by the kernel's `VmRSS` in kB.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
