//! A fixed list of servers, asked one by one, made into a view: who leads is found out, not read.
//!
//! There is no store, so the leader key is made up here, by what the members say of themselves:
//!
//! - the member that says that it is a primary leads; of several the one on the highest timeline; on the same timeline
//!   the one that led before stays, and a complaint is raised; if none of them led before, nobody does;
//! - a claim stands until its member says otherwise: a leader that falls silent stays named (the topology doubts it, and
//!   holds), and nobody on a lower timeline takes its place;
//! - nobody is named before each member has answered, or has failed to twice.
//!
//! Invariant: the member named is never on a lower timeline than the last word of any member that called itself a primary.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use crate::event::{AskError, Status};
use crate::sql::Failure;
use crate::time::Moment;
use crate::view::{
    Address, ClusterSettings, ClusterView, Complaint, LeaderKey, MemberName, MemberRole, MemberState,
    MemberView, Replication, Revision, Tags, Timeline, TimelineSwitch,
};

#[cfg(test)]
mod tests;

/// Failures in a row that make a member unreachable.
const FALL: u32 = 2;
/// How often each member is asked at least, in seconds: the `loop_wait` of such a cluster.
const LOOK_EVERY: u32 = 2;
/// How many ends of timelines are remembered.
const HISTORY: usize = 16;

/// What the members of a fixed list have said so far.
#[derive(Clone, Debug)]
pub struct Survey {
    members: BTreeMap<MemberName, Surveyed>,
    patience: Option<Duration>,
    now: Moment,
    view: ClusterView,
}

/// What an answer has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    /// Nothing that was not known.
    None,
    /// Positions in the log have moved.
    Positions,
    /// Roles, states or complaints have changed, or a member has failed to answer for the first time.
    Roles,
}

#[derive(Clone, Debug)]
struct Surveyed {
    addresses: Arc<[Address]>,
    asked_at: Option<Moment>,
    /// What it said last, and when it was asked.
    word: Option<(Moment, Status)>,
    /// What it has failed by since.
    failure: Option<Failure>,
    failures: u32,
}

/// A member that called itself a primary the last time that it said anything.
#[derive(Clone, Copy)]
struct Claim<'a> {
    timeline: Option<Timeline>,
    member: &'a MemberName,
    /// It said so when it was last asked.
    live: bool,
}

impl Survey {
    /// Nothing is known of these members. `patience`: for so long a leader is kept that answers, but does not tell
    /// (a password that is wrong); `None`: for ever.
    pub fn new(members: impl IntoIterator<Item = (MemberName, Address)>, patience: Option<Duration>) -> Self {
        let surveyed = |address| Surveyed {
            addresses: [address].into(),
            asked_at: None,
            word: None,
            failure: None,
            failures: 0,
        };
        let members = members.into_iter().map(|(name, address)| (name, surveyed(address))).collect();
        let settings = ClusterSettings { loop_wait: LOOK_EVERY, ..ClusterSettings::default() };
        let view = ClusterView { settings, ..ClusterView::default() };
        Self { members, patience, now: Moment::ZERO, view }
    }

    /// What `old` knew of the members that are still in the list, at the same addresses: their last words, and who led. Without
    /// it whoever answers first after a change of the configuration might lead, on an old timeline too.
    #[must_use]
    pub fn inheriting(mut self, old: &Self) -> Self {
        self.now = self.now.max(old.now);
        let settings = self.view.settings.clone();
        self.view = ClusterView { settings, ..old.view.clone() };
        for (name, member) in &mut self.members {
            match old.members.get(name).filter(|known| known.addresses == member.addresses) {
                Some(known) => member.word.clone_from(&known.word),
                None => self.view.leader = self.view.leader.take().filter(|key| key.member != *name),
            }
        }
        let listed = &self.members;
        self.view.leader = self.view.leader.take().filter(|key| listed.contains_key(&key.member));
        self
    }

