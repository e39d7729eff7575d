//! A made-up state of the process, for tests of what people and scripts see, and for a look at the dashboard
//! without a cluster.
#![allow(dead_code, reason = "each test and the example use a part of it")]
#![allow(clippy::unwrap_used, reason = "made-up values are right, or the test is wrong")]
#![allow(clippy::missing_panics_doc, missing_docs, unreachable_pub, reason = "test support")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pointsman::sessions::{LoginRef, Phase, SessionGuard};
use pointsman::state::{App, ClusterHandle, Life, ListenerHandle, Parts, wall_now};
use pointsman::stats::{Gauge, GaugeGuard, ListenerHeld, ListenerSessions, ListenerStats, ServerSessions};
use pointsman_config::{
    Balance, ClusterName, Fallback, Keepalive, Listener, ListenerName, ListenerTls, NodeName, OnPromote,
    Refuse, Target,
};
use pointsman_core::close::{CloseReason, Peer};
use pointsman_core::event::{AdminMode, AskError, Event, Loudness, Note, Status, What, Witness};
use pointsman_core::route::{GrantRole, NoRoute, RevokeReason};
use pointsman_core::status::{
    AnswerStatus, ClusterStatus, MemberStatus, PrimaryStatus, RouteStatus, StoreStatus,
};
use pointsman_core::time::UnixMillis;
use pointsman_core::view::{
    Address, ApiUrl, ClusterSettings, Complaint, Lsn, MemberName, MemberRole, MemberState, Replication, Tags,
    Timeline,
};
use tokio::sync::mpsc;

pub fn main_cluster() -> ClusterName {
    ClusterName::new("main").unwrap()
}

pub fn listener_name(name: &str) -> ListenerName {
    ListenerName::new(name).unwrap()
}

/// A listener as the file would give it.
pub fn listener(name: &str, target: Target, port: u16) -> Listener {
    Listener {
        name: listener_name(name),
        bind: vec![([0, 0, 0, 0], port).into(), (std::net::Ipv6Addr::UNSPECIFIED, port).into()],
        cluster: main_cluster(),
        target,
        balance: Balance::LeastConnections,
        hold: Duration::from_secs(60),
        max_held: 10_000,
        release_rate: 500.try_into().unwrap(),
        refuse: Refuse::Explain,
        max_lag: None,
        on_promote: OnPromote::Drain,
        fallback: Fallback::Primary,
        tags: BTreeMap::new(),
        max_connections: 5000,
        max_connections_per_source: None,
        allow: Vec::new(),
        deny: Vec::new(),
        connect_timeout: Duration::from_secs(3),
        startup_timeout: Duration::from_secs(10),
        idle_timeout: None,
        keepalive: Keepalive {
            idle: Duration::from_secs(30),
            interval: Duration::from_secs(10),
            probes: 3.try_into().unwrap(),
        },
        user_timeout: None,
        accept_proxy: false,
        send_proxy: None,
        tls: ListenerTls::Passthrough,
        server_tls: None,
    }
}

/// A made-up process, with what keeps its sessions alive and what receives an operator's wishes.
pub struct MadeUp {
    pub app: Arc<App>,
    pub cluster: Arc<ClusterHandle>,
    pub wishes: mpsc::Receiver<Event>,
    pub sessions: Vec<SessionGuard>,
    pub gauges: Vec<Box<dyn std::any::Any + Send>>,
}

/// A healthy process with one cluster `main` of so many members, `pg1` the primary.
pub fn made_up(members: usize) -> MadeUp {
    let app = Arc::new(App::new(NodeName::new("lb1").unwrap()));
    let (events, wishes) = mpsc::channel(4);
    let cluster = Arc::new(ClusterHandle::new(main_cluster(), "etcd", events));
    let listeners: Vec<_> = [("primary", Target::Primary, 5000), ("replicas", Target::Replicas, 5001)]
        .map(|(name, target, port)| {
            let handle = ListenerHandle::new(&listener(name, target, port), Arc::<ListenerStats>::default());
            handle.set_listening(true);
            Arc::new(handle)
        })
        .into();
    app.parts.store(Arc::new(Parts { clusters: vec![Arc::clone(&cluster)], listeners }));
    app.set_life(Life::Ready);
    cluster.describe(status(members));
    MadeUp { app, cluster, wishes, sessions: Vec::new(), gauges: Vec::new() }
}

impl MadeUp {
    pub fn listener(&self, name: &str) -> Arc<ListenerHandle> {
        let parts = self.app.parts.load();
        Arc::clone(parts.listeners.iter().find(|l| l.name.as_str() == name).unwrap())
    }

