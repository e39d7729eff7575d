//! A cluster, its store, the network between them and us, and a clock, all made of one seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use pointsman_config::{Bytes, ClusterName, Fallback, ListenerName, OnPromote, StalePrimary, Target};
use pointsman_core::event::{
    AdminMode, Answer, AskError, DialOutcome, Effect, Event, ListenerPolicy, Policy, Status, StoreCondition,
    Witness,
};
use pointsman_core::route::NoRoute;
use pointsman_core::time::{Moment, Now, UnixMillis};
use pointsman_core::topology::Topology;
use pointsman_core::view::{
    Address, Announcement, ApiUrl, ClusterSettings, ClusterView, LeaderKey, Lsn, MemberName, MemberRole,
    MemberState, MemberView, Replication, Revision, SyncView, Tags, Timeline, TimelineSwitch,
};

use crate::checker::Checker;
use crate::clients::Clients;

/// splitmix64.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What a server really is.
#[derive(Clone, Debug)]
struct Server {
    primary: bool,
    running: bool,
    patroni: bool,
    timeline: u32,
    lsn: u64,
    streaming: bool,
    /// Its tags say `noloadbalance`.
    tagged: bool,
}

/// What is under way between us and the world.
#[derive(Debug)]
enum InFlight {
    Answer(Answer),
    Probe(MemberName, DialOutcome),
}

pub(crate) struct World {
    dice: Dice,
    now: Now,
    /// The time of the last step.
    last: Now,
    policy: Policy,
    servers: BTreeMap<MemberName, Server>,
    /// The store's truth.
    store: ClusterView,
    store_up: bool,
    /// Snapshots that have left the store and not reached us.
    snapshots: VecDeque<(Moment, ClusterView)>,
    in_flight: Vec<(Moment, InFlight)>,
    topology: Topology,
    checker: Checker,
    clients: Clients,
    quiet: bool,
    trace: bool,
    fingerprint: Option<u64>,
}

fn name(number: u64) -> MemberName {
    MemberName::from(format!("n{number}").as_str())
}

fn listener(name: &str, target: Target, fallback: Fallback, on_promote: OnPromote) -> ListenerPolicy {
    ListenerPolicy {
        name: ListenerName::new(name).unwrap(),
        target,
        max_lag: (target == Target::Replicas).then_some(Bytes(1 << 20)),
        on_promote,
        fallback,
        tags: BTreeMap::new(),
    }
}

/// `settled`: the last policy, by which the end is judged.
fn policy(dice: &mut Dice, sql: bool, settled: bool) -> Policy {
    let fallback = if settled || dice.one_in(2) { Fallback::Primary } else { Fallback::None };
    let on_promote = OnPromote::ALL[usize::try_from(dice.below(3)).unwrap()];
    let stale_primary = if dice.one_in(2) { StalePrimary::Hold } else { StalePrimary::Route };
    let shifting = [Target::Replicas, Target::Sync, Target::Async, Target::Any];
    let shifting = shifting[usize::try_from(dice.below(4)).unwrap()];
    let mut listeners = vec![
        listener("primary", Target::Primary, Fallback::None, on_promote),
        listener("replicas", Target::Replicas, fallback, on_promote),
        listener("any", Target::Any, Fallback::None, on_promote),
    ];
    if !dice.one_in(4) {
        listeners.push(listener("shifting", shifting, fallback, on_promote));
    }
    Policy { listeners, stale_primary, sql }
}

impl World {
    pub(crate) fn new(seed: u64, trace: bool) -> Self {
        let mut dice = Dice(seed);
        let members = 2 + dice.below(4);
        let servers = (1..=members)
            .map(|n| {
                let server = Server {
                    primary: n == 1,
                    running: true,
                    patroni: true,
                    timeline: 1,
                    lsn: 1000,
                    streaming: n != 1,
                    tagged: dice.one_in(4),
                };
                (name(n), server)
            })
            .collect();
        let sql = dice.one_in(2);
        let policy = policy(&mut dice, sql, false);
        let holds_stale = policy.stale_primary == StalePrimary::Hold;
        let topology = Topology::new(ClusterName::new("sim").unwrap(), policy.clone(), seed);
        let mut world = Self {
            last: Now::default(),
            policy,
            dice,
            now: Now { mono: Moment::ZERO, wall: UnixMillis(1_800_000_000_000) },
            servers,
            store: ClusterView::default(),
            store_up: true,
            snapshots: VecDeque::new(),
            in_flight: Vec::new(),
            topology,
            checker: Checker::new(),
            clients: Clients::new(),
            quiet: false,
            trace,
            fingerprint: None,
        };
        world.checker.holds_stale = holds_stale;
        for n in 1..=members {
            world.write_member(&name(n));
        }
        world.write_leader(&name(1));
        world.tell(Event::Tick);
        world
    }