    /// A member answered a question that was sent at `asked_at`, or did not. Late answers count for nothing.
    pub fn take(&mut self, member: &MemberName, asked_at: Moment, answer: Result<Status, Failure>) -> News {
        let Some(surveyed) = self.members.get_mut(member) else { return News::None };
        if surveyed.asked_at.is_some_and(|last| asked_at < last) {
            return News::None;
        }
        let fails_now = answer.is_err() && surveyed.failures == 0;
        surveyed.take(asked_at, answer);
        self.now = self.now.max(asked_at);
        let news = if self.is_settled() { self.look() } else { News::None };
        if fails_now { News::Roles } else { news }
    }

    /// The cluster, as soon as each member has answered or failed to twice, and one has answered.
    pub fn view(&self) -> Option<&ClusterView> {
        (self.view.revision > Revision(0)).then_some(&self.view)
    }

    /// Who leads.
    pub fn leader(&self) -> Option<&MemberName> {
        self.view.leader.as_ref().map(|key| &key.member)
    }

    /// Why nothing is known of now: no member answers. `None`: one does.
    pub fn silence(&self) -> Option<String> {
        let mut all = String::new();
        for (name, member) in &self.members {
            let (kind, why) = member.failure.as_ref().filter(|_| member.failures >= FALL)?;
            let separator = if all.is_empty() { "no member answers: " } else { "; " };
            let kind = kind.to_string();
            let why = if is_mute(member.failure.as_ref()?.0) { &kind } else { why };
            let _ = write!(all, "{separator}{name}: {why}"); // a String takes everything
        }
        Some(all)
    }

    fn is_settled(&self) -> bool {
        let known = self.members.values().any(|member| member.word.is_some());
        known && self.members.values().all(|member| member.word.is_some() || member.failures >= FALL)
    }

    /// Makes the view anew; what has changed gets the next revision.
    fn look(&mut self) -> News {
        let next = Revision(self.view.revision.0.saturating_add(1));
        let leader = self.choose();
        let view = ClusterView {
            revision: self.view.revision,
            leader: leader.as_ref().map(|name| self.key(name, next)),
            optime: leader.as_ref().and_then(|name| self.optime(name, next)).or(self.view.optime),
            members: self
                .members
                .iter()
                .map(|(name, member)| (name.clone(), self.describe(name, member, leader.as_ref(), next)))
                .collect(),
            complaints: self.complaints(leader.as_ref()),
            history: self.history(leader.as_ref()),
            ..self.view.clone()
        };
        if view == self.view {
            return News::None;
        }
        let roles = |view: &ClusterView| {
            let members = view.members.values();
            let members: Vec<_> =
                members.map(|m| (m.role, m.state.clone(), m.timeline, m.replication)).collect();
            (view.leader.clone(), members, view.complaints.clone())
        };
        let news = if roles(&view) == roles(&self.view) { News::Positions } else { News::Roles };
        self.view = ClusterView { revision: next, ..view };
        news
    }

    /// Who leads.
    fn choose(&self) -> Option<MemberName> {
        let best = self.best_claims();
        let incumbent = self.leader();
        if let Some(claim) = best.iter().find(|claim| Some(claim.member) == incumbent) {
            return Some(claim.member.clone());
        }
        match best.as_slice() {
            [only] if only.live => Some(only.member.clone()),
            _ => None,
        }
    }

