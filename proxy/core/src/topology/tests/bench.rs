//! A topology on a bench: a store to write into, members that answer as they are told, and a clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pointsman_config::{ClusterName, Fallback, ListenerName, OnPromote, StalePrimary, Target};

use crate::event::{
    AdminMode, Answer, AskError, DialOutcome, Effect, Event, ListenerPolicy, Policy, Status, StoreCondition,
    What, Witness,
};
use crate::route::{Candidate, NoRoute, RevokeReason, Term};
use crate::time::{Moment, Now, UnixMillis};
use crate::topology::Topology;
use crate::view::{
    Address, Announcement, ApiUrl, ClusterView, LeaderKey, Lsn, MemberName, MemberRole, MemberState,
    MemberView, Replication, Revision, SyncView, Tags, Timeline,
};

/// The wall clock at the start of monotonic time.
const START: u64 = 1_800_000_000_000;

/// What a member answers.
pub(super) type Word = Result<Status, AskError>;

#[expect(clippy::unnecessary_wraps, reason = "a word may also be an error")]
pub(super) fn says(role: MemberRole, state: &str) -> Word {
    Ok(Status {
        role,
        state: MemberState::from_patroni(state),
        timeline: None,
        position: None,
        replication: Replication::Unknown,
        dcs_last_seen: None,
        failsafe_active: false,
    })
}

/// "I take writes."
pub(super) fn writable() -> Word {
    says(MemberRole::Primary, "running")
}

/// "I am a running replica."
pub(super) fn in_recovery() -> Word {
    says(MemberRole::Replica, "running")
}

/// "I take writes on this timeline, and my Patroni saw the store at this second."
pub(super) fn claim(timeline: u32, dcs_last_seen: u64) -> Word {
    let status = writable()?;
    Ok(Status { timeline: Some(Timeline(timeline)), dcs_last_seen: Some(dcs_last_seen), ..status })
}

pub(super) fn name(name: &str) -> MemberName {
    MemberName::from(name)
}

pub(super) fn listener(name: &str, target: Target) -> ListenerPolicy {
    ListenerPolicy {
        name: ListenerName::new(name).unwrap(),
        target,
        max_lag: None,
        on_promote: OnPromote::Drain,
        fallback: Fallback::Primary,
        tags: BTreeMap::new(),
    }
}

/// Three members, n1 to n3; one listener for each target.
pub(super) struct Bench {
    pub(super) now: Now,
    /// The store's truth.
    pub(super) store: ClusterView,
    pub(super) policy: Policy,
    pub(super) topology: Topology,
    /// What members answer whenever they are asked; nobody else answers.
    words: BTreeMap<MemberName, Word>,
    /// Members whose server refuses connections.
    down: BTreeSet<MemberName>,
    in_flight: Vec<(Moment, Event)>,
    /// When the store gives its next sign of life, while it is heard.
    heartbeat: Moment,
    pub(super) store_heard: bool,
    pub(super) asked: Vec<(Moment, MemberName)>,
    revoked: BTreeSet<(MemberName, RevokeReason)>,
    pub(super) ended: Vec<(Term, RevokeReason)>,
    pub(super) notes: Vec<What>,
}

