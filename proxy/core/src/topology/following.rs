//! Who follows the leader, and who is excused for not doing so just now.
//!
//! A replica follows when it is on the leader's timeline and streams. Three things excuse one that followed before:
//!
//! - *unrest*: there is nobody to follow, or there was nobody just now. Patroni's replicas let go of their primary as
//!   soon as they find no leader key, whoever still takes writes, and turn to it again at their next look;
//! - *one look*: a member key tells of Patroni's last look at its server, which may be a `loop_wait` old, and most of
//!   what it saw has passed by then. Not to stream counts when the next look could have said so, too;
//! - *a silent store*: it brings no news, so no excuse runs out by it, unless the member's own word says that it does
//!   not stream.
//!
//! Nothing excuses one that has replayed beyond the point where the timelines parted.

use std::time::Duration;

use crate::time::Moment;
use crate::view::{MemberName, MemberState, Replication, Timeline, TimelineSwitch};

use super::Topology;
use super::lag::Lag;
use super::member::{FRESH, Member};
use super::replicas::Unfit;

/// After a change of leader every survivor is on the old timeline and not streaming for about two seconds.
/// Without a grace all reads would storm the fresh primary.
const GRACE: Duration = Duration::from_secs(30);
/// Only who followed the leader until this long before the unrest began has the grace: Patroni looks every
/// `loop_wait` (10 s) whether its server streams, so a dead leader may be noticed after its replicas' keys.
const FOLLOWED_UNTIL: Duration = Duration::from_secs(15);
/// How late Patroni's next look may be, and the key that tells of it.
const LATE_LOOK: Duration = Duration::from_secs(3);

/// There is no leader to follow, or there was none just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unrest {
    /// When it began.
    since: Moment,
    /// It is going on.
    unled: bool,
    /// Until when the last change of leader excuses those who followed before.
    until: Option<Moment>,
}

impl Unrest {
    fn lasts(self, now: Moment) -> bool {
        self.unled || self.until.is_some_and(|until| now < until)
    }
}

impl Topology {
    /// Not streaming, or on an old timeline, without an excuse.
    pub(super) fn left_behind(&self, member: &Member, now: Moment) -> Option<Unfit> {
        let unfit = self.not_following(member, now)?;
        let excused = self.excused_by_unrest(member, now)
            || unfit == Unfit::NotStreaming && self.excused_until_next_look(member, now);
        (!excused || self.diverged(member)).then_some(unfit)
    }

    fn not_following(&self, member: &Member, now: Moment) -> Option<Unfit> {
        if self.leads_standbys(&member.view.name) {
            return None;
        }
        match (member.view.timeline, self.leader_timeline()) {
            (Some(is), Some(leader)) if is < leader => Some(Unfit::OldTimeline { is, leader }),
            (_, _) => (!self.may_stream(member, now)).then_some(Unfit::NotStreaming),
        }
    }

    /// The leader of a standby cluster: the others follow it, and whom it follows itself is not of this cluster. Whatever
    /// becomes of that one, nobody here is nearer to it.
    fn leads_standbys(&self, name: &MemberName) -> bool {
        self.is_standby_cluster() && self.owner.as_ref().is_some_and(|owner| owner.member == *name)
    }

    pub(super) fn is_standby_cluster(&self) -> bool {
        self.view.as_ref().is_some_and(|view| view.settings.standby_cluster)
    }

    fn excused_by_unrest(&self, member: &Member, now: Moment) -> bool {
        self.unrest.is_some_and(|unrest| {
            let followed = member.followed_at.is_some_and(|at| at + FOLLOWED_UNTIL >= unrest.since);
            let lasts = unrest.until.is_some_and(|until| self.last_news(member, now) < until);
            followed && (unrest.unled || lasts)
        })
    }

    fn excused_until_next_look(&self, member: &Member, now: Moment) -> bool {
        member.followed_at.is_some_and(|at| self.last_news(member, now) < at + self.next_look())
    }

    /// How long after the first key that tells of something the next one is there, had it to tell the same.
    fn next_look(&self) -> Duration {
        let loop_wait = self.view.as_ref().map_or(10, |view| view.settings.loop_wait);
        Duration::from_secs(loop_wait.into()) + LATE_LOOK
    }

    /// Until when we would know that the member streams again. A silent store tells nothing; the member itself may.
    fn last_news(&self, member: &Member, now: Moment) -> Moment {
        let denies = self.own_word(member, now) == Some(Replication::NotStreaming);
        self.store.lost_since().filter(|_| !denies).unwrap_or(now)
    }

    /// What the member says itself of its streaming, if that counts: newer than its key, and fresh or at least given
    /// since the store fell silent.
    pub(super) fn own_word(&self, member: &Member, now: Moment) -> Option<Replication> {
        let (asked_at, replication) = member.word_on_streaming()?;
        let given_in_silence = self.store.lost_since().is_some_and(|since| asked_at >= since);
        (given_in_silence || now.since(asked_at) < FRESH).then_some(replication)
    }

