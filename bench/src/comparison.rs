//! The comparison: every row, every peer, in turns.
//!
//! Runs of one row are interleaved (A, B, C, A, B, C, …), so that a machine that slows down slows all of them. Proxies of a
//! row are started once and wait idle while the others are measured; for rows about memory they are started for each run.
//! Two comparisons on one machine take turns, too: a lock is held for the length of a run.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write as _;
use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::arguments::Plan;
use crate::load::socket::begin;
use crate::load::{self, Edge, Outcome, Pace, Stream, idle};
use crate::measure::memory;
use crate::measure::processes::Pid;
use crate::measure::statistics::Spread;
use crate::measure::syscalls::SyscallCounter;
use crate::measure::usage::{Meter, Usage, Watched};
use crate::peers::{Peer, Running, Store};
use crate::postgres::Postgres;
use crate::process::Server;
use crate::rows::{self, Row, Unit, Work};
use crate::sandbox;
use crate::site::{BACKEND, Cores, Site};
use crate::wire::Pattern;

/// Held by whoever measures. In a place that only root can write to.
const TURNS: &str = "/run/pointsman-bench.lock";
/// Between two runs, so that another comparison gets its turn.
const PAUSE: Duration = Duration::from_millis(20);

/// The right to measure, of which a machine has one.
#[derive(Debug)]
pub struct Turns(File);

/// Held by whoever measures, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a>(&'a File);

impl Turns {
    /// Opens the lock.
    pub fn open() -> Result<Self> {
        File::create(TURNS).map(Self).with_context(|| format!("cannot open {TURNS}"))
    }

    /// Waits until nobody else measures.
    pub fn take(&self) -> Result<Turn<'_>> {
        self.0.lock().context("cannot wait for our turn")?;
        Ok(Turn(&self.0))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Closing the file would give it away, too.
        let _ = self.0.unlock();
    }
}

/// Who may run where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Placement {
    /// The proxy on the first core, load and server on the second.
    Pinned,
    /// Everybody anywhere.
    Unpinned,
}

impl Placement {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pinned => "pinned",
            Self::Unpinned => "unpinned",
        }
    }

    /// Of the proxy.
    pub fn proxy(self) -> Cores {
        match self {
            Self::Pinned => Cores::all().one(0),
            Self::Unpinned => Cores::all(),
        }
    }

    /// Of load and servers.
    pub fn load(self) -> Cores {
        match self {
            Self::Pinned => Cores::all().one(1),
            Self::Unpinned => Cores::all(),
        }
    }
}

/// One measurement. `None`: it does not apply.
#[derive(Debug, Clone)]
pub struct Run {
    /// Which row, by name.
    pub row: String,
    /// Who was measured.
    pub peer: Peer,
    /// Where everybody ran.
    pub placement: Placement,
    /// From 1.
    pub round: usize,
    /// Units a second.
    pub rate: f64,
    /// Units in the window.
    pub units: f64,
    /// CPU time.
    pub usage: Usage,
    /// Median latency, in microseconds; of pgbench the mean.
    pub p50: Option<f64>,
    /// 99th percentile, in microseconds.
    pub p99: Option<f64>,
    /// Bulk beside small requests, in GB/s.
    pub bulk_beside: Option<f64>,
    /// System calls of the proxy for each unit, where they were counted.
    pub syscalls: Option<f64>,
    /// Largest resident memory of the proxy's processes since the row began, in bytes.
    pub peak: Option<u64>,
    /// Resident memory of the proxy for each idle session, in bytes.
    pub resident_per_session: Option<f64>,
    /// Memory of the kernel for each idle session, in bytes: all sockets, ours and the server's too.
    pub kernel_per_session: Option<f64>,
}

impl Run {
    /// CPU time of the proxy for a unit, in seconds.
    pub fn proxy_cost(&self) -> Option<f64> {
        (self.peer.is_process() && self.units > 0.0).then(|| self.usage.proxy.as_secs_f64() / self.units)
    }

    /// CPU time of the whole machine for a unit, in seconds.
    pub fn machine_cost(&self) -> Option<f64> {
        (self.units > 0.0).then(|| self.usage.machine.as_secs_f64() / self.units)
    }
}

/// Why somebody was not measured in a row.
pub type Absences = BTreeMap<(Placement, String, Peer), String>;

/// All that was measured.
#[derive(Debug, Default)]
pub struct Results {
    /// The rows that were asked for.
    pub rows: Vec<Row>,
    /// In the order in which they were made.
    pub runs: Vec<Run>,
    /// Who is missing, and why.
    pub absent: Absences,
}

