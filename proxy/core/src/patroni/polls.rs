//! Answers of several Patronis, one after another and in no reliable order, made into one story.
//!
//! Each Patroni reads the store in order, but they do not read it at the same moment, and one whose watch has died reads
//! an old one for ever. So
//!
//! - an answer to `GET /cluster` counts only if it was asked for after the last one that counted had arrived; otherwise
//!   nobody knows which of the two is the newer one;
//! - another leader than the present one is believed of a Patroni that has named the present one itself (it speaks of a
//!   later time), if it is on a higher timeline, or if it is new: not on a lower timeline, and not one that fell before
//!   this Patroni knew. Anything else is *stale*: an old leader must not rise again because somebody was asleep;
//! - what is stale counts all the same when nobody has named the present leader for half a minute.
//!
//! Revisions are our own counter, which grows with each change of the view. A leader's entry bears the revision of the
//! leader key and never a newer one: `/cluster` says `leader` of whoever holds the key, which proves nothing of its server.
//!
//! Positions come from the members' statuses. A replica's counts only if it was asked for after the leader's had arrived,
//! so it is compared with an earlier position of the leader, as with a store.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::cluster::ClusterAnswer;
use crate::event::Status;
use crate::time::Moment;
use crate::view::{
    Announcement, ApiUrl, ClusterSettings, ClusterView, Complaint, LeaderKey, Lsn, MemberName, MemberRole,
    MemberState, MemberView, Replication, Revision, SyncView, Timeline, TimelineSwitch,
};

/// When nobody has named the present leader for so long, whoever is named now leads.
const PATIENCE: Duration = Duration::from_secs(30);
/// A Patroni may be behind the others for so long before it is complained of.
const BEHIND: Duration = Duration::from_secs(3);
/// A Patroni that has not been heard of for so long is not complained of any more.
const FORGET: Duration = Duration::from_secs(60);
/// What a Patroni knew so many changes of leader ago is forgotten.
const TURNS: u64 = 16;
/// A position is as old as a member key may be: a `loop_wait` and this. Later it is not known.
const LATE: Duration = Duration::from_secs(1);

/// Whose answer it is, and when it was asked for and came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Where the question went.
    pub whom: ApiUrl,
    /// When it was sent.
    pub asked_at: Moment,
    /// When the answer was complete.
    pub answered_at: Moment,
}

/// What an answer is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the newest word. `news`: it says something else than the last one.
    Counts {
        /// Whether anything has changed.
        news: bool,
    },
    /// Its question was sent before the last answer that counted arrived.
    Overtaken,
    /// It speaks of a time that is over: why, in a sentence.
    Stale(String),
}

/// A member's last status.
#[derive(Clone, Debug)]
struct Heard {
    asked_at: Moment,
    status: Status,
    /// Its position, and when it was asked for it.
    reading: Option<(Lsn, Moment)>,
}

/// A Patroni that speaks of a time that is over.
#[derive(Clone, Debug)]
struct Stale {
    since: Moment,
    last: Moment,
    why: String,
}

/// The answers of one cluster's Patronis.
#[derive(Clone, Debug, Default)]
pub struct Polls {
    /// The last answer that counted; sick entries are replaced by the last good ones.
    answer: Option<ClusterAnswer>,
    /// When it arrived.
    heard_at: Moment,
    /// What is wrong with entries, by complaint key.
    sick: BTreeMap<String, String>,
    /// Grows with each change of leader, and when the same one is seen on a higher timeline: others may have led meanwhile.
    turn: u64,
    /// The leader's timeline in this turn, by its entry.
    turn_timeline: Option<Timeline>,
    /// The last turn that each Patroni was seen to know.
    knows: BTreeMap<ApiUrl, u64>,
    /// The turn at which a former leader fell.
    fell: BTreeMap<MemberName, u64>,
    /// When the present leader was last named.
    agreed_at: Moment,
    /// The highest timeline that a leader was seen on.
    timeline: Option<Timeline>,
    /// Patronis whose last answer was stale.
    stale: BTreeMap<ApiUrl, Stale>,
    statuses: BTreeMap<MemberName, Heard>,
    /// Members whose position was read since the last view.
    read: BTreeSet<MemberName>,
    optime: Option<(Lsn, Moment)>,
    optime_read: bool,
    settings: ClusterSettings,
    history: Vec<TimelineSwitch>,
    /// The last whole view.
    view: ClusterView,
}

