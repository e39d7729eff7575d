//! The parts with steps of one kind: idle sessions, members, listeners.

use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::Scale;
use super::subject::{Listening, PLACEMENT, Subject, address};
use super::table::{Column, Table};
use super::world::{Cluster, Kept, SERVER_PORT};
use crate::comparison::significant;
use crate::load::idle as idle_load;
use crate::sandbox;

/// What a short load is measured for.
const WINDOW: Duration = Duration::from_millis(300);
/// A second: what happens once a second happens once in it.
const REST: Duration = Duration::from_secs(1);
/// After this what was just done has died down: sessions get their last options when they are a second old.
const SETTLE: Duration = Duration::from_millis(1_300);
/// Before a change, so that nothing else is counted for it.
const PAUSE: Duration = Duration::from_millis(100);
/// Sessions that make a proxy allocate what no later one does.
const WARMING: usize = 100;
/// What the idle sessions are extrapolated to.
const WANTED: usize = 100_000;
/// From the put of a leader key until all of its work is done.
const CHANGE: Duration = Duration::from_millis(500);

const IDLE: &[Column] = &[
    Column::cost("RSS", "MB", 0.5),
    Column::told("RSS for each session", "kB"),
    Column::cost("CPU at rest", "ms/s", 1.0),
    Column::cost("CPU of a round trip beside them", "µs", 1.0),
];

/// Sessions that say nothing, in one process that gets more and more of them.
pub fn idle(scale: &mut Scale<'_>) -> Result<Table> {
    let cluster = Cluster { scope: "idle", net: 16, members: 1, port: SERVER_PORT, kept: Kept::Etcd };
    scale.world.create(&cluster)?;
    let mut table = Table::new("idle", "Idle sessions", "sessions", IDLE);
    let most = usize::try_from(sandbox::sessions()).unwrap_or(usize::MAX).min(WANTED);
    let mut counts = vec![0, 1, 10, 100, 1_000, 10_000, 100_000];
    counts.retain(|count| *count < most);
    counts.push(most);
    for engine in scale.engines() {
        for round in 1..=scale.runs {
            let listeners = [Listening { cluster: &cluster, target: "primary" }];
            let subject = Subject::start(scale.site, engine, &listeners)?;
            drop(open(WARMING)?);
            let mut sessions = Vec::new();
            let mut fresh = 0.0;
            for &count in &counts {
                sessions.extend(open(count - sessions.len())?);
                thread::sleep(if count >= 1_000 { SETTLE } else { PAUSE });
                let resident = subject.resident() as f64;
                if count == 0 {
                    fresh = resident;
                }
                let for_each = (count > 0).then(|| (resident - fresh) / count as f64 / 1e3);
                let run = vec![
                    Some(resident / 1e6),
                    for_each,
                    Some(subject.at_rest(REST)? * 1e3),
                    Some(subject.round_trip(0, WINDOW)? * 1e6),
                ];
                scale.tell(table.name, engine, count, round, IDLE, &run);
                table.add(engine, count, run);
            }
        }
        if most < WANTED {
            extrapolate(&mut table, engine);
        }
    }
    Ok(table)
}

/// The straight line through the last two steps, to where the limit of descriptors lets nobody look.
fn extrapolate(table: &mut Table, engine: crate::peers::Engine) {
    let steps = table.of(engine);
    let [.., before, last] = steps.as_slice() else { return };
    let line = |column| {
        let (before_cost, last_cost) = (before.spread(column)?.median, last.spread(column)?.median);
        let slope = (last_cost - before_cost) / (last.count - before.count) as f64;
        // What falls from one step to the next is noise: nothing gets cheaper by more sessions.
        Some(last_cost + slope.max(0.0) * (WANTED - last.count) as f64)
    };
    let Some((resident, rest)) = line(0).zip(line(2)) else { return };
    let note = format!(
        "{}: {WANTED} sessions were not measured, the limit of descriptors allows {} here. A straight line through the last two steps \
         leads to {} MB and {} ms/s at rest.",
        engine.name(),
        last.count,
        significant(resident),
        significant(rest)
    );
    table.notes.push(note);
}

/// Opens sessions from the cores of the load.
fn open(count: usize) -> Result<Vec<TcpStream>> {
    let cores = PLACEMENT.load();
    thread::scope(|scope| {
        let opener = scope.spawn(move || {
            cores.confine_this_thread()?;
            idle_load::open(address(0), count)
        });
        opener.join().map_err(|_| anyhow!("the thread that opens sessions panicked"))?
    })
}

const MEMBERS: &[Column] = &[
    Column::cost("CPU of a connection to a replica", "µs", 3.0),
    Column::cost("CPU of a leader change", "ms", 2.0),
    Column::cost("CPU at rest", "ms/s", 1.0),
    Column::cost("RSS", "MB", 0.5),
    Column::cost("start", "ms", 20.0),
];

