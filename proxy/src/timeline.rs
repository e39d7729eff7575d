//! What happened, newest last: the last [`KEPT`] notes of all clusters, numbered, for whoever asks and for
//! whoever listens.
//!
//! Bounds: the ring holds [`KEPT`] entries; a listener that falls [`QUEUE`] entries behind is told how many
//! it missed, and never slows the writer down.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pointsman_config::ClusterName;
use pointsman_core::event::{Loudness, Note};
use pointsman_core::time::UnixMillis;
use pointsman_core::view::MemberName;
use serde::{Serialize, Serializer};
use tokio::sync::broadcast;

/// How many entries are kept.
pub const KEPT: usize = 1000;

/// How far a listener may fall behind.
const QUEUE: usize = 256;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its number; the first one of a process is 1.
    pub seq: u64,
    /// When, by the wall clock of this host.
    #[serde(serialize_with = "rfc3339")]
    pub at: UnixMillis,
    /// The cluster that it happened to.
    pub cluster: ClusterName,
    /// Info or warn.
    pub loudness: Loudness,
    /// The member that it is about, if it is about one.
    pub member: Option<MemberName>,
    /// A finite word for what happened ([`pointsman_core::event::What::label`]).
    pub kind: &'static str,
    /// The sentence.
    pub text: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn rfc3339<S: Serializer>(at: &UnixMillis, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}

#[derive(Debug, Default)]
struct Ring {
    last: u64,
    entries: VecDeque<Arc<Entry>>,
}

/// The timeline of the process.
#[derive(Debug)]
pub struct Timeline {
    ring: Mutex<Ring>,
    listeners: broadcast::Sender<Arc<Entry>>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self { ring: Mutex::default(), listeners: broadcast::Sender::new(QUEUE) }
    }
}

impl Timeline {
    /// Adds an entry, and forgets the oldest when there are [`KEPT`].
    pub fn push(&self, at: UnixMillis, cluster: &ClusterName, note: &Note) -> Arc<Entry> {
        let mut ring = self.lock();
        ring.last += 1;
        let entry = Arc::new(Entry {
            seq: ring.last,
            at,
            cluster: cluster.clone(),
            loudness: note.loudness,
            member: note.member.clone(),
            kind: note.what.label(),
            text: note.to_string(),
        });
        if ring.entries.len() == KEPT {
            ring.entries.pop_front();
        }
        ring.entries.push_back(Arc::clone(&entry));
        let _ = self.listeners.send(Arc::clone(&entry)); // nobody listens: that is fine
        entry
    }

    /// The entries after number `seq`, oldest first, as far as they are kept.
    pub fn since(&self, seq: u64) -> Vec<Arc<Entry>> {
        Self::after(&self.lock(), seq)
    }

    /// The number of the newest entry; 0 before the first.
    pub fn last(&self) -> u64 {
        self.lock().last
    }

    /// The entries after number `seq`, and every later one: none is missing and none comes twice.
    ///
    /// A number from the future is one of an earlier process: everything is given.
    pub fn follow(&self, seq: u64) -> (Vec<Arc<Entry>>, broadcast::Receiver<Arc<Entry>>) {
        let ring = self.lock(); // held over both, so that no entry falls between them
        let seq = if seq > ring.last { 0 } else { seq };
        (Self::after(&ring, seq), self.listeners.subscribe())
    }

    fn after(ring: &Ring, seq: u64) -> Vec<Arc<Entry>> {
        ring.entries.iter().filter(|entry| entry.seq > seq).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use pointsman_core::event::What;
    use tokio::sync::broadcast::error::TryRecvError;

    use super::*;

    fn push(timeline: &Timeline, at: u64) -> Arc<Entry> {
        let main = ClusterName::new("main").unwrap();
        let note = Note { loudness: Loudness::Info, member: Some("pg1".into()), what: What::ReplicaIn };
        timeline.push(UnixMillis(at), &main, &note)
    }

    #[test]
    fn entries_are_numbered_and_the_oldest_are_forgotten() {
        let timeline = Timeline::default();
        for at in 0..(KEPT as u64 + 5) {
            assert_eq!(push(&timeline, at).seq, at + 1);
        }
        let all = timeline.since(0);
        assert_eq!(all.len(), KEPT);
        assert_eq!(all.first().map(|entry| entry.seq), Some(6));
        assert_eq!(timeline.since(timeline.last() - 2).len(), 2);
        assert!(timeline.since(timeline.last()).is_empty());
    }

    #[test]
    fn a_follower_gets_what_was_and_what_comes_without_a_gap() {
        let timeline = Timeline::default();
        push(&timeline, 1);
        push(&timeline, 2);
        let (past, mut live) = timeline.follow(1);
        assert_eq!(past.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [2]);
        push(&timeline, 3);
        assert_eq!(live.try_recv().unwrap().seq, 3);
    }

    #[test]
    fn a_number_of_an_earlier_process_gives_everything() {
        let timeline = Timeline::default();
        push(&timeline, 1);
        assert_eq!(timeline.follow(77).0.len(), 1);
    }

    #[test]
    fn a_slow_follower_is_told_how_much_it_missed() {
        let timeline = Timeline::default();
        let (_, mut live) = timeline.follow(0);
        for at in 0..(QUEUE as u64 + 10) {
            push(&timeline, at);
        }
        assert_eq!(live.try_recv().unwrap_err(), TryRecvError::Lagged(10));
        assert_eq!(live.try_recv().unwrap().seq, 11);
    }

    #[test]
    fn an_entry_in_json_has_a_readable_time() {
        let entry = push(&Timeline::default(), 1_700_000_000_123);
        assert_eq!(
            serde_json::to_string(&*entry).unwrap(),
            r#"{"seq":1,"at":"2023-11-14T22:13:20.123Z","cluster":"main","loudness":"info","member":"pg1","kind":"replica-in","text":"pg1 takes new sessions"}"#
        );
    }
}