    pub(crate) fn checker_mut(&mut self) -> &mut Checker {
        &mut self.checker
    }

    /// From now on everything that comes out goes into a number.
    pub(crate) fn with_fingerprint(mut self) -> Self {
        self.fingerprint = Some(0);
        self
    }

    /// Everything that came out, in a number.
    pub(crate) fn fingerprint(&self) -> Option<u64> {
        self.fingerprint
    }

    // What the members write.

    fn revision(&mut self) -> Revision {
        self.store.revision = Revision(self.store.revision.0 + 1);
        self.store.revision
    }

    fn changed(&mut self) {
        let late = if self.quiet { 1 } else { self.dice.below(400) };
        let last = self.snapshots.back().map_or(Moment::ZERO, |(at, _)| *at);
        let at = last.max(self.now.mono + Duration::from_millis(late));
        if !self.quiet && self.dice.one_in(6) {
            return; // merged into the next snapshot
        }
        self.snapshots.push_back((at, self.store.clone()));
        if self.dice.one_in(10) {
            self.snapshots.push_back((at, self.store.clone())); // doubled
        }
    }

    fn write_leader(&mut self, member: &MemberName) {
        let revision = self.revision();
        self.store.leader = Some(LeaderKey { member: member.clone(), revision });
        self.changed();
    }

    fn delete_leader(&mut self) {
        self.revision();
        self.store.leader = None;
        self.changed();
    }

    fn write_member(&mut self, member: &MemberName) {
        let Some(server) = self.servers.get(member).cloned() else { return };
        if !server.patroni {
            return;
        }
        let revision = self.revision();
        let lies = !self.quiet && self.dice.one_in(20);
        let role = if server.primary || lies { MemberRole::Primary } else { MemberRole::Replica };
        let host = format!("10.0.0.{}", member.as_str().trim_start_matches('n'));
        let view = MemberView {
            name: member.clone(),
            addresses: vec![Address { host: host.clone(), port: 5432 }].into(),
            api: Some(ApiUrl { tls: false, address: Address { host, port: 8008 } }),
            role,
            state: MemberState::from_patroni(if server.running { "running" } else { "stopped" }),
            version: None,
            timeline: Some(Timeline(server.timeline)),
            position: server.running.then_some(Lsn(server.lsn)),
            replay: (!server.primary).then_some(Lsn(server.lsn)),
            replication: if server.streaming { Replication::Streaming } else { Replication::NotStreaming },
            tags: Tags { noloadbalance: server.tagged, ..Tags::default() },
            weight: 1,
            revision,
        };
        self.store.members.insert(member.clone(), view);
        if role == MemberRole::Primary {
            self.store.optime = Some((Lsn(server.lsn), revision));
        }
        self.changed();
    }

    fn delete_member(&mut self, member: &MemberName) {
        self.revision();
        self.store.members.remove(member);
        self.changed();
    }

    fn promote(&mut self, member: &MemberName) {
        let timeline = self.servers.values().map(|server| server.timeline).max().unwrap_or(1) + 1;
        let Some(server) = self.servers.get_mut(member) else { return };
        if server.primary {
            return;
        }
        let end = Lsn(server.lsn);
        self.store.history.push(TimelineSwitch { timeline: Timeline(timeline - 1), end });
        server.primary = true;
        server.running = true;
        server.timeline = timeline;
        server.lsn += 100;
        server.streaming = false;
    }

    fn demote(&mut self, member: &MemberName) {
        if let Some(server) = self.servers.get_mut(member) {
            server.primary = false;
            server.streaming = self.dice.one_in(2);
        }
    }

    fn any_member(&mut self) -> MemberName {
        let count = self.servers.len() as u64;
        name(1 + self.dice.below(count))
    }