impl Bench {
    /// Nothing is known at all.
    pub(super) fn bare() -> Self {
        let policy = Policy {
            listeners: vec![
                listener("primary", Target::Primary),
                listener("replicas", Target::Replicas),
                listener("sync", Target::Sync),
                listener("async", Target::Async),
                listener("any", Target::Any),
            ],
            stale_primary: StalePrimary::Hold,
            sql: false,
        };
        Self {
            now: Now { mono: Moment::from_millis(1_000_000), wall: UnixMillis(START + 1_000_000) },
            store: ClusterView::default(),
            topology: Topology::new(ClusterName::new("test").unwrap(), policy.clone(), 7),
            policy,
            words: BTreeMap::new(),
            down: BTreeSet::new(),
            in_flight: Vec::new(),
            heartbeat: Moment::ZERO,
            store_heard: true,
            asked: Vec::new(),
            revoked: BTreeSet::new(),
            ended: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// n1 has just been named; nobody has said anything.
    pub(super) fn new() -> Self {
        let mut bench = Self::bare();
        for number in 1..=3 {
            let role = if number == 1 { MemberRole::Primary } else { MemberRole::Replica };
            bench.put(member(number, role));
        }
        bench.leader("n1");
        bench
    }

    /// n1 leads and says so; n2 and n3 stream from it.
    pub(super) fn steady() -> Self {
        let mut bench = Self::new();
        bench.word("n1", writable());
        bench.after(5_000);
        bench.expect_primary("n1");
        bench.expect("replicas", &["n2", "n3"]);
        bench
    }

    // The store.

    /// Writes into the store and hands the snapshot in.
    pub(super) fn write(&mut self, change: impl FnOnce(&mut ClusterView, Revision)) -> &mut Self {
        let revision = Revision(self.store.revision.0 + 1);
        self.store.revision = revision;
        change(&mut self.store, revision);
        self.tell(Event::View(Box::new(self.store.clone())))
    }

    pub(super) fn leader(&mut self, member: &str) -> &mut Self {
        self.write(|store, revision| store.leader = Some(LeaderKey { member: name(member), revision }))
    }

    pub(super) fn no_leader(&mut self) -> &mut Self {
        self.write(|store, _| store.leader = None)
    }

    pub(super) fn put(&mut self, member: MemberView) -> &mut Self {
        self.write(|store, revision| {
            store.members.insert(member.name.clone(), MemberView { revision, ..member });
        })
    }

    /// Rewrites a member's key.
    pub(super) fn member(&mut self, member: &str, change: impl FnOnce(&mut MemberView)) -> &mut Self {
        let mut view = self.store.members[&name(member)].clone();
        change(&mut view);
        self.put(view)
    }

    pub(super) fn role(&mut self, member: &str, role: MemberRole, state: &str) -> &mut Self {
        self.member(member, |view| (view.role, view.state) = (role, MemberState::from_patroni(state)))
    }

    pub(super) fn delete_member(&mut self, member: &str) -> &mut Self {
        self.write(|store, _| {
            store.members.remove(&name(member));
        })
    }

    /// A switchover away from `from`, in `ahead` milliseconds or now.
    pub(super) fn announce(&mut self, from: &str, to: &str, ahead: Option<u64>) -> &mut Self {
        let scheduled_at = ahead.map(|ahead| self.now.wall.0 + ahead);
        let (leader, candidate) = (Some(name(from)), Some(name(to)));
        self.write(|store, revision| {
            store.announcement = Some(Announcement { leader, candidate, scheduled_at, revision });
        })
    }

    pub(super) fn sync(&mut self, standbys: &[&str]) -> &mut Self {
        let standbys = standbys.iter().map(|standby| name(standby)).collect();
        self.write(|store, _| store.sync = Some(SyncView { leader: Some(name("n1")), standbys }))
    }

    pub(super) fn lose_store(&mut self) -> &mut Self {
        self.store_heard = false;
        self.tell(Event::Store(StoreCondition::Lost { error: "test".to_owned() }))
    }

    /// The store answers again, with what it holds.
    pub(super) fn regain_store(&mut self) -> &mut Self {
        self.store_heard = true;
        self.tell(Event::View(Box::new(self.store.clone())))
    }

    // The members.

    /// From now on the member answers this.
    pub(super) fn word(&mut self, member: &str, word: Word) -> &mut Self {
        self.words.insert(name(member), word);
        self
    }

    /// From now on the member does not answer questions.
    pub(super) fn silent(&mut self, member: &str) -> &mut Self {
        self.words.remove(&name(member));
        self
    }

    /// The member answers a question that was sent so many milliseconds ago.
    pub(super) fn answers(&mut self, member: &str, asked_ago: u64, word: Word) -> &mut Self {
        let asked_at = self.now.mono.earlier_by(Duration::from_millis(asked_ago));
        self.tell(Event::Answer(Answer { member: name(member), by: Witness::Rest, asked_at, outcome: word }))
    }

    pub(super) fn server(&mut self, member: &str, up: bool) -> &mut Self {
        if up {
            self.down.remove(&name(member))
        } else {
            self.down.insert(name(member))
        };
        self
    }

    pub(super) fn dial(&mut self, member: &str, outcome: DialOutcome) -> &mut Self {
        self.tell(Event::Dial { member: name(member), outcome })
    }

    pub(super) fn admin(&mut self, member: &str, mode: AdminMode) -> &mut Self {
        self.tell(Event::Admin { member: name(member), mode })
    }

    /// Changes one listener.
    pub(super) fn configure(
        &mut self,
        listener: &str,
        change: impl FnOnce(&mut ListenerPolicy),
    ) -> &mut Self {
        let policy = self.policy.listeners.iter_mut().find(|policy| policy.name.as_str() == listener);
        change(policy.unwrap());
        self.tell(Event::Policy(self.policy.clone()))
    }

    // The clock.

    /// Lets time pass: questions and probes are answered after a millisecond, ticks come when they are due.
    pub(super) fn after(&mut self, millis: u64) -> &mut Self {
        let end = self.now.mono + Duration::from_millis(millis);
        loop {
            let timeout = self.topology.poll_timeout(self.now);
            assert!(timeout > self.now.mono, "the timeout is not in the future");
            let due = self.in_flight.iter().map(|(at, _)| *at).min().unwrap_or(Moment::NEVER);
            let heartbeat = if self.store_heard { self.heartbeat.max(self.now.mono) } else { Moment::NEVER };
            let next = due.min(timeout).min(heartbeat);
            if next > end {
                break;
            }
            self.pass_to(next);
            let arrived = self.in_flight.iter().position(|(at, _)| *at <= self.now.mono);
            if let Some(index) = arrived {
                let event = self.in_flight.remove(index).1;
                self.tell(event);
            } else if heartbeat <= self.now.mono {
                self.heartbeat = self.now.mono + Duration::from_secs(5);
                self.tell(Event::Store(StoreCondition::Alive));
            } else {
                self.tell(Event::Tick);
            }
        }
        self.pass_to(end);
        self
    }

    fn pass_to(&mut self, moment: Moment) {
        let millis = u64::try_from(moment.since_start().as_millis()).unwrap();
        self.now = Now { mono: moment, wall: UnixMillis(START + millis) };
    }

    pub(super) fn tell(&mut self, event: Event) -> &mut Self {
        for effect in self.topology.handle(self.now, event) {
            let later = self.now.mono + Duration::from_millis(1);
            match effect {
                Effect::Ask { member, question, .. } => {
                    self.asked.push((self.now.mono, member.clone()));
                    if let Some(outcome) = self.words.get(&member).cloned() {
                        let answer =
                            Answer { member, by: question.witness(), asked_at: self.now.mono, outcome };
                        self.in_flight.push((later, Event::Answer(answer)));
                    }
                }
                Effect::Probe { member, .. } => {
                    let refuses = self.down.contains(&member);
                    let outcome = if refuses { DialOutcome::Refused } else { DialOutcome::Served };
                    self.in_flight.push((later, Event::Probe { member, outcome }));
                }
                Effect::Revoke(revocation) => {
                    self.ended.push((revocation.term, revocation.reason));
                    self.revoked.insert((revocation.member, revocation.reason));
                }
                Effect::Note(note) => self.notes.push(note.what),
                Effect::Publish(_) => {}
            }
        }
        self
    }

    // What is expected.

    pub(super) fn route(&self, listener: &str) -> Result<Vec<Candidate>, NoRoute> {
        let route = &self.topology.table().routes[&ListenerName::new(listener).unwrap()];
        route.candidates.clone().map(|candidates| candidates.to_vec())
    }

    #[track_caller]
    pub(super) fn expect(&mut self, listener: &str, members: &[&str]) -> &mut Self {
        let route = self.route(listener);
        let found: Vec<&str> = match &route {
            Ok(candidates) => candidates.iter().map(|candidate| candidate.member.as_str()).collect(),
            Err(why) => panic!("{listener} has no candidate: {why}"),
        };
        assert_eq!(found, members, "candidates of {listener}");
        self
    }

    #[track_caller]
    pub(super) fn expect_none(&mut self, listener: &str, why: &str) -> &mut Self {
        match self.route(listener) {
            Ok(candidates) => panic!("{listener} has candidates: {candidates:?}"),
            Err(found) => assert_eq!(found.label(), why),
        }
        self
    }

    #[track_caller]
    pub(super) fn expect_primary(&mut self, member: &str) -> &mut Self {
        self.expect("primary", &[member])
    }

    #[track_caller]
    pub(super) fn expect_no_primary(&mut self, why: &str) -> &mut Self {
        self.expect_none("primary", why)
    }

    /// Whose sessions were cut since the last call, and why.
    #[track_caller]
    pub(super) fn expect_revoked(&mut self, revoked: &[(&str, RevokeReason)]) -> &mut Self {
        let found: Vec<_> = self.revoked.iter().map(|(member, reason)| (member.as_str(), *reason)).collect();
        assert_eq!(found, revoked);
        self.revoked.clear();
        self
    }

    /// How often a member was asked since a moment.
    pub(super) fn questions(&self, member: &str, since: Moment) -> usize {
        self.asked.iter().filter(|(at, asked)| *at >= since && asked.as_str() == member).count()
    }
}

pub(super) fn member(number: u8, role: MemberRole) -> MemberView {
    let host = format!("10.0.0.{number}");
    let primary = role == MemberRole::Primary;
    MemberView {
        name: name(&format!("n{number}")),
        addresses: vec![Address { host: host.clone(), port: 5432 }].into(),
        api: Some(ApiUrl { tls: false, address: Address { host, port: 8008 } }),
        role,
        state: MemberState::Running,
        version: None,
        timeline: Some(Timeline(1)),
        position: Some(Lsn(1_000)),
        replay: (!primary).then_some(Lsn(1_000)),
        replication: if primary { Replication::Unknown } else { Replication::Streaming },
        tags: Tags::default(),
        weight: 1,
        revision: Revision(0),
    }
}
