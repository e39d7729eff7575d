//! Plays a recording: keys at their time, modelled answers, ticks when they are due.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pointsman_config::{ClusterName, Fallback, ListenerName, OnPromote, StalePrimary, Target};
use pointsman_core::event::{
    Answer, AskError, DialOutcome, Effect, Event, ListenerPolicy, Policy, Status, StoreCondition,
};
use pointsman_core::patroni::Keyspace;
use pointsman_core::route::{RevokeReason, RouteTable};
use pointsman_core::time::{Moment, Now, UnixMillis};
use pointsman_core::topology::Topology;
use pointsman_core::view::{MemberName, MemberRole, MemberState, Replication, Revision};

use crate::support::recording::{self, Change};

/// When a recording begins: the cluster has been known for so long by then (ms).
const WARM: u64 = 20_000;

/// A server takes writes from, until (ms since the recording began).
type Writable = (i64, Option<i64>);

pub(crate) struct Player {
    now: Moment,
    keys: Keyspace,
    revision: u64,
    topology: Topology,
    writable: BTreeMap<String, Vec<Writable>>,
    /// From this moment on its Patroni does not answer.
    dead: BTreeMap<String, i64>,
    in_flight: Vec<(Moment, Event)>,
    store_up: bool,
    heartbeat: Moment,
    played: Played,
}

/// What came of it. Times are in ms since the recording began.
#[derive(Clone, Default)]
pub(crate) struct Played {
    tables: Vec<(i64, Arc<RouteTable>)>,
    pub(crate) revoked: Vec<(i64, String, RevokeReason)>,
    changes: Vec<(i64, String, bool)>,
    pub(crate) end: i64,
}

impl Player {
    /// With the keys of a recording's `kv.txt`.
    pub(crate) fn on(recording: &str) -> Self {
        let listener = |name: &str, target| ListenerPolicy {
            name: ListenerName::new(name).unwrap(),
            target,
            max_lag: None,
            on_promote: OnPromote::Drain,
            fallback: Fallback::Primary,
            tags: BTreeMap::new(),
        };
        let listeners = vec![
            listener("primary", Target::Primary),
            listener("replicas", Target::Replicas),
            listener("sync", Target::Sync),
        ];
        let policy = Policy { listeners, stale_primary: StalePrimary::Hold, sql: false };
        let mut player = Self {
            now: Moment::ZERO,
            keys: Keyspace::new(),
            revision: 0,
            topology: Topology::new(ClusterName::new("demo").unwrap(), policy, 1),
            writable: BTreeMap::new(),
            dead: BTreeMap::new(),
            in_flight: Vec::new(),
            store_up: true,
            heartbeat: Moment::ZERO,
            played: Played::default(),
        };
        for key in recording::stored(recording) {
            player.keys.put(&key.key, key.value.as_bytes(), Revision(key.revision));
            player.revision = player.revision.max(key.revision);
        }
        player
    }

    /// Takes over what another recording ended with, before anything is played.
    pub(crate) fn apply(&mut self, recording: &str) {
        for timed in recording::watched(recording) {
            self.change(timed.change);
        }
    }

    pub(crate) fn writable(&mut self, member: &str, from: i64, until: Option<i64>) -> &mut Self {
        let from = if from == 0 { i64::MIN } else { from };
        self.writable.entry(member.to_owned()).or_default().push((from, until));
        self
    }

    pub(crate) fn dies(&mut self, member: &str, at: i64) -> &mut Self {
        self.dead.insert(member.to_owned(), at);
        self
    }

    /// Plays nothing, for so long.
    pub(crate) fn wait(&mut self, millis: u64) -> Played {
        self.warm();
        self.pass(Moment::from_millis(WARM + millis));
        self.finish()
    }

    pub(crate) fn play(&mut self, recording: &str) -> Played {
        self.play_until(recording, u64::MAX)
    }

