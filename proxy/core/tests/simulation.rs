//! The simulation: a world of members, a store and bad luck, around one [`Topology`].
//!
//! Each run is made of one seed: the world acts at random (leaders change, keys vanish and come back late,
//! snapshots are doubled and merged, the store falls silent, servers refuse, probes lie, clients come), and
//! after every single step the invariants are checked. Then the bad luck ends, and after a quiet time the table must
//! equal the truth.
//!
//! A failure prints its seed; `POINTSMAN_SEED=0x… cargo test -p pointsman-core --test simulation` replays
//! that run alone and prints every step.

#![expect(clippy::unwrap_used, reason = "a test: what is known cannot be missing")]
#![expect(clippy::struct_excessive_bools, reason = "a server and a checker are made of yes and no")]

#[path = "simulation/checker.rs"]
mod checker;
#[path = "simulation/clients.rs"]
mod clients;
#[path = "simulation/world.rs"]
mod world;

use std::panic::AssertUnwindSafe;

use world::World;

const RUNS: u64 = 800;
const STEPS: usize = 300;

fn run(seed: u64, trace: bool) {
    let mut world = World::new(seed, trace);
    for _ in 0..STEPS {
        world.bad_luck();
    }
    world.quiet();
    world.check_truth();
}

fn seed_of(run: u64) -> u64 {
    run.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x0050_0150_0070_0001
}

#[test]
fn random_worlds_keep_the_invariants() {
    if let Ok(text) = std::env::var("POINTSMAN_SEED") {
        let digits = text.trim_start_matches("0x");
        run(u64::from_str_radix(digits, 16).expect("POINTSMAN_SEED is a hexadecimal number"), true);
        return;
    }
    let runs = std::env::var("POINTSMAN_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(RUNS);
    for number in 0..runs {
        let seed = seed_of(number);
        if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| run(seed, false))) {
            eprintln!("run {number} failed; replay it with POINTSMAN_SEED={seed:#018x}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// The same seed makes the same run, to the last effect.
#[test]
fn a_seed_replays_a_run() {
    for number in 0..20 {
        let prints = [0, 1].map(|_| {
            let mut world = World::new(seed_of(number), false).with_fingerprint();
            for _ in 0..STEPS {
                world.bad_luck();
            }
            world.quiet();
            world.fingerprint()
        });
        assert_eq!(prints[0], prints[1]);
    }
}

/// The checker is no ornament: a topology that trusts the leader key alone would be caught.
#[test]
#[should_panic(expected = "without evidence")]
fn the_checker_catches_a_candidate_without_evidence() {
    let mut world = World::new(1, false);
    world.checker_mut().forget_evidence_for_ever();
    world.quiet();
}
