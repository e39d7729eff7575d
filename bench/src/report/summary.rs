//! Medians of the runs of each peer in each row.

use crate::comparison::{Placement, Results, Run};
use crate::measure::statistics::Spread;
use crate::peers::{Peer, Splice};
use crate::rows::Row;

/// One peer in one row.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Who.
    pub peer: Peer,
    /// Units a second.
    pub rate: Spread,
    /// CPU time of the proxy for a unit, in the row's unit of cost.
    pub proxy: Option<Spread>,
    /// CPU time of the machine for a unit, in the row's unit of cost.
    pub machine: Option<Spread>,
    /// Median latency, microseconds.
    pub p50: Option<Spread>,
    /// 99th percentile, microseconds.
    pub p99: Option<Spread>,
    /// Bulk beside small requests, GB/s.
    pub bulk_beside: Option<Spread>,
    /// System calls of the proxy for a unit.
    pub syscalls: Option<Spread>,
    /// Largest resident memory, bytes.
    pub peak: Option<Spread>,
    /// Resident for each idle session, bytes.
    pub resident: Option<Spread>,
    /// In the kernel for each idle session, bytes.
    pub kernel: Option<Spread>,
}

/// One row with its cells, in the order of the peers.
#[derive(Debug, Clone)]
pub struct Summary<'a> {
    /// Which.
    pub row: &'a Row,
    /// Where everybody ran.
    pub placement: Placement,
    /// Who was measured.
    pub cells: Vec<Cell>,
    /// Who was not, and why.
    pub absent: Vec<(Peer, &'a str)>,
}

impl Cell {
    fn of(row: &Row, peer: Peer, runs: &[&Run]) -> Option<Self> {
        let spread = |of: &dyn Fn(&Run) -> Option<f64>| Spread::of(runs.iter().filter_map(|run| of(run)));
        let scale = row.unit().costs_per_second();
        // Beside bulk, the cost of a small request cannot be told apart.
        let cost = |cost: Option<f64>| if row.is_mixed() { None } else { cost.map(|cost| cost * scale) };
        Some(Self {
            peer,
            rate: spread(&|run| Some(run.rate))?,
            proxy: spread(&|run| cost(run.proxy_cost())),
            machine: spread(&|run| cost(run.machine_cost())),
            p50: spread(&|run| run.p50),
            p99: spread(&|run| run.p99),
            bulk_beside: spread(&|run| run.bulk_beside),
            syscalls: spread(&|run| run.syscalls),
            peak: spread(&|run| run.peak.map(|bytes| bytes as f64)),
            resident: spread(&|run| run.resident_per_session),
            kernel: spread(&|run| run.kernel_per_session),
        })
    }
}

impl Summary<'_> {
    /// What `peer` did.
    pub fn cell(&self, peer: Peer) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.peer == peer)
    }

    /// HAProxy's configuration that costs the least CPU in this row; without that, the fastest.
    pub fn best_haproxy(&self) -> Option<&Cell> {
        let all = [Splice::Off, Splice::Auto, Splice::Always].map(Peer::HaProxy);
        let cells = all.iter().filter_map(|peer| self.cell(*peer));
        cells.min_by(|one, other| one.price().total_cmp(&other.price()))
    }
}

impl Cell {
    /// What is compared: CPU for a unit, or the time that a unit takes.
    pub fn price(&self) -> f64 {
        self.proxy.map_or(1.0 / self.rate.median, |cost| cost.median)
    }
}

/// All rows of one placement.
pub fn summarise(results: &Results, placement: Placement) -> Vec<Summary<'_>> {
    let of_row = |row| {
        let cells = Peer::ALL.into_iter().filter_map(|peer| {
            let runs = results.runs.iter();
            let runs: Vec<&Run> = runs
                .filter(|run| run.placement == placement && run.peer == peer && run.row == row_name(row))
                .collect();
            Cell::of(row, peer, &runs)
        });
        let cells: Vec<Cell> = cells.collect();
        let missing = |peer: &Peer| !cells.iter().any(|cell| cell.peer == *peer);
        let absent = results
            .absent
            .iter()
            .filter(|((of, name, peer), _)| *of == placement && *name == row.name && missing(peer))
            .map(|((_, _, peer), why)| (*peer, &**why))
            .collect();
        Summary { row, placement, cells, absent }
    };
    let rows = results.rows.iter().map(of_row);
    rows.filter(|summary| !(summary.cells.is_empty() && summary.absent.is_empty())).collect()
}

fn row_name(row: &Row) -> &str {
    &row.name
}
