//! What sessions tell the control task: how dials went, and that a server ended a session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pointsman_core::event::{DialOutcome, Event};
use pointsman_core::view::MemberName;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::stats::Counter;

/// Good news of the same member is told at most this often.
const SERVED_EVERY: Duration = Duration::from_millis(250);

/// The way to the control task of one cluster, shared by its listeners. A session never waits here: when
/// the control task does not keep up, reports are dropped and counted.
#[derive(Clone, Debug)]
pub struct Reports(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    events: mpsc::Sender<Event>,
    dropped: Arc<Counter>,
    /// When good news of a member was last told, with no bad news since.
    served: Mutex<HashMap<MemberName, Instant>>,
}

impl Reports {
    /// Reports into the control task's channel. `dropped` counts what found it full.
    pub fn new(events: mpsc::Sender<Event>, dropped: Arc<Counter>) -> Self {
        Self(Arc::new(Inner { events, dropped, served: Mutex::default() }))
    }

    /// How a dial went.
    pub(crate) fn dial(&self, member: &MemberName, outcome: DialOutcome) {
        if self.is_news(member, outcome) {
            self.send(Event::Dial { member: member.clone(), outcome });
        }
    }

    /// A server ended an established session of its own accord.
    pub(crate) fn server_closed(&self, member: &MemberName) {
        self.send(Event::ServerClosed { member: member.clone() });
    }

    fn is_news(&self, member: &MemberName, outcome: DialOutcome) -> bool {
        let mut served = self.0.served.lock().unwrap_or_else(PoisonError::into_inner);
        if outcome != DialOutcome::Served {
            served.remove(member);
            return true;
        }
        let now = Instant::now();
        match served.get_mut(member) {
            Some(last) if now.duration_since(*last) < SERVED_EVERY => false,
            Some(last) => {
                *last = now;
                true
            }
            None => {
                served.retain(|_, last| now.duration_since(*last) < SERVED_EVERY); // older ones hold nothing back
                served.insert(member.clone(), now);
                true
            }
        }
    }

    fn send(&self, event: Event) {
        if self.0.events.try_send(event).is_err() {
            self.0.dropped.add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn members_that_went_are_forgotten() {
        let (sender, _events) = mpsc::channel(4);
        let reports = Reports::new(sender, Arc::default());
        for number in 0..100 {
            reports.dial(&MemberName::from(format!("n{number}").as_str()), DialOutcome::Served);
            tokio::time::advance(SERVED_EVERY).await;
        }
        assert_eq!(reports.0.served.lock().unwrap().len(), 1);
    }

    #[test]
    fn good_news_is_rare_bad_news_is_always_told_and_nothing_waits() {
        let (sender, mut events) = mpsc::channel(4);
        let reports = Reports::new(sender, Arc::default());
        let n1 = MemberName::from("n1");
        for outcome in [
            DialOutcome::Served,
            DialOutcome::Served,
            DialOutcome::Refused,
            DialOutcome::Refused,
            DialOutcome::Served,
            DialOutcome::Served,
        ] {
            reports.dial(&n1, outcome);
        }
        let mut told = Vec::new();
        while let Ok(Event::Dial { outcome, .. }) = events.try_recv() {
            told.push(outcome);
        }
        let expected = [DialOutcome::Served, DialOutcome::Refused, DialOutcome::Refused, DialOutcome::Served];
        assert_eq!(told, expected);
        for _ in 0..6 {
            reports.server_closed(&n1);
        }
        assert_eq!(reports.0.dropped.get(), 2);
    }
}
