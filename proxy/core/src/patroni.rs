//! Patroni's words: the keys that it writes into the store, and the bodies of its REST answers.
//!
//! [`Polls`] makes one [`ClusterView`] of the answers of several members' REST interfaces, where there is no store to
//! read. A [`Keyspace`] mirrors the keys of one cluster and makes a [`ClusterView`] of them. Whatever cannot be
//! understood becomes a [`Complaint`], and the last good value of that key stays in use; only a key that
//! was deleted is gone. Words and shapes of Patroni 3.0 to 4.x are understood alike.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use pointsman_config::ConnectTo;

use crate::time::Moment;
use crate::view::{
    Announcement, ClusterSettings, ClusterView, Complaint, LeaderKey, Lsn, MemberName, MemberView, Revision,
    SyncView, TimelineSwitch,
};

mod cluster;
mod iso8601;
mod polls;
mod rest;
mod url;
mod values;

#[cfg(test)]
mod tests;

pub use cluster::{ClusterAnswer, Sick, parse_cluster, parse_config, parse_history};
pub use polls::{Asked, Polls, Verdict};
pub use rest::parse_status;
pub(crate) use values::excerpt;

/// Longer values are not read: etcd takes no more than 1.5 MiB, Consul 512 KiB, Patroni writes some KiB.
const MAX_VALUE: usize = 1 << 20;

/// The mirror of the keys under `NAMESPACE/SCOPE/`. A key is always given without that prefix: `members/n1`.
#[derive(Clone, Debug)]
pub struct Keyspace {
    revision: Revision,
    connect_to: ConnectTo,
    keys: Keys,
}

/// Every key that we read, by Patroni's names.
#[derive(Clone, Debug, Default)]
struct Keys {
    leader: Slot<LeaderKey>,
    members: BTreeMap<MemberName, Slot<MemberView>>,
    status: Slot<Option<(Lsn, Revision)>>,
    failover: Slot<Option<Announcement>>,
    sync: Slot<Option<SyncView>>,
    config: Slot<ClusterSettings>,
    history: Slot<Vec<TimelineSwitch>>,
    initialize: Slot<Option<Arc<str>>>,
}

/// What one key said last that made sense, and what is wrong with it now.
#[derive(Clone, Debug)]
struct Slot<T> {
    good: Option<T>,
    problem: Option<String>,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { good: None, problem: None }
    }
}

impl<T> Slot<T> {
    /// Takes over a value that makes sense; else keeps the last one that did.
    fn learn(&mut self, parsed: Result<T, String>) {
        match parsed {
            Ok(value) => *self = Self { good: Some(value), problem: None },
            Err(problem) => self.problem = Some(problem),
        }
    }
}

impl Default for Keyspace {
    fn default() -> Self {
        Self::new()
    }
}

impl Keyspace {
    /// No keys, revision 0; sessions go to PostgreSQL itself.
    pub fn new() -> Self {
        Self::leading_to(ConnectTo::ConnUrl)
    }

    /// No keys, revision 0.
    pub fn leading_to(connect_to: ConnectTo) -> Self {
        Self { revision: Revision::default(), connect_to, keys: Keys::default() }
    }