    /// Plays what came until this moment (ms), that moment included.
    pub(crate) fn play_until(&mut self, recording: &str, last: u64) -> Played {
        self.warm();
        for timed in recording::watched(recording) {
            if timed.at > Duration::from_millis(last) {
                break;
            }
            self.pass(Moment::from_millis(WARM) + timed.at);
            let before = self.keys.view().leader.is_some();
            self.change(timed.change);
            let after = self.keys.view().leader.is_some();
            if before != after {
                self.played.changes.push((self.time(), "leader".to_owned(), after));
            }
            if self.store_up {
                self.tell(Event::View(Box::new(self.keys.view())));
            }
        }
        self.finish()
    }

    /// As [`Player::play`], after so many ms without the store; what changed in the first `unseen` ms comes at once,
    /// as the full read with which a source begins.
    pub(crate) fn play_return(&mut self, recording: &str, silent: u64, unseen: u64) -> Played {
        self.warm();
        self.change(Change::StoreDown { error: "test".to_owned() });
        let back = Moment::from_millis(WARM + silent);
        self.pass(back);
        for timed in recording::watched(recording) {
            let unseen = timed.at < Duration::from_millis(unseen);
            if !unseen {
                self.store_up = true;
                self.tell(Event::View(Box::new(self.keys.view())));
                self.pass(back + timed.at);
            }
            self.change(timed.change);
        }
        self.tell(Event::View(Box::new(self.keys.view())));
        self.finish()
    }

    fn warm(&mut self) {
        self.tell(Event::View(Box::new(self.keys.view())));
        self.pass(Moment::from_millis(WARM));
    }

    fn finish(&mut self) -> Played {
        self.played.end = self.time();
        self.played.clone()
    }

    fn change(&mut self, change: Change) {
        self.revision += 1;
        let revision = Revision(self.revision);
        match change {
            Change::Put { key, value } => self.keys.put(&key, value.as_bytes(), revision),
            Change::Delete { key } => self.keys.delete(&key, revision),
            Change::StoreDown { error } => {
                self.store_up = false;
                self.tell(Event::Store(StoreCondition::Lost { error }));
            }
        }
    }

    fn time(&self) -> i64 {
        i64::try_from(self.now.since_start().as_millis()).unwrap() - i64::try_from(WARM).unwrap()
    }

    fn pass(&mut self, end: Moment) {
        loop {
            let timeout = self.topology.poll_timeout(self.clock());
            assert!(timeout > self.now);
            let due = self.in_flight.iter().map(|(at, _)| *at).min().unwrap_or(Moment::NEVER);
            let heartbeat = if self.store_up { self.heartbeat.max(self.now) } else { Moment::NEVER };
            let next = timeout.min(due).min(heartbeat);
            if next >= end {
                break;
            }
            self.now = next;
            let arrived = self.in_flight.iter().position(|(at, _)| *at <= next);
            if let Some(index) = arrived {
                let event = self.in_flight.remove(index).1;
                self.tell(event);
            } else if heartbeat <= next {
                self.heartbeat = next + Duration::from_secs(2);
                self.tell(Event::Store(StoreCondition::Alive));
            } else {
                self.tell(Event::Tick);
            }
        }
        self.now = end;
    }

    fn clock(&self) -> Now {
        let millis = u64::try_from(self.now.since_start().as_millis()).unwrap();
        Now { mono: self.now, wall: UnixMillis(1_795_000_000_000 + millis) }
    }

    fn tell(&mut self, event: Event) {
        for effect in self.topology.handle(self.clock(), event) {
            let later = self.now + Duration::from_millis(2);
            match effect {
                Effect::Publish(table) => self.played.tables.push((self.time(), table)),
                Effect::Revoke(revocation) => {
                    let member = revocation.member.as_str().to_owned();
                    self.played.revoked.push((self.time(), member, revocation.reason));
                }
                Effect::Ask { member, question, .. } => {
                    let outcome = self.answer(&member);
                    let answer = Answer { member, by: question.witness(), asked_at: self.now, outcome };
                    self.in_flight.push((later, Event::Answer(answer)));
                }
                Effect::Probe { member, .. } => {
                    self.in_flight.push((later, Event::Probe { member, outcome: DialOutcome::Served }));
                }
                Effect::Note(_) => {}
            }
        }
    }