    fn claims(&self) -> impl Iterator<Item = Claim<'_>> {
        self.members.iter().filter_map(|(member, surveyed)| {
            let (_, status) = surveyed.word.as_ref().filter(|(_, status)| status.writable())?;
            Some(Claim { timeline: status.timeline, member, live: surveyed.failures == 0 })
        })
    }

    /// The claims on the highest timeline.
    fn best_claims(&self) -> Vec<Claim<'_>> {
        let Some(highest) = self.claims().map(|claim| claim.timeline).max() else { return Vec::new() };
        self.claims().filter(|claim| claim.timeline == highest).collect()
    }

    /// The leader key: written when another one leads, or when the same one was promoted meanwhile.
    fn key(&self, leader: &MemberName, next: Revision) -> LeaderKey {
        let timeline = self.members.get(leader).and_then(Surveyed::timeline);
        let before = self.view.members.get(leader).and_then(|member| member.timeline);
        let kept = self.view.leader.as_ref().filter(|key| key.member == *leader && timeline == before);
        kept.cloned().unwrap_or_else(|| LeaderKey { member: leader.clone(), revision: next })
    }

    fn optime(&self, leader: &MemberName, next: Revision) -> Option<(crate::view::Lsn, Revision)> {
        let (_, status) = self.members.get(leader)?.word.as_ref()?;
        let position = status.position?;
        let kept = self.view.optime.filter(|(last, _)| *last == position);
        Some(kept.unwrap_or((position, next)))
    }

    /// Where timelines ended, at the latest: the first position that was seen of the one that took over. Who has replayed
    /// beyond it on the old timeline follows somebody else.
    fn history(&self, leader: Option<&MemberName>) -> Vec<TimelineSwitch> {
        let mut history = self.view.history.clone();
        let status = leader.and_then(|name| self.members.get(name)?.word.as_ref()).map(|(_, status)| status);
        let known = history.last().map_or(self.led_on(), |last| last.timeline.0.saturating_add(1));
        if let Some(Status { timeline: Some(timeline), position: Some(end), .. }) = status
            && known > 0
            && timeline.0 > known
        {
            let before = Timeline(timeline.0.saturating_sub(1));
            history.push(TimelineSwitch { timeline: before, end: *end });
            history.drain(..history.len().saturating_sub(HISTORY));
        }
        history
    }

    /// The timeline of the leader so far; 0: nobody has led.
    fn led_on(&self) -> u32 {
        let leader = self.view.leader.as_ref().and_then(|key| self.view.members.get(&key.member));
        number(leader.and_then(|leader| leader.timeline))
    }

    fn describe(
        &self,
        name: &MemberName,
        member: &Surveyed,
        leader: Option<&MemberName>,
        next: Revision,
    ) -> MemberView {
        let status = member.word.as_ref().map(|(_, status)| status);
        let role = status.map_or(MemberRole::Unknown, |status| status.role);
        let position = status.and_then(|status| status.position);
        let mut view = MemberView {
            name: name.clone(),
            addresses: Arc::clone(&member.addresses),
            api: None,
            role,
            state: self.state(member, leader == Some(name)),
            version: None,
            timeline: status.and_then(|status| status.timeline),
            position,
            replay: position.filter(|_| role == MemberRole::Replica),
            replication: status.map_or(Replication::Unknown, |status| status.replication),
            tags: Tags::default(),
            weight: 1,
            revision: Revision(0),
        };
        // The key of a primary stays old for ever: it proves nothing, the topology shall ask the server itself.
        if role != MemberRole::Primary {
            let before = self.view.members.get(name);
            let before = before
                .map(|before| (before.revision, MemberView { revision: Revision(0), ..before.clone() }));
            view.revision =
                before.filter(|(_, before)| *before == view).map_or(next, |(revision, _)| revision);
        }
        view
    }

    /// Its own word, until it has failed twice. A leader that answers without telling is kept for a while.
    fn state(&self, member: &Surveyed, leads: bool) -> MemberState {
        let kept = |at: Moment| self.patience.is_none_or(|patience| self.now.since(at) < patience);
        match (&member.word, &member.failure) {
            (Some((at, status)), Some((kind, _))) if leads && is_mute(*kind) && kept(*at) => {
                status.state.clone()
            }
            (_, Some((kind, _))) if member.failures >= FALL => MemberState::Other(word(*kind).into()),
            (Some((_, status)), _) => status.state.clone(),
            (None, _) => MemberState::Other("unknown".into()),
        }
    }

    fn complaints(&self, leader: Option<&MemberName>) -> Vec<Complaint> {
        let best = self.best_claims();
        let mut all: Vec<String> = rivals(&best, leader).into_iter().collect();
        if let Some(first) = best.first() {
            let below = self.claims().filter(|claim| claim.live && claim.timeline < first.timeline);
            all.extend(below.map(|claim| below_another(claim, *first)));
        }
        let mute = |(name, member): (&MemberName, &Surveyed)| {
            // What the server said may name users and addresses: that is for the log, not for a page that all can read.
            let (kind, _) = member.failure.as_ref().filter(|(kind, _)| is_mute(*kind))?;
            Some(format!(
                "{name} answers, but does not tell whether it is a primary: {kind}; the log says why"
            ))
        };
        all.extend(self.members.iter().filter_map(mute));
        all.into_iter().map(|problem| Complaint { key: String::new(), problem }).collect()
    }
}

