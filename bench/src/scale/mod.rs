//! How costs grow: with idle sessions, members and listeners, and with the sessions under a leader change; and how long a leader change takes from the store to the routes.
//!
//! [`world`] is what Pointsman is told, [`subject`] the Pointsman, [`table`] what was found and whether it grows faster than
//! linearly, [`fence`] the leader change. The parts run one after the other, each for both engines; every number is the median
//! of three runs. The proxy has the first core for itself, load and servers share the second.

pub mod discovery;
pub mod fence;
pub mod steps;
pub mod subject;
pub mod table;
pub mod world;

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use self::table::{Column, Table};
use self::world::World;
use crate::arguments::Plan;
use crate::comparison::{Turns, significant};
use crate::peers::{Engine, Peer};
use crate::site::Site;

/// Runs of each step.
const RUNS: usize = 3;

/// A part: its name for `--rows`, and how it is measured.
type Part = (&'static str, fn(&mut Scale<'_>) -> Result<Table>);

/// All parts.
pub const PARTS: [Part; 5] = [
    ("idle", steps::idle),
    ("members", steps::members),
    ("listeners", steps::listeners),
    ("fence", fence::measure),
    ("discovery", discovery::measure),
];

/// What the parts share.
#[derive(Debug)]
pub struct Scale<'a> {
    /// Where.
    pub site: &'a Site,
    /// What Pointsman is told.
    pub world: &'a World,
    /// Of each step.
    pub runs: usize,
    engines: Vec<Engine>,
    started: Instant,
}

impl Scale<'_> {
    /// Those that are measured.
    pub fn engines(&self) -> Vec<Engine> {
        self.engines.clone()
    }

    /// Tells of one run.
    pub fn tell(
        &self,
        part: &str,
        engine: Engine,
        count: usize,
        round: usize,
        columns: &[Column],
        run: &[Option<f64>],
    ) {
        let seconds = self.started.elapsed().as_secs();
        let costs = columns.iter().zip(run).filter_map(|(column, value)| {
            Some(format!("{} {} {}", column.name, significant((*value)?), column.unit))
        });
        let costs = costs.collect::<Vec<_>>().join(", ");
        println!("[{seconds:>3} s] {part:<9} {:<8} {count:>6} #{round}: {costs}", engine.name());
    }
}

/// Measures the parts that the plan asks for; `save` is called after each with all that is known by then.
pub fn run(site: &Site, plan: &Plan, save: &dyn Fn(&[Table]) -> Result<()>) -> Result<Vec<Table>> {
    let chosen: Vec<_> = PARTS.iter().filter(|(name, _)| plan.rows.is_match(name)).collect();
    ensure!(
        !chosen.is_empty(),
        "no part of the scale measurement matches ROWS: idle, members, listeners, fence, discovery"
    );
    ensure!(
        site.pointsman.is_some(),
        "no pointsman to measure: build it beside this program, or use --pointsman FILE"
    );
    let engines = [Engine::Epoll, Engine::IoUring];
    let engines: Vec<Engine> =
        engines.into_iter().filter(|engine| plan.peers.is_match(Peer::Pointsman(*engine).name())).collect();
    ensure!(!engines.is_empty(), "PEERS matches none of Pointsman's engines");
    let turns = Turns::open()?;
    let _turn = turns.take()?;
    let world = World::start(site, &subject::PLACEMENT.load()).context("cannot start the cluster store")?;
    let runs = plan.runs.unwrap_or(RUNS).max(1);
    let mut scale = Scale { site, world: &world, runs, engines, started: Instant::now() };
    let mut tables = Vec::new();
    for (name, measure) in chosen {
        tables.push(measure(&mut scale).with_context(|| format!("the part {name}"))?);
        save(&tables)?;
    }
    Ok(tables)
}
