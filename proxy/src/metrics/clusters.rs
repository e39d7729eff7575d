//! Clusters and members.

use pointsman_core::event::{AdminMode, Witness};
use pointsman_core::status::{ClusterStatus, MemberStatus};
use pointsman_core::view::MemberRole;

use super::{Family, Labels, Scrape};
use crate::state::{ClusterHandle, Parts};

const fn family(name: &'static str, help: &'static str) -> Family {
    Family { name, help }
}

const ROLES: [MemberRole; 8] = [
    MemberRole::Primary,
    MemberRole::Replica,
    MemberRole::StandbyLeader,
    MemberRole::Promoted,
    MemberRole::Demoted,
    MemberRole::Writable,
    MemberRole::Uninitialized,
    MemberRole::Unknown,
];
const MODES: [AdminMode; 3] = [AdminMode::Ready, AdminMode::Drain, AdminMode::Maint];

/// Copies the numbers of every cluster.
pub(super) fn write(scrape: &Scrape, parts: &Parts) {
    for cluster in &parts.clusters {
        write_store(scrape, cluster);
        write_questions(scrape, cluster);
        let dropped = family(
            "pointsman_reports_dropped_total",
            "Reports of sessions about servers for which the control task had no room.",
        );
        scrape.counter(dropped, &[("cluster", cluster.name.as_str())], cluster.reports_dropped.get());
        if let Some(described) = cluster.status() {
            let status = described.now();
            let age =
                family("pointsman_status_age_seconds", "Age of what the control task last said of itself.");
            scrape.gauge(age, &[("cluster", cluster.name.as_str())], described.made.elapsed().as_secs_f64());
            write_cluster(scrape, &status);
            for member in &status.members {
                write_member(scrape, &status, member);
            }
        }
    }
}

fn write_store(scrape: &Scrape, cluster: &ClusterHandle) {
    let labels: Labels<'_> = &[("cluster", cluster.name.as_str())];
    let status = cluster.status().map(|described| described.now());
    let store = status.as_ref().map(|status| &status.store);
    let state = family("pointsman_store_state", "The discovery source: 1 for the state that holds now.");
    let now = store.map_or("never", |store| store.state);
    scrape.one_of(state, labels, "state", &["never", "alive", "lost"], Some(now));
    if let Some(age) = store.and_then(|store| store.age_ms) {
        let silent = family("pointsman_store_age_seconds", "Time since the source's last sign of life.");
        scrape.gauge(silent, labels, seconds(age));
    }
    let revision = family("pointsman_store_revision", "Revision of the last snapshot.");
    scrape.gauge(revision, labels, store.map_or(0.0, |store| store.revision as f64));
    let views = family("pointsman_store_views_total", "Snapshots taken from the store.");
    scrape.counter(views, labels, store.map_or(0, |store| store.views));
    let source = cluster.source_stats();
    let reconnects =
        family("pointsman_store_reconnects_total", "Connections to the store after the first one.");
    scrape.counter(reconnects, labels, source.as_ref().map_or(0, |source| source.reconnects()));
    let restarts =
        family("pointsman_store_watch_restarts_total", "Watches of the store that ended, for any reason.");
    scrape.counter(restarts, labels, source.as_ref().map_or(0, |source| source.watch_restarts()));
    let requests = family(
        "pointsman_store_requests_total",
        "Requests to the discovery source: reads, watches and questions for their progress, looks at members.",
    );
    scrape.counter(requests, labels, source.as_ref().map_or(0, |source| source.requests()));
    if let Some(answers) = source.as_ref().and_then(|source| source.answers()) {
        let connected = family(
            "pointsman_store_connected",
            "Whether an endpoint of the store, or a member's Patroni, answers the source now.",
        );
        scrape.flag(connected, labels, answers);
    }
}

fn write_questions(scrape: &Scrape, cluster: &ClusterHandle) {
    let name = ("cluster", cluster.name.as_str());
    let questions =
        family("pointsman_questions_total", "Questions to members for their status, by who is asked.");
    for witness in Witness::ALL {
        let count = cluster.questions.to(witness).get();
        scrape.counter(questions, &[name, ("by", witness.as_str())], count);
    }
    let probes = family("pointsman_probes_total", "Probes of members' servers.");
    scrape.counter(probes, &[name], cluster.questions.probes.get());
}

fn write_cluster(scrape: &Scrape, status: &ClusterStatus) {
    let labels: Labels<'_> = &[("cluster", status.cluster.as_str())];
    let generation = family("pointsman_route_generation", "Grows by one with each published route table.");
    scrape.gauge(generation, labels, status.generation as f64);
    let primary = family(
        "pointsman_primary_state",
        "The primary as routed to: 1 for the state that holds now (held: confirmed, but new sessions wait; none: also \
         where every member takes writes).",
    );
    let words = ["confirmed", "pending", "held", "none"];
    scrape.one_of(primary, labels, "state", &words, Some(status.primary.state));
    let since = family("pointsman_primary_state_seconds", "Time since the primary's state began.");
    scrape.gauge(since, labels, seconds(status.primary.since_ms));
    let members = family("pointsman_members", "Members that are known.");
    scrape.gauge(members, labels, status.members.len() as f64);
    let alarms = family("pointsman_alarms", "What is wrong now and wants a person.");
    scrape.gauge(alarms, labels, status.alarms.len() as f64);
    let complaints = family("pointsman_store_complaints", "Keys in the store that could not be understood.");
    scrape.gauge(complaints, labels, status.complaints.len() as f64);
    let paused = family("pointsman_cluster_paused", "Patroni is paused: nobody fails over by itself.");
    scrape.flag(paused, labels, status.settings.paused);
}

fn write_member(scrape: &Scrape, status: &ClusterStatus, member: &MemberStatus) {
    let labels: Labels<'_> = &[("cluster", status.cluster.as_str()), ("member", member.name.as_str())];
    let up = family("pointsman_member_up", "Whether its PostgreSQL answers connections.");
    scrape.flag(up, labels, member.health == "up");
    let leader = family("pointsman_member_leader", "Whether it is named as leader.");
    scrape.flag(leader, labels, member.leader);
    let role =
        family("pointsman_member_role", "Its role, as the source tells it: 1 for the one that holds now.");
    scrape.one_of(role, labels, "role", &ROLES.map(MemberRole::as_str), Some(member.role.as_str()));
    let serves = family("pointsman_member_listeners", "Listeners that send new sessions to it.");
    scrape.gauge(serves, labels, member.serves.len() as f64);
    let admin = family("pointsman_member_admin", "What an operator wishes: 1 for the one that holds now.");
    scrape.one_of(admin, labels, "mode", &MODES.map(AdminMode::as_str), Some(member.admin.as_str()));
    if let Some(lag) = member.lag_bytes {
        let behind =
            family("pointsman_member_lag_bytes", "How far it was behind the primary at the last reading.");
        scrape.gauge(behind, labels, lag as f64);
    }
    if let Some(timeline) = member.timeline {
        let number = family("pointsman_member_timeline", "Its PostgreSQL timeline.");
        scrape.gauge(number, labels, f64::from(timeline.0));
    }
}

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}
