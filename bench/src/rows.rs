//! The rows of the table: what is done, in which unit, and who takes part.

use std::iter::repeat_n;

use crate::load::Stream;
use crate::peers::{Peer, Splice};

/// Connections that are opened and closed at the same time by connect-churn.
const CHURN: usize = 16;

/// What one row makes the proxies do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Streams side by side.
    Streams(Vec<Stream>),
    /// Connect, start-up, answer, close; so many at a time.
    Churn(usize),
    /// `pgbench -S -M prepared`.
    Pgbench {
        /// `-c`.
        clients: usize,
        /// `-C`.
        reconnect: bool,
    },
    /// So many sessions that say nothing, and one that does.
    Idle(usize),
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// 10⁹ bytes of bulk.
    Gigabyte,
    /// A request and its answer.
    Request,
    /// A transaction of pgbench.
    Transaction,
    /// A connection from its connect to its close.
    Connection,
}

impl Unit {
    /// For tables: the unit of the rate.
    pub fn rate(self) -> &'static str {
        match self {
            Self::Gigabyte => "GB/s",
            Self::Request => "requests/s",
            Self::Transaction => "transactions/s",
            Self::Connection => "connections/s",
        }
    }

    /// For plots: one of it, in words.
    pub fn one(self) -> &'static str {
        match self {
            Self::Gigabyte => "GB",
            Self::Request => "request",
            Self::Transaction => "transaction",
            Self::Connection => "connection",
        }
    }

    /// For tables: the unit of CPU time for each.
    pub fn cost(self) -> &'static str {
        match self {
            Self::Gigabyte => "ms/GB",
            Self::Request | Self::Transaction | Self::Connection => "µs",
        }
    }

    /// How many of [`Self::cost`] a second has.
    pub fn costs_per_second(self) -> f64 {
        match self {
            Self::Gigabyte => 1e3,
            Self::Request | Self::Transaction | Self::Connection => 1e6,
        }
    }
}

/// One row.
#[derive(Debug, Clone)]
pub struct Row {
    /// For `ROWS` and the CSV file.
    pub name: String,
    /// For tables.
    pub title: String,
    /// What is done.
    pub work: Work,
    /// The must and the aim of the project are about this row: it is part of every run, and run more often.
    pub matters: bool,
    /// Also measured without pinning.
    pub unpinned: bool,
}

impl Row {
    fn new(name: String, title: String, work: Work) -> Self {
        Self { name, title, work, matters: false, unpinned: false }
    }

    fn matters(mut self, matters: bool) -> Self {
        self.matters = matters;
        self
    }

    fn unpinned(mut self, unpinned: bool) -> Self {
        self.unpinned = unpinned;
        self
    }

    /// What its rate counts.
    pub fn unit(&self) -> Unit {
        match &self.work {
            Work::Streams(streams) if streams.iter().any(|stream| matches!(stream, Stream::Ping(_))) => {
                Unit::Request
            }
            Work::Streams(_) => Unit::Gigabyte,
            Work::Churn(_) => Unit::Connection,
            Work::Pgbench { .. } => Unit::Transaction,
            Work::Idle(_) => Unit::Request,
        }
    }

    /// Bulk and small requests side by side: the work of one request is not to be told apart.
    pub fn is_mixed(&self) -> bool {
        let Work::Streams(streams) = &self.work else { return false };
        streams.iter().any(|stream| matches!(stream, Stream::Ping(_)))
            && streams.iter().any(|stream| !matches!(stream, Stream::Ping(_)))
    }

    /// Only about bulk.
    pub fn is_bulk(&self) -> bool {
        self.unit() == Unit::Gigabyte
    }

    /// PostgreSQL is behind the proxies, not our server.
    pub fn needs_postgres(&self) -> bool {
        matches!(self.work, Work::Pgbench { .. })
    }

    /// The proxy is started anew for each run, for its memory remembers earlier ones.
    pub fn needs_fresh_peer(&self) -> bool {
        matches!(self.work, Work::Idle(_))
    }

    /// Whether `peer` takes part. pgbouncer speaks PostgreSQL's protocol to a real server only.
    pub fn suits(&self, peer: Peer) -> bool {
        peer != Peer::PgBouncer || self.needs_postgres()
    }