    /// An established session of a client with this last byte.
    pub fn session(&mut self, name: &str, client: u8, member: &str, server_port: u16) {
        let handle = self.listener(name);
        let session = self.app.sessions.place(main_cluster(), handle.name.clone()).enter(
            ([10, 0, 5, client], 40_000 + u16::from(client)).into(),
            ([10, 0, 0, 11], handle.bind[0].port()).into(),
        );
        session.set_phase(Phase::Established);
        let role = if member == "pg1" { GrantRole::Primary } else { GrantRole::Replica };
        let server = ([10, 0, 0, 21], server_port).into();
        session.set_granted(Some(handle.stats.server(&member.into()).granted(&member.into(), role, server)));
        session.set_login(LoginRef {
            user: Some("app"),
            database: Some("shop"),
            application: Some("checkout\u{1b}[31m"),
        });
        session.add_in(2048);
        session.add_out(5 << 20);
        handle.stats.accepted.add(1);
        self.gauges.push(Box::new(Gauge::enter(ListenerSessions(Arc::clone(&handle.stats)))));
        let server = handle.stats.server(&member.into());
        server.sessions_total.add(1);
        self.gauges.push(Box::new(Gauge::enter(ServerSessions(server))));
        self.sessions.push(session);
    }

    pub fn held(&mut self, name: &str) {
        let handle = self.listener(name);
        handle.stats.held_total.add(1);
        let guard: GaugeGuard<_> = Gauge::enter(ListenerHeld(Arc::clone(&handle.stats)));
        self.gauges.push(Box::new(guard));
    }

    /// Traffic of some time, for numbers that are not all zero.
    pub fn traffic(&self, name: &str, member: &str, bytes: u64) {
        let stats = &self.listener(name).stats;
        let server = stats.server(&member.into());
        stats.bytes_in.add(bytes);
        stats.bytes_out.add(bytes * 7);
        server.bytes_in.add(bytes);
        server.bytes_out.add(bytes * 7);
        server.dialled_in.record(Duration::from_micros(1700));
        stats.closed(&CloseReason::Closed(Peer::Client));
    }

    pub fn note(&self, ago: Duration, loudness: Loudness, member: Option<&str>, what: What) {
        let at = UnixMillis(wall_now().0 - u64::try_from(ago.as_millis()).unwrap());
        self.app.note(at, &main_cluster(), &Note { loudness, member: member.map(MemberName::from), what });
    }

    /// What a switchover leaves in the timeline.
    pub fn switchover(&self) {
        use Loudness::{Info, Warn};
        let ago = Duration::from_millis;
        let candidate = Some(MemberName::from("pg1"));
        self.note(ago(7_403_120), Info, Some("pg3"), What::Membership { change: "joined" });
        self.note(ago(7_402_020), Info, Some("pg3"), What::ReplicaIn);
        self.note(ago(252_690), Info, Some("pg2"), What::SwitchoverAnnounced { candidate });
        let why = NoRoute::SwitchoverAnnounced { leader: "pg2".into() };
        self.note(ago(252_688), Warn, None, What::NoRoute { listener: listener_name("primary"), why });
        self.note(ago(251_400), Info, Some("pg2"), What::LeaderKeyGone);
        self.note(ago(251_102), Info, Some("pg1"), What::LeaderNamed);
        self.note(ago(251_101), Info, Some("pg2"), What::Revoked { reason: RevokeReason::LeaderChanged });
        self.note(ago(250_939), Info, Some("pg1"), What::PrimaryConfirmed { by: "rest", after_ms: 163 });
        self.note(ago(248_000), Info, Some("pg2"), What::ReplicaIn);
    }
}

/// A healthy cluster of so many members, `pg1` the primary.
pub fn status(members: usize) -> ClusterStatus {
    let members: Vec<_> = (1..=members).map(member).collect();
    let replicas: Vec<_> = members.iter().skip(1).map(|member| member.name.clone()).collect();
    let primary = members.first().map(|member| member.name.clone());
    ClusterStatus {
        cluster: main_cluster(),
        generation: 42,
        store: StoreStatus { state: "alive", age_ms: Some(120), error: None, revision: 1187, views: 57 },
        settings: ClusterSettings { synchronous: true, failsafe: true, ..ClusterSettings::default() },
        leader: primary.clone(),
        primary: PrimaryStatus {
            state: if primary.is_some() { "confirmed" } else { "none" },
            member: primary.clone(),
            since_ms: 250_939,
            confirmed_by: primary.is_some().then_some("rest"),
            confirmed_ms: primary.is_some().then_some(600),
            why_not: primary.is_none().then_some(NoRoute::NoLeaderYet),
        },
        routes: vec![
            RouteStatus {
                listener: listener_name("primary"),
                target: Target::Primary,
                candidates: primary.clone().into_iter().collect(),
                why_not: primary.is_none().then_some(NoRoute::NoLeaderYet),
            },
            RouteStatus {
                listener: listener_name("replicas"),
                target: Target::Replicas,
                why_not: replicas.is_empty().then_some(NoRoute::NoReplica),
                candidates: replicas,
            },
        ],
        members,
        alarms: Vec::new(),
        complaints: Vec::new(),
    }
}

