//! Three `pointsman-vip` with signals between them: whatever befalls the holder, another takes over within milliseconds, the
//! address does not stay behind, and the client knows where it is.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::lab::{
    self, Group, HOSTS, Lab, Meter, PRIORITIES, SOON, Side, Software, VIRTUAL, Vip, say, wait,
};

/// What is seen at once (a process has ended, a host hands over) costs a client a few milliseconds. The bench measures
/// them; here there is room for a machine that is busy.
const AT_ONCE: Duration = Duration::from_millis(60);
/// Three heartbeats of 10 ms, and the same room.
const SILENCE: Duration = Duration::from_millis(100);
/// How long two hosts may hold the address when both can speak.
const OVERLAP: Duration = Duration::from_millis(50);
/// The kernel takes an address away that nobody prolongs.
const EXPIRY: Duration = Duration::from_millis(2_500);

fn software() -> Software {
    Software::Pointsman(Vip { heartbeat_ms: Some(10), preempt_delay_ms: 300, ..Vip::default() })
}

fn three(lab: &mut Lab) -> Result<Meter> {
    let meter = lab.start_all(&std::array::from_fn::<_, HOSTS, _>(|_| software()), &Group::v3(100))?;
    peers_alive(lab)?;
    Ok(meter)
}

/// Every host hears the others: before that, nobody is known to be lost.
fn peers_alive(lab: &Lab) -> Result<()> {
    wait::until("the hosts to hear each other", SOON, || {
        for host in 0..HOSTS {
            let status = lab.status(host)?;
            let peers = status.pointer("/peers").and_then(serde_json::Value::as_array).context("no peers")?;
            let alive = peers.iter().filter(|peer| peer.get("state") == Some(&"alive".into())).count();
            ensure!(alive == HOSTS - 1, "lb{}: {peers:?}", host + 1);
        }
        Ok(())
    })
}

/// Waits for the state in which the next fault may come: lb1 has the address and hears everybody.
fn calm(lab: &mut Lab, meter: &Meter) -> Result<()> {
    lab.wait_holder(0, VIRTUAL, SOON)?;
    lab.wait_quiet(0, meter, SOON)?;
    peers_alive(lab)
}

/// How long the client waited for another host, which must be lb2.
fn taken_over(lab: &Lab, meter: &Meter, at: Instant, what: &str, limit: Duration) -> Result<()> {
    let answer =
        wait::until("another host to answer", SOON, || meter.first_of_another(0, at).context("none has"))?;
    let took = answer.at.duration_since(at);
    say(&format!("{what}: {:.1} ms", took.as_secs_f64() * 1e3));
    ensure!(answer.host == 1, "lb{} has answered\n{}", answer.host + 1, lab.watch.story(VIRTUAL, at));
    let limit = limit + meter.stall(at);
    ensure!(took <= limit, "{what}: {took:?} is more than {limit:?}\n{}", lab.watch.story(VIRTUAL, at));
    Ok(())
}

/// How long the client had no answer, when all is over.
fn gap(lab: &Lab, meter: &Meter, at: Instant, what: &str, limit: Duration) -> Result<()> {
    lab.wait_quiet(1, meter, SOON)?;
    let gap = meter.gap(at)?.length;
    say(&format!("{what}: {:.1} ms", gap.as_secs_f64() * 1e3));
    let limit = limit + meter.stall(at);
    ensure!(gap <= limit, "{what}: {gap:?} is more than {limit:?}\n{}", lab.watch.story(VIRTUAL, at));
    Ok(())
}

fn few_holders(lab: &Lab, at: Instant) -> Result<()> {
    let overlap = lab.watch.longest_overlap(VIRTUAL, at);
    ensure!(overlap <= OVERLAP, "two holders for {overlap:?}\n{}", lab.watch.story(VIRTUAL, at));
    Ok(())
}

