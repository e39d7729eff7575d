//! How often the cluster is looked at.

use std::time::Duration;

use pointsman_core::time::Moment;

use super::call::Question;

/// Between two looks in peace, whoever's turn it is.
const PEACE: Duration = Duration::from_millis(2250);
/// While a look is not answered, the next one is asked after this.
const HEDGE: Duration = Duration::from_millis(400);
/// Between two looks at the same member while something happens.
const QUICK: Duration = Duration::from_millis(250);
/// The same once it has gone on for [`LONG`].
const CALMER: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);
/// For so long after news, and after a member fell silent.
const STIRRED: Duration = Duration::from_secs(5);
/// While the leader's Patroni is silent, somebody else may take over: the longest sensible ttl.
const LEADER_SILENT: Duration = Duration::from_secs(120);
/// Between two statuses of the same member, at the longest.
const STATUS: Duration = Duration::from_millis(6750);
/// The same while something happens, and at the shortest.
const STATUS_QUICK: Duration = Duration::from_secs(1);
/// Between two questions for the settings, and for the history.
const FACTS: Duration = Duration::from_secs(60);
/// The same after a failure, and after news.
const FACTS_AGAIN: Duration = Duration::from_secs(1);
/// Without an answer that counts for so long, nobody tells of the cluster.
const LOST: Duration = Duration::from_secs(3);
/// The longest sleep.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// When to ask what.
#[derive(Debug)]
pub(super) struct Pace {
    now: Moment,
    quick_since: Option<Moment>,
    stirred_until: Moment,
    last_look: Option<Moment>,
    heard_at: Option<Moment>,
    /// The first look since the last answer that counted.
    unheard_since: Option<Moment>,
    last_status: Option<Moment>,
    config_at: Moment,
    history_at: Moment,
}

impl Pace {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            now,
            quick_since: None,
            stirred_until: now + STIRRED,
            last_look: None,
            heard_at: None,
            unheard_since: None,
            last_status: None,
            config_at: Moment::ZERO,
            history_at: Moment::ZERO,
        }
    }

    /// What there is to feel now.
    pub(super) fn feel(&mut self, uneasy: bool, leader_silent_since: Option<Moment>, now: Moment) {
        let silent = leader_silent_since.is_some_and(|since| now.since(since) < LEADER_SILENT);
        let quick = uneasy || silent || now < self.stirred_until;
        self.quick_since = quick.then(|| self.quick_since.unwrap_or(now));
        self.now = now;
    }

    /// Something has happened.
    pub(super) fn stir(&mut self, now: Moment) {
        self.stirred_until = now + STIRRED;
    }

    /// When the next look is due, at one of so many members.
    pub(super) fn look_at(&self, listed: usize) -> Moment {
        let Some(last) = self.last_look else { return Moment::ZERO };
        let Some(since) = self.quick_since else {
            let heard = self.heard_at.map_or(Moment::ZERO, |at| at + PEACE);
            return heard.max(last + HEDGE);
        };
        let each = if self.now.since(since) < LONG { QUICK } else { CALMER };
        last + each / count(listed)
    }

    pub(super) fn looked(&mut self, now: Moment) {
        self.last_look = Some(now);
        self.unheard_since.get_or_insert(now);
    }

    /// An answer to a look has come that counts.
    pub(super) fn heard(&mut self, now: Moment, news: bool) {
        self.heard_at = Some(now);
        self.unheard_since = None;
        if news {
            self.stir(now);
            self.wants_facts_again(now);
        }
    }

    /// When nobody tells of the cluster any more, if that goes on. None: somebody does.
    pub(super) fn lost_at(&self) -> Option<Moment> {
        self.unheard_since.map(|since| since + LOST)
    }

    pub(super) fn is_lost(&self, now: Moment) -> bool {
        self.lost_at().is_some_and(|at| at <= now)
    }

    /// When the next status is due, of one of so many members.
    pub(super) fn status_at(&self, members: usize, loop_wait: Duration) -> Moment {
        let each = if self.quick_since.is_some() { STATUS_QUICK } else { STATUS.min(loop_wait) };
        self.last_status.map_or(Moment::ZERO, |last| last + each.max(STATUS_QUICK) / count(members))
    }

    pub(super) fn asked_status(&mut self, now: Moment) {
        self.last_status = Some(now);
    }

    /// When settings or history are due.
    pub(super) fn facts_at(&self) -> Moment {
        self.config_at.min(self.history_at)
    }

    /// Which of them, and from now on the next time.
    pub(super) fn next_fact(&mut self, now: Moment) -> Question {
        if self.config_at <= self.history_at {
            self.config_at = now + FACTS;
            return Question::Config;
        }
        self.history_at = now + FACTS;
        Question::History
    }

    /// They may have changed, or one of them could not be read.
    pub(super) fn wants_facts_again(&mut self, now: Moment) {
        let soon = now + FACTS_AGAIN;
        self.config_at = self.config_at.min(soon);
        self.history_at = self.history_at.min(soon);
    }
}

fn count(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests;
