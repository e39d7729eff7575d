//! What was measured, step by step, and whether a cost grows faster than the steps.

use crate::measure::statistics::Spread;
use crate::peers::Engine;

/// One cost.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// For tables.
    pub name: &'static str,
    /// What its numbers are in.
    pub unit: &'static str,
    /// It may grow no faster than the steps, and a difference below this is none: clocks, pages, the scheduler.
    /// `None`: its growth is not judged.
    pub resolution: Option<f64>,
    /// What it must not exceed, at any step.
    pub bound: Option<f64>,
}

impl Column {
    /// A cost that may grow as fast as the steps.
    pub const fn cost(name: &'static str, unit: &'static str, resolution: f64) -> Self {
        Self { name, unit, resolution: Some(resolution), bound: None }
    }

    /// A number that is told, not judged.
    pub const fn told(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, resolution: None, bound: None }
    }

    /// A number that must not be above `bound`.
    pub const fn bounded(name: &'static str, unit: &'static str, bound: f64) -> Self {
        Self { name, unit, resolution: None, bound: Some(bound) }
    }
}

/// The runs of one step.
#[derive(Debug, Clone)]
pub struct Step {
    /// How Pointsman relayed.
    pub engine: Engine,
    /// How many there were of what is counted.
    pub count: usize,
    /// For each run, for each column; `None`: it does not apply.
    pub runs: Vec<Vec<Option<f64>>>,
}

impl Step {
    /// All runs of one column.
    pub fn spread(&self, column: usize) -> Option<Spread> {
        Spread::of(self.runs.iter().filter_map(|run| run.get(column).copied().flatten()))
    }
}

/// One part of the measurement.
#[derive(Debug, Clone)]
pub struct Table {
    /// For `--rows` and for the CSV file.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// What is counted.
    pub counted: &'static str,
    /// The costs.
    pub columns: &'static [Column],
    /// By engine, then by count.
    pub steps: Vec<Step>,
    /// What could not be measured, and what follows from the numbers.
    pub notes: Vec<String>,
}

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub engine: Engine,
    /// At which step.
    pub count: usize,
    /// Which cost, as an index.
    pub column: usize,
    /// A sentence.
    pub text: String,
}

impl Table {
    /// Without steps.
    pub fn new(
        name: &'static str,
        title: &'static str,
        counted: &'static str,
        columns: &'static [Column],
    ) -> Self {
        Self { name, title, counted, columns, steps: Vec::new(), notes: Vec::new() }
    }

    /// Adds a run to its step.
    pub fn add(&mut self, engine: Engine, count: usize, run: Vec<Option<f64>>) {
        match self.steps.iter_mut().find(|step| step.engine == engine && step.count == count) {
            Some(step) => step.runs.push(run),
            None => self.steps.push(Step { engine, count, runs: vec![run] }),
        }
    }

    /// The steps of one engine, fewest first.
    pub fn of(&self, engine: Engine) -> Vec<&Step> {
        let mut steps: Vec<&Step> = self.steps.iter().filter(|step| step.engine == engine).collect();
        steps.sort_by_key(|step| step.count);
        steps
    }

    /// All that grows faster than linearly, and all medians beyond their bound.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for engine in [Engine::Epoll, Engine::IoUring] {
            for (index, column) in self.columns.iter().enumerate() {
                let points: Vec<(usize, Spread)> = self
                    .of(engine)
                    .into_iter()
                    .filter_map(|step| Some((step.count, step.spread(index)?)))
                    .collect();
                let found = |count: usize, text: String| Finding { engine, count, column: index, text };
                if let Some(resolution) = column.resolution {
                    for (count, limit) in faster_than_linear(&points, resolution) {
                        let text = format!(
                            "{} grows faster than linearly: at most {limit:.3} {} were to be expected",
                            column.name, column.unit
                        );
                        findings.push(found(count, text));
                    }
                }
                if let Some(bound) = column.bound {
                    let beyond = points.iter().filter(|(_, spread)| spread.median > bound);
                    findings.extend(beyond.map(|(count, _)| {
                        found(*count, format!("{} is above {bound} {}", column.name, column.unit))
                    }));
                }
            }
        }
        findings
    }
}

