//! Micro-benchmarks: what the steps of a connection and of a change of routes cost by themselves.
//!
//! `pointsman-micro` prints nanoseconds for one operation; `NAME --iterations N` only does the work, for callgrind
//! (`scripts/check-instructions` compares instructions for one operation with those recorded in `bench/instructions.toml`).

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

mod count;
mod fixture;
mod hold;
mod pick;
mod route;
mod startup;

/// One benchmark.
struct Micro {
    name: String,
    /// How many operations are counted under callgrind: some million instructions.
    iterations: u64,
    /// Makes what is measured, untimed.
    prepare: Box<dyn Fn() -> Run>,
}

/// Does so many operations.
type Run = Box<dyn FnMut(u64)>;

/// One operation, again and again. It is told how often it was done before.
fn repeat<T>(mut operation: impl FnMut(u64) -> T + 'static) -> Run {
    let mut done = 0;
    Box::new(move |times| {
        for _ in 0..times {
            black_box(operation(done));
            done += 1;
        }
    })
}

fn micro(name: impl Into<String>, iterations: u64, prepare: impl Fn() -> Run + 'static) -> Micro {
    Micro { name: name.into(), iterations, prepare: Box::new(prepare) }
}

fn all() -> Vec<Micro> {
    [pick::all(), startup::all(), route::all(), count::all(), hold::all()].into_iter().flatten().collect()
}

/// Times single steps of the proxy, in nanoseconds for one operation.
#[derive(Parser)]
struct Arguments {
    /// Benchmarks, by the beginning of their names. None: all.
    names: Vec<String>,
    /// Lists names, with the number of operations that is counted under callgrind.
    #[arg(long)]
    list: bool,
    /// Does so many operations of the one benchmark of this name, and prints nothing.
    #[arg(long, value_name = "N")]
    iterations: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut chosen = all();
    if arguments.iterations.is_some() {
        chosen.retain(|one| arguments.names.contains(&one.name)); // wholly: `pick/first/10` begins another name
    } else if !arguments.names.is_empty() {
        chosen.retain(|one| arguments.names.iter().any(|name| one.name.starts_with(name)));
    }
    match (arguments.iterations, chosen.as_slice()) {
        (_, []) => {
            eprintln!("there is no such benchmark; --list names them");
            return ExitCode::from(2);
        }
        (Some(iterations), [one]) => (one.prepare)()(iterations),
        (Some(_), _) => {
            eprintln!("--iterations wants the whole name of one benchmark");
            return ExitCode::from(2);
        }
        (None, chosen) if arguments.list => {
            for one in chosen {
                println!("{} {}", one.name, one.iterations);
            }
        }
        (None, chosen) => {
            println!(
                "{:<32} {:>12} {:>12} {:>12}",
                "nanoseconds for one operation", "median", "least", "most"
            );
            for one in chosen {
                let [median, least, most] = timed(one);
                println!("{:<32} {median:>12.1} {least:>12.1} {most:>12.1}", one.name);
            }
        }
    }
    ExitCode::SUCCESS
}

/// Nanoseconds for one operation: median, least and most of some rounds.
fn timed(one: &Micro) -> [f64; 3] {
    const ROUNDS: usize = 9;
    const ROUND: Duration = Duration::from_millis(20);
    let mut run = (one.prepare)();
    // Warm-up, and how many operations fill a round.
    let mut times = 1;
    while measure(&mut run, times) < ROUND && times < 1 << 40 {
        times *= 2;
    }
    let mut rounds = [0.0; ROUNDS].map(|_: f64| measure(&mut run, times).as_nanos() as f64 / times as f64);
    rounds.sort_unstable_by(f64::total_cmp);
    let [least, .., most] = rounds;
    [rounds.get(ROUNDS / 2).copied().unwrap_or(least), least, most]
}

fn measure(run: &mut Run, times: u64) -> Duration {
    let began = Instant::now();
    run(times);
    began.elapsed()
}
