//! From the store's event to the routes: how long after the put of a leader key the sessions of the old leader end.
//!
//! The end of a session is what can be seen from outside; the table is published just before it. So what is measured is more
//! than is bounded: the way to the store, its own write, the word to Pointsman, the decision, the cut, and the way back. What
//! Pointsman itself needs, from the word's arrival until the table is published, is in its metrics.

use std::io::{ErrorKind, Read as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::Scale;
use super::subject::{Listening, PLACEMENT, Subject, address};
use super::table::{Column, Table};
use super::world::{Cluster, Kept, SERVER_PORT};
use crate::load::socket::begin;
use crate::measure::statistics::Spread;
use crate::wire::Pattern;

/// Changes of leader of each cluster in a run.
const CHANGES: usize = 40;
/// A held connection is served, and a session is cut, long before.
const DEADLINE: Duration = Duration::from_secs(10);

const COLUMNS: &[Column] = &[
    Column::bounded("etcd: put → session cut, median", "ms", 5.0),
    Column::told("slowest", "ms"),
    Column::told("of it from the word to the table, mean", "ms"),
    Column::bounded("Consul: put → session cut, median", "ms", 10.0),
    Column::told("slowest", "ms"),
    Column::told("of it from the word to the table, mean", "ms"),
];

/// The whole part.
pub fn measure(scale: &mut Scale<'_>) -> Result<Table> {
    let mut table = Table::new("discovery", "From the store's event to the routes", "members", COLUMNS);
    scale.world.with_consul(scale.site, &PLACEMENT.load())?;
    for (step, members) in [3, 100].into_iter().enumerate() {
        let net = 50 + 2 * u8::try_from(step)?;
        let scopes = [["etcd3", "consul3"], ["etcd100", "consul100"]];
        let [etcd, consul] = *scopes.get(step).context("a step without scopes")?;
        let clusters = [
            Cluster { scope: etcd, net, members, port: SERVER_PORT, kept: Kept::Etcd },
            Cluster { scope: consul, net: net + 1, members, port: SERVER_PORT, kept: Kept::Consul },
        ];
        for cluster in &clusters {
            scale.world.create(cluster)?;
        }
        for engine in scale.engines() {
            for round in 1..=scale.runs {
                let listeners = clusters.each_ref().map(|cluster| Listening { cluster, target: "primary" });
                let subject = Subject::start(scale.site, engine, &listeners)?;
                let run = changes(scale, &subject, &clusters)
                    .with_context(|| format!("leader changes of clusters of {members} members"))?;
                scale.tell(table.name, engine, members, round, COLUMNS, &run);
                table.add(engine, members, run);
            }
        }
    }
    table
        .notes
        .push(format!("Each run: {CHANGES} leader changes of each cluster, by turns, in one process."));
    Ok(table)
}

/// One run: by turns, so that whatever disturbs one store disturbs the other as well.
fn changes(scale: &Scale<'_>, subject: &Subject, clusters: &[Cluster; 2]) -> Result<Vec<Option<f64>>> {
    let mut taken = [Vec::new(), Vec::new()];
    for change in 0..CHANGES {
        for ((listener, cluster), taken) in clusters.iter().enumerate().zip(&mut taken) {
            taken.push(one_change(scale, listener, cluster, (change + 1) % 2)?.as_secs_f64() * 1e3);
        }
    }
    for cluster in clusters {
        scale.world.lead(cluster, 0)?;
    }
    let mut run = Vec::new();
    for (cluster, taken) in clusters.iter().zip(taken) {
        let spread = Spread::of(taken).context("nothing was measured")?;
        let sample = |kind| {
            let name = "pointsman_discovery_publish_seconds";
            subject.metric(&format!("{name}_{kind}{{cluster=\"{}\"}}", cluster.scope))
        };
        run.extend([Some(spread.median), Some(spread.max), Some(sample("sum")? / sample("count")? * 1e3)]);
    }
    Ok(run)
}

/// From the put of the new leader's key until a session of the old leader is cut.
fn one_change(scale: &Scale<'_>, listener: usize, cluster: &Cluster, leader: usize) -> Result<Duration> {
    // Waits until the last new leader serves: what is held is served then.
    let session = begin(address(listener), None, Pattern::Sink)?;
    session.set_nonblocking(false)?;
    session.set_read_timeout(Some(DEADLINE))?;
    let waiting = std::thread::spawn(move || end_of(session));
    let put = scale.world.lead(cluster, leader)?;
    let ended = waiting.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    ensure!(ended > put, "a session ended before its leader was replaced");
    Ok(ended - put)
}

fn end_of(mut session: TcpStream) -> Result<Instant> {
    loop {
        match session.read(&mut [0; 256]) {
            Ok(0) => return Ok(Instant::now()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(Instant::now()),
            Err(error) => bail!("a session of the old leader was not cut: {error}"),
        }
    }
}
