//! A network that falls apart and heals: each side has its holder, and when they meet again one of them goes at once, and the
//! client knows which is left. A wrong neighbour entry shows only to who watches for long: more than half a minute.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pointsman_tests::lab::{
    self, CLIENT, Group, HOSTS, Lab, Meter, SOON, Side, Software, VIRTUAL, Vip, say, wait,
};

/// Two holders after a heal, at most.
const OVERLAP: Duration = Duration::from_millis(50);
/// The client may follow the loser for a moment.
const GAP: Duration = Duration::from_millis(100);
const WATCHED: Duration = Duration::from_secs(32);
/// How long a partition lasts: more than what is announced again after 5 s.
const APART: Duration = Duration::from_secs(6);

fn three(lab: &mut Lab) -> Result<Meter> {
    let software = || Software::Pointsman(Vip { preempt_delay_ms: 1_000, ..Vip::default() });
    lab.start_all(&std::array::from_fn::<_, HOSTS, _>(|_| software()), &Group::v3(100))
}

/// Cuts `cut` off; waits until both sides have a holder.
fn part(lab: &Lab, meter: &Meter, cut: &[usize], apart: Duration) -> Result<()> {
    let at = Instant::now();
    for station in cut {
        lab.move_to(*station, Side::Other)?;
    }
    let (here, there): (Vec<usize>, Vec<usize>) = (0..HOSTS).partition(|host| !cut.contains(host));
    wait::until("each side to have a holder", SOON, || {
        let holders = lab.watch.holders(VIRTUAL);
        let one = |side: &[usize]| side.iter().filter(|host| holders.contains(host)).count() == 1;
        ensure!(one(&here) && one(&there), "{holders:?}");
        Ok(())
    })?;
    // The side of the client is served by its best host.
    let side = if cut.contains(&CLIENT) { there } else { here };
    let best = side.iter().min().copied().unwrap_or_default();
    wait::until("the client's side to be served", SOON, || {
        let by = meter.answered_by(Duration::from_millis(50));
        ensure!(by == Some(best), "by {by:?}");
        lab.neighbour_is(best, VIRTUAL)
    })?;
    wait::throughout("each side holding", apart.saturating_sub(at.elapsed()), || {
        let holders = lab.watch.holders(VIRTUAL).len();
        ensure!(holders == 2, "{holders} holders");
        Ok(())
    })
}

/// Joins the sides again, and watches.
fn heal(lab: &mut Lab, meter: &Meter, cut: &[usize], watched: Duration) -> Result<()> {
    let at = Instant::now();
    for station in cut {
        lab.move_to(*station, Side::Main)?;
    }
    lab.wait_one_holder(VIRTUAL, SOON)?;
    let overlap = lab.watch.longest_overlap(VIRTUAL, at);
    say(&format!("two holders for {:.1} ms after the heal", overlap.as_secs_f64() * 1e3));
    ensure!(overlap <= OVERLAP + meter.stall(at), "{overlap:?}\n{}", lab.watch.story(VIRTUAL, at));
    lab.wait_quiet(0, meter, SOON)?;
    let quiet = Instant::now();
    wait::throughout("lb1 holding alone", watched, || lab.has_only(0, VIRTUAL))?;
    let gap = meter.gap(at)?;
    ensure!(gap.length <= GAP + meter.stall(at), "{gap:?}\n{}", lab.watch.story(VIRTUAL, at));
    ensure!(meter.changes(quiet) == 0, "the client was answered by {:?}", meter.hosts(quiet));
    lab.is_quiet(0, meter)
}

#[test]
fn the_holder_is_alone() -> Result<()> {
    lab::run(|lab| {
        let meter = three(lab)?;
        // The client is with the loser, whose announcements it knows.
        part(lab, &meter, &[0], APART)?;
        heal(lab, &meter, &[0], WATCHED)
    })
}

#[test]
fn the_holder_is_alone_with_the_client() -> Result<()> {
    lab::run(|lab| {
        let meter = three(lab)?;
        part(lab, &meter, &[0, CLIENT], APART)?;
        heal(lab, &meter, &[0, CLIENT], WATCHED)
    })
}

#[test]
fn the_last_is_alone_again_and_again() -> Result<()> {
    lab::run(|lab| {
        let meter = three(lab)?;
        for _ in 0..3 {
            part(lab, &meter, &[2, CLIENT], Duration::from_secs(1))?;
            heal(lab, &meter, &[2, CLIENT], Duration::from_secs(1))?;
            part(lab, &meter, &[0], Duration::from_secs(1))?;
            heal(lab, &meter, &[0], Duration::from_secs(1))?;
        }
        heal(lab, &meter, &[], WATCHED)
    })
}

#[test]
fn without_signals_between_the_hosts() -> Result<()> {
    lab::run(|lab| {
        let software =
            || Software::Pointsman(Vip { heartbeat_ms: None, preempt_delay_ms: 1_000, ..Vip::default() });
        let meter = lab.start_all(&std::array::from_fn::<_, HOSTS, _>(|_| software()), &Group::v3(30))?;
        part(lab, &meter, &[0], APART)?;
        // Watched for shorter than the others, which have the same announcements.
        heal(lab, &meter, &[0], APART)
    })
}