/// Members of one cluster, all of them real to Pointsman: keys, REST and a server that answers.
pub fn members(scale: &mut Scale<'_>) -> Result<Table> {
    let cluster = |scope, net, members| Cluster { scope, net, members, port: SERVER_PORT, kept: Kept::Etcd };
    let clusters =
        [cluster("m1", 24, 1), cluster("m10", 25, 10), cluster("m100", 26, 100), cluster("m1000", 27, 1_000)];
    clusters.iter().try_for_each(|cluster| scale.world.create(cluster))?;
    let mut table = Table::new("members", "Members of a cluster", "members", MEMBERS);
    for engine in scale.engines() {
        for cluster in &clusters {
            let listeners = ["primary", "replicas"].map(|target| Listening { cluster, target });
            let subject = Subject::start(scale.site, engine, &listeners)?;
            // Every member is probed and asked in its first seconds.
            thread::sleep(REST);
            let mut changes = Vec::new();
            for round in 1..=scale.runs {
                let rest = subject.at_rest(REST)?;
                let change = if cluster.members > 1 {
                    Some(change(scale, &subject, cluster, round % 2, rest)?)
                } else {
                    None
                };
                changes.push((rest, change));
            }
            // Last: what thousands of connections leave behind is not at rest for a while.
            for (round, (rest, change)) in (1..).zip(changes) {
                let run = vec![
                    Some(subject.churn(1, WINDOW)? * 1e6),
                    change.map(|seconds| seconds * 1e3),
                    Some(rest * 1e3),
                    Some(subject.resident() as f64 / 1e6),
                    (round == 1).then_some(subject.started_in.as_secs_f64() * 1e3),
                ];
                scale.tell(table.name, engine, cluster.members, round, MEMBERS, &run);
                table.add(engine, cluster.members, run);
            }
            // As the next one that is started finds it.
            scale.world.lead(cluster, 0)?;
        }
    }
    table.notes.push(format!(
        "A leader change is counted from the put of the leader key for {CHANGE:?}, less what that time costs at rest; the member keys of \
         the old and the new leader change in it, too. With one member there is nobody to change to, and its replicas' port leads to \
         the primary."
    ));
    Ok(table)
}

/// CPU seconds of a leader change, beyond those at rest.
fn change(scale: &Scale<'_>, subject: &Subject, cluster: &Cluster, leader: usize, rest: f64) -> Result<f64> {
    let (last, _) = subject.timeline(0)?;
    thread::sleep(PAUSE);
    let ((), cpu, elapsed) = subject.while_doing(|| {
        scale.world.lead(cluster, leader)?;
        thread::sleep(CHANGE);
        Ok(())
    })?;
    let (_, events) = subject.timeline(last)?;
    let confirmed = events.iter().any(|event| event.kind == "primary-confirmed");
    ensure!(confirmed, "the leader did not change within {CHANGE:?}");
    Ok((cpu.as_secs_f64() - rest * elapsed.as_secs_f64()).max(0.0))
}

const LISTENERS: &[Column] = &[
    Column::cost("CPU of a connection", "µs", 3.0),
    Column::cost("CPU at rest", "ms/s", 1.0),
    Column::cost("RSS", "MB", 0.5),
    Column::cost("start", "ms", 20.0),
];

/// Listeners of one cluster, each with an address of its own.
pub fn listeners(scale: &mut Scale<'_>) -> Result<Table> {
    let cluster = Cluster { scope: "listeners", net: 32, members: 2, port: SERVER_PORT, kept: Kept::Etcd };
    scale.world.create(&cluster)?;
    let mut table = Table::new("listeners", "Listeners", "listeners", LISTENERS);
    for engine in scale.engines() {
        for count in [1, 10, 100] {
            for round in 1..=scale.runs {
                let all = vec![Listening { cluster: &cluster, target: "primary" }; count];
                let subject = Subject::start(scale.site, engine, &all)
                    .with_context(|| format!("with {count} listeners"))?;
                let rest = subject.at_rest(REST)?;
                let run = vec![
                    Some(subject.churn(count - 1, WINDOW)? * 1e6),
                    Some(rest * 1e3),
                    Some(subject.resident() as f64 / 1e6),
                    Some(subject.started_in.as_secs_f64() * 1e3),
                ];
                scale.tell(table.name, engine, count, round, LISTENERS, &run);
                table.add(engine, count, run);
            }
        }
    }
    table.notes.push(
        "*start*: from the start of the process until each listener has served a session; most of it is the wait for the cluster's first answers."
            .to_owned(),
    );
    Ok(table)
}
