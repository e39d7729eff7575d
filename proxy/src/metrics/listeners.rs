//! Listeners, and the members as each listener uses them.

use std::collections::BTreeMap;

use pointsman_core::close::CloseReason;
use pointsman_core::route::NoRoute;

use super::{Family, Labels, Scrape};
use crate::backlog::{Backlog, Queues};
use crate::state::{ListenerHandle, Parts};
use crate::stats::ServerStats;

const fn family(name: &'static str, help: &'static str) -> Family {
    Family { name, help }
}

/// Copies the numbers of every listener.
pub(super) fn write(scrape: &Scrape, parts: &Parts) {
    let queues = Queues::read();
    for listener in &parts.listeners {
        let (name, cluster) = (listener.name.as_str(), listener.cluster.as_str());
        let labels: Labels<'_> = &[("cluster", cluster), ("listener", name)];
        write_route(scrape, parts, listener, labels);
        write_backlog(scrape, &listener.backlog(&queues), labels);
        write_sessions(scrape, listener, labels);
        write_held(scrape, listener, labels);
        write_closes(scrape, listener, labels);
        for (member, server) in listener.stats.servers() {
            let labels: Labels<'_> = &[("cluster", cluster), ("listener", name), ("member", member.as_str())];
            write_server(scrape, &server, labels);
        }
    }
}

fn write_route(scrape: &Scrape, parts: &Parts, listener: &ListenerHandle, labels: Labels<'_>) {
    let up = family("pointsman_listener_up", "Whether all of its addresses accept connections.");
    scrape.flag(up, labels, listener.listening());
    let status = parts.cluster(listener.cluster.as_str()).and_then(|cluster| cluster.status());
    let route = status
        .as_ref()
        .and_then(|described| described.status.routes.iter().find(|route| route.listener == listener.name));
    let candidates = family("pointsman_listener_candidates", "Members that new sessions go to.");
    scrape.gauge(candidates, labels, route.map_or(0.0, |route| route.candidates.len() as f64));
    let reason = family(
        "pointsman_listener_no_route",
        "Why it has no candidate: 1 for the reason that holds now, 0 everywhere when it has one.",
    );
    let now = match route {
        Some(route) => route.why_not.as_ref().map(NoRoute::label),
        None => Some(NoRoute::Discovering.label()),
    };
    scrape.one_of(reason, labels, "reason", &NoRoute::LABELS, now);
}

fn write_backlog(scrape: &Scrape, queues: &[Backlog], labels: Labels<'_>) {
    let waiting = family(
        "pointsman_listener_backlog",
        "Connections that the kernel has completed and that wait to be accepted, by address.",
    );
    let limit = family(
        "pointsman_listener_backlog_limit",
        "How many may wait there before the kernel drops more (see net.core.somaxconn).",
    );
    for queue in queues {
        let address = queue.address.to_string();
        let labels: Vec<_> = labels.iter().copied().chain([("address", address.as_str())]).collect();
        scrape.gauge(waiting, &labels, queue.waiting as f64);
        scrape.gauge(limit, &labels, queue.limit as f64);
    }
}

fn write_sessions(scrape: &Scrape, listener: &ListenerHandle, labels: Labels<'_>) {
    let stats = &listener.stats;
    let accepted =
        family("pointsman_listener_accepted_total", "Accepted connections, whatever became of them.");
    scrape.counter(accepted, labels, stats.accepted.get());
    let sessions =
        family("pointsman_listener_sessions", "Connections that are open now, held ones included.");
    scrape.gauge(sessions, labels, stats.sessions.get() as f64);
    let limit = family("pointsman_listener_sessions_limit", "Connections that may be open at once.");
    scrape.gauge(limit, labels, f64::from(listener.max_connections));
    let bytes =
        family("pointsman_listener_bytes_in_total", "Bytes from clients; moves while a session lives.");
    scrape.counter(bytes, labels, stats.bytes_in.get());
    let bytes =
        family("pointsman_listener_bytes_out_total", "Bytes to clients; moves while a session lives.");
    scrape.counter(bytes, labels, stats.bytes_out.get());
    let errors = family("pointsman_listener_accept_errors_total", "Errors of accept(2) itself.");
    scrape.counter(errors, labels, stats.accept_errors.get());
    let cancels = family("pointsman_listener_cancels_total", "CancelRequests that were passed on.");
    scrape.counter(cancels, labels, stats.cancels.get());
}

fn write_held(scrape: &Scrape, listener: &ListenerHandle, labels: Labels<'_>) {
    let stats = &listener.stats;
    let held = family("pointsman_listener_held", "Connections that wait for a route now.");
    scrape.gauge(held, labels, stats.held.get() as f64);
    let limit = family("pointsman_listener_held_limit", "Connections that may wait at once.");
    scrape.gauge(limit, labels, f64::from(listener.max_held));
    let total = family("pointsman_listener_held_total", "Connections that had to wait for a route.");
    scrape.counter(total, labels, stats.held_total.get());
    let waits = family("pointsman_listener_held_ended_total", "Connections whose wait has ended.");
    scrape.counter(waits, labels, stats.held_for.count());
    let seconds =
        family("pointsman_listener_held_seconds_total", "How long those connections waited, in all.");
    scrape.seconds_total(seconds, labels, stats.held_for.sum());
    let longest = family("pointsman_listener_held_seconds_max", "The longest wait since the start.");
    scrape.gauge(longest, labels, stats.held_for.max().as_secs_f64());
}

fn write_closes(scrape: &Scrape, listener: &ListenerHandle, labels: Labels<'_>) {
    let closes = family("pointsman_listener_closes_total", "Connections that ended, by reason.");
    let mut counts: BTreeMap<_, _> = CloseReason::ALL.iter().map(|label| (*label, 0)).collect();
    counts.extend(listener.stats.closes());
    for (reason, count) in counts {
        let labels: Vec<_> = labels.iter().copied().chain([("reason", reason)]).collect();
        scrape.counter(closes, &labels, count);
    }
}

fn write_server(scrape: &Scrape, server: &ServerStats, labels: Labels<'_>) {
    let sessions =
        family("pointsman_server_sessions", "Sessions on the member now, those being dialled included.");
    scrape.gauge(sessions, labels, server.sessions.get() as f64);
    let total = family("pointsman_server_sessions_total", "Sessions that the member served.");
    scrape.counter(total, labels, server.sessions_total.get());
    let errors = family("pointsman_server_dial_errors_total", "Dials that failed.");
    scrape.counter(errors, labels, server.dial_errors.get());
    let cut = family("pointsman_server_cut_total", "Sessions that we cut while the member served them.");
    scrape.counter(cut, labels, server.cut.get());
    let dials = family("pointsman_server_dials_total", "Dials that brought a first byte.");
    scrape.counter(dials, labels, server.dialled_in.count());
    let seconds = family("pointsman_server_dial_seconds_total", "How long those dials took, in all.");
    scrape.seconds_total(seconds, labels, server.dialled_in.sum());
    let longest = family("pointsman_server_dial_seconds_max", "The longest of those dials.");
    scrape.gauge(longest, labels, server.dialled_in.max().as_secs_f64());
    let bytes = family("pointsman_server_bytes_in_total", "Bytes from clients to the member.");
    scrape.counter(bytes, labels, server.bytes_in.get());
    let bytes = family("pointsman_server_bytes_out_total", "Bytes from the member to clients.");
    scrape.counter(bytes, labels, server.bytes_out.get());
}
