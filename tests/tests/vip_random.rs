//! Random faults, as many and as mixed as the time allows: whenever it is quiet, exactly one host has the address, and the
//! client knows. `SOAK=seconds` for longer than the two minutes of every day; `SEED=n` repeats the order of a run.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use pointsman_tests::lab::{
    self, Group, HOSTS, Lab, Meter, PRIORITIES, Side, Software, VIRTUAL, Vip, say, wait,
};

/// How long it may take until all is well after the last fault: a restart, peers that find each other, a preemption, the
/// backoff of a guard whose worker was killed again and again.
const QUIET: Duration = Duration::from_secs(20);
/// A wrong neighbour entry cuts a client off for longer.
const STUCK: Duration = Duration::from_secs(1);

fn length() -> Result<Duration> {
    let soak = std::env::var("SOAK").ok().map_or(Ok(120), |text| text.parse()).context("SOAK")?;
    Ok(Duration::from_secs(soak))
}

/// splitmix64: a seed is the whole story of the choices.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    KillWorker,
    KillGuard,
    Stop,
    FreezeWorker,
    Freeze,
    Yield,
    LinkDown,
    NoCarrier,
    Nowhere,
    OtherSide,
    Robbed,
}

impl Fault {
    const ALL: [Self; 12] = [
        Self::Kill,
        Self::KillWorker,
        Self::KillGuard,
        Self::Stop,
        Self::FreezeWorker,
        Self::Freeze,
        Self::Yield,
        Self::LinkDown,
        Self::NoCarrier,
        Self::Nowhere,
        Self::OtherSide,
        Self::Robbed,
    ];
}

fn software() -> Software {
    Software::Pointsman(Vip { preempt_delay_ms: 500, ..Vip::default() })
}

/// Does it; a fault that needs a running daemon does nothing without one.
fn inflict(lab: &mut Lab, host: usize, fault: Fault) -> Result<()> {
    match fault {
        Fault::LinkDown => lab.set_link(host, false).map(drop),
        Fault::NoCarrier => lab.set_carrier(host, false).map(drop),
        Fault::Nowhere => lab.move_to(host, Side::Nowhere).map(drop),
        Fault::OtherSide => lab.move_to(host, Side::Other).map(drop),
        // Somebody removes the address; it may not be there.
        Fault::Robbed => {
            let _ = lab.remove_address(host, VIRTUAL);
            Ok(())
        }
        _ if !lab.runs(host) => Ok(()),
        Fault::Kill => lab.kill(host).map(drop),
        Fault::Stop => {
            lab.daemon(host)?.thaw()?;
            lab.stop(host).map(drop)
        }
        // The guard may just be between two workers.
        Fault::KillWorker => {
            let _ = lab.daemon(host)?.kill_worker();
            Ok(())
        }
        Fault::FreezeWorker => {
            let _ = lab.daemon(host)?.freeze_worker();
            Ok(())
        }
        Fault::KillGuard => {
            lab.daemon(host)?.thaw()?;
            lab.daemon(host)?.kill_main()?;
            lab.daemon(host)?.wait_ended(QUIET)?;
            lab.forget(host);
            Ok(())
        }
        Fault::Freeze => lab.daemon(host)?.freeze().map(drop),
        Fault::Yield => {
            // A frozen daemon does not answer: not asked for long.
            lab.daemon(host)?.thaw()?;
            let _ = lab.command(host, &["yield"]);
            Ok(())
        }
    }
}

/// Undoes everything that was done to anybody.
fn mend(lab: &mut Lab) -> Result<()> {
    for host in 0..HOSTS {
        lab.move_to(host, Side::Main)?;
        lab.set_carrier(host, true)?;
        lab.set_link(host, true)?;
        if lab.runs(host) {
            lab.daemon(host)?.thaw()?;
        } else {
            lab.start(host, &software(), &Group::v3(100), &PRIORITIES)?;
        }
    }
    for host in 0..HOSTS {
        wait::until(format!("lb{} to take back", host + 1), QUIET, || {
            lab.command(host, &["resume"]).map(drop)
        })?;
    }
    Ok(())
}

/// Faults for a while, then peace: one holder, which is the best, and the client is with it.
fn round(lab: &mut Lab, meter: &Meter, random: &mut Random) -> Result<Vec<(usize, Fault)>> {
    let begun = Instant::now();
    let mut done = Vec::new();
    for _ in 0..=random.below(6) {
        let (host, fault) = (random.below(HOSTS), Fault::ALL[random.below(Fault::ALL.len())]);
        done.push((host, fault));
        inflict(lab, host, fault).with_context(|| format!("{done:?}"))?;
        // The length of the pause is part of the randomness, not a wait for anything.
        std::thread::sleep(Duration::from_millis(random.next() % 400));
    }
    mend(lab).with_context(|| format!("{done:?}"))?;
    let story = |lab: &Lab| format!("{done:?}\n{}", lab.watch.story(VIRTUAL, begun));
    lab.wait_holder(0, VIRTUAL, QUIET).with_context(|| story(lab))?;
    let alone = Instant::now();
    lab.wait_quiet(0, meter, QUIET).with_context(|| story(lab))?;
    ensure!(
        alone.elapsed() < STUCK + meter.stall(alone),
        "the client was cut off for {:?}\n{}",
        alone.elapsed(),
        story(lab)
    );
    wait::throughout("one holder", Duration::from_millis(800), || lab.is_quiet(0, meter))
        .with_context(|| story(lab))?;
    lab.check_running()?;
    Ok(done)
}

#[test]
fn quiet_means_one_holder() -> Result<()> {
    let length = length()?;
    lab::run_for(length, |lab| {
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let seed = match std::env::var("SEED") {
            Ok(seed) => seed.parse().context("SEED")?,
            Err(_) => u64::from(clock.subsec_nanos()),
        };
        let mut random = Random(seed);
        let meter = lab.start_all(&std::array::from_fn::<_, HOSTS, _>(|_| software()), &Group::v3(100))?;
        let begun = Instant::now();
        let (mut rounds, mut faults) = (0, 0);
        while begun.elapsed() < length {
            let done = round(lab, &meter, &mut random)
                .with_context(|| format!("SEED={seed}, round {}", rounds + 1))?;
            rounds += 1;
            faults += done.len();
        }
        say(&format!("SEED={seed}: {faults} faults in {rounds} rounds, quiet after each"));
        Ok(())
    })
}
