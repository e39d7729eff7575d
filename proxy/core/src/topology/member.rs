//! What we remember of one member: its last known key, its last answer, whether its server can be reached.

use std::time::Duration;

use crate::event::{AdminMode, Answer, AskError, DialOutcome, Status, Witness};
use crate::time::Moment;
use crate::view::{MemberRole, MemberView, Replication};

use super::lag::Lag;

/// How often a server is probed in peace.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// How soon a failed probe or dial is checked again.
const PROBE_AGAIN: Duration = Duration::from_millis(100);
/// How often a server that is down is probed.
const PROBE_DOWN: Duration = Duration::from_millis(500);
/// Failures in a row that make a server down.
const FALL: u32 = 2;
/// An answer to a question that was sent longer ago than this says nothing about now. Members are asked every
/// second: it takes two failures in a row to forget what one said.
pub(super) const FRESH: Duration = Duration::from_secs(3);
/// How long the shell may be late with the answer that it owes, on top of the deadline.
const LATE: Duration = Duration::from_secs(1);

/// A question that is asked again and again, one at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Schedule {
    /// When the question that is out must have been answered.
    out_until: Option<Moment>,
    /// When the last question was sent.
    sent_at: Option<Moment>,
    /// How many 2048ths of the interval are added before the next: members are not asked in step.
    jitter: u32,
}

impl Schedule {
    /// When the next question is due, if one is asked every `interval`.
    pub(super) fn due(&self, interval: Duration) -> Moment {
        let jitter = interval * self.jitter / 2048;
        let next = self.sent_at.map_or(Moment::ZERO, |sent| sent + interval + jitter);
        self.out_until.map_or(next, |until| next.max(until))
    }

    /// Whether an answer is still owed.
    pub(super) fn is_out(&self, now: Moment) -> bool {
        self.out_until.is_some_and(|until| until > now)
    }

    /// Notes that a question was sent.
    pub(super) fn sent(&mut self, now: Moment, deadline: Duration, dice: u64) {
        self.sent_at = Some(now);
        self.jitter = u32::try_from(dice % 256).unwrap_or_default(); // up to an eighth
        self.out_until = Some(now + deadline + LATE);
    }

    /// Notes that it was answered.
    pub(super) fn answered(&mut self) {
        self.out_until = None;
    }
}

/// Whether a server answers connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Health {
    failures: u32,
    last: Option<DialOutcome>,
    /// When it last answered.
    pub(super) served_at: Option<Moment>,
    /// Active probes.
    pub(super) probing: Schedule,
}

/// A change of [`Health`] that people want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HealthChange {
    /// It answers again.
    Up,
    /// It does not answer.
    Down(&'static str),
}

impl Health {
    /// Whether new sessions may be sent there: innocent until two failures in a row.
    pub(super) fn is_up(&self) -> bool {
        self.failures < FALL
    }

    /// `up`, `down`, or `unknown` before the first answer.
    pub(super) fn label(&self) -> &'static str {
        match (self.is_up(), self.last) {
            (false, _) => "down",
            (true, None) => "unknown",
            (true, Some(_)) => "up",
        }
    }

    /// Takes in what happened to a connection or a probe.
    pub(super) fn record(&mut self, now: Moment, outcome: DialOutcome) -> Option<HealthChange> {
        let was_up = self.is_up();
        self.last = Some(outcome);
        if outcome == DialOutcome::Served {
            self.failures = 0;
            self.served_at = Some(now);
        } else {
            self.failures = self.failures.saturating_add(1);
        }
        match (was_up, self.is_up()) {
            (true, false) => Some(HealthChange::Down(why(outcome))),
            (false, true) => Some(HealthChange::Up),
            (true, true) | (false, false) => None,
        }
    }

    /// How long to wait between probes.
    pub(super) fn interval(&self) -> Duration {
        match self.failures {
            0 => PROBE_EVERY,
            1 => PROBE_AGAIN,
            _ => PROBE_DOWN,
        }
    }
}

/// The word for a failure.
pub(super) fn why(outcome: DialOutcome) -> &'static str {
    match outcome {
        DialOutcome::Served => "it answers",
        DialOutcome::Refused => "connection refused",
        DialOutcome::TimedOut => "no answer in time",
        DialOutcome::Failed => "the connection broke before its first byte",
        DialOutcome::NotReady => "it is starting up, shutting down or in recovery",
    }
}

