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
use pointsman_bench::scale::table::Table;
use pointsman_bench::{backend, report, rows, sandbox, scale};

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
    if let Some(Part::Backend { threads, address }) = arguments.part {
        return backend::serve(address, threads, |_| ()).map(|()| ExitCode::SUCCESS);
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
    let look_at_scale = || -> Result<()> {
        let tables = scale::run(&site, plan, &|tables| write_scale(plan, &machine, tables))?;
        print!("{}", report::scale::terminal(&tables));
        Ok(())
    };
    if matches!(arguments.part, Some(Part::Scale)) {
        look_at_scale()?;
        say_where(plan);
        return Ok(ExitCode::SUCCESS);
    }
    let results = comparison::run(&site, plan, &|results| write_down(plan, &machine, results))?;
    let summaries = summarise(&results);
    print!("{}", terminal::render(&summaries, &goals::judge(&summaries)));
    if plan.is_whole() && site.pointsman.is_some() {
        look_at_scale()?;
    }
    say_where(plan);
    Ok(ExitCode::SUCCESS)
}

fn say_where(plan: &Plan) {
    let out = plan.out();
    println!("\nwritten to {}", out.canonicalize().unwrap_or(out).display());
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
    let files = [("results.csv", csv::render(results)), ("README.md", readme)];
    write_files(plan, files.into_iter().chain(plots))
}

fn write_scale(plan: &Plan, machine: &Machine, tables: &[Table]) -> Result<()> {
    let files =
        [("scale.csv", report::scale::csv(tables)), ("scale.md", report::scale::markdown(machine, tables))];
    write_files(plan, files)
}

fn write_files<'a>(plan: &Plan, files: impl IntoIterator<Item = (&'a str, String)>) -> Result<()> {
    let out = plan.out();
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    for (name, text) in files {
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
