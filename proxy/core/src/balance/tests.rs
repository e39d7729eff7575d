use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
struct Member {
    key: String,
    weight: u32,
    load: u32,
}

impl Candidate for Member {
    fn key(&self) -> &str {
        &self.key
    }

    fn weight(&self) -> u32 {
        self.weight
    }

    fn load(&self) -> u32 {
        self.load
    }
}

const POLICIES: [Policy; 5] =
    [Policy::RoundRobin, Policy::LeastConnections, Policy::Source, Policy::RandomTwo, Policy::First];

fn members(weights_and_loads: &[(u32, u32)]) -> Vec<Member> {
    let named = weights_and_loads.iter().enumerate();
    named.map(|(i, (weight, load))| Member { key: format!("pg{i}"), weight: *weight, load: *load }).collect()
}

fn draw(ticket: u64) -> Draw {
    let client = Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(ticket % 65_536).unwrap());
    Draw { ticket, random: mix(ticket), client: client.into() }
}

fn choose(policy: Policy, candidates: &[Member], ticket: u64) -> Option<usize> {
    pick(policy, candidates, draw(ticket), |_| false)
}

/// How often each candidate is chosen for the tickets 0 to `count - 1`.
fn shares(policy: Policy, candidates: &[Member], count: u64) -> Vec<u32> {
    let mut shares = vec![0; candidates.len()];
    for ticket in 0..count {
        shares[choose(policy, candidates, ticket).unwrap()] += 1;
    }
    shares
}

#[test]
fn nothing_to_choose_from() {
    for policy in POLICIES {
        assert_eq!(choose(policy, &[], 1), None);
        assert_eq!(choose(policy, &members(&[(0, 0), (0, 0)]), 1), None);
        assert_eq!(pick(policy, &members(&[(1, 0)]), draw(1), |_| true), None);
        assert_eq!(choose(policy, &members(&[(0, 0), (7, 9)]), 1), Some(1));
    }
}

#[test]
fn round_robin_takes_turns() {
    assert_eq!(shares(Policy::RoundRobin, &members(&[(100, 0), (100, 0)]), 2), [1, 1]);
    assert_eq!(shares(Policy::RoundRobin, &members(&[(5, 0), (5, 0), (5, 0)]), 3), [1, 1, 1]);
    assert_eq!(shares(Policy::RoundRobin, &members(&[(3, 0), (1, 0)]), 4), [3, 1]);
}

#[test]
fn round_robin_interleaves() {
    let candidates = members(&[(10, 0), (10, 0), (1, 0)]);
    let order: Vec<_> =
        (0..210).map(|ticket| choose(Policy::RoundRobin, &candidates, ticket).unwrap()).collect();
    let longest = order.chunk_by(|a, b| a == b).map(<[usize]>::len).max().unwrap();
    assert!(longest <= 2, "{order:?}");
}

#[test]
fn ties_go_round() {
    assert_eq!(shares(Policy::LeastConnections, &members(&[(1, 0); 3]), 9), [3, 3, 3]);
    assert_eq!(shares(Policy::LeastConnections, &members(&[(1, 5), (2, 10), (1, 6)]), 8), [4, 4, 0]);
}

#[test]
fn first_is_first() {
    let candidates = members(&[(0, 0), (1, 1000), (1, 0)]);
    assert_eq!(choose(Policy::First, &candidates, 7), Some(1));
    assert_eq!(pick(Policy::First, &candidates, draw(7), |member| member.key == "pg1"), Some(2));
}

#[test]
fn random_two_avoids_the_most_loaded() {
    for (loads, most, least) in [([10, 20, 30], 2, 0), ([30, 20, 10], 0, 2), ([20, 30, 10], 1, 2)] {
        let shares = shares(Policy::RandomTwo, &members(&loads.map(|load| (1, load))), 3000);
        assert_eq!(shares[most], 0, "of two that differ, the most loaded always loses");
        // The least loaded is in two pairs of three.
        assert!((1800..2200).contains(&shares[least]), "{shares:?}");
    }
}

#[test]
fn random_two_respects_weights() {
    let shares = shares(Policy::RandomTwo, &members(&[(8, 0), (1, 0), (1, 0)]), 10_000);
    assert!((7700..8300).contains(&shares[0]), "{shares:?}");
}

#[test]
fn source_spreads_by_weight() {
    let shares = shares(Policy::Source, &members(&[(1, 0), (2, 0), (5, 0)]), 40_000);
    for (share, expected) in shares.iter().zip([5_000i64, 10_000, 25_000]) {
        assert!((i64::from(*share) - expected).abs() < 500, "{shares:?}");
    }
}

#[test]
fn the_source_hash_never_changes() {
    // Pinned: a change of these sends clients of mixed versions to different members. The reference values
    // are computed from the published definitions of FNV-1a and splitmix64, not by this code.
    let v4: IpAddr = Ipv4Addr::new(10, 0, 0, 1).into();
    let v6: IpAddr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into();
    let mapped: IpAddr = Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().into();
    assert_eq!(source_hash(v4, "pg1"), HASH_V4);
    assert_eq!(source_hash(v6, "pg1"), HASH_V6);
    assert_eq!(source_hash(mapped, "pg1"), HASH_V4);
}

const HASH_V4: u64 = 0xf73d_1fb0_b159_3d02;
const HASH_V6: u64 = 0x836a_5436_3198_8a04;

#[test]
fn the_logarithm_is_right() {
    assert_eq!(minus_log2(u64::MAX), 0);
    assert_eq!(minus_log2(0), 64 << 32);
    assert_eq!(minus_log2((1 << 63) - 1), 1 << 32);
    for x in [1, 2, 12_345, 1 << 40, u64::MAX / 3, u64::MAX / 3 * 2, u64::MAX - (1 << 50)] {
        let expected = 64.0 - (x as f64 + 1.0).log2();
        let found = minus_log2(x) as f64 / f64::from(1u32 << 31) / 2.0;
        assert!((expected - found).abs() < 1e-8, "{x}: {expected} {found}");
    }
}