#[test]
fn the_whole_daemon_is_killed() -> Result<()> {
    lab::measure(|lab| {
        let meter = three(lab)?;
        for _ in 0..3 {
            let at = lab.kill(0)?;
            taken_over(lab, &meter, at, "kill -9 of the whole daemon", AT_ONCE)?;
            // Nobody is left to remove it: the kernel does.
            lab.wait_holder(1, VIRTUAL, SOON)?;
            let left = lab.watch.when(0, VIRTUAL, false, at).context("the address did not leave")?;
            let stayed = left.duration_since(at);
            ensure!(stayed <= EXPIRY, "the address stayed for {stayed:?}");
            lab.wait_quiet(1, &meter, SOON)?;
            ensure!(meter.gap(at)?.length <= AT_ONCE + meter.stall(at), "gap {:?}", meter.gap(at)?);
            lab.start(0, &software(), &Group::v3(100), &PRIORITIES)?;
            calm(lab, &meter)?;
        }
        Ok(())
    })
}

#[test]
fn a_process_is_killed_or_frozen() -> Result<()> {
    lab::measure(|lab| {
        let meter = three(lab)?;
        for _ in 0..3 {
            let before = lab.daemon(0)?.worker()?;
            let at = lab.daemon(0)?.kill_worker()?;
            taken_over(lab, &meter, at, "kill -9 of the worker", AT_ONCE)?;
            few_holders(lab, at)?;
            ensure!(meter.gap(at)?.length <= AT_ONCE + meter.stall(at), "gap {:?}", meter.gap(at)?);
            // The guard starts another.
            wait::until("another worker", SOON, || {
                ensure!(lab.daemon(0)?.worker()? != before, "none");
                Ok(())
            })?;
            calm(lab, &meter)?;
        }
        // The worker hands over when its guard is gone, and ends.
        let at = lab.daemon(0)?.kill_main()?;
        taken_over(lab, &meter, at, "kill -9 of the guard", AT_ONCE)?;
        few_holders(lab, at)?;
        lab.daemon(0)?.wait_ended(SOON)?;
        lab.forget(0);
        lab.start(0, &software(), &Group::v3(100), &PRIORITIES)?;
        calm(lab, &meter)?;
        // The guard notices that the worker hangs; thawed, it does not come back.
        let at = lab.daemon(0)?.freeze_worker()?;
        taken_over(lab, &meter, at, "the worker is frozen", SILENCE)?;
        wait::until("the address to leave", SOON, || {
            lab.watch.when(0, VIRTUAL, false, at).context("it stays")
        })?;
        let overlap = lab.watch.longest_overlap(VIRTUAL, at);
        ensure!(overlap <= Duration::from_millis(250), "two holders for {overlap:?}");
        calm(lab, &meter)
    })
}

#[test]
fn a_host_that_slept_steps_down() -> Result<()> {
    lab::measure(|lab| {
        let meter = three(lab)?;
        // Shorter and longer than the life of the address.
        for (sleep, what) in [(Duration::from_millis(500), "short"), (Duration::from_secs(3), "long")] {
            let at = lab.daemon(0)?.freeze()?;
            taken_over(lab, &meter, at, &format!("all is frozen, {what}"), SILENCE)?;
            wait::throughout("lb2 holding", sleep, || {
                ensure!(lab.watch.holders(VIRTUAL).contains(&1), "it does not");
                Ok(())
            })?;
            let thawed = lab.daemon(0)?.thaw()?;
            lab.wait_one_holder(VIRTUAL, SOON)?;
            few_holders(lab, thawed)?;
            calm(lab, &meter)?;
            let gap = meter.gap(thawed)?;
            ensure!(
                gap.length <= AT_ONCE + meter.stall(thawed),
                "{gap:?}\n{}",
                lab.watch.story(VIRTUAL, thawed)
            );
        }
        Ok(())
    })
}

