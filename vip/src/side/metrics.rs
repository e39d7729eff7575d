//! What Prometheus reads (text format 0.0.4): the status as numbers, and what the side thread counts itself.
//!
//! Everything is made from the description that people are shown, so the two cannot differ. States are 0 or 1 for each label.

use std::fmt::{Display, Write as _};

use pointsman_process::logging;
use pointsman_vrrp::event::State;
use pointsman_vrrp::note::AlarmKind;
use pointsman_vrrp::status::{PeerState, ProxyState, RouterStatus, Status};

use super::counters::HookOutcome;
use super::{Shared, readiness};

/// The header of the answer.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const STATES: [State; 3] = [State::Initialize, State::Backup, State::Active];

/// All of it.
pub(super) fn render(shared: &Shared) -> String {
    let shown = shared.shown.borrow().clone();
    let status = shown.now();
    let mut out = Page::default();
    out.family("info", "gauge", "This host and its version");
    out.sample("info", &[("node", &status.node), ("version", &status.version)], 1);
    out.family("status_age_seconds", "gauge", "Age of the state that is shown here");
    out.sample("status_age_seconds", &[], shown.made.elapsed().as_secs_f64());
    states(&mut out, &status);
    counters(&mut out, &status);
    neighbourhood(&mut out, &status);
    own(&mut out, &status, shared);
    out.0
}

/// Families of samples, one after the other.
#[derive(Default)]
struct Page(String);

// A String takes everything.
impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP pointsman_vip_{name} {help}\n# TYPE pointsman_vip_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        let _ = write!(self.0, "pointsman_vip_{name}");
        for (place, (label, value)) in labels.iter().enumerate() {
            let start = if place == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{start}{label}=\"{}\"", escape(&value.to_string()));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    /// One sample for each virtual router.
    fn each<V: Display>(
        &mut self,
        status: &Status,
        (name, kind, help): (&str, &str, &str),
        value: impl Fn(&RouterStatus) -> V,
    ) {
        self.family(name, kind, help);
        for router in &status.routers {
            self.sample(name, &[("router", &router.name)], value(router));
        }
    }
}

/// A label's value: backslash, quote and line feed are escaped.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

/// How things are.
fn states(out: &mut Page, status: &Status) {
    out.family("state", "gauge", "1 for the state of the virtual router (RFC 9568), 0 for the others");
    for router in &status.routers {
        for state in STATES {
            let labels: [(&str, &dyn Display); 2] = [("router", &router.name), ("state", &state)];
            out.sample("state", &labels, u8::from(router.state == state));
        }
    }
    let gauge = "gauge";
    out.each(status, ("state_age_seconds", gauge, "Time since the state changed"), |r| seconds(r.since_ms));
    out.each(status, ("priority", gauge, "Priority as it counts now"), |r| r.priority);
    out.each(status, ("base_priority", gauge, "Priority as configured for this host"), |r| r.base_priority);
    out.each(status, ("fit", gauge, "1 while this host may hold the addresses"), |r| u8::from(r.fit));
    out.each(status, ("yielded", gauge, "1 while an operator wishes others to hold the addresses"), |r| {
        u8::from(r.yielded)
    });
    out.each(status, ("link_up", gauge, "1 while the network interface can be used"), |r| {
        u8::from(r.source.is_some())
    });
    out.each(
        status,
        ("holders_seen", gauge, "Hosts that hold the addresses now, this one among them"),
        |r| r.holders_seen,
    );
    out.family("alarm", gauge, "1 while somebody should look at this");
    for router in &status.routers {
        for kind in AlarmKind::ALL {
            let raised = router.alarms.iter().any(|alarm| alarm.kind == kind.as_str());
            out.sample("alarm", &[("router", &router.name), ("kind", &kind.as_str())], u8::from(raised));
        }
    }
}

/// What was counted of the virtual routers.
fn counters(out: &mut Page, status: &Status) {
    type Counts<'a> = &'a std::collections::BTreeMap<&'static str, u64>;
    let mut labelled = |name: &str, help: &str, label: &str, counts: fn(&RouterStatus) -> Counts<'_>| {
        out.family(name, "counter", help);
        for router in &status.routers {
            for (value, count) in counts(router) {
                out.sample(name, &[("router", &router.name), (label, value)], count);
            }
        }
    };
    labelled("transitions_total", "Changes of state by their reason", "reason", |r| &r.counters.transitions);
    labelled("adverts_rejected_total", "Adverts of others that count for nothing", "reason", |r| {
        &r.counters.adverts.rejected
    });
    labelled(
        "conflict_repairs_total",
        "Claims of others that were answered, by what they were seen by",
        "by",
        |r| &r.counters.repairs,
    );
    out.family("adverts_total", "counter", "Adverts sent, and those received that are in order");
    for router in &status.routers {
        let adverts = &router.counters.adverts;
        for (direction, count) in [("sent", adverts.sent), ("received", adverts.received)] {
            out.sample("adverts_total", &[("router", &router.name), ("direction", &direction)], count);
        }
    }
    let announcements = "How often the neighbours were told that the addresses are here";
    out.each(status, ("announcements_total", "counter", announcements), |r| r.counters.announcements);
}

/// The others, and the proxy.
fn neighbourhood(out: &mut Page, status: &Status) {
    out.family("foreign_adverts_total", "counter", "Adverts of virtual routers that are none of ours");
    for foreign in &status.foreign {
        let labels: [(&str, &dyn Display); 2] =
            [("interface", &foreign.interface), ("router_id", &foreign.router_id)];
        out.sample("foreign_adverts_total", &labels, foreign.count);
    }
    out.family("peer_up", "gauge", "1 while the other host is heard");
    for peer in &status.peers {
        out.sample("peer_up", &[("peer", &peer.node)], u8::from(peer.state == PeerState::Alive));
    }
    out.family("peer_heard_seconds", "gauge", "Age of the last report of the other host");
    for (peer, heard) in status.peers.iter().filter_map(|peer| Some((peer, peer.heard_ms?))) {
        out.sample("peer_heard_seconds", &[("peer", &peer.node)], seconds(heard));
    }
    out.family("proxy_state", "gauge", "1 for what the proxy on this host counts as, 0 for the others");
    for state in ProxyState::ALL {
        out.sample("proxy_state", &[("state", &state.as_str())], u8::from(status.proxy.state == state));
    }
}

/// What the side thread counts.
fn own(out: &mut Page, status: &Status, shared: &Shared) {
    let counters = &shared.counters;
    out.family("proxy_readings_total", "counter", "Answers of the proxy's /ready by their kind");
    for label in readiness::LABELS {
        out.sample("proxy_readings_total", &[("reading", &label)], counters.readings(label));
    }
    out.family("hooks_total", "counter", "Runs of the notify program by how they ended");
    for router in &status.routers {
        for outcome in HookOutcome::ALL {
            let count = counters.hooks(&router.name, outcome);
            out.sample("hooks_total", &[("router", &router.name), ("outcome", &outcome.as_str())], count);
        }
    }
    let (told, failed) = counters.farewells();
    out.family("farewells_total", "counter", "Addresses that left, by whether the proxy could be told");
    for (outcome, count) in [("told", told), ("failed", failed)] {
        out.sample("farewells_total", &[("outcome", &outcome)], count);
    }
    out.family("notices_dropped_total", "counter", "Notices for hooks and the proxy that came too fast");
    out.sample("notices_dropped_total", &[], counters.dropped());
    out.family("log_lines_dropped_total", "counter", "Log lines that nobody took in time");
    out.sample("log_lines_dropped_total", &[], logging::dropped_lines());
}