/// The steps whose cost no straight line explains, each with the most that one would.
///
/// The line goes from the lowest run of the first step through the highest run of the one before (and through no less than
/// the first step's own cost for each unit); a step is found when even its lowest run is above the line's end. Noise at
/// small steps makes the line steep, so it cannot accuse; at large steps it weighs little.
pub fn faster_than_linear(points: &[(usize, Spread)], resolution: f64) -> Vec<(usize, f64)> {
    let Some(((first, lowest), later)) = points.split_first() else { return Vec::new() };
    let base = lowest.min;
    let mut found = Vec::new();
    // Each with the one before it.
    for (before, (count, cost)) in points.iter().zip(later) {
        let distance = count.saturating_sub(*first) as f64;
        let limit = if before.0 == *first {
            // One point is no line. The steepest that it allows begins at nothing.
            match first {
                0 => continue,
                _ => (before.1.max + resolution) * (*count as f64 / *first as f64),
            }
        } else {
            let slope = (before.1.max + resolution - base) / (before.0 - first) as f64;
            base + slope.max(0.0) * distance
        };
        if cost.min > limit + resolution {
            found.push((*count, limit));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(costs: &[(usize, f64)], scatter: f64) -> Vec<(usize, Spread)> {
        let around = |cost: f64| Spread::of([cost - scatter, cost, cost + scatter]).unwrap();
        costs.iter().map(|(count, cost)| (*count, around(*cost))).collect()
    }

    fn curve(cost: impl Fn(f64) -> f64) -> Vec<(usize, f64)> {
        [1, 10, 100, 1_000, 9_400].map(|count| (count, cost(count as f64))).to_vec()
    }

    #[test]
    fn flat_and_linear_costs_are_not_accused() {
        for cost in [|_| 5.0, |n: f64| 3.0 * n, |n: f64| 20_000.0 + 2.0 * n, |n: f64| n.sqrt()] {
            assert_eq!(faster_than_linear(&points(&curve(cost), 0.05), 0.1), []);
        }
    }

    #[test]
    fn a_square_beside_a_large_fixed_cost_is_found() {
        let found = faster_than_linear(&points(&curve(|n| 20_000.0 + 0.01 * n * n), 5.0), 10.0);
        assert_eq!(found.iter().map(|(count, _)| *count).collect::<Vec<_>>(), [1_000, 9_400]);
        let found = faster_than_linear(&points(&curve(|n| n * n), 0.0), 0.1);
        assert_eq!(found.first().map(|(count, _)| *count), Some(10));
    }

    #[test]
    fn a_first_step_of_nothing_is_a_base() {
        let rss = [(0, 20.0), (1, 20.1), (10, 20.2), (100, 20.4), (1_000, 22.0)];
        assert_eq!(faster_than_linear(&points(&rss, 0.1), 0.5), []);
        let rss = [(0, 20.0), (100, 21.0), (1_000, 60.0)];
        assert_eq!(faster_than_linear(&points(&rss, 0.1), 0.1).len(), 1);
    }

    #[test]
    fn a_bound_is_for_medians() {
        const COLUMNS: &[Column] = &[Column::bounded("time", "ms", 5.0)];
        let mut table = Table::new("x", "X", "sessions", COLUMNS);
        for value in [4.0, 4.5, 9.0] {
            table.add(Engine::Epoll, 10, vec![Some(value)]);
            table.add(Engine::IoUring, 10, vec![Some(value + 1.0)]);
        }
        let findings = table.findings();
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].engine, Engine::IoUring);
        assert_eq!(table.of(Engine::Epoll)[0].spread(0).unwrap().count, 3);
    }
}
