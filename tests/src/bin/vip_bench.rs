//! `pointsman-vip` beside keepalived: how long a client is without the virtual address after each kind of fault.
//!
//! Everything happens in network namespaces that vanish with the program. `RUNS=n`: how often each fault (default 5);
//! `PEERS=text`: only the columns whose titles contain it. A run in which the client itself did not get to run is repeated.
//! Prints a table in Markdown.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::lab::{
    self, Group, HOSTS, Lab, Meter, PRIORITIES, Side, Software, VIRTUAL, Vip, say, vip, wait,
};

/// For each step: keepalived may leave a client cut off for half a minute.
const PATIENCE: Duration = Duration::from_secs(60);
/// Keepalived repeats its announcements 5 s after it has become active: what is measured earlier is not the usual.
const SETTLED: Duration = Duration::from_millis(5_500);
/// Nothing has moved for so long.
const CALM: Duration = Duration::from_millis(1_500);
/// How long a heal is watched.
const WATCHED: Duration = Duration::from_secs(32);
/// What belongs to the move of an address ends so long after another host has answered first.
const AFTERMATH: Duration = Duration::from_millis(300);
/// For how long the client itself may not have run within what it measured.
const BLIND: Duration = Duration::from_millis(3);
/// How often a run is repeated for that.
const REPEATS: usize = 5;
/// A client that is cut off for longer has a wrong neighbour entry.
const STUCK: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let result = if lab::is_inside() { measure() } else { outside() };
    result.unwrap_or_else(|error| {
        eprintln!("pointsman-vip-bench: {error:#}");
        ExitCode::FAILURE
    })
}

fn outside() -> Result<ExitCode> {
    let status = lab::enter()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Who is measured.
struct Candidate {
    title: &'static str,
    software: Software,
    group: Group,
}

fn candidates() -> Vec<Candidate> {
    let pointsman = |heartbeat| {
        Software::Pointsman(Vip {
            heartbeat_ms: Some(heartbeat),
            preempt_delay_ms: 500,
            realtime: false,
            ..Vip::default()
        })
    };
    let mut all = vec![
        Candidate { title: "keepalived, 1 s", software: Software::Keepalived, group: Group::v3(1_000) },
        Candidate { title: "keepalived, 100 ms", software: Software::Keepalived, group: Group::v3(100) },
    ];
    if vip::program().is_file() {
        all.extend([
            Candidate { title: "pointsman-vip, 30 ms", software: pointsman(30), group: Group::v3(100) },
            Candidate { title: "pointsman-vip, 10 ms", software: pointsman(10), group: Group::v3(100) },
        ]);
    } else {
        say(&format!("{} is missing: only keepalived is measured", vip::program().display()));
    }
    if let Ok(wanted) = std::env::var("PEERS") {
        all.retain(|candidate| candidate.title.contains(&wanted));
    }
    all
}

/// What is done to the holder.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Killed,
    WorkerKilled,
    Frozen,
    Terminated,
    Yields,
    LinkDown,
    NoCarrier,
    Dead,
    Healed,
}

impl Fault {
    const ALL: [Self; 9] = [
        Self::Killed,
        Self::WorkerKilled,
        Self::Frozen,
        Self::Terminated,
        Self::Yields,
        Self::LinkDown,
        Self::NoCarrier,
        Self::Dead,
        Self::Healed,
    ];

    const fn title(self) -> &'static str {
        match self {
            Self::Killed => "kill -9 of the whole daemon: another host answers after",
            Self::WorkerKilled => "kill -9 of the working process: gap",
            Self::Frozen => "the working process frozen: another host answers after",
            Self::Terminated => "SIGTERM: gap",
            Self::Yields => "`yield`: gap",
            Self::LinkDown => "interface down: gap",
            Self::NoCarrier => "no carrier: gap",
            Self::Dead => "host dead (its frames vanish): gap",
            Self::Healed => "a partition heals: gap",
        }
    }
}

/// How long two hosts held the address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holders {
    /// The fault itself parts the hosts.
    NotAsked,
    For(Duration),
    ForEver,
}

/// One fault, once.
struct Outcome {
    /// What the client saw.
    client: Duration,
    /// Within that, the longest time for which it did not run itself.
    blind: Duration,
    /// How long the address was in two places; of a heal: after it.
    two_holders: Holders,
    /// The client was cut off by a wrong neighbour entry.
    stuck: bool,
}

