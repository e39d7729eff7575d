//! The simulation: hosts with a [`Node`](pointsman_vrrp::node::Node) each, keepalived among them in some worlds, on a network
//! that loses, delays, reorders and divides, with a client that believes whoever announced last.
//!
//! Each run is made of one seed. Hosts are killed, frozen, cut off, stopped, made to yield; strangers forge adverts. While that
//! lasts, what a host does must be in order, a claim before VRRP's timers must have the word of more than half of all hosts, and
//! two hosts that hear each other must not both hold the addresses for long. Then the bad luck ends, and after a while there
//! must be exactly one holder, the best one, to whom the client's neighbour entry points, and nothing moves any more.
//!
//! A failure prints its seed; `POINTSMAN_SEED=0x… cargo test -p pointsman-vrrp --test simulation` replays that run alone and
//! prints every step. `POINTSMAN_RUNS`: how many.

#![expect(clippy::unwrap_used, reason = "a test: what is known cannot be missing")]

#[path = "simulation/checker.rs"]
mod checker;
#[path = "simulation/dice.rs"]
mod dice;
#[path = "simulation/fake_keepalived.rs"]
mod fake_keepalived;
#[path = "simulation/faults.rs"]
mod faults;
#[path = "simulation/world.rs"]
mod world;

use std::panic::AssertUnwindSafe;

use world::World;

const RUNS: u64 = 400;
const FAULTS: usize = 14;

fn run(seed: u64, trace: bool) -> World {
    let mut world = World::new(seed, trace);
    for _ in 0..FAULTS {
        world.bad_luck();
    }
    world.quiet();
    world
}

fn seed_of(run: u64) -> u64 {
    run.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x0112_0112_0112_0001
}

#[test]
fn random_worlds_come_to_rest_with_one_holder() {
    if let Ok(text) = std::env::var("POINTSMAN_SEED") {
        let digits = text.trim_start_matches("0x");
        run(u64::from_str_radix(digits, 16).expect("POINTSMAN_SEED is a hexadecimal number"), true);
        return;
    }
    let runs = std::env::var("POINTSMAN_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(RUNS);
    let fails = |number: &u64| {
        let seed = seed_of(*number);
        let failed = std::panic::catch_unwind(AssertUnwindSafe(|| run(seed, false))).is_err();
        if failed {
            eprintln!("run {number} failed; replay it with POINTSMAN_SEED={seed:#018x}");
        }
        failed
    };
    let failed = (0..runs).filter(fails).count();
    assert_eq!(failed, 0, "of {runs} runs");
}

/// The same seed makes the same run, to the last step.
#[test]
fn a_seed_replays_a_run() {
    for number in 0..5 {
        let prints = [0, 1].map(|_| run(seed_of(number), false).fingerprint());
        assert_eq!(prints[0], prints[1]);
    }
}
