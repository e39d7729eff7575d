//! Recordings of real Patroni clusters (`tests/fixtures/patroni`), as a stream of key changes.
//!
//! * `kv.txt`: the keys at one moment: a line with the key, one with the value, one with
//!   `create_rev N mod_rev N version N lease HEX`.
//! * `watch.txt`: `HH:MM:SS.mmm PUT|DELETE KEY VALUE lease HEX ver N`, or `HH:MM:SS.mmm WATCH error` while
//!   the store was down.
//! * `rest.txt`: `MEMBER METHOD PATH -> STATUS`, each perhaps followed by an indented body.
//!
//! Where a recorder failed, its Python traceback stands in the file: such lines are skipped.

use std::path::PathBuf;
use std::time::Duration;

/// What every recorded key begins with.
pub(crate) const PREFIX: &str = "/service/demo/";

const DAY: Duration = Duration::from_secs(86_400);

/// A key at the time of `kv.txt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Without the prefix: `members/n1`.
    pub(crate) key: String,
    pub(crate) value: String,
    /// The store's revision that wrote it.
    pub(crate) revision: u64,
}

/// One line of `watch.txt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Timed {
    /// Time since the first line of the file.
    pub(crate) at: Duration,
    pub(crate) change: Change,
}

/// What happened to a key, or to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Put { key: String, value: String },
    Delete { key: String },
    StoreDown { error: String },
}

/// One answer of `rest.txt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RestAnswer {
    pub(crate) member: String,
    pub(crate) path: String,
    /// 0 where no answer came.
    pub(crate) status: u16,
    pub(crate) body: Option<String>,
}

/// The directories of all recordings, by name.
pub(crate) fn all() -> Vec<String> {
    let entries = std::fs::read_dir(root()).expect("the fixtures are there");
    let mut names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// A file of a recording; `None` where it has no such file.
pub(crate) fn file(recording: &str, name: &str) -> Option<String> {
    std::fs::read_to_string(root().join(recording).join(name)).ok()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/patroni")
}

/// The keys of a recording's `kv.txt`.
pub(crate) fn stored(recording: &str) -> Vec<Stored> {
    let text = file(recording, "kv.txt").unwrap_or_default();
    let mut lines = text.lines();
    let mut keys = Vec::new();
    while let Some(line) = lines.next() {
        let Some(key) = line.trim().strip_prefix(PREFIX) else { continue };
        let value = lines.next().expect("a value follows a key").trim();
        let revisions = lines.next().expect("revisions follow a value");
        let revision = number_after(revisions, "mod_rev").expect("mod_rev is a number");
        keys.push(Stored { key: key.to_owned(), value: value.to_owned(), revision });
    }
    keys
}

/// The changes of a recording's `watch.txt`, in order.
pub(crate) fn watched(recording: &str) -> impl Iterator<Item = Timed> {
    let text = file(recording, "watch.txt").unwrap_or_default();
    let lines: Vec<_> = text.lines().filter_map(watch_line).collect();
    let start = lines.first().map_or(Duration::ZERO, |(at, _)| *at);
    lines.into_iter().map(move |(at, change)| {
        // A recording may go on past midnight.
        let at = at.checked_sub(start).unwrap_or_else(|| (at + DAY).saturating_sub(start));
        Timed { at, change }
    })
}

/// The answers of a recording's `rest.txt`, in order.
pub(crate) fn rest(recording: &str) -> Vec<RestAnswer> {
    let mut answers: Vec<RestAnswer> = Vec::new();
    for line in file(recording, "rest.txt").unwrap_or_default().lines() {
        if let Some(body) = line.strip_prefix("    ") {
            if let Some(last) = answers.last_mut().filter(|_| !body.trim().is_empty()) {
                last.body = Some(body.to_owned());
            }
        } else if let Some((question, status)) = line.split_once(" -> ") {
            let words: Vec<_> = question.split(' ').collect();
            let [member, "GET", path] = words[..] else { continue };
            let status = status.trim().parse().expect("a status is a number");
            answers.push(RestAnswer { member: member.to_owned(), path: path.to_owned(), status, body: None });
        }
    }
    answers
}

fn watch_line(line: &str) -> Option<(Duration, Change)> {
    let (time, rest) = line.split_once(' ')?;
    let at = time_of_day(time)?;
    let (verb, rest) = rest.split_once(' ')?;
    let change = match verb {
        "WATCH" => Change::StoreDown { error: rest.to_owned() },
        "PUT" => {
            let (key, rest) = rest.strip_prefix(PREFIX)?.split_once(' ')?;
            let (value, _) = rest.rsplit_once(" lease ")?;
            Change::Put { key: key.to_owned(), value: value.to_owned() }
        }
        "DELETE" => Change::Delete { key: rest.strip_prefix(PREFIX)?.split_once(' ')?.0.to_owned() },
        other => panic!("an unknown verb in a recording: {other}"),
    };
    Some((at, change))
}

fn time_of_day(text: &str) -> Option<Duration> {
    let (clock, millis) = text.split_once('.')?;
    let mut parts = clock.split(':').map(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    let seconds = (hours * 60 + minutes) * 60 + seconds;
    Some(Duration::from_secs(seconds) + Duration::from_millis(millis.parse().ok()?))
}

fn number_after(line: &str, word: &str) -> Option<u64> {
    line.split_whitespace().skip_while(|part| *part != word).nth(1)?.parse().ok()
}