fn measure() -> Result<ExitCode> {
    let runs: usize = std::env::var("RUNS").ok().map_or(Ok(5), |text| text.parse()).context("RUNS")?;
    ensure!(runs > 0, "RUNS=0: nothing to do");
    let table = lab::inside(Duration::from_secs(3 * 3_600), |lab| {
        let candidates = candidates();
        let mut columns = Vec::new();
        for candidate in &candidates {
            columns.push(column(lab, candidate, runs)?);
        }
        Ok(table(&candidates, &columns, runs))
    })?;
    print!("{table}");
    Ok(ExitCode::SUCCESS)
}

/// All faults of one candidate.
fn column(lab: &mut Lab, candidate: &Candidate, runs: usize) -> Result<Vec<Vec<Outcome>>> {
    let meter =
        lab.start_all(&std::array::from_fn::<_, HOSTS, _>(|_| candidate.software.clone()), &candidate.group)?;
    let mut column = Vec::new();
    for fault in Fault::ALL {
        let mut outcomes = Vec::new();
        let can = fault != Fault::Yields || matches!(candidate.software, Software::Pointsman(_));
        for run in 1..=runs {
            if !can {
                break;
            }
            let mut measure = || {
                once(lab, candidate, &meter, fault)
                    .with_context(|| format!("{}: {}", candidate.title, fault.title()))
            };
            let mut outcome = measure()?;
            for _ in 0..REPEATS {
                if outcome.blind > BLIND && !outcome.stuck {
                    outcome = measure()?;
                }
            }
            say(&format!(
                "{}, {} {:.1} ms ({run}/{runs}){}",
                candidate.title,
                fault.title(),
                ms(outcome.client),
                if outcome.stuck { ", stuck" } else { "" }
            ));
            outcomes.push(outcome);
        }
        column.push(outcomes);
    }
    for host in 0..HOSTS {
        lab.stop(host)?;
    }
    Ok(column)
}

fn once(lab: &mut Lab, candidate: &Candidate, meter: &Meter, fault: Fault) -> Result<Outcome> {
    let took = settle(lab, meter)?;
    let at = match fault {
        Fault::Killed => lab.kill(0)?,
        Fault::WorkerKilled => lab.daemon(0)?.kill_worker()?,
        Fault::Frozen => lab.daemon(0)?.freeze_worker()?,
        Fault::Terminated => lab.stop(0)?,
        Fault::Yields => {
            let at = Instant::now();
            lab.command(0, &["yield"])?;
            at
        }
        Fault::LinkDown => lab.set_link(0, false)?,
        Fault::NoCarrier => lab.set_carrier(0, false)?,
        Fault::Dead => lab.move_to(0, Side::Nowhere)?,
        Fault::Healed => {
            lab.move_to(0, Side::Other)?;
            wait::until("lb2 to answer", PATIENCE, || lab.neighbour_is(1, VIRTUAL))?;
            wait_for(took.max(Instant::now()) + SETTLED);
            lab.move_to(0, Side::Main)?
        }
    };
    let outcome = match fault {
        Fault::Killed | Fault::Frozen => {
            let answer = wait::until("another host to answer", PATIENCE, || {
                meter.first_of_another(0, at).context("none has")
            })?;
            // Longer than the kernel keeps an address that nobody refreshes.
            wait_for(at + Duration::from_millis(2_600));
            let left = lab.watch.when(0, VIRTUAL, false, at);
            let overlap = || Holders::For(lab.watch.longest_overlap(VIRTUAL, at));
            let two_holders = left.map_or(Holders::ForEver, |_| overlap());
            let blind = meter.stall_between(at, answer.at);
            Outcome { client: answer.at.duration_since(at), blind, two_holders, stuck: false }
        }
        Fault::Healed => {
            wait_for(at + WATCHED);
            let gap = meter.gap(at)?;
            let client = gap.length;
            let right = lab.neighbour_is(0, VIRTUAL).is_ok();
            Outcome {
                client,
                blind: meter.stall_between(gap.from, gap.to),
                two_holders: Holders::For(lab.watch.longest_overlap(VIRTUAL, at)),
                stuck: client > STUCK || !right,
            }
        }
        Fault::WorkerKilled
        | Fault::Terminated
        | Fault::Yields
        | Fault::LinkDown
        | Fault::NoCarrier
        | Fault::Dead => {
            if fault == Fault::WorkerKilled {
                // Keepalived's parent takes a second for a new one, and three intervals may follow.
                wait_for(at + SETTLED);
            }
            let gap = wait::until("the gap to be over", PATIENCE, || {
                let another = meter.first_of_another(0, at);
                ensure!(another.is_some() || fault == Fault::WorkerKilled, "no other host has answered");
                let until = another.map_or_else(Instant::now, |answer| answer.at + AFTERMATH);
                ensure!(until <= Instant::now(), "it is not long over");
                let gap = meter.gap_between(at, until)?;
                ensure!(gap.by.is_some(), "nobody answers");
                Ok(gap)
            })?;
            let blind = meter.stall_between(gap.from, gap.to);
            let overlap = Holders::For(lab.watch.longest_overlap(VIRTUAL, at));
            let two_holders = if fault == Fault::Dead { Holders::NotAsked } else { overlap };
            Outcome { client: gap.length, blind, two_holders, stuck: false }
        }
    };
    recover(lab, candidate, fault)?;
    Ok(outcome)
}

