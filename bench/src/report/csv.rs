//! Every run as a line of comma-separated values.

use std::fmt::Write as _;

use crate::comparison::{Results, Run};

const HEAD: &str = "placement,row,peer,round,unit,rate_per_s,units,window_s,cpu_proxy_s,cpu_server_s,cpu_load_s,\
cpu_machine_s,cpu_interrupts_s,cpu_elsewhere_s,cpu_stolen_s,p50_us,p99_us,bulk_beside_gb_s,syscalls_per_unit,peak_rss_bytes,\
rss_per_session_bytes,kernel_per_session_bytes";

/// The whole file.
pub fn render(results: &Results) -> String {
    let mut text = format!("{HEAD}\n");
    for run in &results.runs {
        let unit = results.rows.iter().find(|row| row.name == run.row).map_or("", |row| row.unit().rate());
        line(&mut text, run, unit.trim_end_matches("/s"));
    }
    text
}

fn line(text: &mut String, run: &Run, unit: &str) {
    let usage = &run.usage;
    let seconds = [
        usage.elapsed,
        usage.proxy,
        usage.server,
        usage.load,
        usage.machine,
        usage.interrupts,
        usage.elsewhere,
        usage.stolen,
    ];
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "{},{},{},{},{unit},{},{}",
        run.placement.name(),
        run.row,
        run.peer.name(),
        run.round,
        run.rate,
        run.units
    );
    for duration in seconds {
        let _ = write!(text, ",{:.6}", duration.as_secs_f64());
    }
    for number in [run.p50, run.p99, run.bulk_beside, run.syscalls] {
        text.push(',');
        if let Some(number) = number {
            let _ = write!(text, "{number:.3}");
        }
    }
    let peak = run.peak.map(|bytes| bytes as f64);
    for number in [peak, run.resident_per_session, run.kernel_per_session] {
        text.push(',');
        if let Some(number) = number {
            let _ = write!(text, "{number:.0}");
        }
    }
    text.push('\n');
}