/// The member `pgN`.
pub fn member(n: usize) -> MemberStatus {
    let last = u8::try_from(n).unwrap();
    let host = format!("10.0.0.{}", 20 + last);
    let primary = n == 1;
    let role = if primary { MemberRole::Primary } else { MemberRole::Replica };
    let position = Some(Lsn(0x5_066E_7000 - 4096 * n as u64));
    MemberStatus {
        name: format!("pg{n}").as_str().into(),
        addresses: vec![Address { host: host.clone(), port: 5432 }],
        api: Some(ApiUrl { tls: false, address: Address { host, port: 8008 } }),
        present: true,
        leader: primary,
        role,
        state: MemberState::Running,
        timeline: Some(Timeline(7)),
        replication: if primary { Replication::Unknown } else { Replication::Streaming },
        position,
        lag_bytes: (!primary).then_some(if n.is_multiple_of(3) { 4096 * n as u64 } else { 0 }),
        sync: n == 2,
        tags: Tags::default(),
        weight: 1,
        version: Some("4.1.0".to_owned()),
        health: "up",
        admin: AdminMode::Ready,
        answer: primary.then_some(AnswerStatus {
            age_ms: 600,
            by: Witness::Rest,
            status: Some(Status {
                role,
                state: MemberState::Running,
                timeline: Some(Timeline(7)),
                position,
                replication: Replication::Unknown,
                dcs_last_seen: Some(1_700_000_000),
                failsafe_active: false,
            }),
            error: None,
        }),
        serves: vec![if primary {
            (listener_name("primary"), GrantRole::Primary)
        } else {
            (listener_name("replicas"), GrantRole::Replica)
        }],
        excluded: primary.then(|| "it is the primary".to_owned()),
    }
}

/// A cluster in every kind of trouble: no primary, one member each drained, in maintenance, down, starting.
pub fn trouble(members: usize) -> ClusterStatus {
    let mut status = status(members);
    let old: MemberName = "pg1".into();
    status.leader = None;
    status.store = StoreStatus {
        state: "lost",
        age_ms: Some(34_000),
        error: Some("no endpoint answers: 10.0.0.1:2379 timed out".to_owned()),
        ..status.store
    };
    status.settings.paused = true;
    status.primary = PrimaryStatus {
        state: "none",
        member: None,
        since_ms: 12_300,
        confirmed_by: None,
        confirmed_ms: None,
        why_not: Some(NoRoute::LeaderKeyGone { last: Some(old.clone()) }),
    };
    for route in status.routes.iter_mut().filter(|route| route.target == Target::Primary) {
        route.candidates.clear();
        route.why_not = Some(NoRoute::LeaderKeyGone { last: Some(old.clone()) });
    }
    status.alarms = vec!["the source has been silent for 34 s; the last routes stay".to_owned()];
    status.complaints = vec![Complaint {
        key: "members/<script>alert(1)</script>".to_owned(),
        problem: "conn_url has no port".to_owned(),
    }];
    let mut out = BTreeSet::new();
    let mut exclude = |member: &mut MemberStatus, why: Option<&str>| {
        member.serves.clear();
        member.excluded = why.map(str::to_owned);
        out.insert(member.name.clone());
    };
    for (at, member) in status.members.iter_mut().enumerate() {
        match at {
            0 => {
                (member.leader, member.health) = (false, "down");
                member.answer = Some(AnswerStatus {
                    age_ms: 400,
                    by: Witness::Rest,
                    status: None,
                    error: Some(AskError::Refused),
                });
                exclude(member, None);
            }
            2 => {
                member.admin = AdminMode::Drain;
                exclude(member, None);
            }
            3 => {
                member.admin = AdminMode::Maint;
                exclude(member, None);
            }
            4 => {
                member.state = MemberState::Other("creating replica".into());
                exclude(member, Some("its state is creating replica"));
            }
            5 => exclude(member, Some("it is 48 MiB behind, more than the listener's 16 MiB")),
            _ => {}
        }
    }
    for route in &mut status.routes {
        route.candidates.retain(|member| !out.contains(member));
    }
    status
}