/// Undoes the fault.
fn recover(lab: &mut Lab, candidate: &Candidate, fault: Fault) -> Result<()> {
    match fault {
        Fault::Killed | Fault::Terminated => {
            lab.start(0, &candidate.software, &candidate.group, &PRIORITIES)?;
        }
        Fault::Frozen => {
            lab.daemon(0)?.thaw()?;
        }
        Fault::Yields => {
            lab.command(0, &["resume"])?;
        }
        Fault::LinkDown => {
            lab.set_link(0, true)?;
        }
        Fault::NoCarrier => {
            lab.set_carrier(0, true)?;
        }
        Fault::Dead => {
            lab.move_to(0, Side::Main)?;
        }
        Fault::WorkerKilled | Fault::Healed => {}
    }
    Ok(())
}

/// Waits until the first host has had the address for a while, and the client knows; answers since when.
fn settle(lab: &mut Lab, meter: &Meter) -> Result<Instant> {
    lab.wait_holder(0, VIRTUAL, PATIENCE)?;
    wait::until("lb1 to keep the address", PATIENCE, || {
        let since = Instant::now().checked_sub(CALM).context("the clock is young")?;
        ensure!(lab.watch.changes(VIRTUAL, since).is_empty(), "it moved");
        // A wrong neighbour entry was measured where it belongs; here it would only cost time.
        if lab.neighbour_is(0, VIRTUAL).is_err() {
            lab.forget_neighbours()?;
        }
        lab.is_quiet(0, meter)?;
        Ok(since)
    })
}

/// What is measured is a time: there is no condition for it.
fn wait_for(until: Instant) {
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn table(candidates: &[Candidate], columns: &[Vec<Vec<Outcome>>], runs: usize) -> String {
    let mut lines = vec![format!(
        "Milliseconds, minimum / median / maximum of {runs} runs; in brackets: the longest time for which two hosts held the address.\n"
    )];
    let titles: Vec<&str> = candidates.iter().map(|candidate| candidate.title).collect();
    lines.push(format!("| fault on the host that holds the address | {} |", titles.join(" | ")));
    lines.push(format!("|---|{}", "---|".repeat(titles.len())));
    for (row, fault) in Fault::ALL.iter().enumerate() {
        let cells: Vec<String> =
            columns.iter().map(|column| cell(column.get(row).map_or(&[], Vec::as_slice))).collect();
        lines.push(format!("| {} | {} |", fault.title(), cells.join(" | ")));
    }
    lines.join("\n") + "\n"
}

fn cell(outcomes: &[Outcome]) -> String {
    let mut times: Vec<f64> = outcomes.iter().map(|outcome| ms(outcome.client)).collect();
    times.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (times.first(), times.last()) else { return "–".to_owned() };
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let mut text = format!("{} / **{}** / {}", short(*least), short(median), short(*most));
    let holders = outcomes.iter().map(|outcome| outcome.two_holders);
    let longest = holders.clone().filter_map(|holders| match holders {
        Holders::For(time) => Some(time),
        Holders::NotAsked | Holders::ForEver => None,
    });
    if holders.clone().any(|holders| holders == Holders::ForEver) {
        text.push_str(" (for ever)");
    } else if let Some(longest) = longest.max() {
        text = format!("{text} ({})", short(ms(longest)));
    }
    let stuck = outcomes.iter().filter(|outcome| outcome.stuck).count();
    if stuck > 0 {
        text = format!("{text}; {stuck} of {} stuck", outcomes.len());
    }
    text
}

fn short(ms: f64) -> String {
    if ms < 20.0 { format!("{ms:.1}") } else { format!("{ms:.0}") }
}
