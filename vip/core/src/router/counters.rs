//! What a virtual router has done and seen, for metrics.

use std::collections::BTreeMap;

use crate::advert::Reject;
use crate::note::{Reason, Repair};

/// Counted since the start of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Changes of state by [`Reason::label`].
    pub transitions: BTreeMap<&'static str, u64>,
    /// Adverts sent; one to several hosts is one.
    pub sent: u64,
    /// Adverts received whose form was right.
    pub received: u64,
    /// Of these, from routers of another group.
    pub strangers: u64,
    /// Packets refused, by [`Reject::label`].
    pub rejected: BTreeMap<&'static str, u64>,
    /// Times that the neighbours were told.
    pub announcements: u64,
    /// Times that another host's claim was answered, by what it was seen by.
    pub repairs: BTreeMap<Repair, u64>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            transitions: Reason::LABELS.into_iter().map(|label| (label, 0)).collect(),
            sent: 0,
            received: 0,
            strangers: 0,
            rejected: Reject::LABELS.into_iter().map(|label| (label, 0)).collect(),
            announcements: 0,
            repairs: Repair::ALL.into_iter().map(|by| (by, 0)).collect(),
        }
    }
}

impl Counters {
    pub(crate) fn transition(&mut self, reason: &Reason) {
        *self.transitions.entry(reason.label()).or_default() += 1;
    }

    pub(crate) fn reject(&mut self, reject: &Reject) {
        *self.rejected.entry(reject.label()).or_default() += 1;
    }

    pub(crate) fn repair(&mut self, by: Repair) {
        *self.repairs.entry(by).or_default() += 1;
    }
}
