//! `pointsman-bench`: see `--help`.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use pointsman_bench::arguments::{Arguments, Part, Plan};
use pointsman_bench::comparison::{self, Placement, Results};
use pointsman_bench::peers::Peer;
use pointsman_bench::report::machine::Machine;
use pointsman_bench::report::summary::{self, Summary};
use pointsman_bench::report::{csv, goals, markdown, plots, terminal};
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
    let machine = Machine::look(&site);
    let results = comparison::run(&site, plan, &|results| write_down(plan, &machine, results))?;
    let summaries = summarise(&results);
    print!("{}", terminal::render(&summaries, &goals::judge(&summaries)));
    let out = plan.out();
    println!("\nwritten to {}", out.canonicalize().unwrap_or(out).display());
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

fn summarise(results: &Results) -> Vec<Summary<'_>> {
    let placements = [Placement::Pinned, Placement::Unpinned].into_iter();
    placements.flat_map(|placement| summary::summarise(results, placement)).collect()
}

fn write_down(plan: &Plan, machine: &Machine, results: &Results) -> Result<()> {
    let summaries = summarise(results);
    let plots = plots::all(&summaries);
    let names: Vec<&str> = plots.iter().map(|(name, _)| *name).collect();
    let readme = markdown::render(machine, results, &summaries, &goals::judge(&summaries), &names);
    let out = plan.out();
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let files = [("results.csv", csv::render(results)), ("README.md", readme)];
    for (name, text) in files.into_iter().chain(plots) {
        fs::write(out.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    give_back(&out, &plan.repository)
}

/// What root has written belongs to whom the repository belongs to.
fn give_back(out: &Path, repository: &Path) -> Result<()> {
    let owner = fs::metadata(repository).context("the repository cannot be seen")?;
    for entry in fs::read_dir(out)? {
        chown(entry?.path(), Some(owner.uid()), Some(owner.gid()))?;
    }
    chown(out, Some(owner.uid()), Some(owner.gid())).context("cannot give the results back")
}
