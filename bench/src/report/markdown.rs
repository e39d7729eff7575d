//! The table for people: `README.md` beside the CSV file.

use std::fmt::Write as _;

use super::goals::{Goal, Verdict};
use super::summary::{Cell, Summary};
use crate::comparison::{Placement, Results, significant};
use crate::measure::statistics::Spread;
use crate::report::machine::Machine;

/// The whole file.
pub fn render(
    machine: &Machine,
    results: &Results,
    summaries: &[Summary<'_>],
    goals: &[Goal],
    plots: &[&str],
) -> String {
    let mut text = String::new();
    text.push_str("# Measurements\n\nWritten by `make bench`; do not edit. Every run is a line of [results.csv](results.csv).\n");
    about(&mut text, machine, results);
    if !goals.is_empty() {
        goal_table(&mut text, goals);
    }
    for plot in plots {
        let _ = writeln!(text, "\n![{plot}]({plot})");
    }
    for (placement, title) in [
        (Placement::Pinned, "Pinned: the proxy on the first core, load and server on the second"),
        (Placement::Unpinned, "Unpinned: everybody anywhere"),
    ] {
        let of_placement: Vec<_> = summaries.iter().filter(|one| one.placement == placement).collect();
        if !of_placement.is_empty() {
            let _ = writeln!(text, "\n## {title}");
            for summary in of_placement {
                table(&mut text, summary);
            }
        }
    }
    text.push_str(EXPLANATION);
    text
}

fn about(text: &mut String, machine: &Machine, results: &Results) {
    let _ = writeln!(
        text,
        "\n| | |\n|---|---|\n| date | {} |\n| machine | {}, {} cores, {} GB |\n| kernel | {} |",
        machine.date, machine.processor, machine.cores, machine.gigabytes, machine.kernel
    );
    for (name, version) in &machine.versions {
        let _ = writeln!(text, "| {name} | {version} |");
    }
    let windows = Spread::of(results.runs.iter().map(|run| run.usage.elapsed.as_secs_f64()));
    let _ = writeln!(
        text,
        "| runs | {}, with windows of {} s in the median |",
        results.runs.len(),
        significant(windows.map_or(0.0, |spread| spread.median))
    );
    let disturbance = results.disturbance();
    let _ = writeln!(
        text,
        "| other work on the machine during the runs (and threads of the kernel) | {} of a core in the median, {} at most |",
        significant(disturbance.map_or(0.0, |s| s.median)),
        significant(disturbance.map_or(0.0, |s| s.max))
    );
    if disturbance.is_some_and(|spread| spread.median > 0.2) {
        text.push_str(
            "\n**The machine was not quiet**: trust ratios of CPU time within a row, and rates and latencies less.\n",
        );
    }
}

fn goal_table(text: &mut String, goals: &[Goal]) {
    text.push_str(
        "\n## Goals\n\nPointsman against HAProxy, the best of its configurations for each line; medians of interleaved runs.\n",
    );
    let count = |verdict: Verdict| goals.iter().filter(|goal| goal.verdict == verdict).count();
    let _ = writeln!(
        text,
        "{} reached the aim, {} met the must, {} missed it, {} not measured.\n",
        count(Verdict::Aim),
        count(Verdict::Must),
        count(Verdict::Missed),
        count(Verdict::Absent)
    );
    text.push_str("| row | compared | engine | found | must | aim | |\n|---|---|---|---|---|---|---|\n");
    for goal in goals {
        let engine = goal.engine.name();
        let _ = writeln!(
            text,
            "| {} | {} | {engine} | {} | {} | {} | {} |",
            goal.row,
            goal.what,
            goal.found,
            goal.must,
            goal.aim,
            goal.verdict.name()
        );
    }
}

fn table(text: &mut String, summary: &Summary<'_>) {
    let row = summary.row;
    let _ = writeln!(text, "\n### {} (`{}`)\n", row.title, row.name);
    let _ = write!(
        text,
        "| | {} | proxy CPU, {} | × HAProxy | machine CPU, {} | p50, µs | p99, µs | peak RSS, MB |",
        row.unit().rate(),
        row.unit().cost(),
        row.unit().cost()
    );
    let (mixed, idle) = (row.is_mixed(), row.needs_fresh_peer());
    if mixed {
        text.push_str(" bulk beside, GB/s |");
    }
    if idle {
        text.push_str(" RSS for each session, kB | kernel for each session, kB |");
    }
    let columns = 8 + usize::from(mixed) + 2 * usize::from(idle);
    let _ = writeln!(text, "\n|---|{}", "---:|".repeat(columns - 1));
    for cell in &summary.cells {
        let mut fields = fields(cell, summary.best_haproxy());
        if mixed {
            fields.push(shown(cell.bulk_beside, 1.0));
        }
        if idle {
            fields.push(shown(cell.resident, 1000.0));
            fields.push(shown(cell.kernel, 1000.0));
        }
        let _ = writeln!(text, "| {} | {} |", cell.peer.name(), fields.join(" | "));
    }
    for (peer, why) in &summary.absent {
        let _ = writeln!(
            text,
            "| {} | absent: {} |{}",
            peer.name(),
            why.replace('|', "/"),
            " |".repeat(columns - 2)
        );
    }
}

fn fields(cell: &Cell, best: Option<&Cell>) -> Vec<String> {
    let ratio = cell.proxy.zip(best.and_then(|best| best.proxy));
    vec![
        shown(Some(cell.rate), 1.0),
        shown(cell.proxy, 1.0),
        ratio.map_or_else(|| "–".to_owned(), |(own, best)| format!("{:.2}", own.median / best.median)),
        shown(cell.machine, 1.0),
        median(cell.p50, 1.0),
        shown(cell.p99, 1.0),
        median(cell.peak, 1e6),
    ]
}

/// The median, with how far the runs are from it.
fn shown(spread: Option<Spread>, unit: f64) -> String {
    spread.map_or_else(
        || "–".to_owned(),
        |s| format!("{} ±{:.0} %", significant(s.median / unit), s.scatter() * 100.0),
    )
}

fn median(spread: Option<Spread>, unit: f64) -> String {
    spread.map_or_else(|| "–".to_owned(), |s| significant(s.median / unit))
}

const EXPLANATION: &str = include_str!("explanation.md");
