//! Which plots there are.

use super::summary::{Cell, Summary};
use super::svg::{Panel, render};
use crate::comparison::Placement;
use crate::measure::statistics::Spread;

const NOTE: &str = "median; the line is from the smallest to the largest run; proxy on one core, load and server on the other";

/// File names and their contents.
pub fn all(summaries: &[Summary<'_>]) -> Vec<(&'static str, String)> {
    let cost = |summary: &Summary<'_>| {
        let unit = summary.row.unit();
        format!("{} for each {}", unit.cost().trim_end_matches("/GB"), unit.one())
    };
    let rate = |summary: &Summary<'_>| summary.row.unit().rate().to_owned();
    let plots = [
        ("cpu.svg", "CPU time of the proxy (less is better)", panels(summaries, cost, |cell| cell.proxy)),
        ("rate.svg", "Rate (more is better)", panels(summaries, rate, |cell| Some(cell.rate))),
        (
            "latency.svg",
            "99th percentile of latency (less is better)",
            panels(summaries, |_| "µs".to_owned(), |cell| cell.p99),
        ),
        (
            "memory.svg",
            "Resident memory of the proxy for each idle session (less is better)",
            panels(summaries, |_| "bytes".to_owned(), |cell| cell.resident),
        ),
    ];
    let plots = plots.into_iter().filter(|(_, _, panels)| !panels.is_empty());
    plots.map(|(file, title, panels)| (file, render(title, NOTE, &panels))).collect()
}

/// The rows that matter.
fn panels(
    summaries: &[Summary<'_>],
    unit: impl Fn(&Summary<'_>) -> String,
    of: impl Fn(&Cell) -> Option<Spread>,
) -> Vec<Panel> {
    let shown = summaries.iter().filter(|one| one.placement == Placement::Pinned && one.row.matters);
    let panel = |summary: &Summary<'_>| {
        let bars: Vec<_> = summary.cells.iter().filter_map(|cell| Some((cell.peer, of(cell)?))).collect();
        let (title, unit) = (summary.row.title.clone(), unit(summary));
        (!bars.is_empty()).then_some(Panel { title, unit, bars })
    };
    shown.filter_map(panel).collect()
}
