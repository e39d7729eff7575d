//! What Prometheus reads: every line is understood by a parser that is stricter than Prometheus.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]
#![allow(clippy::float_cmp, reason = "small whole numbers, and numbers that were written out in full")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{made_up, trouble};
use pointsman::clock::Clock;
use pointsman::discovery::SourceStats;
use pointsman::state::{ListenerHandle, Parts};
use pointsman_config::{Config, Target};
use pointsman_core::close::CloseReason;
use pointsman_core::event::{Loudness, What};
use pointsman_core::route::NoRoute;
use pointsman_core::view::{MemberName, MemberRole};

mod common;

/// One scrape: families with their type and samples.
#[derive(Debug, Default)]
struct Scrape {
    kinds: BTreeMap<String, String>,
    helps: BTreeSet<String>,
    samples: BTreeMap<String, f64>,
}

fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_lowercase())
        && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// Splits `a="b",c="d\"e"` and checks names and escapes.
fn labels(mut text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while !text.is_empty() {
        let (name, rest) =
            text.split_once("=\"").unwrap_or_else(|| panic!("a label without a value: {text}"));
        assert!(is_name(name), "{name}");
        let (mut value, mut end) = (String::new(), None);
        let mut chars = rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    end = Some(at);
                    break;
                }
                '\\' => value.push(match chars.next().unwrap().1 {
                    'n' => '\n',
                    escaped @ ('\\' | '"') => escaped,
                    other => panic!("unknown escape {other} in {rest}"),
                }),
                '\n' => panic!("a line break in {rest}"),
                other => value.push(other),
            }
        }
        text = &rest[end.unwrap_or_else(|| panic!("unended value: {rest}")) + 1..];
        text = text.strip_prefix(',').unwrap_or(text);
        found.push((name.to_owned(), value));
    }
    found
}

fn parse(text: &str) -> Scrape {
    assert!(text.ends_with('\n'));
    let mut scrape = Scrape::default();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && help.ends_with('.') && help.len() > 15, "{line}");
            assert!(scrape.helps.insert(name.to_owned()), "{name} comes twice");
            name.clone_into(&mut family);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, family, "TYPE follows HELP");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(scrape.kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} comes twice");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
            let (name, inside) = match series.split_once('{') {
                Some((name, rest)) => (name, rest.strip_suffix('}').unwrap()),
                None => (series, ""),
            };
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let known = if scrape.kinds[&family] == "histogram" { base.unwrap() } else { name };
            assert_eq!(known, family, "a sample of another family: {line}");
            assert!(name.starts_with("pointsman_"), "{line}");
            let names: Vec<_> = labels(inside).into_iter().map(|(name, _)| name).collect();
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{line}");
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            assert!(value.is_finite() && (value >= 0.0), "{line}");
            assert!(scrape.samples.insert(series.to_owned(), value).is_none(), "twice: {line}");
        }
    }
    assert_eq!(scrape.helps.len(), scrape.kinds.len());
    scrape
}

