//! `pointsman-bench`: see `--help`.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use pointsman_bench::arguments::{Arguments, Part, Plan};
use pointsman_bench::comparison::{self, Placement, Results};
use pointsman_bench::peers::Peer;
use pointsman_bench::report::{csv, summary, terminal};
use pointsman_bench::site::BACKEND;
use pointsman_bench::{backend, rows, sandbox};

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pointsman-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(Part::Backend { threads }) = arguments.part {
        return backend::serve(BACKEND, threads, |_| ()).map(|()| ExitCode::SUCCESS);
    }
    let plan = &arguments.plan;
    if plan.list {
        list(plan);
        return Ok(ExitCode::SUCCESS);
    }
    if !sandbox::is_inside() {
        return sandbox::enter();
    }
    let site = sandbox::prepare(plan.repository.clone(), plan.pointsman()?.as_deref(), plan.nice)?;
    let results = comparison::run(&site, plan)?;
    write_down(plan, &results)?;
    Ok(ExitCode::SUCCESS)
}

fn list(plan: &Plan) {
    println!("rows:");
    for row in rows::all(&plan.idle(sandbox::sessions())) {
        println!("  {:<18} {}{}", row.name, row.title, if row.matters { " (in a quick run)" } else { "" });
    }
    println!("peers:");
    for peer in Peer::ALL {
        println!("  {peer}");
    }
}

fn write_down(plan: &Plan, results: &Results) -> Result<()> {
    for placement in [Placement::Pinned, Placement::Unpinned] {
        print!("{}", terminal::render(&summary::summarise(results, placement)));
    }
    let out = plan.out();
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    fs::write(out.join("results.csv"), csv::render(results))?;
    println!("\nwritten to {}", out.display());
    Ok(())
}
