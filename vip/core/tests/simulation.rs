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
use std::time::Duration;

use world::World;

const RUNS: u64 = 300;
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

/// The holder fails in this way: the longest time without a holder, over many worlds of three hosts at rest.
fn longest_gap(keepalived: usize, fault: impl Fn(&mut World, usize)) -> Duration {
    let gap = |seed: u64| {
        let mut world = World::at_rest(seed_of(seed), keepalived, false);
        let holder = world.holders()[0];
        let begin = world.now;
        fault(&mut world, holder);
        let step = Duration::from_micros(50);
        let mut gap = Duration::ZERO;
        let is_held = |world: &World| world.hosts.iter().any(|host| host.holds && host.runs() && host.link);
        while world.now.since(begin) < Duration::from_millis(600) {
            if !is_held(&world) {
                gap += step;
            }
            world.run_for(step);
        }
        assert!(is_held(&world), "seed {seed}: nobody has taken over");
        gap
    };
    (0..40).map(gap).max().unwrap()
}

#[test]
fn who_is_killed_is_succeeded_at_once() {
    let at_once = Duration::from_millis(2);
    assert!(longest_gap(0, World::kill_worker) <= at_once);
    assert!(longest_gap(0, World::kill_all) <= at_once);
}

#[test]
fn who_falls_silent_is_succeeded_after_three_heartbeats() {
    let soon = Duration::from_millis(95);
    assert!(longest_gap(0, World::power_off) <= soon);
    assert!(longest_gap(0, World::unplug) <= soon);
}

#[test]
fn who_leaves_in_good_order_is_succeeded_before() {
    let none = Duration::ZERO;
    assert_eq!(longest_gap(0, World::stop), none);
    assert_eq!(longest_gap(0, |world, holder| world.set_yielded(holder, true)), none);
    assert_eq!(longest_gap(0, |world, holder| world.set_unwell(holder, true)), none);
}

/// With keepalived in the group its timers decide.
#[test]
fn a_keepalived_succeeds_after_its_timers() {
    let down = Duration::from_millis(400);
    for fault in [World::kill_all, World::power_off, World::stop] {
        assert!(longest_gap(1, fault) <= down);
    }
}

/// Nobody believes a stranger for long.
#[test]
fn a_claim_of_a_stranger_is_answered() {
    for seed in 0..10 {
        let mut world = World::at_rest(seed_of(seed), 0, false);
        world.claim();
        world.run_for(Duration::from_millis(400));
        world.check_rest();
    }
}

/// The network divides, the client's half elects its own holder, and then it heals. How long the client believes the wrong
/// host.
fn longest_left_behind(keepalived: usize) -> Duration {
    let left_behind = |seed: u64| {
        let mut world = World::at_rest(seed_of(seed), keepalived, false);
        let holder = world.holders()[0];
        // Somebody else is with the client; the third may be there or here.
        let with_client: Vec<bool> = (0..3)
            .map(|host| {
                host != holder && (host == (holder + 1) % 3) == (seed % 3 == 0)
                    || host != holder && seed % 3 == 2
            })
            .collect();
        world.divide_as(&[&with_client[..], &[true]].concat());
        let wait = world.dice.millis(2000, 3000);
        world.run_for(wait);
        assert_eq!(world.holders().len(), 2);
        assert_ne!(world.neighbour, Some(holder));
        world.heal();
        let begin = world.now;
        let mut wrong = Duration::ZERO;
        while world.now.since(begin) < Duration::from_secs(20) {
            world.run_for(Duration::from_millis(1));
            if world.neighbour != Some(holder) {
                wrong = world.now.since(begin);
            }
        }
        world.check_rest();
        wrong
    };
    (0..30).map(left_behind).max().unwrap()
}

#[test]
fn after_a_heal_the_client_finds_the_holder() {
    let longest = longest_left_behind(0);
    assert!(longest <= Duration::from_millis(50), "{longest:?}");
}

/// A keepalived that steps down tells nobody.
#[test]
fn after_a_heal_the_client_finds_the_holder_with_keepalived() {
    let longest = longest_left_behind(1);
    assert!(longest <= Duration::from_millis(5100), "{longest:?}");
}

/// The checker is no ornament.
#[test]
#[should_panic(expected = "the client takes Some(9) for the owner")]
fn the_checker_catches_a_client_that_is_left_behind() {
    let mut world = World::at_rest(seed_of(1), 0, false);
    world.neighbour = Some(9);
    world.check_rest();
}