impl Polls {
    /// Nothing has been heard yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The last whole view.
    pub fn view(&self) -> &ClusterView {
        &self.view
    }

    /// Takes in an answer to `GET /cluster`.
    pub fn take_cluster(&mut self, asked: &Asked, answer: ClusterAnswer) -> Verdict {
        if self.answer.is_some() && asked.asked_at < self.heard_at {
            return Verdict::Overtaken;
        }
        if let Err(why) = self.judge(asked, &answer) {
            let last = asked.answered_at;
            let since = self.stale.get(&asked.whom).map_or(last, |stale| stale.since);
            self.stale.insert(asked.whom.clone(), Stale { since, last, why: why.clone() });
            return Verdict::Stale(why);
        }
        self.stale.remove(&asked.whom);
        let timeline = answer.leader.as_ref().and_then(|name| entry_timeline(name, &answer));
        if self.answer.as_ref().is_none_or(|last| last.leader != answer.leader) {
            self.turn_to(&answer, asked.answered_at);
            self.turn_timeline = timeline;
        } else if timeline > self.turn_timeline {
            self.turn = self.turn.saturating_add(1);
            self.turn_timeline = timeline;
        }
        if timeline.is_none() || timeline == self.turn_timeline {
            self.knows.insert(asked.whom.clone(), self.turn);
        }
        if answer.leader.is_none() {
            // The last leader may have been on a higher timeline than it was ever seen on; who followed it is.
            let followed = answer.members.keys().filter_map(|name| entry_timeline(name, &answer)).max();
            self.timeline = self.timeline.max(followed);
        }
        self.heard_at = asked.answered_at;
        self.agreed_at = asked.answered_at;
        let answer = self.heal(answer);
        let news = self.answer.as_ref() != Some(&answer);
        self.answer = Some(answer);
        Verdict::Counts { news }
    }

    /// Takes in a member's status (`GET /patroni`).
    pub fn take_status(&mut self, name: &MemberName, asked: &Asked, status: Status) {
        let Some(answer) = self.answer.as_ref().filter(|answer| answer.members.contains_key(name)) else {
            return;
        };
        let leads = answer.leader.as_ref() == Some(name);
        let serves =
            if answer.standby_cluster { status.role != MemberRole::Replica } else { status.writable() };
        let mut reading = self.statuses.get(name).and_then(|heard| heard.reading);
        match status.position {
            Some(position) if leads && serves => {
                self.optime = Some((position, asked.answered_at));
                self.optime_read = true;
                reading = Some((position, asked.asked_at));
            }
            Some(_) if leads => {}
            Some(position) if self.optime.is_none_or(|(_, at)| at <= asked.asked_at) => {
                self.read.insert(name.clone());
                reading = Some((position, asked.asked_at));
            }
            Some(_) => {}
            None => reading = None,
        }
        self.statuses.insert(name.clone(), Heard { asked_at: asked.asked_at, status, reading });
    }

    /// Takes in the dynamic configuration (`GET /config`), or what is wrong with it.
    pub fn take_config(&mut self, parsed: Result<ClusterSettings, String>) {
        if let Some(settings) = self.learn("config", parsed) {
            self.settings = settings;
        }
    }

    /// Takes in the ends of timelines (`GET /history`), or what is wrong with them.
    pub fn take_history(&mut self, parsed: Result<Vec<TimelineSwitch>, String>) {
        if let Some(history) = self.learn("history", parsed) {
            self.history = history;
        }
    }

    /// The view, if it has changed since the last call. None before the first answer that counted.
    pub fn settle(&mut self, now: Moment) -> Option<ClusterView> {
        let next = Revision(self.view.revision.0.saturating_add(1));
        self.stale.retain(|_, stale| now.since(stale.last) < FORGET);
        let view = self.make_view(next, now)?;
        let same = view == ClusterView { revision: next, ..self.view.clone() };
        self.read.clear();
        self.optime_read = false;
        if same {
            return None;
        }
        self.view = view.clone();
        Some(view)
    }

    /// The revision of the last view.
    pub fn revision(&self) -> Revision {
        self.view.revision
    }

    /// Who leads, by the last answer that counted.
    pub fn leader(&self) -> Option<&MemberName> {
        self.answer.as_ref()?.leader.as_ref()
    }