impl Results {
    /// How many cores were busy with what is not ours, over all runs.
    pub fn disturbance(&self) -> Option<Spread> {
        let share = |run: &Run| run.usage.elsewhere.as_secs_f64() / run.usage.elapsed.as_secs_f64();
        Spread::of(self.runs.iter().map(share))
    }
}

/// Runs the plan and tells of its progress on the standard output. `save` is called after each row with all that is
/// known by then: an hour of measurements must not be lost to one Ctrl-C.
pub fn run(site: &Site, plan: &Plan, save: &dyn Fn(&Results) -> Result<()>) -> Result<Results> {
    let rows = chosen_rows(plan);
    ensure!(!rows.is_empty(), "no row matches ROWS: --list names them");
    let placements = placements(plan);
    let mut comparison = Comparison {
        site,
        plan,
        total: total(plan, &rows, &placements),
        done: 0,
        started: Instant::now(),
        turns: Turns::open()?,
        results: Results { rows: rows.clone(), ..Results::default() },
    };
    ensure!(comparison.total > 0, "no peer matches PEERS: --list names them");
    for placement in placements {
        comparison.run_placement(placement, &rows, save)?;
    }
    Ok(comparison.results)
}

/// The rows that the plan asks for.
pub fn chosen_rows(plan: &Plan) -> Vec<Row> {
    let mut rows = rows::all(&plan.idle(sandbox::sessions()));
    rows.retain(|row| plan.rows.is_match(&row.name) && (row.matters || !plan.quick));
    rows
}

fn placements(plan: &Plan) -> Vec<Placement> {
    match (plan.pinned_only || plan.quick, plan.unpinned_only) {
        (_, true) => vec![Placement::Unpinned],
        (true, false) => vec![Placement::Pinned],
        (false, false) => vec![Placement::Pinned, Placement::Unpinned],
    }
}

fn takes_part(plan: &Plan, row: &Row, peer: Peer, placement: Placement) -> bool {
    plan.peers.is_match(peer.name())
        && row.suits(peer)
        && (!plan.quick || !plan.peers.as_str().is_empty() || row.suits_quick(peer))
        && (placement == Placement::Pinned || row.unpinned || plan.unpinned_only)
}

fn peers<'a>(plan: &'a Plan, row: &'a Row, placement: Placement) -> impl Iterator<Item = Peer> + 'a {
    Peer::ALL.into_iter().filter(move |peer| takes_part(plan, row, *peer, placement))
}

fn rounds(plan: &Plan, row: &Row) -> usize {
    let usual = match (plan.quick, row.matters, row.needs_fresh_peer()) {
        (true, _, true) => 2,
        (false, true, false) => 5,
        (true, _, false) | (false, false, _) | (false, true, true) => 3,
    };
    plan.runs.unwrap_or(usual).max(1)
}

fn total(plan: &Plan, rows: &[Row], placements: &[Placement]) -> usize {
    let of = |row: &Row| {
        placements.iter().map(|placement| peers(plan, row, *placement).count()).sum::<usize>()
            * rounds(plan, row)
    };
    rows.iter().map(of).sum()
}

struct Comparison<'a> {
    site: &'a Site,
    plan: &'a Plan,
    total: usize,
    done: usize,
    started: Instant,
    turns: Turns,
    results: Results,
}

/// What is behind the proxies.
struct Behind {
    placement: Placement,
    backend: Server,
    postgres: Option<Postgres>,
    /// Only needed by Pointsman; if it does not start, that is why there is no Pointsman.
    store: Result<Store, String>,
}

impl Behind {
    fn start(site: &Site, placement: Placement, with_postgres: bool) -> Result<Self> {
        let cores = placement.load();
        let directory = site.fresh_directory("backend")?;
        let threads = cores.count().to_string();
        let mut backend = Server::start(&directory, None, &cores, &site.own, ["backend", &threads])?;
        backend.wait_until("to answer", Duration::from_secs(10), || {
            begin(BACKEND, None, Pattern::Sink).map(drop)
        })?;
        let postgres = with_postgres.then(|| Postgres::start(site, &cores)).transpose()?;
        let store = Store::start(site, &cores).map_err(|error| format!("{error:#}"));
        Ok(Self { placement, backend, postgres, store })
    }
}