    /// One stroke of bad luck, then some time.
    pub(crate) fn bad_luck(&mut self) {
        let member = self.any_member();
        if self.dice.one_in(2) {
            let dice = self.dice.next();
            self.clients.arrive(self.topology.table(), self.now.mono, dice);
        }
        match self.dice.below(28) {
            0 => self.delete_leader(),
            1 => {
                let old = self.store.leader.as_ref().map(|key| key.member.clone());
                self.write_leader(&member);
                if let Some(old) = old.filter(|_| self.dice.one_in(2)) {
                    self.demote(&old);
                }
            }
            2 => self.promote(&member),
            3 => self.demote(&member),
            4 => self.write_leader(&MemberName::from("nobody")),
            5 => self.delete_member(&member),
            6..=9 => self.write_member(&member),
            10 => {
                if let Some(server) = self.servers.get_mut(&member) {
                    server.running = !server.running;
                }
            }
            11 => {
                if let Some(server) = self.servers.get_mut(&member) {
                    server.patroni = !server.patroni;
                }
            }
            12 => self.announce(&member),
            13 => {
                self.revision();
                self.store.announcement = None;
                self.changed();
            }
            14 => self.settings(),
            15 => {
                self.store_up = !self.store_up;
                if !self.store_up {
                    self.snapshots.clear();
                    self.tell(Event::Store(StoreCondition::Lost { error: "simulated".into() }));
                }
            }
            16 => {
                for _ in 0..self.dice.below(8) {
                    self.tell(Event::ServerClosed { member: member.clone() });
                }
            }
            17 | 18 => {
                let outcome = self.dial(&member, true);
                self.tell(Event::Dial { member, outcome });
            }
            19 => {
                let mode = [AdminMode::Ready, AdminMode::Ready, AdminMode::Drain, AdminMode::Maint]
                    [usize::try_from(self.dice.below(4)).unwrap()];
                // Only whom it knows can an operator take out.
                if self.remembered().contains(&member) {
                    self.tell(Event::Admin { member, mode });
                }
            }
            20 => {
                let policy = policy(&mut self.dice, self.policy.sql, false);
                self.tell(Event::Policy(policy));
            }
            22 => {
                self.revision();
                let standbys = if self.dice.one_in(2) { [member].into() } else { BTreeSet::new() };
                self.store.sync = Some(SyncView { leader: None, standbys });
                self.changed();
            }
            23 => {
                if let Some(server) = self.servers.get_mut(&member) {
                    server.tagged = !server.tagged;
                }
                self.write_member(&member);
            }
            24 | 25 => {
                if let Some(server) = self.servers.get_mut(&member).filter(|server| !server.primary) {
                    server.streaming = !server.streaming;
                }
                self.write_member(&member);
            }
            21 => self.in_flight.retain(|(_, what)| matches!(what, InFlight::Probe(..))),
            _ => {
                for server in self.servers.values_mut() {
                    server.lsn += self.dice.below(1 << 19);
                }
            }
        }
        let pause = match self.dice.below(4) {
            0 => self.dice.below(5),
            1 => self.dice.below(100),
            2 => self.dice.below(1_500),
            _ => self.dice.below(8_000),
        };
        self.pass(Duration::from_millis(pause));
    }

    fn announce(&mut self, member: &MemberName) {
        let revision = self.revision();
        let leader =
            self.store.leader.as_ref().map(|key| key.member.clone()).filter(|_| !self.dice.one_in(3));
        let scheduled_at = self.dice.one_in(3).then(|| self.now.wall.0 + self.dice.below(20_000));
        self.store.announcement =
            Some(Announcement { leader, candidate: Some(member.clone()), scheduled_at, revision });
        self.changed();
    }

    fn settings(&mut self) {
        self.revision();
        self.store.settings.paused = self.dice.one_in(3);
        self.store.settings.standby_cluster = self.dice.one_in(8);
        self.changed();
    }

    // How time passes: everything that is due happens in order.

    fn pass(&mut self, duration: Duration) {
        let end = self.now.mono + duration;
        let mut steps = 0;
        loop {
            self.move_clients();
            let timeout = self.topology.poll_timeout(self.now);
            assert!(timeout > self.now.mono, "the topology wants to be called again at once, for ever");
            let snapshot = self.snapshots.front().map(|(at, _)| *at).filter(|_| self.store_up);
            let flight = self.in_flight.iter().map(|(at, _)| *at).min();
            let next = [Some(timeout), snapshot, flight, self.clients.timeout()]
                .into_iter()
                .flatten()
                .min()
                .unwrap_or(end);
            if next > end {
                break;
            }
            self.now = self.now + self.now.mono.until(next);
            self.checker.check_until(self.now.mono);
            self.happen();
            steps += 1;
            assert!(steps < 200_000, "too much happens in {duration:?}");
        }
        self.now = self.now + self.now.mono.until(end);
    }