#[test]
fn accept_queues_are_shown_by_address() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let _client = std::net::TcpStream::connect(address).unwrap();
    let made_up = made_up(3);
    let mut handle = ListenerHandle::new(&common::listener("primary", Target::Primary, 0), Arc::default());
    handle.bind = vec![address, ([127, 0, 0, 1], 0).into()];
    made_up.app.parts.store(Arc::new(Parts { clusters: Vec::new(), listeners: vec![Arc::new(handle)] }));
    let series = |name: &str| format!(r#"{name}{{cluster="main",listener="primary",address="{address}"}}"#);
    let began = Instant::now();
    let scrape = loop {
        let scrape = parse(&render(&made_up));
        if scrape.samples[&series("pointsman_listener_backlog")] == 1.0 {
            break scrape;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", scrape.samples);
    };
    assert!(scrape.samples[&series("pointsman_listener_backlog_limit")] >= 1.0);
    let shown = scrape.samples.keys().filter(|name| name.starts_with("pointsman_listener_backlog{")).count();
    assert_eq!(shown, 1, "an address that nobody listens on has no queue");
    assert!(scrape.samples.contains_key("pointsman_host_listen_overflows_total"));
    assert!(scrape.samples.contains_key("pointsman_host_listen_drops_total"));
}

fn render(made_up: &common::MadeUp) -> String {
    made_up.app.metrics.render(&made_up.app)
}

#[test]
fn every_line_parses_and_every_family_has_help_and_type() {
    let mut made_up = made_up(3);
    made_up.session("primary", 1, "pg1", 5432);
    made_up.traffic("primary", "pg1", 1000);
    made_up.switchover();
    made_up.cluster.reports_dropped.add(3);
    let scrape = parse(&render(&made_up));
    let get = |series: &str| {
        *scrape.samples.get(series).unwrap_or_else(|| panic!("no {series}: {:#?}", scrape.samples.keys()))
    };
    assert_eq!(get(r#"pointsman_primary_state{cluster="main",state="confirmed"}"#), 1.0);
    assert_eq!(get(r#"pointsman_primary_state{cluster="main",state="none"}"#), 0.0);
    assert_eq!(get(r#"pointsman_listener_candidates{cluster="main",listener="replicas"}"#), 2.0);
    assert_eq!(get(r#"pointsman_listener_sessions{cluster="main",listener="primary"}"#), 1.0);
    assert_eq!(
        get(r#"pointsman_server_bytes_out_total{cluster="main",listener="primary",member="pg1"}"#),
        7000.0
    );
    assert_eq!(
        get(r#"pointsman_server_dial_seconds_total{cluster="main",listener="primary",member="pg1"}"#),
        0.0017
    );
    assert_eq!(scrape.kinds["pointsman_server_dial_seconds_total"], "counter");
    assert_eq!(get(r#"pointsman_member_role{cluster="main",member="pg2",role="replica"}"#), 1.0);
    assert_eq!(get(r#"pointsman_notes_total{cluster="main",kind="replica-in"}"#), 2.0);
    assert_eq!(get(r#"pointsman_reports_dropped_total{cluster="main"}"#), 3.0);
    assert_eq!(get(r#"pointsman_takeover_seconds_count{cluster="main"}"#), 1.0);
    assert_eq!(get(r#"pointsman_takeover_seconds_bucket{cluster="main",le="0.25"}"#), 1.0);
    assert_eq!(get(r#"pointsman_takeover_seconds_bucket{cluster="main",le="0.1"}"#), 0.0);
    assert!(get("pointsman_process_open_fds") > 2.0);
    assert!(get("pointsman_process_resident_memory_bytes") > 1e6);
    assert!(get("pointsman_process_cpu_seconds_total") > 0.0);
}

#[test]
fn finite_labels_are_there_from_the_start() {
    let scrape = parse(&render(&made_up(0)));
    let all = |prefix: &str, label: &str, words: &[&str]| {
        for word in words {
            let series = format!("{prefix},{label}=\"{word}\"}}");
            assert!(scrape.samples.contains_key(&series), "no {series}");
        }
    };
    all(r#"pointsman_listener_closes_total{cluster="main",listener="primary""#, "reason", &CloseReason::ALL);
    all(r#"pointsman_listener_no_route{cluster="main",listener="primary""#, "reason", &NoRoute::LABELS);
    all(r#"pointsman_notes_total{cluster="main""#, "kind", &What::LABELS);
    all(r#"pointsman_store_state{cluster="main""#, "state", &["never", "alive", "lost"]);
    assert_eq!(scrape.samples[r#"pointsman_takeover_seconds_count{cluster="main"}"#], 0.0);
    assert_eq!(scrape.samples[r#"pointsman_reloads_total{result="failed"}"#], 0.0);
}

/// Every member takes writes: there is no primary, and each has a role all the same.
#[test]
fn members_of_a_multi_master_cluster_have_a_role() {
    let made_up = made_up(2);
    let mut status = common::status(2);
    status.members.iter_mut().for_each(|member| member.role = MemberRole::Writable);
    made_up.cluster.describe(status);
    let scrape = parse(&render(&made_up));
    for member in ["pg1", "pg2"] {
        let series = format!(r#"pointsman_member_role{{cluster="main",member="{member}",role="writable"}}"#);
        assert_eq!(scrape.samples[&series], 1.0);
    }
}

/// A fixed list has no endpoints that could be connected; with a store the series is there from its start.
#[test]
fn what_a_source_does_not_have_is_not_shown() {
    let shown = |discovery: &str| {
        let text = format!(
            "[clusters.main]\n{discovery}\n[[listeners]]\nbind = \"127.0.0.1:5000\"\ntarget = \"any\"\n"
        );
        let config = Config::parse(&text, "test.toml", Path::new("/")).unwrap();
        let made_up = made_up(2);
        made_up.cluster.set_source(Arc::new(SourceStats::new(&config.clusters[0], Clock::start())));
        parse(&render(&made_up)).samples.get(r#"pointsman_store_connected{cluster="main"}"#).copied()
    };
    let members = r#"[{ name = "pg1", address = "10.0.0.1:5432" }]"#;
    assert_eq!(
        shown(&format!(r#"discovery = {{ static = {{ probe = "tcp", members = {members} }} }}"#)),
        None
    );
    assert_eq!(shown(r#"discovery = { etcd = { endpoints = ["http://10.0.0.1:2379"] } }"#), Some(0.0));
}

#[test]
fn the_order_is_the_same_each_time() {
    let made_up = made_up(5);
    made_up.traffic("primary", "pg1", 1000);
    let series = |text: &str| {
        let name = |line: &str| line.rsplit_once(' ').unwrap().0.to_owned();
        text.lines().map(name).collect::<Vec<_>>()
    };
    let first = series(&render(&made_up));
    for _ in 0..5 {
        assert_eq!(series(&render(&made_up)), first);
    }
}

#[test]
fn a_member_that_left_leaves_nothing_behind() {
    let made_up = made_up(3);
    assert!(render(&made_up).contains(r#"member="pg3""#));
    made_up.cluster.describe(common::status(2));
    assert!(!render(&made_up).contains(r#"member="pg3""#));
}

#[test]
fn states_follow_and_what_accumulates_stays() {
    let made_up = made_up(6);
    let confirmed = What::PrimaryConfirmed { by: "rest", after_ms: 163 };
    for expected in 1..=3 {
        made_up.note(Duration::ZERO, Loudness::Info, Some("pg1"), confirmed.clone());
        let scrape = parse(&render(&made_up));
        assert_eq!(
            scrape.samples[r#"pointsman_takeover_seconds_count{cluster="main"}"#],
            f64::from(expected)
        );
    }
    made_up.cluster.describe(trouble(6));
    made_up.app.set_reload(Err("line 3".to_owned()));
    let scrape = parse(&render(&made_up));
    assert_eq!(scrape.samples[r#"pointsman_primary_state{cluster="main",state="none"}"#], 1.0);
    assert_eq!(
        scrape.samples[r#"pointsman_listener_no_route{cluster="main",listener="primary",reason="leader-key-gone"}"#],
        1.0
    );
    assert_eq!(scrape.samples[r#"pointsman_member_up{cluster="main",member="pg1"}"#], 0.0);
    assert_eq!(scrape.samples[r#"pointsman_member_admin{cluster="main",member="pg4",mode="maint"}"#], 1.0);
    assert_eq!(scrape.samples["pointsman_last_reload_ok"], 0.0);
    assert_eq!(scrape.samples[r#"pointsman_reloads_total{result="failed"}"#], 1.0);
}

#[test]
fn a_hostile_name_is_escaped() {
    let made_up = made_up(1);
    let mut status = common::status(1);
    status.members[0].name = MemberName::from("a\"b\\c\nd} 1\n# TYPE x");
    made_up.cluster.describe(status);
    let scrape = parse(&render(&made_up));
    assert_eq!(
        scrape.samples[r#"pointsman_member_up{cluster="main",member="a\"b\\c\nd} 1\n# TYPE x"}"#],
        1.0
    );
}
