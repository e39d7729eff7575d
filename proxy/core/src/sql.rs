//! What a PostgreSQL server is asked over SQL, and what its answer means.
//!
//! One statement that every user may run. On a replica a user without `pg_read_all_stats` (part of `pg_monitor`) sees
//! *that* there is a WAL receiver, but neither its state nor its timeline: then they are unknown.

use crate::event::{AskError, Status};
use crate::view::{Lsn, MemberRole, MemberState, Replication, Timeline};

#[cfg(test)]
mod tests;

/// The question, for the simple query protocol (PostgreSQL 10 and newer): one row of text.
///
/// The time limit is `SET LOCAL` within the same message, so that it also holds, and ends, behind a pooler. Functions
/// that are an error on the other kind of server stand in a `CASE`.
pub const QUESTION: &str = "set local statement_timeout = '500ms'; \
    select case when r then 't' else 'f' end, \
    case when r then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, \
    case when not r then pg_walfile_name(pg_current_wal_lsn()) end, \
    case when w.pid is not null then coalesce(w.status, '') end, \
    w.received_tli \
    from pg_is_in_recovery() r left join pg_stat_wal_receiver w on r";

/// A failed question: its kind, and a sentence for people.
pub type Failure = (AskError, String);

/// Reads the row that [`QUESTION`] brings.
pub fn parse_row(row: &[Option<&str>]) -> Result<Status, Failure> {
    let [in_recovery, position, wal_file, receiver, follows] = row else {
        return Err(nonsense(format!("the answer has {} columns", row.len())));
    };
    let position = position.map(lsn).transpose()?;
    let (role, timeline, replication) = match *in_recovery {
        Some("f") => {
            let file = wal_file.ok_or_else(|| nonsense("a primary names no WAL file".to_owned()))?;
            (MemberRole::Primary, Some(timeline_of(file)?), Replication::Unknown)
        }
        Some("t") => (MemberRole::Replica, follows.map(timeline).transpose()?.flatten(), streams(*receiver)),
        other => return Err(nonsense(format!("it says {} of being in recovery", excerpt(other)))),
    };
    Ok(Status {
        role,
        state: MemberState::Running,
        timeline,
        position,
        replication,
        dcs_last_seen: None,
        failsafe_active: false,
    })
}

/// No WAL receiver: it does not stream. One whose state is hidden from us: nobody knows.
fn streams(receiver: Option<&str>) -> Replication {
    match receiver {
        Some("streaming") => Replication::Streaming,
        Some("") => Replication::Unknown,
        Some(_) | None => Replication::NotStreaming,
    }
}

/// A WAL file's name begins with its timeline, in eight hexadecimal digits.
fn timeline_of(file: &str) -> Result<Timeline, Failure> {
    let good = file.len() == 24 && file.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = good.then(|| file.get(..8)).flatten().and_then(|head| u32::from_str_radix(head, 16).ok());
    let number = number.filter(|number| *number > 0);
    number.map(Timeline).ok_or_else(|| nonsense(format!("{} is no WAL file's name", excerpt(Some(file)))))
}

/// A WAL receiver that has not begun says 0.
fn timeline(text: &str) -> Result<Option<Timeline>, Failure> {
    let number: Result<u32, _> = text.parse();
    let number = number.map_err(|_| nonsense(format!("{} is no timeline", excerpt(Some(text)))))?;
    Ok((number > 0).then_some(Timeline(number)))
}

fn lsn(text: &str) -> Result<Lsn, Failure> {
    text.parse().map_err(|_| nonsense(format!("{} is no position in the log", excerpt(Some(text)))))
}

fn nonsense(why: String) -> Failure {
    (AskError::Nonsense, why)
}

/// Foreign text, quoted and short.
fn excerpt(text: Option<&str>) -> String {
    let Some(text) = text else { return "nothing".to_owned() };
    let short: String = text.chars().take(40).collect();
    if short.len() < text.len() { format!("{short:?}…") } else { format!("{short:?}") }
}