    fn happen(&mut self) {
        if self.store_up && self.snapshots.front().is_some_and(|(at, _)| *at <= self.now.mono) {
            if let Some((_, view)) = self.snapshots.pop_front() {
                let remembered = self.remembered();
                self.checker.saw_view(&view, &remembered, self.now.mono);
                self.tell(Event::View(Box::new(view)));
            }
            return;
        }
        let due = self.in_flight.iter().position(|(at, _)| *at <= self.now.mono);
        match due.map(|index| self.in_flight.remove(index).1) {
            Some(InFlight::Answer(answer)) => {
                self.checker.saw_answer(&answer, self.now.mono);
                self.tell(Event::Answer(answer));
            }
            Some(InFlight::Probe(member, outcome)) => self.tell(Event::Probe { member, outcome }),
            None => self.tell(Event::Tick),
        }
    }

    fn tell(&mut self, event: Event) {
        self.check_weighed();
        if let Event::Policy(policy) = &event {
            self.policy = policy.clone();
        }
        if self.trace {
            eprintln!("{:>9} <- {}", self.now.mono.since_start().as_millis(), short(&event));
        }
        self.checker.before(&event, self.now.mono, &mut self.clients);
        let effects = self.topology.handle(self.now, event);
        for effect in &effects {
            if self.trace && !matches!(effect, Effect::Probe { .. }) {
                eprintln!("          -> {effect:?}");
            }
        }
        if let Some(fingerprint) = &mut self.fingerprint {
            let text = format!("{effects:?}");
            *fingerprint = text.bytes().fold(*fingerprint, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        }
        self.checker.saw_effects(&effects, self.now.mono, &mut self.clients);
        if effects.iter().any(|effect| matches!(effect, Effect::Publish(_) | Effect::Note(_)))
            || self.dice.one_in(8)
        {
            self.clients.check_cut(self.topology.table());
        }
        self.move_clients();
        for effect in effects {
            self.carry_out(effect);
        }
    }

    /// The members that the topology knows.
    fn remembered(&self) -> BTreeSet<MemberName> {
        self.topology.describe(self.now.mono).members.into_iter().map(|member| member.name).collect()
    }

    fn move_clients(&mut self) {
        let dice = self.dice.next();
        self.clients.settle(self.topology.table(), self.now.mono, dice);
    }

    /// The topology saves itself work when nothing has happened that the table depends on. Now and then a copy is
    /// made to do that work, at the time of the last step: it must come to the same table.
    fn check_weighed(&mut self) {
        if self.dice.one_in(64) && self.last.mono > Moment::ZERO {
            let effects = self.topology.clone().handle(self.last, Event::Policy(self.policy.clone()));
            let idle = |effect: &Effect| !matches!(effect, Effect::Publish(_) | Effect::Revoke(_));
            assert!(effects.iter().all(idle), "the table was not up to date: {effects:?}");
        }
        self.last = self.now;
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Ask { member, question, deadline } => {
                let outcome = self.answer(&member, question.witness());
                let limit = u64::try_from(deadline.as_millis()).unwrap();
                let slow = !self.quiet && self.dice.one_in(10);
                let late = if slow { self.dice.below(limit) } else { 1 + self.dice.below(8) };
                let answer = Answer { member, by: question.witness(), asked_at: self.now.mono, outcome };
                self.in_flight.push((self.now.mono + Duration::from_millis(late), InFlight::Answer(answer)));
            }
            Effect::Probe { member, .. } => {
                let outcome = self.dial(&member, !self.quiet);
                let late = Duration::from_millis(1 + self.dice.below(5));
                self.in_flight.push((self.now.mono + late, InFlight::Probe(member, outcome)));
            }
            Effect::Publish(_) | Effect::Revoke(_) | Effect::Note(_) => {}
        }
    }

    /// A Patroni may lie, or be gone while its server runs; a server speaks the truth, if it speaks.
    fn answer(&mut self, member: &MemberName, witness: Witness) -> Result<Status, AskError> {
        let unlucky = !self.quiet && self.dice.one_in(25);
        let (lies, fails) = (unlucky && witness == Witness::Rest, unlucky && witness == Witness::Sql);
        let server = self.servers.get(member).filter(|server| match witness {
            Witness::Rest => server.patroni,
            Witness::Sql => server.running && !fails,
        });
        let server = server.ok_or(AskError::Refused)?;
        Ok(Status {
            role: if server.primary || lies { MemberRole::Primary } else { MemberRole::Replica },
            state: MemberState::from_patroni(if server.running { "running" } else { "stopping" }),
            timeline: Some(Timeline(server.timeline)),
            position: Some(Lsn(server.lsn)),
            replication: if server.streaming { Replication::Streaming } else { Replication::NotStreaming },
            dcs_last_seen: Some(self.now.wall.0 / 1000),
            failsafe_active: false,
        })
    }

