//! Who writes a counter: one shard for each core of the relay engine, and one that all other threads share.
//!
//! Two cores that count into the same word send its cache line back and forth with every message. So a counter that
//! moves with the bytes has a word for each shard, each shard has cache lines of its own, and whoever asks adds the
//! words up. A core that has entered its shard is its only writer and needs no locked instruction; all other threads
//! share shard 0 and pay for one.
//!
//! Invariant: at any time at most one thread has entered a shard. A second one that tries, or one that comes for a
//! shard that does not exist, stays in shard 0: slower, and counted all the same.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Words in the lines of one shard.
pub(crate) const WORDS: usize = 2;

/// Which shards are entered, in a slice as long as there are shards. The first one is nobody's.
static ENTERED: OnceLock<Box<[AtomicBool]>> = OnceLock::new();

thread_local! {
    /// Read with each count, so it is a plain word without a destructor.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
    /// Gives the shard back when the thread ends.
    static HELD: Cell<Option<Held>> = const { Cell::new(None) };
}

/// A shard that this thread has entered.
struct Held(usize);

impl Drop for Held {
    fn drop(&mut self) {
        CURRENT.set(0); // what the thread still counts while it ends goes to shard 0
        if let Some(entered) = entered().get(self.0) {
            entered.store(false, Ordering::Release);
        }
    }
}

/// Says how many cores there will be, before anything is counted. The first word counts: `false` if there was one already
/// (else it is the number of processors).
pub fn fix(cores: usize) -> bool {
    let mut ours = false;
    ENTERED.get_or_init(|| {
        ours = true;
        shards(cores)
    });
    ours
}

fn shards(cores: usize) -> Box<[AtomicBool]> {
    std::iter::repeat_with(AtomicBool::default).take(cores.saturating_add(1)).collect()
}

fn entered() -> &'static [AtomicBool] {
    ENTERED.get_or_init(|| shards(std::thread::available_parallelism().map_or(1, usize::from)))
}

/// How many shards there are: one more than cores.
pub fn count() -> usize {
    entered().len()
}

/// Makes this thread the only writer of a shard, until it ends. For the core `index`, from 1. `false`: somebody else is there,
/// or there is no such shard; the thread goes on in the one that it was in.
pub fn enter(index: usize) -> bool {
    if index == 0 || index == current() {
        return true;
    }
    let Some(entered) = entered().get(index) else { return false };
    // Acquire: what the last one to be here has counted is seen by who counts on from it.
    if entered.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
        return false;
    }
    HELD.set(Some(Held(index))); // the one that was held before is given back here
    CURRENT.set(index);
    true
}

/// The shard of this thread; 0 unless it has entered one.
pub fn current() -> usize {
    CURRENT.get()
}

/// The words of one shard. 128 bytes: processors fetch lines of 64 in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lines([AtomicU64; WORDS]);

/// Numbers that only grow, as many as [`WORDS`]. They take room from the first count on: members that were never used
/// cost next to nothing.
#[derive(Debug, Default)]
pub(crate) struct Block(OnceLock<Box<[Lines]>>);

impl Block {
    /// Adds to one of the numbers.
    pub(crate) fn add(&self, word: usize, n: u64) {
        let shard = current();
        let Some(cell) = self.lines().get(shard).and_then(|lines| lines.0.get(word)) else { return };
        if shard == 0 {
            cell.fetch_add(n, Ordering::Relaxed);
        } else {
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        }
    }

    /// Adds one of the numbers up over all shards.
    pub(crate) fn sum(&self, word: usize) -> u64 {
        let lines = self.0.get().into_iter().flatten();
        let cells = lines.filter_map(|lines| lines.0.get(word));
        cells.fold(0, |sum, cell| sum.wrapping_add(cell.load(Ordering::Relaxed)))
    }

    fn lines(&self) -> &[Lines] {
        self.0.get_or_init(|| std::iter::repeat_with(Lines::default).take(count()).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};
    use std::thread;

    use super::*;

    /// Tests run beside one another and shards are few: whoever enters one waits for it.
    fn enter_when_free(index: usize) {
        while !enter(index) {
            thread::yield_now();
        }
    }

    #[test]
    fn shards_do_not_share_cache_lines() {
        let block = Block::default();
        let lines = block.lines();
        assert!(lines.len() >= 2, "one for the others, and one for each core");
        assert_eq!(lines.len(), count());
        let places: Vec<usize> = lines.iter().map(|lines| (&raw const lines.0).addr()).collect();
        assert!(places.iter().all(|place| place.is_multiple_of(128)), "{places:?}");
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] >= 128), "{places:?}");
    }

    #[test]
    fn nothing_is_lost_between_many_threads() {
        const EACH: u64 = 20_000;
        let block = Arc::new(Block::default());
        let cores = (1..count()).map(Some);
        let others = std::iter::repeat_n(None, 6);
        let threads: Vec<_> = cores.chain(others).collect();
        let start = Arc::new(Barrier::new(threads.len()));
        let expected = threads.len() as u64 * EACH;
        let running: Vec<_> = threads
            .into_iter()
            .map(|core| {
                let (block, start) = (Arc::clone(&block), Arc::clone(&start));
                thread::spawn(move || {
                    if let Some(index) = core {
                        enter_when_free(index);
                    }
                    start.wait();
                    for _ in 0..EACH {
                        block.add(0, 1);
                        block.add(1, 3);
                    }
                })
            })
            .collect();
        for thread in running {
            thread.join().unwrap();
        }
        assert_eq!((block.sum(0), block.sum(1)), (expected, 3 * expected));
    }

    #[test]
    fn a_shard_has_one_writer_and_is_given_back_when_its_thread_ends() {
        let last = count() - 1;
        let block = Arc::new(Block::default());
        for round in 1..=3 {
            let block = Arc::clone(&block);
            let writer = thread::spawn(move || {
                enter_when_free(last);
                assert_eq!(current(), last);
                let second = thread::spawn(move || (enter(last), current())).join().unwrap();
                assert_eq!(second, (false, 0), "the second one stays with the others");
                block.add(0, 5);
                block.sum(0)
            });
            assert_eq!(writer.join().unwrap(), 5 * round, "the successor counts on");
        }
    }

    #[test]
    fn a_shard_that_does_not_exist_is_not_entered() {
        assert!(!enter(count()));
        assert_eq!(current(), 0);
        let block = Block::default();
        assert_eq!(block.sum(0), 0);
        block.add(0, 2);
        assert_eq!(block.sum(0), 2);
    }
}