    fn answer(&self, member: &MemberName) -> Result<Status, AskError> {
        let now = self.time();
        if self.dead.get(member.as_str()).is_some_and(|at| now >= *at) {
            return Err(AskError::Refused);
        }
        let spans = self.writable.get(member.as_str()).map(Vec::as_slice).unwrap_or_default();
        let writable =
            spans.iter().any(|(from, until)| now >= *from && until.is_none_or(|until| now < until));
        // Who has taken writes and does not any more is stopping; in the store's outage it is a replica again.
        let stopping = self.store_up
            && spans.iter().any(|(_, until)| until.is_some_and(|until| now >= until && until > 0));
        let role = if writable || stopping { MemberRole::Primary } else { MemberRole::Replica };
        Ok(Status {
            role,
            state: MemberState::from_patroni(if stopping && !writable { "stopping" } else { "running" }),
            timeline: None,
            position: None,
            replication: Replication::Unknown,
            dcs_last_seen: None,
            failsafe_active: false,
        })
    }
}

impl Played {
    /// The candidates of a listener at this moment, or the label of the reason why there are none.
    pub(crate) fn at(&self, listener: &str, time: i64) -> String {
        let (_, table) = self.tables.iter().rev().find(|(at, _)| *at <= time).expect("a table was published");
        shown(table, listener)
    }

    /// All answers of [`Played::at`] from this moment on.
    pub(crate) fn all(&self, listener: &str, from: i64) -> BTreeSet<String> {
        let later = self.tables.iter().filter(|(at, _)| *at > from).map(|(_, table)| shown(table, listener));
        later.chain([self.at(listener, from)]).collect()
    }

    /// When this became the answer of [`Played::at`] for the first time since the recording began.
    pub(crate) fn first(&self, listener: &str, answer: &str) -> i64 {
        self.first_after(listener, answer, i64::MIN)
    }

    pub(crate) fn first_after(&self, listener: &str, answer: &str, after: i64) -> i64 {
        let found = self.tables.iter().find(|(at, table)| *at >= after && shown(table, listener) == answer);
        found.map_or(i64::MAX, |(at, _)| *at)
    }

    /// From `time` on the member is no candidate of the listener.
    pub(crate) fn only_before(&self, listener: &str, member: &str, time: i64) {
        for (at, table) in self.tables.iter().filter(|(at, _)| *at >= time) {
            assert!(!shown(table, listener).split(',').any(|name| name == member), "{member} at {at}");
        }
    }

    /// The member is never a candidate of anybody.
    pub(crate) fn never(&self, member: &str) {
        let listeners: BTreeSet<_> = self.tables.iter().flat_map(|(_, table)| table.routes.keys()).collect();
        for listener in listeners {
            self.only_before(listener.as_str(), member, i64::MIN);
        }
    }

    /// When the leader key was written for the nth time in the recording.
    pub(crate) fn key(&self, key: &str, nth: usize) -> i64 {
        self.changes.iter().filter(|(_, name, present)| name == key && *present).nth(nth).unwrap().0
    }

    pub(crate) fn gone(&self, key: &str) -> i64 {
        self.changes.iter().find(|(_, name, present)| name == key && !present).unwrap().0
    }

    /// When a member's write sessions were cut, and why.
    pub(crate) fn revoked_of(&self, member: &str) -> Vec<(i64, RevokeReason)> {
        let of: BTreeSet<_> = self
            .revoked
            .iter()
            .filter(|(_, name, _)| name == member)
            .map(|(at, _, why)| (*at, *why))
            .collect();
        of.into_iter().collect()
    }
}

fn shown(table: &RouteTable, listener: &str) -> String {
    match &table.routes[&ListenerName::new(listener).unwrap()].candidates {
        Ok(candidates) => {
            let names: Vec<_> = candidates.iter().map(|candidate| candidate.member.as_str()).collect();
            names.join(",")
        }
        Err(why) => why.label().to_owned(),
    }
}