fn any_members() -> impl Strategy<Value = Vec<Member>> {
    proptest::collection::vec((prop_oneof![1u32..20, Just(0), any::<u32>()], any::<u32>()), 0..8)
        .prop_map(|shape| members(&shape))
}

fn any_draw() -> impl Strategy<Value = Draw> {
    (any::<u64>(), any::<u64>(), any::<IpAddr>()).prop_map(|(ticket, random, client)| Draw {
        ticket,
        random,
        client,
    })
}

proptest! {
    /// The choice is a usable one, and there is one whenever there can be.
    #[test]
    fn exclusions_are_respected(candidates in any_members(), draw in any_draw(), tried: [bool; 8]) {
        let excluded = |member: &Member| candidates.iter().zip(tried).any(|(m, t)| t && m.key == member.key);
        let can_be = candidates.iter().any(|member| member.weight > 0 && !excluded(member));
        for policy in POLICIES {
            let choice = pick(policy, &candidates, draw, excluded);
            prop_assert_eq!(choice.is_some(), can_be);
            if let Some(index) = choice {
                prop_assert!(candidates[index].weight > 0 && !excluded(&candidates[index]));
            }
        }
    }

    /// Over one round of tickets, wherever it starts, each gets exactly its weight.
    #[test]
    fn round_robin_is_exactly_fair(weights in proptest::collection::vec(0u32..30, 1..6), start in 0u64..1 << 60) {
        prop_assume!(weights.iter().any(|weight| *weight > 0));
        let candidates = members(&weights.iter().map(|weight| (*weight, 0)).collect::<Vec<_>>());
        let round = u64::from(weights.iter().sum::<u32>());
        let mut shares = vec![0; weights.len()];
        for ticket in start..start + round {
            shares[choose(Policy::RoundRobin, &candidates, ticket).unwrap()] += 1;
        }
        prop_assert_eq!(shares, weights);
    }

    /// Nobody has less load for its weight than the chosen one.
    #[test]
    fn least_connections_is_least(candidates in any_members(), draw in any_draw()) {
        if let Some(index) = pick(Policy::LeastConnections, &candidates, draw, |_| false) {
            let chosen = &candidates[index];
            for other in candidates.iter().filter(|member| member.weight > 0) {
                let (left, right) = (u128::from(chosen.load) * u128::from(other.weight),
                    u128::from(other.load) * u128::from(chosen.weight));
                prop_assert!(left <= right);
            }
        }
    }

    /// Filling up by least connections ends in loads proportional to the weights.
    #[test]
    fn least_connections_fills_by_weight(weights in proptest::collection::vec(1u32..10, 1..6)) {
        let mut candidates = members(&weights.iter().map(|weight| (*weight, 0)).collect::<Vec<_>>());
        let rounds = 5;
        for ticket in 0..u64::from(weights.iter().sum::<u32>()) * rounds {
            let index = choose(Policy::LeastConnections, &candidates, ticket).unwrap();
            candidates[index].load += 1;
        }
        for member in &candidates {
            prop_assert!(member.load.abs_diff(member.weight * 5) <= member.weight, "{candidates:?}");
        }
    }

    /// All load balancers agree, whatever order their tables have.
    #[test]
    fn source_does_not_depend_on_order(candidates in any_members(), draw in any_draw(), turn: usize) {
        let chosen = pick(Policy::Source, &candidates, draw, |_| false).map(|i| candidates[i].key.clone());
        let mut turned = candidates.clone();
        turned.rotate_left(turn % candidates.len().max(1));
        turned.reverse();
        let other = Draw { ticket: !draw.ticket, random: !draw.random, ..draw };
        let again = pick(Policy::Source, &turned, other, |_| false).map(|i| turned[i].key.clone());
        prop_assert_eq!(chosen, again);
    }

    /// A member that goes away, for good or for this session, moves its own clients only.
    #[test]
    fn source_moves_only_the_clients_of_a_lost_member(
        candidates in any_members(), clients in proptest::collection::vec(any::<IpAddr>(), 1..40), lost: usize,
    ) {
        prop_assume!(!candidates.is_empty());
        let lost = lost % candidates.len();
        let mut fewer = candidates.clone();
        fewer.remove(lost);
        for client in clients {
            let draw = Draw { ticket: 0, random: 0, client };
            let before = pick(Policy::Source, &candidates, draw, |_| false);
            let after = pick(Policy::Source, &fewer, draw, |_| false).map(|i| fewer[i].key.clone());
            if let Some(before) = before.filter(|index| *index != lost) {
                prop_assert_eq!(Some(candidates[before].key.clone()), after.clone());
            }
            let avoided = pick(Policy::Source, &candidates, draw, |m| m.key == candidates[lost].key);
            prop_assert_eq!(avoided.map(|i| candidates[i].key.clone()), after);
        }
    }

    /// A member that gets more weight only gains clients.
    #[test]
    fn source_moves_clients_only_to_a_member_that_grows(candidates in any_members(), grown: usize, client: IpAddr) {
        prop_assume!(!candidates.is_empty());
        let grown = grown % candidates.len();
        let mut after = candidates.clone();
        after[grown].weight = after[grown].weight.saturating_mul(2).saturating_add(1);
        let draw = Draw { ticket: 0, random: 0, client };
        let old = pick(Policy::Source, &candidates, draw, |_| false);
        let new = pick(Policy::Source, &after, draw, |_| false);
        prop_assert!(new == old || new == Some(grown));
    }
}