    /// The members of the last view.
    pub fn members(&self) -> impl Iterator<Item = &MemberView> {
        self.view.members.values()
    }

    /// Patroni's `loop_wait`, as far as is known.
    pub fn loop_wait(&self) -> Duration {
        Duration::from_secs(self.settings.loop_wait.into())
    }

    fn learn<T>(&mut self, key: &str, parsed: Result<T, String>) -> Option<T> {
        match parsed {
            Ok(value) => {
                self.sick.remove(key);
                Some(value)
            }
            Err(problem) => {
                self.sick.insert(key.to_owned(), problem);
                None
            }
        }
    }

    /// Whether an answer can be newer than what is known. The error is a sentence about it.
    fn judge(&self, asked: &Asked, answer: &ClusterAnswer) -> Result<(), String> {
        let Some(last) = &self.answer else { return Ok(()) };
        let knows = self.knows.get(&asked.whom).copied();
        if last.leader == answer.leader
            || knows == Some(self.turn)
            || self.is_patience_over(asked.answered_at)
        {
            return Ok(());
        }
        let present = last.leader.as_ref().map_or("nobody", MemberName::as_str);
        let Some(name) = &answer.leader else {
            return Err(format!("it names no leader, and has never named {present}"));
        };
        let timeline = entry_timeline(name, answer);
        if timeline.is_some() && timeline > self.timeline {
            return Ok(());
        }
        if let (Some(is), Some(highest)) = (timeline, self.timeline)
            && is < highest
        {
            return Err(format!(
                "it names {name} on timeline {is}, and {present} leads since timeline {highest}"
            ));
        }
        match self.fell.get(name) {
            Some(turn) if knows.is_none_or(|knows| knows < *turn) => {
                Err(format!("it names {name}, which led before {present}, and has never named anybody since"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Nobody has named the present leader for long.
    fn is_patience_over(&self, now: Moment) -> bool {
        now.since(self.agreed_at) >= PATIENCE
    }

    /// Another leader, or none any more.
    fn turn_to(&mut self, answer: &ClusterAnswer, now: Moment) {
        self.turn = self.turn.saturating_add(1);
        if let Some(old) = self.leader().cloned() {
            self.fell.insert(old, self.turn);
        }
        self.knows.retain(|_, knows| knows.saturating_add(TURNS) > self.turn);
        self.fell.retain(|name, _| answer.members.contains_key(name));
        if let Some(name) = &answer.leader {
            self.fell.remove(name);
            let claimed = entry_timeline(name, answer);
            if claimed > self.timeline || self.is_patience_over(now) {
                self.timeline = claimed;
            }
        }
        // Positions of another leader's timeline say nothing, nor does what was said before this one led.
        self.optime = None;
        for heard in self.statuses.values_mut() {
            heard.reading = None;
        }
    }

    /// Entries that make no sense keep their last good value.
    fn heal(&mut self, mut answer: ClusterAnswer) -> ClusterAnswer {
        self.sick.retain(|key, _| !key.starts_with("members/"));
        let last = self.answer.as_ref();
        let mut never_good = Vec::new();
        for (name, entry) in &mut answer.members {
            let Err(problem) = entry else { continue };
            self.sick.insert(format!("members/{name}"), problem.clone());
            match last.and_then(|last| last.members.get(name)) {
                Some(Ok(good)) => *entry = Ok(good.clone()),
                Some(Err(_)) | None => never_good.push(name.clone()),
            }
        }
        answer.members.retain(|name, _| !never_good.contains(name));
        self.statuses.retain(|name, _| answer.members.contains_key(name));
        answer
    }

    fn make_view(&mut self, next: Revision, now: Moment) -> Option<ClusterView> {
        let answer = self.answer.as_ref()?;
        let last = &self.view;
        let leader = answer.leader.as_ref().map(|name| {
            let known = last.leader.as_ref().filter(|key| key.member == *name);
            LeaderKey { member: name.clone(), revision: known.map_or(next, |key| key.revision) }
        });
        let members = answer.members.values().filter_map(|entry| entry.as_ref().ok());
        let members =
            members.map(|entry| (entry.name.clone(), self.member(entry, leader.as_ref(), next, now)));
        let members: BTreeMap<_, _> = members.collect();
        let led_on = leader.as_ref().and_then(|key| members.get(&key.member)?.timeline);
        let settings = self.merged_settings(answer);
        let optime = self.optime.map(|(position, _)| {
            let known = last.optime.filter(|_| !self.optime_read).map(|(_, revision)| revision);
            (position, known.unwrap_or(next))
        });
        let view = ClusterView {
            read_at: Moment::ZERO,
            revision: next,
            optime,
            announcement: announcement(answer.scheduled.as_ref(), last.announcement.as_ref(), next),
            sync: settings
                .synchronous
                .then(|| SyncView { leader: answer.leader.clone(), standbys: answer.standbys.clone() }),
            settings,
            history: self.history.clone(),
            system_id: None,
            complaints: self.complaints(leader.as_ref(), now),
            leader,
            members,
        };
        self.timeline = self.timeline.max(led_on);
        Some(view)
    }

    /// A member's entry, with what it says itself.
    fn member(
        &self,
        entry: &MemberView,
        leader: Option<&LeaderKey>,
        next: Revision,
        now: Moment,
    ) -> MemberView {
        let mut view = entry.clone();
        let leads = leader.filter(|key| key.member == entry.name);
        let fresh = |at: Moment| now.since(at) <= self.loop_wait() + LATE;
        if let Some(heard) = self.statuses.get(&entry.name) {
            let status = &heard.status;
            if leads.is_some() {
                let stops = status.state != MemberState::Running;
                view.timeline = view.timeline.max(status.timeline);
                view.position = heard.reading.filter(|_| !stops).map(|(position, _)| position);
            } else if fresh(heard.asked_at) {
                view.timeline = status.timeline.or(view.timeline);
                if status.replication != Replication::Unknown {
                    view.replication = status.replication;
                }
                view.position = heard.reading.filter(|(_, at)| fresh(*at)).map(|(position, _)| position);
            }
            view.replay = view.position;
        }
        let known = self.view.members.get(&entry.name);
        view.revision = match (leads, known) {
            (Some(key), _) => key.revision,
            (None, Some(known)) => {
                let same = *known == MemberView { revision: known.revision, ..view.clone() };
                if same && !self.read.contains(&entry.name) { known.revision } else { next }
            }
            (None, None) => next,
        };
        view
    }

    fn merged_settings(&self, answer: &ClusterAnswer) -> ClusterSettings {
        let config = self.settings.clone();
        let standby_cluster =
            if answer.leader.is_some() { answer.standby_cluster } else { self.view.settings.standby_cluster };
        ClusterSettings {
            paused: answer.paused,
            standby_cluster,
            synchronous: config.synchronous || !answer.standbys.is_empty(),
            ..config
        }
    }

    fn complaints(&self, leader: Option<&LeaderKey>, now: Moment) -> Vec<Complaint> {
        let sick =
            self.sick.iter().map(|(key, problem)| Complaint { key: key.clone(), problem: problem.clone() });
        let behind = self.stale.iter().filter(|(_, stale)| now.since(stale.since) >= BEHIND);
        let behind = behind.map(|(whom, stale)| Complaint {
            key: "leader".to_owned(),
            problem: format!("{whom} lives on an old view of the store: {}", stale.why),
        });
        let stray = leader.filter(|key| {
            let entry = self.answer.as_ref().and_then(|answer| answer.members.get(&key.member));
            entry.is_none()
        });
        let stray = stray.map(|key| Complaint {
            key: "leader".to_owned(),
            problem: format!("it names {}, which has no usable entry", key.member),
        });
        let mut all: Vec<_> = sick.chain(behind).chain(stray).collect();
        all.sort();
        all
    }
}

/// A member's timeline by its entry in an answer.
fn entry_timeline(name: &MemberName, answer: &ClusterAnswer) -> Option<Timeline> {
    answer.members.get(name)?.as_ref().ok()?.timeline
}

/// A scheduled switchover, with the revision at which it was first seen.
fn announcement(
    scheduled: Option<&Announcement>,
    last: Option<&Announcement>,
    next: Revision,
) -> Option<Announcement> {
    let scheduled = scheduled?;
    let known = last.filter(|last| **last == Announcement { revision: last.revision, ..scheduled.clone() });
    Some(Announcement { revision: known.map_or(next, |last| last.revision), ..scheduled.clone() })
}

#[cfg(test)]
mod tests;
