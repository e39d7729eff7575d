//! When the proxy on this host counts as unwell: what single readings of its `GET /ready` add up to.
//!
//! A proxy that says itself that it cannot serve is believed at the second word. One that does not answer, starts or drains may be
//! in a restart (an upgrade, a crash that the service manager mends): it gets [`GRACE`], because the restart is over sooner than
//! the addresses have moved there and back. One that takes the connection and says nothing hangs, and is believed to at the third
//! reading. After that it has to be well for [`CALM`] without a break.

use std::time::Duration;

use crate::event::Proxy;
use crate::time::Moment;

#[cfg(test)]
mod tests;

/// Readings in a row of a proxy that says that it cannot serve.
const SICK: u32 = 2;

/// Readings in a row without an answer in time.
const HUNG: u32 = 3;

/// What a proxy that is away or starting is given.
pub const GRACE: Duration = Duration::from_secs(2);

/// How long a proxy that was unwell has to be well.
pub const CALM: Duration = Duration::from_secs(1);

/// How often the words for an unwell proxy may change.
const WORDS: Duration = Duration::from_secs(1);

/// What one question to the proxy brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// It serves.
    Ready,
    /// It runs, and says that it cannot serve.
    Sick {
        /// In its words.
        why: String,
    },
    /// Nobody answers, or it says that it starts, drains or stops.
    Away {
        /// In words.
        why: String,
    },
    /// The connection was taken, and no answer came in time.
    Hung,
}

/// What is made of the readings.
#[derive(Clone, Debug)]
pub struct Health {
    /// What was said last. `None`: nothing yet.
    said: Option<Proxy>,
    said_at: Moment,
    /// Since when there has been no good reading.
    bad: Option<Bad>,
    /// Since when there has been no bad one.
    good_since: Option<Moment>,
}

/// Readings since the last good one.
#[derive(Clone, Debug, Default)]
struct Bad {
    /// The first reading of a proxy that is away.
    away_since: Option<Moment>,
    sick: u32,
    hung: u32,
}

impl Bad {
    fn add(&mut self, now: Moment, reading: &Reading) {
        match reading {
            Reading::Ready => {}
            Reading::Sick { .. } => self.sick = self.sick.saturating_add(1),
            Reading::Hung => self.hung = self.hung.saturating_add(1),
            Reading::Away { .. } => {
                self.away_since.get_or_insert(now);
            }
        }
    }

    /// Whether that is enough. Whatever a proxy says that was away a moment ago is part of its restart: it may not have looked at
    /// its clusters yet.
    fn is_enough(&self, now: Moment) -> bool {
        match self.away_since {
            Some(since) => now.since(since) >= GRACE,
            None => self.sick >= SICK || self.hung >= HUNG,
        }
    }
}

impl Health {
    /// Nothing is known yet, which is like a proxy that is away since `now`.
    pub fn new(now: Moment) -> Self {
        let bad = Some(Bad { away_since: Some(now), ..Bad::default() });
        Self { said: None, said_at: now, bad, good_since: None }
    }

    /// Takes a reading. What comes back is news.
    pub fn read(&mut self, now: Moment, reading: &Reading) -> Option<Proxy> {
        let verdict = if *reading == Reading::Ready { self.good(now) } else { self.bad(now, reading) }?;
        if self.said.as_ref() == Some(&verdict) {
            return None;
        }
        let only_words = matches!(
            (&self.said, &verdict),
            (Some(Proxy::Unwell { .. }), Proxy::Unwell { .. }) if now.since(self.said_at) < WORDS
        );
        if only_words {
            return None;
        }
        (self.said, self.said_at) = (Some(verdict.clone()), now);
        Some(verdict)
    }

    fn good(&mut self, now: Moment) -> Option<Proxy> {
        self.bad = None;
        let since = *self.good_since.get_or_insert(now);
        let calm = !matches!(self.said, Some(Proxy::Unwell { .. })) || now.since(since) >= CALM;
        calm.then_some(Proxy::Well)
    }

    fn bad(&mut self, now: Moment, reading: &Reading) -> Option<Proxy> {
        self.good_since = None;
        let bad = self.bad.get_or_insert_default();
        bad.add(now, reading);
        let unwell = matches!(self.said, Some(Proxy::Unwell { .. })) || bad.is_enough(now);
        let why = match reading {
            Reading::Sick { why } | Reading::Away { why } => why.clone(),
            Reading::Ready | Reading::Hung => "it takes connections and does not answer".to_owned(),
        };
        unwell.then_some(Proxy::Unwell { why })
    }
}
