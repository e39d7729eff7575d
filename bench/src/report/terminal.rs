//! The table for a terminal.

use std::fmt::Write as _;

use super::goals::{Goal, Verdict};
use super::summary::{Cell, Summary};
use crate::comparison::significant;
use crate::measure::statistics::Spread;
use crate::peers::Peer;

/// One block for each row, then the goals.
pub fn render(summaries: &[Summary<'_>], goals: &[Goal]) -> String {
    let mut text = String::new();
    for summary in summaries {
        block(&mut text, summary);
    }
    let measured = goals.iter().filter(|goal| goal.verdict != Verdict::Absent);
    for (index, goal) in measured.enumerate() {
        if index == 0 {
            text.push_str("\nGoals, against the best of HAProxy's configurations\n");
        }
        let engine = Peer::Pointsman(goal.engine);
        let verdict = goal.verdict.name().trim_matches('*');
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  {verdict:<12} {:<18} {engine:<19} {}: {} (must: {}; aim: {})",
            goal.row, goal.what, goal.found, goal.must, goal.aim
        );
    }
    text
}

fn block(text: &mut String, summary: &Summary<'_>) {
    let row = summary.row;
    // Writing to a string cannot fail.
    let _ = writeln!(text, "\n{} ({}, {})", row.title, row.name, summary.placement.name());
    let _ = writeln!(
        text,
        "  {:<20}{:>12} {:>16}  {:>20} {:>6} {:>11} {:>10} {:>10} {:>9}",
        "",
        row.unit().rate(),
        "min-max",
        format!("proxy {} min-max", row.unit().cost()),
        "×HA",
        "machine",
        "p50 µs",
        "p99 µs",
        "peak MB"
    );
    let best = summary.best_haproxy();
    for cell in &summary.cells {
        line(text, cell, best);
    }
    for (peer, why) in &summary.absent {
        let _ = writeln!(text, "  {peer:<20}absent: {why}");
    }
}

fn line(text: &mut String, cell: &Cell, best: Option<&Cell>) {
    let median = |spread: Option<Spread>| spread.map_or_else(|| "-".to_owned(), |s| significant(s.median));
    let range = |s: Spread| format!("{}-{}", significant(s.min), significant(s.max));
    let ratio = cell.proxy.zip(best.and_then(|best| best.proxy));
    let ratio =
        ratio.map_or_else(|| "-".to_owned(), |(own, best)| format!("{:.2}", own.median / best.median));
    let proxy =
        cell.proxy.map_or_else(|| "-".to_owned(), |s| format!("{} {}", significant(s.median), range(s)));
    let _ = write!(
        text,
        "  {:<20}{:>12} {:>16}  {proxy:>20} {ratio:>6} {:>11} {:>10} {:>10} {:>9}",
        cell.peer,
        significant(cell.rate.median),
        range(cell.rate),
        median(cell.machine),
        median(cell.p50),
        median(cell.p99),
        cell.peak.map_or_else(|| "-".to_owned(), |s| significant(s.median / 1e6))
    );
    if let Some(bulk) = cell.bulk_beside {
        let _ = write!(text, "  bulk {} GB/s", significant(bulk.median));
    }
    if let Some(syscalls) = cell.syscalls {
        let _ = write!(text, "  {} system calls", significant(syscalls.median));
    }
    if let Some(resident) = cell.resident {
        let _ = write!(text, "  {} kB a session", significant(resident.median / 1000.0));
    }
    if let Some(kernel) = cell.kernel {
        let _ = write!(text, "  kernel {} kB a session", significant(kernel.median / 1000.0));
    }
    text.push('\n');
}
