//! The measurement of scale: `scale.md` and `scale.csv`, and the same for a terminal.

use std::fmt::Write as _;

use super::machine::Machine;
use crate::comparison::significant;
use crate::measure::statistics::Spread;
use crate::scale::table::{Finding, Table};

/// The table for people.
pub fn markdown(machine: &Machine, tables: &[Table]) -> String {
    let mut text = String::from(
        "# Scale\n\nWritten by `make scale`, and by `make bench` as its last part; do not edit. Every run is a line of \
         [scale.csv](scale.csv).\n\n",
    );
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{}, {}, {} cores, {} GB, {}. Medians of three runs, with how far the runs are from them. The proxy has the first core for \
         itself; load, servers and store share the second.",
        machine.date, machine.processor, machine.cores, machine.gigabytes, machine.kernel
    );
    for table in tables {
        section(&mut text, table);
    }
    text.push_str(EXPLANATION);
    text
}

fn section(text: &mut String, table: &Table) {
    let findings = table.findings();
    let _ = write!(text, "\n## {} (`{}`)\n\n| engine | {} |", table.title, table.name, table.counted);
    for column in table.columns {
        let _ = write!(text, " {}, {}", column.name, column.unit);
        if let Some(bound) = column.bound {
            let _ = write!(text, " (≤ {bound})");
        }
        text.push_str(" |");
    }
    let _ = writeln!(text, "\n|---|---:|{}", "---:|".repeat(table.columns.len()));
    for engine in ENGINES {
        for step in table.of(engine) {
            let _ = write!(text, "| {} | {} |", engine.name(), step.count);
            for index in 0..table.columns.len() {
                let is_found = findings.iter().any(|finding| {
                    (finding.engine, finding.count, finding.column) == (engine, step.count, index)
                });
                let mark = if is_found { "**" } else { "" };
                let _ = write!(text, " {mark}{}{mark} |", shown(step.spread(index)));
            }
            text.push('\n');
        }
    }
    text.push('\n');
    for line in verdict(table, &findings) {
        let _ = writeln!(text, "- {line}");
    }
    for note in &table.notes {
        let _ = writeln!(text, "- {note}");
    }
}

const ENGINES: [crate::peers::Engine; 2] = [crate::peers::Engine::Epoll, crate::peers::Engine::IoUring];

fn verdict(table: &Table, findings: &[Finding]) -> Vec<String> {
    if findings.is_empty() {
        return vec!["Nothing grows faster than linearly, and no bound is exceeded.".to_owned()];
    }
    let line = |finding: &Finding| {
        format!("**{}, {} {}**: {}.", finding.engine.name(), finding.count, table.counted, finding.text)
    };
    findings.iter().map(line).collect()
}

fn shown(spread: Option<Spread>) -> String {
    match spread {
        None => "–".to_owned(),
        Some(spread) if spread.min.to_bits() == spread.max.to_bits() => significant(spread.median),
        Some(spread) => {
            format!(
                "{} ({}–{})",
                significant(spread.median),
                significant(spread.min),
                significant(spread.max)
            )
        }
    }
}

/// Every run as a line.
pub fn csv(tables: &[Table]) -> String {
    let mut text = String::from("part,engine,count,run,cost,unit,value\n");
    for table in tables {
        for step in &table.steps {
            for (round, run) in step.runs.iter().enumerate() {
                for (column, value) in table.columns.iter().zip(run) {
                    let Some(value) = value else { continue };
                    let _ = writeln!(
                        text,
                        "{},{},{},{},{},{},{value:.6}",
                        table.name,
                        step.engine.name(),
                        step.count,
                        round + 1,
                        column.name,
                        column.unit
                    );
                }
            }
        }
    }
    text
}

/// Medians and what was found.
pub fn terminal(tables: &[Table]) -> String {
    let mut text = String::new();
    for table in tables {
        let _ = writeln!(text, "\n{}", table.title);
        for engine in ENGINES {
            for step in table.of(engine) {
                let costs = table.columns.iter().enumerate().map(|(index, column)| {
                    let median = step.spread(index).map_or_else(|| "-".to_owned(), |s| significant(s.median));
                    format!("{}: {median} {}", column.name, column.unit)
                });
                let costs = costs.collect::<Vec<_>>().join("; ");
                let _ = writeln!(text, "  {:<8} {:>6} {}  {costs}", engine.name(), step.count, table.counted);
            }
        }
        for line in verdict(table, &table.findings()).iter().chain(&table.notes) {
            let _ = writeln!(text, "  {}", line.replace("**", ""));
        }
    }
    text
}

const EXPLANATION: &str = "
## How it was measured

- CPU is that of all threads of the proxy's process, from `/proc/PID/task/*/schedstat`; it includes the kernel's work for its system calls, and \
interrupts that were handled meanwhile. *At rest* is over one second in which nobody does anything but Pointsman's own questions, probes and clocks.
- A step grows faster than linearly when even its lowest run lies above the straight line from the lowest run of the first step through the \
highest run of the step before it; differences below the resolution of a clock, or of a page, are none. Such numbers, and medians beyond a bound, are bold.
- *revoked* is the earlier of two instants: the timeline's entry `revoked`, cut off to milliseconds (so up to one too early), and the first end \
of a session that a client or the old server has seen. The *last byte* is dated when the old server has read it, so what waited there counts against us. \
Whether what was written later than 5 ms after it arrived is exact: each message carries when it was written. *All ended* is when clients and the old server have \
seen the last end.
- *meanwhile* is from the put of the new leader's key until all sessions have ended, 200 ms at least. The round trips without a proxy in the \
same time show how much of it is the load's own: thousands of ends arrive on the core that it shares with the servers.
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::Engine;
    use crate::scale::table::Column;

    const COLUMNS: &[Column] = &[Column::cost("RSS", "MB", 0.1), Column::bounded("time", "ms", 5.0)];

    #[test]
    fn a_table_shows_medians_and_what_was_found() {
        let mut table = Table::new("idle", "Idle", "sessions", COLUMNS);
        for scatter in [0.0, 0.1, -0.1] {
            table.add(Engine::Epoll, 1, vec![Some(1.0 + scatter), None]);
            table.add(Engine::Epoll, 10, vec![Some(40.0 + scatter), Some(7.0)]);
        }
        let mut text = String::new();
        section(&mut text, &table);
        assert!(text.contains("| epoll | 1 | 1.00 (0.900–1.10) | – |"), "{text}");
        assert!(text.contains("| epoll | 10 | **40.0 (39.9–40.1)** | **7.00** |"), "{text}");
        assert!(text.contains("- **epoll, 10 sessions**: time is above 5 ms."), "{text}");
        assert!(csv(&[table]).contains("idle,epoll,10,3,RSS,MB,39.900000\n"));
    }
}