#[test]
fn a_hand_over_costs_nothing() -> Result<()> {
    lab::measure(|lab| {
        let meter = three(lab)?;
        for _ in 0..3 {
            let at = lab.stop(0)?;
            gap(lab, &meter, at, "SIGTERM", AT_ONCE)?;
            few_holders(lab, at)?;
            // The heir first, then the giver lets go, then it says so.
            let took = lab.watch.when(1, VIRTUAL, true, at).context("lb2 did not take")?;
            let left = lab.watch.when(0, VIRTUAL, false, at).context("lb1 did not let go")?;
            let farewells = lab.watch.adverts(0, 0, at);
            let story = lab.watch.story(VIRTUAL, at);
            ensure!(took <= left, "lb1 let go before lb2 took\n{story}");
            ensure!(farewells.len() == 1, "{} adverts of priority 0\n{story}", farewells.len());
            lab.start(0, &software(), &Group::v3(100), &PRIORITIES)?;
            calm(lab, &meter)?;
            // Taking it back is a hand-over, too.
            let back = meter.gap(at)?;
            ensure!(back.length <= AT_ONCE + meter.stall(at), "{back:?}\n{}", lab.watch.story(VIRTUAL, at));
        }
        for _ in 0..3 {
            let at = Instant::now();
            lab.command(0, &["yield"])?;
            gap(lab, &meter, at, "yield", AT_ONCE)?;
            few_holders(lab, at)?;
            wait::throughout("lb1 staying away", Duration::from_secs(1), || lab.has_only(1, VIRTUAL))?;
            lab.command(0, &["resume"])?;
            calm(lab, &meter)?;
        }
        Ok(())
    })
}

#[test]
fn links_fail() -> Result<()> {
    lab::measure(|lab| {
        let meter = three(lab)?;
        for _ in 0..2 {
            let at = lab.set_link(0, false)?;
            gap(lab, &meter, at, "interface down", SILENCE)?;
            lab.set_link(0, true)?;
            calm(lab, &meter)?;
            few_holders(lab, at)?;

            let at = lab.set_carrier(0, false)?;
            gap(lab, &meter, at, "no carrier", SILENCE)?;
            lab.set_carrier(0, true)?;
            calm(lab, &meter)?;
            few_holders(lab, at)?;

            let at = lab.move_to(0, Side::Nowhere)?;
            taken_over(lab, &meter, at, "host dead", SILENCE)?;
            let back = lab.move_to(0, Side::Main)?;
            lab.wait_one_holder(VIRTUAL, SOON)?;
            few_holders(lab, back)?;
            calm(lab, &meter)?;
            let gap = meter.gap(back)?;
            ensure!(gap.length <= SILENCE + meter.stall(back), "{gap:?}\n{}", lab.watch.story(VIRTUAL, back));
        }
        Ok(())
    })
}

#[test]
fn restarts_of_others_move_nothing() -> Result<()> {
    lab::run(|lab| {
        let meter = three(lab)?;
        let at = Instant::now();
        for round in 0..6 {
            for host in [1, 2] {
                if round % 2 == 0 {
                    lab.kill(host)?;
                } else {
                    lab.stop(host)?;
                }
                lab.start(host, &software(), &Group::v3(100), &PRIORITIES)?;
                // Before that, a signal would meet a process that has not begun.
                wait::until("it to run", SOON, || lab.status(host).map(drop))?;
            }
        }
        peers_alive(lab)?;
        lab.is_quiet(0, &meter)?;
        let changes = lab.watch.changes(VIRTUAL, at);
        ensure!(changes.is_empty(), "{}", lab.watch.story(VIRTUAL, at));
        let gap = meter.gap(at)?.length;
        ensure!(gap <= AT_ONCE + meter.stall(at), "gap {gap:?}");
        // The holder itself, again and again, before it is well: the others keep the address.
        for _ in 0..8 {
            lab.kill(0)?;
            lab.start(0, &software(), &Group::v3(100), &PRIORITIES)?;
            wait::until("some host to hold", SOON, || {
                ensure!(!lab.watch.holders(VIRTUAL).is_empty(), "none");
                Ok(())
            })?;
        }
        calm(lab, &meter)
    })
}
