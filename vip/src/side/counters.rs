//! What the side thread counts itself. Everything is written by it alone, but for the notices that it never got.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use pointsman_config::VipName;
use serde::Serialize;

/// How a hook ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum HookOutcome {
    /// With exit code 0.
    Ok,
    /// With another, or by a signal.
    Failed,
    /// It took too long and was killed.
    Timeout,
    /// It could not be started.
    NotStarted,
    /// It was not run: something newer was to be told before its turn came.
    Superseded,
}

impl HookOutcome {
    /// All of them.
    pub(crate) const ALL: [Self; 5] =
        [Self::Ok, Self::Failed, Self::Timeout, Self::NotStarted, Self::Superseded];

    /// The label of metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::NotStarted => "not-started",
            Self::Superseded => "superseded",
        }
    }
}

/// Numbers for metrics and status.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    hooks: Mutex<BTreeMap<(VipName, HookOutcome), u64>>,
    notices_dropped: AtomicU64,
    farewells: AtomicU64,
    farewells_failed: AtomicU64,
    readings: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    pub(super) fn hook(&self, router: &VipName, outcome: HookOutcome) {
        let mut hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        *hooks.entry((router.clone(), outcome)).or_default() += 1;
    }

    /// How many hooks of a virtual router ended so.
    pub(crate) fn hooks(&self, router: &VipName, outcome: HookOutcome) -> u64 {
        let hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        hooks.get(&(router.clone(), outcome)).copied().unwrap_or(0)
    }

    pub(super) fn notice_dropped(&self) {
        self.notices_dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Notices that the side thread never got.
    pub(crate) fn dropped(&self) -> u64 {
        self.notices_dropped.load(Ordering::Relaxed)
    }

    pub(super) fn farewell(&self, told: bool) {
        let counter = if told { &self.farewells } else { &self.farewells_failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Addresses of whose leaving the proxy was told, and those where it did not answer.
    pub(crate) fn farewells(&self) -> (u64, u64) {
        (self.farewells.load(Ordering::Relaxed), self.farewells_failed.load(Ordering::Relaxed))
    }

    pub(super) fn reading(&self, label: &'static str) {
        let mut readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        *readings.entry(label).or_default() += 1;
    }

    /// Readings of the proxy by their label.
    pub(crate) fn readings(&self, label: &'static str) -> u64 {
        let readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        readings.get(label).copied().unwrap_or(0)
    }
}