    /// Whether `peer` takes part in a quick run: ourselves, HAProxy, the ceiling.
    pub fn suits_quick(&self, peer: Peer) -> bool {
        match peer {
            Peer::Direct | Peer::Pointsman(_) | Peer::HaProxy(Splice::Off) => true,
            Peer::HaProxy(_) => self.is_bulk(),
            Peer::Nginx | Peer::PgBouncer | Peer::Envoy | Peer::Nftables => false,
        }
    }
}

/// All rows, in the order of the table. `idle`: how many idle sessions, each number a row.
pub fn all(idle: &[usize]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (word, title, stream) in [("down", "download", Stream::Download), ("up", "upload", Stream::Upload)] {
        for count in [1, 8] {
            let plural = if count == 1 { "" } else { "s" };
            let work = Work::Streams(vec![stream; count]);
            let row = Row::new(
                format!("bulk-{word}-{count}"),
                format!("bulk {title}, {count} stream{plural}"),
                work,
            );
            rows.push(row.matters(true).unpinned(true));
        }
    }
    for (size, size_title) in [(64, "64 B"), (1024, "1 KiB"), (16_384, "16 KiB")] {
        for count in [1, 32, 256, 1000] {
            let plural = if count == 1 { "" } else { "s" };
            let title = format!("ping-pong {size_title}, {count} connection{plural}");
            let work = Work::Streams(vec![Stream::Ping(size); count]);
            let matters = size == 64 && (count == 32 || count == 256);
            rows.push(
                Row::new(format!("pingpong-{size}-{count}"), title, work).matters(matters).unpinned(matters),
            );
        }
    }
    for (clients, reconnect) in [(1, false), (16, false), (64, false), (16, true)] {
        let (name, flag) = if reconnect { ("pgbench-C", " -C") } else { ("pgbench", "") };
        let plural = if clients == 1 { "" } else { "s" };
        let title = format!("pgbench -S -M prepared{flag}, {clients} client{plural}");
        let matters = clients > 1 && !reconnect;
        let row = Row::new(format!("{name}-{clients}"), title, Work::Pgbench { clients, reconnect });
        rows.push(row.matters(matters).unpinned(clients == 16));
    }
    let churn = Row::new("churn".into(), format!("connect-churn, {CHURN} at a time"), Work::Churn(CHURN));
    rows.push(churn.matters(true).unpinned(true));
    let mixture =
        [Stream::Download, Stream::Upload].into_iter().chain(repeat_n(Stream::Ping(64), 32)).collect();
    let title = "ping-pong 64 B, 32 connections, beside bulk both ways";
    rows.push(Row::new("mixed".into(), title.into(), Work::Streams(mixture)).matters(true).unpinned(true));
    // The same amount of bulk for everybody: a proxy that moves more leaves the load less time for the small ones.
    let mixture = [Stream::PacedDownload, Stream::PacedUpload].into_iter();
    let mixture = mixture.chain(repeat_n(Stream::Ping(64), 32)).collect();
    let title = "ping-pong 64 B, 32 connections, beside 0.26 GB/s each way";
    rows.push(
        Row::new("mixed-paced".into(), title.into(), Work::Streams(mixture)).matters(true).unpinned(true),
    );
    for (index, count) in idle.iter().enumerate() {
        let title = format!("ping-pong 64 B, 1 connection, beside {count} idle ones");
        rows.push(Row::new(format!("idle-{count}"), title, Work::Idle(*count)).matters(index == 0));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_goals_is_in_a_quick_run() {
        let rows = all(&[10_000]);
        let quick: Vec<&str> = rows.iter().filter(|row| row.matters).map(|row| &*row.name).collect();
        let wanted = [
            "bulk-down-1",
            "bulk-down-8",
            "bulk-up-1",
            "bulk-up-8",
            "pingpong-64-32",
            "pingpong-64-256",
            "pgbench-16",
            "pgbench-64",
            "churn",
            "mixed",
            "mixed-paced",
            "idle-10000",
        ];
        assert_eq!(quick, wanted);
    }

    #[test]
    fn units() {
        let rows = all(&[10_000, 50_000]);
        let unit = |name: &str| rows.iter().find(|row| row.name == name).unwrap().unit();
        assert_eq!(unit("bulk-up-8"), Unit::Gigabyte);
        assert_eq!(unit("mixed"), Unit::Request);
        assert_eq!(unit("idle-50000"), Unit::Request);
        assert_eq!(unit("churn"), Unit::Connection);
        assert_eq!(rows.iter().filter(|row| row.is_mixed()).count(), 2);
        let mut names: Vec<&str> = rows.iter().map(|row| &*row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), rows.len());
    }
}