/// The last answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LastAnswer {
    /// When the question was sent.
    pub(super) asked_at: Moment,
    /// Whose word it was.
    pub(super) by: Witness,
    /// What came.
    pub(super) outcome: Result<Status, AskError>,
}

/// The questions to one member: one of each kind at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asking {
    rest: Schedule,
    sql: Schedule,
}

impl Asking {
    /// The questions of one kind.
    pub(super) fn of(&self, witness: Witness) -> &Schedule {
        match witness {
            Witness::Rest => &self.rest,
            Witness::Sql => &self.sql,
        }
    }

    pub(super) fn of_mut(&mut self, witness: Witness) -> &mut Schedule {
        match witness {
            Witness::Rest => &mut self.rest,
            Witness::Sql => &mut self.sql,
        }
    }

    /// Whether an answer of any kind is still owed.
    pub(super) fn is_out(&self, now: Moment) -> bool {
        Witness::ALL.into_iter().any(|witness| self.of(witness).is_out(now))
    }
}

/// What a witness said last, and when it was asked; a failure since does not undo it.
type Word = (Moment, Status);

/// The last word of each witness.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Words {
    rest: Option<Word>,
    sql: Option<Word>,
}

impl Words {
    /// Says whether the witness said otherwise, or nothing, before.
    fn take(&mut self, by: Witness, word: Word) -> bool {
        let writable = word.1.writable();
        let last = match by {
            Witness::Rest => &mut self.rest,
            Witness::Sql => &mut self.sql,
        };
        if last.as_ref().is_some_and(|(asked_at, _)| *asked_at > word.0) {
            return false; // it comes late: a later one was heard already
        }
        let before = last.replace(word);
        before.is_none_or(|(_, before)| before.writable() != writable)
    }

    /// The word that counts: the server's own, unless it is much older than its Patroni's.
    fn best(&self) -> Option<&Word> {
        match (&self.sql, &self.rest) {
            (Some(sql), Some(rest)) if sql.0 + FRESH < rest.0 => Some(rest),
            (Some(sql), _) => Some(sql),
            (None, rest) => rest.as_ref(),
        }
    }
}

/// How a member's `dcs_last_seen` (epoch seconds by its own clock) moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    /// As last told.
    at: u64,
    /// When it was last found to have moved on. The first reading proves nothing.
    advanced_at: Option<Moment>,
}

/// One member.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// Its key as last read, kept after the key is gone: it says where to ask.
    pub(super) view: MemberView,
    /// When its key was found missing. `None`: it is in the store.
    pub(super) gone_since: Option<Moment>,
    /// Its key is missing since the store came back; it has until then to be written again.
    pub(super) kept_until: Option<Moment>,
    /// Operator's wish.
    pub(super) admin: AdminMode,
    /// Reachability.
    pub(super) health: Health,
    /// Questions for its status.
    pub(super) asking: Asking,
    /// Its last answer.
    pub(super) answer: Option<LastAnswer>,
    /// What it said last.
    words: Words,
    /// With its last answer a witness has changed its mind about who takes writes.
    pub(super) turned: bool,
    /// Its server did not let us in when it was last asked.
    denied_at: Option<Moment>,
    /// Whether its Patroni sees the store.
    seen: Option<Seen>,
    /// When it last followed the leader: streaming, on the leader's timeline.
    pub(super) followed_at: Option<Moment>,
    /// When its key last said something new.
    pub(super) told_at: Moment,
    /// Lag readings.
    pub(super) lag: Lag,
    /// Why it was not used for reads when the last table was made (for notes).
    pub(super) excluded: Option<String>,
}

impl Member {
    pub(super) fn new(view: MemberView) -> Self {
        Self {
            view,
            gone_since: None,
            kept_until: None,
            admin: AdminMode::Ready,
            health: Health::default(),
            asking: Asking::default(),
            answer: None,
            words: Words::default(),
            turned: false,
            denied_at: None,
            seen: None,
            followed_at: None,
            told_at: Moment::ZERO,
            lag: Lag::default(),
            excluded: Some("it has just joined".to_owned()),
        }
    }

    /// Its key is in the store.
    pub(super) fn present(&self) -> bool {
        self.gone_since.is_none()
    }