impl Surveyed {
    fn take(&mut self, asked_at: Moment, answer: Result<Status, Failure>) {
        self.asked_at = Some(asked_at);
        match answer {
            Ok(status) => {
                self.word = Some((asked_at, status));
                self.failure = None;
                self.failures = 0;
            }
            Err(failure) => {
                self.failure = Some(failure);
                self.failures = self.failures.saturating_add(1);
            }
        }
    }

    fn timeline(&self) -> Option<Timeline> {
        self.word.as_ref().and_then(|(_, status)| status.timeline)
    }
}

/// Several on the highest timeline.
fn rivals(best: &[Claim<'_>], leader: Option<&MemberName>) -> Option<String> {
    let counts = |claim: &&Claim<'_>| claim.live || leader.is_none() || Some(claim.member) == leader;
    let names: Vec<&str> = best.iter().filter(counts).map(|claim| claim.member.as_str()).collect();
    let timeline = best.first().filter(|_| names.len() > 1).map(|claim| number(claim.timeline))?;
    let names = names.join(" and ");
    let silent = |leader: &MemberName| best.iter().any(|claim| claim.member == leader && !claim.live);
    Some(match leader {
        Some(leader) if silent(leader) => format!(
            "{names} said last that they are primary on timeline {timeline}; {leader} led, and is silent: nothing is sent to \
             the others (take {leader} out of the list if it is gone for good)"
        ),
        Some(leader) => format!(
            "{names} all say that they are primary on timeline {timeline}; {leader} led before and stays: \
             stop the others or make them standbys"
        ),
        None => format!(
            "{names} all say that they are primary on timeline {timeline}, and none led before: new write \
             sessions wait until only one is left"
        ),
    })
}

fn below_another(claim: Claim<'_>, best: Claim<'_>) -> String {
    let (low, high) = (number(claim.timeline), number(best.timeline));
    let (is, remedy) = if best.live {
        ("is", "")
    } else {
        ("was", " (or take the other out of the list if it is gone for good)")
    };
    format!(
        "{} says that it is a primary on timeline {low}, while {} {is} on timeline {high}: nothing is sent to it; \
         stop it or make it a standby{remedy}",
        claim.member, best.member
    )
}

fn number(timeline: Option<Timeline>) -> u32 {
    timeline.map_or(0, |timeline| timeline.0)
}

/// The server answers, but does not say what we have to know. A person has to look.
fn is_mute(kind: AskError) -> bool {
    match kind {
        AskError::Denied | AskError::Nonsense | AskError::Stranger => true,
        AskError::Refused | AskError::TimedOut | AskError::Unreachable | AskError::NotReady => false,
    }
}

/// The state of a member that does not answer as it should.
fn word(kind: AskError) -> &'static str {
    match kind {
        AskError::Refused | AskError::TimedOut | AskError::Unreachable => "unreachable",
        AskError::NotReady => "not ready",
        AskError::Denied => "denied",
        AskError::Nonsense | AskError::Stranger => "not understood",
    }
}