impl Comparison<'_> {
    fn run_placement(
        &mut self,
        placement: Placement,
        rows: &[Row],
        save: &dyn Fn(&Results) -> Result<()>,
    ) -> Result<()> {
        let rows: Vec<&Row> =
            rows.iter().filter(|row| peers(self.plan, row, placement).next().is_some()).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let with_postgres = rows.iter().any(|row| row.needs_postgres());
        let behind = Behind::start(self.site, placement, with_postgres)?;
        for row in rows {
            self.run_row(row, &behind);
            save(&self.results)?;
        }
        Ok(())
    }

    fn run_row(&mut self, row: &Row, behind: &Behind) {
        let mut running: BTreeMap<Peer, Running> = BTreeMap::new();
        for round in 1..=rounds(self.plan, row) {
            for peer in peers(self.plan, row, behind.placement) {
                self.done += 1;
                let key = (behind.placement, row.name.clone(), peer);
                if self.results.absent.contains_key(&key) {
                    continue;
                }
                match self.in_turn(|| self.run_once(row, peer, round, behind, &mut running)) {
                    Ok(run) => {
                        println!("{}", self.progress(row, &run));
                        self.results.runs.push(run);
                    }
                    // A proxy that breaks is a finding, not the end of the comparison.
                    Err(error) => {
                        running.remove(&peer);
                        let why = format!("{error:#}");
                        let placement = behind.placement.name();
                        println!(
                            "{} {placement:<8} {:<16} {peer:<19} absent: {why}",
                            self.remains(),
                            row.name
                        );
                        self.results.absent.insert(key, why);
                    }
                }
            }
        }
    }

    /// Waits until no other comparison measures, then does `run`.
    fn in_turn(&self, run: impl FnOnce() -> Result<Run>) -> Result<Run> {
        thread::sleep(PAUSE);
        let _turn = self.turns.take()?;
        run()
    }

    fn run_once(
        &self,
        row: &Row,
        peer: Peer,
        round: usize,
        behind: &Behind,
        running: &mut BTreeMap<Peer, Running>,
    ) -> Result<Run> {
        if row.needs_fresh_peer() {
            running.remove(&peer);
        }
        let proxy = match running.entry(peer) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.start(peer, behind)?),
        };
        let _active = proxy.activate()?;
        let cores = behind.placement.load();
        let pace =
            Pace { warm: self.plan.warm(), window: self.plan.window()?, threads: cores.count(), cores };
        let counts = self.plan.syscalls && peer.is_process();
        let syscalls =
            counts.then(|| SyscallCounter::attach(&self.site.directory, &proxy.pids())).transpose()?;
        measure(row, round, proxy, behind, &pace, syscalls)
    }

    fn start(&self, peer: Peer, behind: &Behind) -> Result<Running> {
        if let (Peer::Pointsman(_), Err(why)) = (peer, &behind.store) {
            return Err(anyhow!("no cluster store: {why}"));
        }
        peer.start(self.site, &behind.placement.proxy())
    }

    /// How far it is, and how long it will take.
    fn remains(&self) -> String {
        let elapsed = self.started.elapsed().as_secs_f64();
        let left = elapsed / self.done as f64 * (self.total - self.done) as f64;
        let (minutes, seconds) = ((left / 60.0).floor(), left % 60.0);
        format!("[{}/{}, {minutes:.0}:{seconds:02.0} left]", self.done, self.total)
    }

    fn progress(&self, row: &Row, run: &Run) -> String {
        let mut line = format!(
            "{} {:<8} {:<16} {:<19} {:>9} {}",
            self.remains(),
            run.placement.name(),
            row.name,
            run.peer,
            significant(run.rate),
            row.unit().rate()
        );
        // Writing to a string cannot fail.
        if let Some(cost) = run.proxy_cost() {
            let cost = cost * row.unit().costs_per_second();
            let _ = write!(line, ", proxy {} {}", significant(cost), row.unit().cost());
        }
        if let Some(p99) = run.p99 {
            let _ = write!(line, ", p99 {} µs", significant(p99));
        }
        if let Some(syscalls) = run.syscalls {
            let _ = write!(line, ", {} system calls", significant(syscalls));
        }
        if let Some(bytes) = run.resident_per_session {
            let _ = write!(line, ", {} kB a session", significant(bytes / 1000.0));
        }
        line
    }
}

/// Three significant digits, and no fewer than the number has before its point.
pub fn significant(number: f64) -> String {
    let size = number.abs();
    let decimals = if size >= 100.0 || size == 0.0 {
        0
    } else if size >= 10.0 {
        1
    } else if size >= 1.0 {
        2
    } else {
        3
    };
    format!("{number:.decimals$}")
}

