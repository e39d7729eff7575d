//! What the project promised itself, and whether it was kept.
//!
//! CPU time is compared as a ratio of medians. Latencies and rates scatter more: they are worse only when all runs are
//! worse than all runs of the other ("beyond the measured spread").

use super::summary::{Cell, Summary};
use crate::comparison::{Placement, significant};
use crate::measure::statistics::Spread;
use crate::peers::{Engine, Peer, Splice};

/// How well a goal was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As good as was hoped for.
    Aim,
    /// As good as it has to be.
    Must,
    /// Not as good as it has to be.
    Missed,
    /// There is nothing to compare.
    Absent,
}

impl Verdict {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aim => "aim reached",
            Self::Must => "met",
            Self::Missed => "**missed**",
            Self::Absent => "not measured",
        }
    }

    fn of(value: Option<f64>, must: f64, aim: f64) -> Self {
        match value {
            None => Self::Absent,
            Some(value) if value <= aim => Self::Aim,
            Some(value) if value <= must => Self::Must,
            Some(_) => Self::Missed,
        }
    }
}

/// One line of the table of goals.
#[derive(Debug, Clone)]
pub struct Goal {
    /// Where.
    pub row: String,
    /// What is compared.
    pub what: String,
    /// Which engine of ours.
    pub engine: Engine,
    /// What was found.
    pub found: String,
    /// What has to be.
    pub must: String,
    /// What is hoped for.
    pub aim: String,
    /// Whether it is.
    pub verdict: Verdict,
}

const ENGINES: [Engine; 2] = [Engine::Epoll, Engine::IoUring];
const HAPROXY: [Peer; 3] =
    [Peer::HaProxy(Splice::Off), Peer::HaProxy(Splice::Auto), Peer::HaProxy(Splice::Always)];

/// The limits of one kind of row: for `epoll`, for `io_uring`; each must and aim.
type Limits = [(f64, f64); 2];
const PINGPONG: Limits = [(0.92, 0.84), (0.85, 0.70)];
const PGBENCH: Limits = [(0.92, 0.83), (0.75, 0.63)];
const CHURN: Limits = [(0.95, 0.85), (0.80, 0.75)];
/// Against HAProxy as it is, and against HAProxy with splice.
const BULK: Limits = [(0.22, 0.16), (0.65, 0.50)];
/// Bytes for each idle session.
const RESIDENT: (f64, f64) = (1200.0, 500.0);

/// All goals for the rows that were measured with pinning.
pub fn judge(summaries: &[Summary<'_>]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for summary in summaries.iter().filter(|summary| summary.placement == Placement::Pinned) {
        for engine in ENGINES {
            of_row(summary, engine, &mut goals);
        }
    }
    goals
}

fn of_row(summary: &Summary<'_>, engine: Engine, goals: &mut Vec<Goal>) {
    let judge = Judge { summary, engine };
    let index = usize::from(engine == Engine::IoUring);
    let name = &*summary.row.name;
    let of_engine = |limits: Limits| limits.get(index).copied().unwrap_or_default();
    match name {
        _ if name.starts_with("bulk-") => {
            let [plain, spliced] = BULK;
            let [off, splicing @ ..] = HAPROXY;
            goals.push(judge.cost("CPU, × HAProxy's default", plain, &[off]));
            goals.push(judge.cost("CPU, × HAProxy with splice", spliced, &splicing));
        }
        "pingpong-64-32" | "pingpong-64-256" => {
            goals.push(judge.cost("CPU, × HAProxy", of_engine(PINGPONG), &HAPROXY));
        }
        "pgbench-16" | "pgbench-64" => {
            goals.push(judge.cost("CPU, × HAProxy", of_engine(PGBENCH), &HAPROXY));
        }
        "churn" => goals.push(judge.cost("CPU, × HAProxy", of_engine(CHURN), &HAPROXY)),
        _ if name.starts_with("idle-") => goals.push(judge.resident()),
        _ => {}
    }
    if name.starts_with("pingpong-") || summary.row.is_mixed() {
        goals.push(judge.scattered("p99", "µs", |cell| cell.p99, true));
    }
    goals.push(judge.scattered("rate", summary.row.unit().rate(), |cell| Some(cell.rate), false));
}

/// One engine in one row.
struct Judge<'a> {
    summary: &'a Summary<'a>,
    engine: Engine,
}

