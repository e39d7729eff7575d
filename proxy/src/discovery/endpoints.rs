//! The endpoints of a store: which one is tried next, and why the others do not work.

use std::time::Duration;

use super::backoff::{Rota, jitter};

/// Why an endpoint does not work, and how much that says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Among the failures of several endpoints the one of the highest rank is shown: a wrong password says more than
    /// a closed port.
    pub(super) rank: u8,
    /// For people; begins with the endpoint.
    pub(super) text: String,
}

/// The turns that the endpoints take, and what is known against each of them.
#[derive(Debug)]
pub(super) struct Endpoints {
    /// The store's name in messages.
    store: &'static str,
    rota: Rota,
    /// Why each endpoint did not work when it was tried last.
    failures: Vec<Option<Failure>>,
}

impl Endpoints {
    pub(super) fn new(store: &'static str, count: usize) -> Self {
        Self { store, rota: Rota::new(count), failures: vec![None; count] }
    }

    /// The endpoint to try now.
    pub(super) fn index(&self) -> usize {
        self.rota.index()
    }

    /// How often every endpoint has been tried since one proved itself.
    pub(super) fn round(&self) -> usize {
        self.rota.round()
    }

    /// This one answered. Returns what is over by that.
    pub(super) fn answered(&mut self, index: usize) -> Option<Failure> {
        self.rota.answered();
        self.failures.get_mut(index)?.take()
    }

    /// The present one has answered for a while: the next move comes without a pause again.
    pub(super) fn proved(&mut self) {
        self.rota.proved();
    }

    /// This one does not work. Returns whether that is news.
    pub(super) fn failed(&mut self, index: usize, failure: Failure) -> bool {
        let Some(known) = self.failures.get_mut(index) else { return false };
        if known.as_ref() == Some(&failure) {
            return false;
        }
        *known = Some(failure);
        true
    }

    /// Counts a failure. True when every endpoint has failed since one worked.
    pub(super) fn none_is_left(&mut self) -> bool {
        self.rota.fail()
    }

    /// Moves on. Returns how long to wait first.
    pub(super) fn next(&mut self) -> Duration {
        self.rota.next(jitter())
    }

    /// The failure that says most, for people.
    pub(super) fn summary(&self) -> String {
        let store = self.store;
        let worst = self.failures.iter().flatten().max_by_key(|failure| failure.rank);
        let text = worst.map_or("no endpoint has been tried", |failure| failure.text.as_str());
        match self.failures.len() {
            1 => format!("{store} does not work: {text}"),
            count => format!("none of the {count} {store} endpoints works: {text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(rank: u8, text: &str) -> Failure {
        Failure { rank, text: text.to_owned() }
    }

    #[test]
    fn the_failure_that_says_most_is_shown() {
        let mut endpoints = Endpoints::new("etcd", 3);
        assert_eq!(endpoints.summary(), "none of the 3 etcd endpoints works: no endpoint has been tried");
        assert!(endpoints.failed(0, failure(3, "a: wrong password")));
        assert!(endpoints.failed(1, failure(0, "b: refused")));
        assert!(!endpoints.failed(1, failure(0, "b: refused")), "that is known");
        assert_eq!(endpoints.summary(), "none of the 3 etcd endpoints works: a: wrong password");
        assert_eq!(endpoints.answered(0), Some(failure(3, "a: wrong password")));
        assert_eq!(endpoints.answered(0), None);
        assert_eq!(endpoints.summary(), "none of the 3 etcd endpoints works: b: refused");
        assert!(!endpoints.failed(7, failure(0, "nobody")) && endpoints.answered(7).is_none());
        assert_eq!(Endpoints::new("Consul", 1).summary(), "Consul does not work: no endpoint has been tried");
    }
}