    fn dial(&mut self, member: &MemberName, unlucky: bool) -> DialOutcome {
        if unlucky && self.dice.one_in(8) {
            return [DialOutcome::Refused, DialOutcome::TimedOut, DialOutcome::Failed, DialOutcome::NotReady]
                [usize::try_from(self.dice.below(4)).unwrap()];
        }
        let running = self.servers.get(member).is_some_and(|server| server.running);
        if running { DialOutcome::Served } else { DialOutcome::Refused }
    }

    // How it ends.

    /// The bad luck ends: one leader, everybody healthy, the store answers, nobody lies.
    pub(crate) fn quiet(&mut self) {
        self.quiet = true;
        self.store_up = true;
        self.store.announcement = None;
        self.store.settings = ClusterSettings::default();
        let policy = policy(&mut self.dice, self.policy.sql, true);
        self.tell(Event::Policy(policy));
        let leader = self.any_member();
        let others: Vec<MemberName> =
            self.servers.keys().filter(|member| **member != leader).cloned().collect();
        self.promote(&leader);
        let (timeline, lsn) = self.servers.get(&leader).map(|server| (server.timeline, server.lsn)).unwrap();
        let top = self.servers.values().map(|server| server.timeline).max().unwrap();
        for server in self.servers.values_mut() {
            *server = Server {
                primary: false,
                running: true,
                patroni: true,
                timeline: timeline.max(top),
                lsn,
                streaming: true,
                tagged: server.tagged,
            };
        }
        self.servers.get_mut(&leader).unwrap().primary = true;
        self.write_leader(&leader);
        for round in 0..4 {
            self.write_member(&leader);
            for other in &others {
                self.write_member(other);
                if round == 0 {
                    self.tell(Event::Admin { member: other.clone(), mode: AdminMode::Ready });
                }
            }
            if round == 0 {
                self.tell(Event::Admin { member: leader.clone(), mode: AdminMode::Ready });
            }
            self.pass(Duration::from_secs(10));
        }
    }

    /// After quiet the table equals the truth.
    pub(crate) fn check_truth(&mut self) {
        let leader = self.store.leader.as_ref().map(|key| key.member.clone()).unwrap();
        let table = self.topology.table();
        let candidates = |listener: &str| -> Result<Vec<MemberName>, NoRoute> {
            let route = &table.routes[&ListenerName::new(listener).unwrap()];
            route
                .candidates
                .clone()
                .map(|list| list.iter().map(|candidate| candidate.member.clone()).collect())
        };
        assert_eq!(candidates("primary"), Ok(vec![leader.clone()]), "the primary is not routed to");
        let untagged =
            self.servers.iter().filter(|(_, server)| !server.tagged).map(|(member, _)| member.clone());
        let any: Vec<MemberName> = untagged.collect();
        let mut replicas: Vec<MemberName> = any.iter().filter(|member| **member != leader).cloned().collect();
        if replicas.is_empty() {
            replicas.push(leader); // the fallback
        }
        assert_eq!(candidates("replicas"), Ok(replicas), "not every replica is routed to");
        assert_eq!(candidates("any"), if any.is_empty() { Err(NoRoute::NoMember) } else { Ok(any) });
        self.clients.check_end();
        let status = self.topology.describe(self.now.mono);
        assert_eq!(status.primary.state, "confirmed");
        assert_eq!(status.alarms, Vec::<String>::new());
    }
}

fn short(event: &Event) -> String {
    let Event::View(view) = event else { return format!("{event:?}") };
    let member = |m: &MemberView| format!("{}:{}:{}@{}", m.name, m.role, m.state, m.revision.0);
    let members: Vec<String> = view.members.values().map(member).collect();
    let leader = view.leader.as_ref().map(|key| format!("{}@{}", key.member, key.revision.0));
    format!(
        "view {} leader {leader:?} {members:?} announced {} paused {} standby {}",
        view.revision.0,
        view.announcement.is_some(),
        view.settings.paused,
        view.settings.standby_cluster
    )
}