fn measure(
    row: &Row,
    round: usize,
    proxy: &Running,
    behind: &Behind,
    pace: &Pace,
    mut syscalls: Option<SyscallCounter>,
) -> Result<Run> {
    let mut meter = Meter::new(watched(row, proxy, behind));
    let mut look = |edge| {
        meter.look(edge);
        if let Some(counter) = &mut syscalls {
            counter.look(edge);
        }
    };
    let mut run = Run {
        row: row.name.clone(),
        peer: proxy.peer(),
        placement: behind.placement,
        round,
        rate: 0.0,
        units: 0.0,
        usage: Usage::default(),
        p50: None,
        p99: None,
        bulk_beside: None,
        syscalls: None,
        peak: None,
        resident_per_session: None,
        kernel_per_session: None,
    };
    let target = proxy.listeners.bench;
    match &row.work {
        Work::Streams(streams) => {
            let outcome = load::streams(target, streams, pace, &mut look)?;
            run.take(row, &outcome);
        }
        Work::Churn(parallel) => {
            let outcome = load::churn(target, *parallel, pace, &mut look)?;
            run.take(row, &outcome);
        }
        Work::Idle(count) => {
            let sessions = run.open_idle(*count, proxy, pace)?;
            let outcome = load::streams(target, &[Stream::Ping(64)], pace, &mut look)?;
            drop(sessions);
            run.take(row, &outcome);
        }
        Work::Pgbench { clients, reconnect } => {
            let postgres = behind.postgres.as_ref().context("PostgreSQL was not started")?;
            look(Edge::Begin);
            let report = postgres.pgbench(proxy.listeners.postgres, *clients, *reconnect, pace)?;
            look(Edge::End);
            run.units = report.transactions as f64;
            run.rate = report.rate;
            run.p50 = Some(report.latency * 1000.0);
        }
    }
    run.usage = meter.usage()?;
    ensure!(run.units > 0.0, "nothing came through");
    if let Some(counter) = syscalls {
        run.syscalls = Some(counter.count()? as f64 / run.units);
    }
    run.peak = proxy.peer().is_process().then(|| memory::peak(&proxy.pids()));
    Ok(run)
}

fn watched(row: &Row, proxy: &Running, behind: &Behind) -> Watched {
    let own: Vec<Pid> = vec![std::process::id()];
    // pgbench's own time is that of a child that we wait for, which is ours when the run is over.
    let server = match &behind.postgres {
        Some(postgres) if row.needs_postgres() => postgres.pids(),
        _ => behind.backend.family(),
    };
    Watched { proxy: proxy.pids(), server, load: own }
}

impl Run {
    fn take(&mut self, row: &Row, outcome: &Outcome) {
        let seconds = outcome.elapsed.as_secs_f64();
        let gigabytes = outcome.bytes as f64 / 1e9;
        self.units = match row.unit() {
            Unit::Gigabyte => gigabytes,
            Unit::Request | Unit::Connection | Unit::Transaction => outcome.requests as f64,
        };
        self.rate = self.units / seconds;
        if row.is_mixed() {
            self.bulk_beside = Some(gigabytes / seconds);
        }
        if outcome.latency.count() > 0 {
            let microseconds = |quantile| outcome.latency.quantile(quantile).as_secs_f64() * 1e6;
            self.p50 = Some(microseconds(0.5));
            self.p99 = Some(microseconds(0.99));
        }
    }

    /// Opens idle sessions and takes the memory that they cost.
    fn open_idle(&mut self, count: usize, proxy: &Running, pace: &Pace) -> Result<Vec<std::net::TcpStream>> {
        let target = proxy.listeners.bench;
        let pids = proxy.pids();
        let open = |count| {
            thread::scope(|scope| {
                let opener = scope.spawn(move || {
                    pace.cores.confine_this_thread()?;
                    idle::open(target, count)
                });
                opener.join().map_err(|_| anyhow!("the thread that opens sessions panicked"))?
            })
        };
        // What the first sessions make a proxy allocate is not the price of a session.
        drop(open(100)?);
        thread::sleep(Duration::from_millis(300));
        let (resident, kernel) = (memory::resident(&pids), memory::kernel()?);
        let sessions = open(count)?;
        thread::sleep(Duration::from_millis(300));
        let more = |after: u64, before: u64| after.saturating_sub(before) as f64 / count as f64;
        if proxy.peer().is_process() {
            self.resident_per_session = Some(more(memory::resident(&pids), resident));
        }
        self.kernel_per_session = Some(more(memory::kernel()?, kernel));
        Ok(sessions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn significant_digits() {
        let shown: Vec<String> = [12345.6, 123.4, 12.34, 1.234, 0.1234, 0.0].map(significant).to_vec();
        assert_eq!(shown, ["12346", "123", "12.3", "1.23", "0.123", "0"]);
    }
}