impl Judge<'_> {
    fn own(&self) -> Option<&Cell> {
        self.summary.cell(Peer::Pointsman(self.engine))
    }

    fn goal(&self, what: String, found: String, must: String, aim: String, verdict: Verdict) -> Goal {
        Goal { row: self.summary.row.name.clone(), what, engine: self.engine, found, must, aim, verdict }
    }

    /// The ratio of our CPU time to that of the best of `others`.
    fn cost(&self, what: &str, (must, aim): (f64, f64), others: &[Peer]) -> Goal {
        let cost = |cell: &Cell| Some(cell.proxy?.median);
        let best = others.iter().filter_map(|peer| cost(self.summary.cell(*peer)?)).min_by(f64::total_cmp);
        let ratio = self.own().and_then(cost).zip(best).map(|(own, best)| own / best);
        let found = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
        let verdict = Verdict::of(ratio, must, aim);
        self.goal(what.to_owned(), found, format!("≤ {must:.2}"), format!("≤ {aim:.2}"), verdict)
    }

    fn resident(&self) -> Goal {
        let (must, aim) = RESIDENT;
        let bytes = self.own().and_then(|cell| cell.resident).map(|spread| spread.median);
        let kilobytes = |bytes: f64| format!("{} kB", significant(bytes / 1000.0));
        let found = bytes.map_or_else(|| "-".to_owned(), kilobytes);
        let limit = |bytes| format!("≤ {}", kilobytes(bytes));
        let what = "resident memory for each idle session".to_owned();
        self.goal(what, found, limit(must), limit(aim), Verdict::of(bytes, must, aim))
    }

    /// A quantity that must not be worse than the best of HAProxy's beyond the spread.
    fn scattered(
        &self,
        what: &str,
        unit: &str,
        of: impl Fn(&Cell) -> Option<Spread>,
        less_is_better: bool,
    ) -> Goal {
        let better = |one: &Spread, other: &Spread| {
            if less_is_better { one.median <= other.median } else { one.median >= other.median }
        };
        let others = HAPROXY.iter().filter_map(|peer| of(self.summary.cell(*peer)?));
        let best = others.reduce(|one, other| if better(&one, &other) { one } else { other });
        let own = self.own().and_then(of);
        let verdict = match own.zip(best) {
            None => Verdict::Absent,
            Some((own, best)) if better(&own, &best) => Verdict::Aim,
            Some((own, best)) if less_is_better && own.is_above(&best) => Verdict::Missed,
            Some((own, best)) if !less_is_better && best.is_above(&own) => Verdict::Missed,
            Some(_) => Verdict::Must,
        };
        let range = |spread: Option<Spread>| {
            spread.map_or_else(
                || "-".to_owned(),
                |s| format!("{} ({}–{})", significant(s.median), significant(s.min), significant(s.max)),
            )
        };
        let must = format!("no worse than {} beyond the spread", range(best));
        self.goal(format!("{what}, {unit}"), range(own), must, "better".to_owned(), verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows;

    fn cell(peer: Peer, proxy: f64, p99: [f64; 2], rate: [f64; 2]) -> Cell {
        Cell {
            peer,
            rate: Spread::of(rate).unwrap(),
            proxy: Spread::of([proxy]),
            machine: None,
            p50: None,
            p99: Spread::of(p99),
            bulk_beside: None,
            syscalls: None,
            peak: None,
            resident: Spread::of([800.0]),
            kernel: None,
        }
    }

    fn verdicts(row: &str, cells: Vec<Cell>) -> Vec<(String, Engine, Verdict)> {
        let rows = rows::all(&[10_000]);
        let row = rows.iter().find(|one| one.name == row).unwrap();
        let summary = Summary { row, placement: Placement::Pinned, cells, absent: Vec::new() };
        judge(&[summary]).into_iter().map(|goal| (goal.what, goal.engine, goal.verdict)).collect()
    }

    #[test]
    fn small_messages() {
        let found = verdicts(
            "pingpong-64-32",
            vec![
                cell(Peer::Pointsman(Engine::Epoll), 9.0, [50.0, 60.0], [100.0, 110.0]),
                cell(Peer::HaProxy(Splice::Off), 10.0, [40.0, 55.0], [120.0, 130.0]),
                cell(Peer::HaProxy(Splice::Auto), 12.0, [70.0, 80.0], [90.0, 95.0]),
            ],
        );
        let of = |what: &str, engine| {
            found.iter().find(|(name, of, _)| name.starts_with(what) && *of == engine).unwrap().2
        };
        assert_eq!(of("CPU", Engine::Epoll), Verdict::Must, "0.90 of the cheapest");
        assert_eq!(of("p99", Engine::Epoll), Verdict::Must, "worse, but within the spread");
        assert_eq!(of("rate", Engine::Epoll), Verdict::Missed, "every run is slower");
        assert_eq!(of("CPU", Engine::IoUring), Verdict::Absent);
    }

    #[test]
    fn bulk_is_compared_with_and_without_splice() {
        let found = verdicts(
            "bulk-up-8",
            vec![
                cell(Peer::Pointsman(Engine::IoUring), 20.0, [1.0; 2], [9.0; 2]),
                cell(Peer::HaProxy(Splice::Off), 100.0, [1.0; 2], [1.0; 2]),
                cell(Peer::HaProxy(Splice::Auto), 90.0, [1.0; 2], [1.0; 2]),
                cell(Peer::HaProxy(Splice::Always), 30.0, [1.0; 2], [1.0; 2]),
            ],
        );
        let of_uring: Vec<Verdict> =
            found.iter().filter(|one| one.1 == Engine::IoUring).map(|one| one.2).collect();
        assert_eq!(of_uring, [Verdict::Must, Verdict::Missed, Verdict::Aim]);
    }

    #[test]
    fn memory() {
        let found =
            verdicts("idle-10000", vec![cell(Peer::Pointsman(Engine::Epoll), 9.0, [1.0; 2], [1.0; 2])]);
        assert_eq!(found.first().unwrap().2, Verdict::Must);
    }
}
