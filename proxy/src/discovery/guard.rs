//! No view is ever older than the one before it, unless the store itself went back.

/// So many reads in a row must show the older state before it is believed.
const PATIENCE: u32 = 3;

/// The newest state that was seen.
#[derive(Debug, Default)]
pub(super) struct Guard {
    newest: Option<(u64, i64)>,
    older: u32,
}

/// What a full read means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is as new as the last one, or newer.
    Fine,
    /// It is of another etcd cluster.
    OtherStore,
    /// It is older, again and again: the store was restored from a backup.
    Restored {
        /// The newest revision seen before.
        before: i64,
    },
    /// It is older: this endpoint lags behind, or was restored.
    Behind {
        /// The newest revision seen before.
        before: i64,
    },
}

impl Guard {
    /// Judges a full read.
    pub(super) fn judge(&mut self, cluster_id: u64, revision: i64) -> Verdict {
        let verdict = match self.newest {
            Some((known, _)) if known != cluster_id => Verdict::OtherStore,
            Some((_, before)) if revision < before => {
                self.older += 1;
                if self.older < PATIENCE {
                    return Verdict::Behind { before };
                }
                Verdict::Restored { before }
            }
            Some(_) | None => Verdict::Fine,
        };
        self.newest = Some((cluster_id, revision));
        self.older = 0;
        verdict
    }

    /// A watch showed this revision.
    pub(super) fn saw(&mut self, revision: i64) {
        if let Some((_, newest)) = &mut self.newest {
            *newest = revision.max(*newest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_reads_are_refused_until_they_persist() {
        let mut guard = Guard::default();
        assert_eq!(guard.judge(1, 10), Verdict::Fine);
        guard.saw(12);
        assert_eq!(guard.judge(1, 11), Verdict::Behind { before: 12 });
        assert_eq!(guard.judge(1, 12), Verdict::Fine, "a fresh read ends the doubt");
        assert_eq!(guard.judge(1, 5), Verdict::Behind { before: 12 });
        assert_eq!(guard.judge(1, 6), Verdict::Behind { before: 12 });
        assert_eq!(guard.judge(1, 7), Verdict::Restored { before: 12 });
        assert_eq!(guard.judge(1, 7), Verdict::Fine);
        assert_eq!(guard.judge(2, 3), Verdict::OtherStore);
        assert_eq!(guard.judge(2, 3), Verdict::Fine);
    }
}
