//! From runs to tables.

use std::time::Duration;

use super::*;
use crate::comparison::{Placement, Results, Run};
use crate::measure::usage::Usage;
use crate::peers::{Engine, Peer, Splice};
use crate::rows;

fn run(peer: Peer, round: usize, rate: f64, microseconds: u64) -> Run {
    let usage = Usage {
        elapsed: Duration::from_secs(1),
        proxy: Duration::from_micros(microseconds * 1000),
        machine: Duration::from_secs(1),
        ..Usage::default()
    };
    Run {
        row: "pingpong-64-32".to_owned(),
        peer,
        placement: Placement::Pinned,
        round,
        rate,
        units: 1000.0,
        usage,
        p50: Some(10.0),
        p99: Some(20.0 + round as f64),
        bulk_beside: None,
        syscalls: None,
        peak: peer.is_process().then_some(5_000_000),
        resident_per_session: None,
        kernel_per_session: None,
    }
}

fn results() -> Results {
    let epoll = Peer::Pointsman(Engine::Epoll);
    let haproxy = Peer::HaProxy(Splice::Off);
    let runs = vec![
        run(Peer::Direct, 1, 900.0, 0),
        run(epoll, 1, 1000.0, 8),
        run(haproxy, 1, 800.0, 10),
        run(epoll, 2, 1200.0, 9),
        run(haproxy, 2, 700.0, 12),
        run(epoll, 3, 1100.0, 7),
        run(haproxy, 3, 750.0, 9),
    ];
    let mut rows = rows::all(&[10_000]);
    rows.retain(|row| row.name == "pingpong-64-32");
    let mut results = Results { rows, runs, ..Results::default() };
    let key = (Placement::Pinned, "pingpong-64-32".to_owned(), Peer::Envoy);
    results.absent.insert(key, "not | installed".to_owned());
    results
}

#[test]
fn medians_ratios_and_absences_are_in_the_tables() {
    let results = results();
    let summaries = summary::summarise(&results, Placement::Pinned);
    assert!(summary::summarise(&results, Placement::Unpinned).is_empty());
    let [summary] = &*summaries else { panic!("one row") };
    let epoll = summary.cell(Peer::Pointsman(Engine::Epoll)).unwrap();
    assert!((epoll.rate.median - 1100.0).abs() < 1e-9);
    // 8 ms for 1,000 requests.
    assert!((epoll.proxy.unwrap().median - 8.0).abs() < 1e-9);
    assert!(summary.cell(Peer::Direct).unwrap().proxy.is_none());

    let goals = goals::judge(&summaries);
    let machine = machine::Machine {
        date: "2000-01-01".to_owned(),
        processor: "any".to_owned(),
        cores: 2,
        gigabytes: 1,
        kernel: "Linux".to_owned(),
        versions: vec![("Pointsman", "0.1".to_owned())],
    };
    let text = markdown::render(&machine, &results, &summaries, &goals, &["cpu.svg"]);
    let line = text.lines().find(|line| line.starts_with("| pointsman-epoll")).unwrap();
    assert!(line.contains("| 1100 ±9 % | 8.00 ±12 % | 0.80 |"), "{line}");
    assert!(text.contains("absent: not / installed"));
    assert!(
        text.contains("| pingpong-64-32 | CPU, × HAProxy | epoll | 0.800 | ≤ 0.92 | ≤ 0.84 | aim reached |")
    );
    // Every table has as many fields in each line as in its head.
    let mut head = None;
    for line in text.lines() {
        let fields = line.starts_with('|').then(|| line.matches('|').count());
        assert!(head.is_none() || fields.is_none() || head == fields, "{line}");
        head = fields;
    }
    let shown = terminal::render(&summaries, &goals);
    assert!(shown.contains("absent: not | installed") && shown.contains("aim reached"), "{shown}");
    assert_eq!(plots::all(&summaries).len(), 3, "nothing is known of memory");
}

#[test]
fn every_run_is_a_line_with_all_fields() {
    let text = csv::render(&results());
    let mut lines = text.lines();
    let head: Vec<&str> = lines.next().unwrap().split(',').collect();
    let lines: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    assert_eq!(lines.len(), 7);
    assert!(lines.iter().all(|line| line.len() == head.len()));
    let of = |name: &str| head.iter().position(|field| *field == name).unwrap();
    assert_eq!(lines[1][of("peer")], "pointsman-epoll");
    assert_eq!(lines[1][of("unit")], "requests");
    assert_eq!(lines[1][of("cpu_proxy_s")], "0.008000");
    assert_eq!(lines[0][of("peak_rss_bytes")], "");
}
