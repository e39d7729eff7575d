//! `/metrics`: the Prometheus text format, names `pointsman_*`.
//!
//! What is a state or a plain counter elsewhere is copied into a fresh recorder at each scrape, so a member
//! that has left leaves no series behind. Only what would be lost between scrapes (how long take-overs took,
//! how often what happened) is kept in a recorder of its own. Labels are finite: clusters, listeners and
//! members as configured or found, and enums, which start at zero. No client address is ever a label.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use metrics::{Key, KeyName, Label, Level, Metadata, Recorder, SharedString};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};
use pointsman_config::ClusterName;
use pointsman_core::event::{Note, What};

use crate::state::App;

mod clusters;
mod listeners;
pub(crate) mod process;

/// Upper bounds, in seconds, of how long a new primary took to be confirmed.
const TAKEOVER_BUCKETS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0];

const TAKEOVER: Family = Family {
    name: "pointsman_takeover_seconds",
    help: "Time from the naming (or the doubting) of a leader until it was confirmed as a writable primary.",
};
/// Upper bounds, in seconds, of how long a change in the store took to reach the routes.
const ROUTED_BUCKETS: [f64; 12] =
    [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0];

const ROUTED: Family = Family {
    name: "pointsman_discovery_publish_seconds",
    help: "Time from the arrival of a change from the discovery source until the routes that follow from it were published.",
};
const NOTES: Family =
    Family { name: "pointsman_notes_total", help: "Entries of the timeline, by what happened." };

/// The totals of seconds. The recorder's counters are whole numbers, so these go through gauges and are
/// declared as the counters that they are when the text is made.
const SECONDS_TOTAL: &str = "_seconds_total";

const METADATA: Metadata<'static> = Metadata::new("pointsman", Level::INFO, None);

/// A metric's name and what it means.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
}

/// A sample's labels, name and value.
pub(crate) type Labels<'a> = &'a [(&'static str, &'a str)];

/// What is measured over the life of the process.
pub struct Metrics {
    kept: PrometheusRecorder,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let builder = PrometheusBuilder::new();
        let exactly = |family: Family| Matcher::Full(family.name.to_owned());
        let builder = builder
            .set_buckets_for_metric(exactly(TAKEOVER), &TAKEOVER_BUCKETS)
            .and_then(|builder| builder.set_buckets_for_metric(exactly(ROUTED), &ROUTED_BUCKETS))
            .unwrap_or_else(|_| PrometheusBuilder::new()); // only an empty list is an error
        let kept = builder.build_recorder();
        for histogram in [TAKEOVER, ROUTED] {
            kept.describe_histogram(KeyName::from_const_str(histogram.name), None, histogram.help.into());
        }
        kept.describe_counter(KeyName::from_const_str(NOTES.name), None, NOTES.help.into());
        Self { kept }
    }
}

impl Metrics {
    /// Counts an entry of the timeline.
    pub fn note(&self, cluster: &ClusterName, note: &Note) {
        self.notes(cluster, note.what.label()).increment(1);
        if let What::PrimaryConfirmed { after_ms, .. } = note.what {
            self.histogram(TAKEOVER, cluster).record(Duration::from_millis(after_ms));
        }
    }

    /// Counts a change of routes, by how long after its arrival from the source it was published.
    pub fn routed(&self, cluster: &ClusterName, after: Duration) {
        self.histogram(ROUTED, cluster).record(after);
    }

    /// The text of a scrape: families by name, samples by labels, so that two scrapes can be compared.
    pub fn render(&self, app: &App) -> String {
        let scrape = Scrape::new();
        process::write(&scrape, app);
        let parts = app.parts.load();
        clusters::write(&scrape, &parts);
        listeners::write(&scrape, &parts);
        for cluster in &parts.clusters {
            for family in [TAKEOVER, ROUTED] {
                let _ = self.histogram(family, &cluster.name); // zero until the first one
            }
            for kind in What::LABELS {
                let _ = self.notes(&cluster.name, kind);
            }
        }
        let (now, kept) = (scrape.0.handle().render(), self.kept.handle().render());
        in_order(now.split("\n\n").chain(kept.split("\n\n")))
    }

    fn notes(&self, cluster: &ClusterName, kind: &'static str) -> metrics::Counter {
        self.kept.register_counter(&key(NOTES, &[("cluster", cluster.as_str()), ("kind", kind)]), &METADATA)
    }

    fn histogram(&self, family: Family, cluster: &ClusterName) -> metrics::Histogram {
        self.kept.register_histogram(&key(family, &[("cluster", cluster.as_str())]), &METADATA)
    }
}

/// The values of one scrape.
pub(crate) struct Scrape(PrometheusRecorder);

impl Scrape {
    fn new() -> Self {
        Self(PrometheusBuilder::new().build_recorder())
    }

    /// A number that only grows.
    pub(crate) fn counter(&self, family: Family, labels: Labels<'_>, value: u64) {
        self.0.describe_counter(KeyName::from_const_str(family.name), None, SharedString::from(family.help));
        self.0.register_counter(&key(family, labels), &METADATA).absolute(value);
    }

    /// Seconds that only grow.
    pub(crate) fn seconds_total(&self, family: Family, labels: Labels<'_>, value: Duration) {
        debug_assert!(family.name.ends_with(SECONDS_TOTAL), "{} would be declared as a gauge", family.name);
        self.gauge(family, labels, value.as_secs_f64());
    }

    /// A number that goes up and down.
    pub(crate) fn gauge(&self, family: Family, labels: Labels<'_>, value: f64) {
        self.0.describe_gauge(KeyName::from_const_str(family.name), None, SharedString::from(family.help));
        self.0.register_gauge(&key(family, labels), &METADATA).set(value);
    }

    /// Yes or no.
    pub(crate) fn flag(&self, family: Family, labels: Labels<'_>, value: bool) {
        self.gauge(family, labels, if value { 1.0 } else { 0.0 });
    }

    /// One series for each word of a finite set; 1 for the one that holds now.
    pub(crate) fn one_of(
        &self,
        family: Family,
        labels: Labels<'_>,
        label: &'static str,
        words: &[&'static str],
        now: Option<&str>,
    ) {
        for word in words {
            let labels: Vec<_> = labels.iter().copied().chain([(label, *word)]).collect();
            self.flag(family, &labels, now == Some(*word));
        }
    }
}

fn key(family: Family, labels: Labels<'_>) -> Key {
    let labels: Vec<_> = labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
    Key::from_parts(family.name, labels)
}

/// Sorts families and samples; a histogram's buckets stay in their order.
fn in_order<'a>(families: impl Iterator<Item = &'a str>) -> String {
    let mut families: Vec<_> = families.map(str::trim).filter(|family| !family.is_empty()).collect();
    families.sort_unstable();
    let mut text = String::new();
    for family in families {
        let (mut comments, mut samples): (Vec<_>, Vec<_>) =
            family.lines().map(declared).partition(|line| line.starts_with('#'));
        comments.sort_unstable(); // HELP before TYPE
        if !comments.iter().any(|line| line.ends_with(" histogram")) {
            samples.sort_unstable();
        }
        for line in comments.iter().chain(&samples) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// A line as it is sent: see [`SECONDS_TOTAL`].
fn declared(line: &str) -> Cow<'_, str> {
    match line.strip_suffix(" gauge") {
        Some(start) if start.starts_with("# TYPE ") && start.ends_with(SECONDS_TOTAL) => {
            Cow::Owned(format!("{start} counter"))
        }
        _ => Cow::Borrowed(line),
    }
}