    /// Takes over a full read: keys that are not in it are gone. A key that is in it and makes no sense now
    /// keeps its last good value.
    pub fn replace_all<'a>(
        &mut self,
        revision: Revision,
        keys: impl IntoIterator<Item = (&'a str, &'a [u8], Revision)>,
    ) {
        let mut old = mem::take(&mut self.keys);
        for (key, value, written) in keys {
            self.keys.inherit(&mut old, key);
            self.keys.put(key, value, written, self.connect_to);
        }
        self.revision = revision;
    }

    /// A key was written, at this revision of the store.
    pub fn put(&mut self, key: &str, value: &[u8], revision: Revision) {
        self.keys.put(key, value, revision, self.connect_to);
        self.revision = self.revision.max(revision);
    }

    /// A key was deleted (by somebody, or with its lease), at this revision of the store.
    pub fn delete(&mut self, key: &str, revision: Revision) {
        self.keys.delete(key);
        self.revision = self.revision.max(revision);
    }

    /// What the keys say together.
    pub fn view(&self) -> ClusterView {
        let keys = &self.keys;
        let members = keys.members.iter();
        ClusterView {
            read_at: Moment::ZERO,
            revision: self.revision,
            leader: keys.leader.good.clone(),
            members: members.filter_map(|(name, slot)| Some((name.clone(), slot.good.clone()?))).collect(),
            optime: keys.status.good.flatten(),
            announcement: keys.failover.good.clone().flatten(),
            sync: keys.sync.good.clone().flatten(),
            settings: keys.config.good.clone().unwrap_or_default(),
            history: keys.history.good.clone().unwrap_or_default(),
            system_id: keys.initialize.good.clone().flatten(),
            complaints: self.complaints(),
        }
    }

    fn complaints(&self) -> Vec<Complaint> {
        let keys = &self.keys;
        let single = [
            ("leader", &keys.leader.problem),
            ("status", &keys.status.problem),
            ("failover", &keys.failover.problem),
            ("sync", &keys.sync.problem),
            ("config", &keys.config.problem),
            ("history", &keys.history.problem),
            ("initialize", &keys.initialize.problem),
        ];
        let single = single.into_iter().map(|(key, problem)| (key.to_owned(), problem));
        let members = keys.members.iter().map(|(name, slot)| (format!("members/{name}"), &slot.problem));
        let mut all: Vec<_> = single
            .chain(members)
            .filter_map(|(key, problem)| Some(Complaint { key, problem: problem.clone()? }))
            .collect();
        all.extend(self.stray_leader());
        all.sort();
        all
    }

    /// A leader key that names nobody we know. It is passed on all the same: the member may be about to
    /// write its key.
    fn stray_leader(&self) -> Option<Complaint> {
        let name = &self.keys.leader.good.as_ref()?.member;
        let known = self.keys.members.get(name).is_some_and(|slot| slot.good.is_some());
        let problem = format!("it names {}, which has no usable member key", excerpt(name.as_str()));
        (!known).then(|| Complaint { key: "leader".to_owned(), problem })
    }
}

impl Keys {
    fn put(&mut self, key: &str, value: &[u8], written: Revision, connect_to: ConnectTo) {
        match Key::parse(key) {
            Key::Leader => self.leader.learn(values::leader(value, written)),
            Key::Member(name) => {
                let parsed = values::member(&name, value, written, connect_to);
                self.members.entry(name).or_default().learn(parsed);
            }
            Key::Status => self.status.learn(values::status(value, written)),
            Key::Failover => self.failover.learn(values::failover(value, written)),
            Key::Sync => self.sync.learn(values::sync(value)),
            Key::Config => self.config.learn(values::config(value)),
            Key::History => self.history.learn(values::history(value)),
            Key::Initialize => self.initialize.learn(values::initialize(value)),
            Key::Unused => {}
        }
    }

    fn delete(&mut self, key: &str) {
        match Key::parse(key) {
            Key::Leader => self.leader = Slot::default(),
            Key::Member(name) => {
                self.members.remove(&name);
            }
            Key::Status => self.status = Slot::default(),
            Key::Failover => self.failover = Slot::default(),
            Key::Sync => self.sync = Slot::default(),
            Key::Config => self.config = Slot::default(),
            Key::History => self.history = Slot::default(),
            Key::Initialize => self.initialize = Slot::default(),
            Key::Unused => {}
        }
    }

    /// Moves what `old` knew of a key here.
    fn inherit(&mut self, old: &mut Self, key: &str) {
        match Key::parse(key) {
            Key::Leader => self.leader = mem::take(&mut old.leader),
            Key::Member(name) => {
                if let Some(slot) = old.members.remove(&name) {
                    self.members.insert(name, slot);
                }
            }
            Key::Status => self.status = mem::take(&mut old.status),
            Key::Failover => self.failover = mem::take(&mut old.failover),
            Key::Sync => self.sync = mem::take(&mut old.sync),
            Key::Config => self.config = mem::take(&mut old.config),
            Key::History => self.history = mem::take(&mut old.history),
            Key::Initialize => self.initialize = mem::take(&mut old.initialize),
            Key::Unused => {}
        }
    }
}

/// Which key it is.
enum Key {
    Leader,
    Member(MemberName),
    Status,
    Failover,
    Sync,
    Config,
    History,
    Initialize,
    /// `failsafe` (the members' own concern), or a key that is not Patroni's.
    Unused,
}

impl Key {
    fn parse(key: &str) -> Self {
        match key {
            "leader" => Self::Leader,
            "status" => Self::Status,
            "failover" => Self::Failover,
            "sync" => Self::Sync,
            "config" => Self::Config,
            "history" => Self::History,
            "initialize" => Self::Initialize,
            _ => match key.strip_prefix("members/") {
                Some(name) if !name.is_empty() && !name.contains('/') => Self::Member(name.into()),
                _ => Self::Unused,
            },
        }
    }
}