    /// Takes in an answer. `ours`: to a question that we sent.
    pub(super) fn take_answer(&mut self, answer: &Answer, ours: bool) {
        if ours {
            self.asking.of_mut(answer.by).answered();
        }
        if let Ok(status) = &answer.outcome {
            if let Some(at) = status.dcs_last_seen {
                let advanced_at = match self.seen {
                    Some(seen) if at > seen.at => Some(answer.asked_at),
                    Some(seen) => seen.advanced_at,
                    None => None,
                };
                self.seen = Some(Seen { at, advanced_at });
            }
            self.turned = self.words.take(answer.by, (answer.asked_at, status.clone()));
        }
        if answer.by == Witness::Sql {
            self.denied_at = (answer.outcome == Err(AskError::Denied)).then_some(answer.asked_at);
        }
        let Answer { by, asked_at, .. } = *answer;
        self.answer = Some(LastAnswer { asked_at, by, outcome: answer.outcome.clone() });
    }

    /// Its server does not let us in, as far as it is asked: in peace nobody asks a replica, whose roles may be behind.
    pub(super) fn denies_us(&self, now: Moment) -> bool {
        self.denied_at.is_some_and(|at| now.since(at) < FRESH)
    }

    /// From now on only what its Patroni sees anew counts.
    pub(super) fn forget_seen(&mut self) {
        self.seen = None;
    }

    /// Whether its `dcs_last_seen` has moved on within the last ttl: it moves every `loop_wait`, and a leader
    /// that cannot renew its key for a ttl is none.
    pub(super) fn sees_store(&self, now: Moment, ttl: Duration) -> bool {
        self.seen.and_then(|seen| seen.advanced_at).is_some_and(|at| now.since(at) < ttl)
    }

    /// Its last status, if it says that it takes writes and is fresh.
    pub(super) fn claims(&self, now: Moment) -> Option<&Status> {
        let (asked_at, status) = self.words.best()?;
        (now.since(*asked_at) < FRESH && status.writable()).then_some(status)
    }

    /// Whether its Patroni says that it may lead without the store (failsafe mode).
    pub(super) fn leads_without_store(&self, now: Moment) -> bool {
        let word = self.words.rest.as_ref().filter(|(asked_at, _)| now.since(*asked_at) < FRESH);
        word.is_some_and(|(_, status)| status.failsafe_active)
    }

    /// What the server itself said of taking writes, if it was asked about the time of another question or later.
    pub(super) fn server_says(&self, asked_at: Moment) -> Option<bool> {
        let (sql_at, status) = self.words.sql.as_ref()?;
        (*sql_at + FRESH > asked_at).then(|| status.writable())
    }

    /// The server and its Patroni contradict each other now, in a sentence.
    pub(super) fn contradiction(&self, now: Moment) -> Option<String> {
        let fresh = |word: &&Word| now.since(word.0) < FRESH;
        let (rest, sql) = (self.words.rest.as_ref().filter(fresh)?, self.words.sql.as_ref().filter(fresh)?);
        let word = |writable| if writable { "takes writes" } else { "takes no writes" };
        (rest.1.writable() != sql.1.writable()).then(|| {
            format!(
                "Patroni says that it {}, the server itself that it {}",
                word(rest.1.writable()),
                word(sql.1.writable())
            )
        })
    }

    /// When its claim, if it makes one, is too old to count.
    pub(super) fn claim_ends(&self) -> Option<Moment> {
        let (asked_at, status) = self.words.best()?;
        status.writable().then_some(*asked_at + FRESH)
    }

    /// The last status that it gave, however old.
    pub(super) fn last_status(&self) -> Option<&Status> {
        self.words.best().map(|(_, status)| status)
    }

    /// Whether it says that it follows somebody.
    pub(super) fn is_replica(&self) -> bool {
        matches!(self.view.role, MemberRole::Replica | MemberRole::StandbyLeader)
    }

    /// What it last said itself of its streaming, and when it was asked, if that was after its key.
    pub(super) fn word_on_streaming(&self) -> Option<(Moment, Replication)> {
        let (asked_at, status) = self.words.best()?;
        let counts = *asked_at >= self.told_at && status.replication != Replication::Unknown;
        counts.then_some((*asked_at, status.replication))
    }
}