    /// Whether the member streams, as far as is known.
    pub(super) fn may_stream(&self, member: &Member, now: Moment) -> bool {
        self.own_word(member, now).unwrap_or(member.view.replication) != Replication::NotStreaming
    }

    /// Whether there is a leader to follow now, and who follows it.
    pub(super) fn watch_followers(&mut self, now: Moment) {
        let unled = self.is_unled(now);
        let kept = self.unrest.filter(|unrest| unrest.lasts(now) || self.store.lost() && !unled);
        self.unrest = match kept {
            // The leader is back, perhaps from a crash: its replicas have to find it again.
            Some(Unrest { since, unled: true, .. }) if !unled => {
                Some(Unrest { since, unled, until: Some(now + GRACE) })
            }
            Some(unrest) => Some(Unrest { unled, ..unrest }),
            None => unled.then_some(Unrest { since: now, unled, until: None }),
        };
        self.note_followers(now);
    }

    /// Whether replicas have nobody to follow: the leader is doubted, or its key is gone. In a paused cluster they stay
    /// with a leader that goes on without a key.
    fn is_unled(&self, now: Moment) -> bool {
        let Some(view) = &self.view else { return false };
        self.owner.as_ref().is_some_and(|owner| {
            let stays = owner.by_members || view.settings.paused && self.leads_without_key(owner, now);
            // Nobody asks the leader of a standby cluster whether it takes writes.
            let doubted = owner.doubted() && !view.settings.standby_cluster;
            doubted || view.leader.is_none() && !stays
        })
    }

    /// Remembers who follows the leader at this moment.
    pub(super) fn note_followers(&mut self, now: Moment) {
        let following = |(name, member): (&MemberName, &Member)| {
            // Of a server that starts it is not known whether it streams.
            let replica =
                member.present() && member.is_replica() && member.view.state == MemberState::Running;
            let follows = replica && !self.is_leader(name) && self.not_following(member, now).is_none();
            follows.then(|| name.clone())
        };
        let following: Vec<MemberName> = self.members.iter().filter_map(following).collect();
        for name in following {
            if let Some(member) = self.members.get_mut(&name) {
                member.followed_at = Some(now);
            }
        }
    }

    /// A new leader has been named: its replicas have some time to turn to it.
    pub(super) fn unrest_ends(&mut self, now: Moment) {
        let since = self.unrest.filter(|unrest| unrest.lasts(now)).map_or(now, |unrest| unrest.since);
        self.unrest = Some(Unrest { since, unled: false, until: Some(now + GRACE) });
    }

    /// The store is about to be back after so long: what excused a member when it fell silent goes on from there.
    pub(super) fn resume_excuses(&mut self, away: Duration, now: Moment) {
        let behind = |member: &Member| self.left_behind(member, now).is_some();
        let behind: Vec<bool> = self.members.values().map(behind).collect();
        let replicas = self.members.values_mut().zip(behind).filter(|(member, _)| member.is_replica());
        for (member, behind) in replicas {
            // Who is behind by its own word stays so until it streams.
            member.followed_at = member.followed_at.filter(|_| !behind).map(|at| now.min(at + away));
        }
        if let Some(Unrest { until: Some(until), .. }) = &mut self.unrest {
            *until = (*until + away).min(now + GRACE); // it may have begun while the store was silent
        }
    }

    /// Positions of another leader's timeline say nothing.
    pub(super) fn forget_lag(&mut self) {
        self.optimes.clear();
        for member in self.members.values_mut() {
            member.lag = Lag::default();
        }
    }

    /// It has replayed beyond the end of its own timeline: it will have to be rewound.
    fn diverged(&self, member: &Member) -> bool {
        let history = self.own_history();
        let end = history.iter().find(|switch| Some(switch.timeline) == member.view.timeline);
        matches!((end, member.view.replay), (Some(end), Some(replay)) if replay > end.end)
    }

    /// Where the timelines of this cluster ended. A standby cluster has those of the other one: it leaves its own behind
    /// when it follows again after a promotion, and its leader may go back to a lower one.
    fn own_history(&self) -> &[TimelineSwitch] {
        let view = self.view.as_ref().filter(|view| !view.settings.standby_cluster);
        view.map_or(&[], |view| &view.history)
    }

    /// The highest timeline that the leader is known to be on.
    pub(super) fn leader_timeline(&self) -> Option<Timeline> {
        let owner = self.owner.as_ref()?;
        let key = self.members.get(&owner.member).and_then(|member| member.view.timeline);
        let history = self.own_history().last();
        key.max(history.map(|switch| Timeline(switch.timeline.0.saturating_add(1))))
    }

    /// When an excuse, or a word that matters for one, ends by itself.
    pub(super) fn excuse_ends(&self, now: Moment) -> Option<Moment> {
        let looks = self.members.values().filter_map(|member| Some(member.followed_at? + self.next_look()));
        let words = self.members.values().filter_map(Member::word_on_streaming);
        let words = words.map(|(asked_at, _)| asked_at + FRESH);
        let unrest = self.unrest.and_then(|unrest| unrest.until);
        looks.chain(words).chain(unrest).filter(|at| *at > now).min()
    }
}
