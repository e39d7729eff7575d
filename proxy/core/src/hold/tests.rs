use proptest::prelude::*;

use super::*;

mod model;

fn limits(max_held: u32, rate: u32, balancers: u32) -> HoldLimits {
    HoldLimits::new(max_held, NonZeroU32::new(rate).unwrap(), NonZeroU32::new(balancers).unwrap())
}

fn at(millis: u64) -> Moment {
    Moment::from_millis(millis)
}

fn queue(max_held: u32, rate: u32) -> HoldQueue<u32> {
    HoldQueue::new(limits(max_held, rate, 1))
}

/// The keys of a batch with a mark for how the wait ended.
fn marks(batch: &[(u32, Outcome)]) -> Vec<(u32, char)> {
    let mark = |outcome: &Outcome| match outcome {
        Outcome::Release(_) => 'r',
        Outcome::Expire(_) => 'x',
    };
    batch.iter().map(|(key, outcome)| (*key, mark(outcome))).collect()
}

/// A queue whose route is no longer fresh at 10 s.
fn settled() -> HoldQueue<u32> {
    let mut queue = queue(10, 100);
    queue.route(at(0), true);
    assert!(matches!(queue.arrive(at(10_000), 0, at(20_000)), Arrival::Pass(_)));
    assert!(!queue.is_fresh());
    queue
}

fn pass(queue: &mut HoldQueue<u32>, now: u64, key: u32) -> Ticket {
    let arrival = queue.arrive(at(now), key, at(now + 60_000));
    let Arrival::Pass(ticket) = arrival else { panic!("{arrival:?}") };
    ticket
}

#[test]
fn the_rate_is_shared_and_rounded_down() {
    let shared = limits(1, 500, 3);
    assert_eq!((shared.interval(), shared.burst()), (Duration::from_millis(6), 3));
    let alone = limits(1, 500, 1);
    assert_eq!((alone.interval(), alone.burst()), (Duration::from_millis(2), 10));
    let slow = limits(1, 1, 3);
    assert_eq!((slow.interval(), slow.burst()), (Duration::from_secs(3), 1));
    assert_eq!(limits(1, 3, 1).interval(), Duration::from_nanos(333_333_334));
}

#[test]
fn connections_wait_for_a_route_and_go_in_order() {
    let mut queue = queue(10, 100); // one each 10 ms, two at once
    for key in [5, 3, 4] {
        assert_eq!(queue.arrive(at(1), key, at(60_001)), Arrival::Held);
    }
    assert_eq!((queue.len(), queue.oldest_since()), (3, Some(at(1))));
    assert_eq!(queue.poll_timeout(), Some(at(60_001)));
    assert!(queue.poll(at(1000)).is_empty());

    queue.route(at(1000), true);
    assert!(queue.poll_timeout().unwrap() <= at(1000));
    assert_eq!(marks(&queue.poll(at(1000))), [(5, 'r'), (3, 'r')]);
    assert_eq!(queue.poll_timeout(), Some(at(1010)));
    assert!(queue.poll(at(1009)).is_empty());
    assert_eq!(marks(&queue.poll(at(1010))), [(4, 'r')]);
    assert_eq!(queue.poll_timeout(), None);
}

#[test]
fn who_comes_to_a_fresh_route_queues_behind_the_others() {
    let mut queue = queue(10, 100);
    for key in [1, 2, 3] {
        queue.arrive(at(0), key, at(60_000));
    }
    queue.route(at(100), true);
    assert_eq!(queue.arrive(at(100), 4, at(60_000)), Arrival::Held);
    assert_eq!(marks(&queue.poll(at(100))), [(1, 'r'), (2, 'r')]);
    assert_eq!(marks(&queue.poll(at(500))), [(3, 'r'), (4, 'r')]);
    // Nobody waits and there is a token again.
    pass(&mut queue, 510, 5);
    assert_eq!(queue.arrive(at(510), 6, at(60_000)), Arrival::Held);
}

#[test]
fn a_herd_after_a_quiet_change_is_paced_too() {
    let mut queue = queue(1000, 100);
    queue.route(at(0), true);
    let passed = (0..100).filter(|key| matches!(queue.arrive(at(1900), *key, at(60_000)), Arrival::Pass(_)));
    assert_eq!(passed.count(), 2);
}

#[test]
fn a_settled_route_lets_everyone_pass() {
    let mut queue = settled();
    for key in 0..1000 {
        pass(&mut queue, 10_000, key);
    }
    queue.route(at(10_001), true);
    assert!(!queue.is_fresh());
    queue.route(at(10_002), false);
    assert_eq!(queue.arrive(at(10_002), 1, at(70_000)), Arrival::Held);
}

#[test]
fn a_route_stays_fresh_while_someone_waits() {
    let mut queue = settled();
    let ticket = pass(&mut queue, 10_000, 1);
    queue.come_back(at(10_000), 1, ticket, Duration::from_secs(30));
    queue.poll(at(20_000));
    assert!(queue.is_fresh());
    queue.poll(at(40_000));
    assert!(queue.is_empty() && queue.is_fresh(), "the bucket is not full");
    queue.poll(at(40_010));
    assert!(!queue.is_fresh());
}

#[test]
fn giving_up_sends_everyone_away_in_order() {
    let mut queue = queue(10, 100);
    for key in [7, 3, 5] {
        assert_eq!(queue.arrive(at(0), key, at(1000)), Arrival::Held);
    }
    assert_eq!(marks(&queue.give_up()), [(7, 'x'), (3, 'x'), (5, 'x')]);
    assert!(queue.is_empty());
    assert_eq!(queue.poll_timeout(), None);
}

/// A backlog that grows faster than the rate is not throttled for ever.
#[test]
fn the_rate_doubles_after_the_strict_time() {
    let mut queue = queue(1_000_000, 100);
    queue.route(at(0), true);
    let mut released_by = Vec::new();
    let mut released = 0;
    // 1,000 arrive every second, ten times the rate.
    for millis in 0..15_000 {
        let arrival = queue.arrive(at(millis), u32::try_from(millis).unwrap(), at(1_000_000));
        released += usize::from(matches!(arrival, Arrival::Pass(_)));
        released += queue.poll(at(millis)).len();
        if millis % 1000 == 999 {
            released_by.push(released);
        }
    }
    assert!((498..=504).contains(&released_by[4]), "strict for five seconds: {released_by:?}");
    assert!(released_by[5] - released_by[4] <= 2 * 100 + 8, "then twice the rate: {released_by:?}");
    assert_eq!(released_by[14], 15_000, "and in the end nobody waits: {released_by:?}");
}

#[test]
fn a_route_stays_fresh_until_the_bucket_is_full() {
    let mut queue = HoldQueue::new(limits(10, 1, 60)); // one each minute
    queue.route(at(0), true);
    pass(&mut queue, 0, 1);
    for now in [2_000, 59_999] {
        queue.poll(at(now));
        assert!(queue.is_fresh());
    }
    pass(&mut queue, 60_000, 2);
    assert!(!queue.is_fresh());
}

#[test]
fn a_deadline_ends_the_wait() {
    let mut queue = queue(10, 100);
    queue.arrive(at(0), 1, at(3000));
    queue.arrive(at(0), 2, at(2000));
    assert_eq!(queue.poll_timeout(), Some(at(2000)));
    assert!(queue.poll(at(1999)).is_empty());
    assert_eq!(marks(&queue.poll(at(2000))), [(2, 'x')]);
    assert_eq!(marks(&queue.poll(at(9000))), [(1, 'x')]);
}

#[test]
fn a_full_queue_overflows_and_a_leaver_makes_room() {
    let mut queue = queue(2, 100);
    assert_eq!(queue.arrive(at(0), 1, at(9)), Arrival::Held);
    assert_eq!(queue.arrive(at(0), 2, at(9)), Arrival::Held);
    assert_eq!(queue.arrive(at(0), 2, at(9)), Arrival::Held, "it waits already");
    assert_eq!(queue.arrive(at(0), 3, at(9)), Arrival::Overflow);
    assert_eq!(queue.leave(1).map(|ticket| ticket.arrived()), Some(at(0)));
    assert_eq!(queue.leave(1), None);
    assert_eq!(queue.arrive(at(0), 3, at(9)), Arrival::Held);
    assert_eq!(marks(&queue.poll(at(9))), [(2, 'x'), (3, 'x')]);
}

#[test]
fn a_failed_dial_comes_back_to_its_old_place() {
    let mut queue = settled();
    let ticket = pass(&mut queue, 10_000, 1);
    queue.route(at(10_001), false);
    assert_eq!(queue.arrive(at(10_001), 2, at(70_001)), Arrival::Held);
    assert_eq!(queue.come_back(at(10_005), 1, ticket, Duration::from_millis(20)), Arrival::Held);
    assert_eq!(queue.oldest_since(), Some(at(10_000)));
    queue.route(at(11_000), true);
    assert_eq!(marks(&queue.poll(at(11_000))), [(1, 'r'), (2, 'r')]);
}

#[test]
fn a_failed_dial_keeps_its_deadline() {
    let mut queue = settled();
    let ticket = pass(&mut queue, 10_000, 1);
    queue.route(at(10_001), false);
    queue.come_back(at(10_001), 1, ticket, Duration::from_secs(100));
    assert!(queue.poll(at(69_999)).is_empty());
    assert_eq!(marks(&queue.poll(at(70_000))), [(1, 'x')]);
}

#[test]
fn a_dial_that_keeps_failing_neither_spins_nor_blocks_the_others() {
    let mut queue = settled();
    let mut ticket = pass(&mut queue, 10_000, 1);
    for key in 2..5 {
        let pause = Duration::from_millis(20);
        assert_eq!(queue.come_back(at(10_000 + u64::from(key) * 100), 1, ticket, pause), Arrival::Held);
        let now = 10_000 + u64::from(key) * 100;
        assert!(queue.is_fresh());
        pass(&mut queue, now + 1, key);
        assert_eq!(queue.poll_timeout(), Some(at(now + 20)));
        let mut batch = queue.poll(at(now + 20));
        let Some((1, Outcome::Release(again))) = batch.pop() else { panic!() };
        ticket = again;
    }
}

#[test]
fn a_failed_dial_makes_an_almost_settled_route_fresh_again() {
    let mut queue = queue(10, 100);
    queue.route(at(0), true);
    let ticket = pass(&mut queue, 1500, 1);
    queue.come_back(at(2000), 1, ticket, Duration::ZERO);
    assert!(queue.leave(1).is_some());
    assert!(queue.poll(at(2000)).is_empty());
    assert!(queue.is_fresh());
}

#[test]
fn a_batch_is_bounded() {
    let mut queue = queue(1000, 100);
    for key in 0..1000 {
        queue.arrive(at(0), key, at(5));
    }
    let mut expired = 0;
    while queue.poll_timeout().is_some_and(|moment| moment <= at(5)) {
        let batch = queue.poll(at(5));
        assert!(!batch.is_empty() && batch.len() <= BATCH);
        expired += batch.len();
    }
    assert_eq!(expired, 1000);
}

#[test]
fn a_reload_changes_the_limits_and_drops_nobody() {
    let mut queue = HoldQueue::new(limits(3, 1, 100)); // one each 100 s
    for key in 0..3 {
        queue.arrive(at(0), key, at(600_000));
    }
    queue.route(at(0), true);
    assert_eq!(marks(&queue.poll(at(0))), [(0, 'r')]);
    queue.set_limits(at(1), limits(1, 100, 1));
    assert_eq!(queue.len(), 2);
    assert_eq!(queue.arrive(at(1), 9, at(600_000)), Arrival::Overflow);
    assert_eq!(queue.poll_timeout(), Some(at(11)));
    assert_eq!(marks(&queue.poll(at(21))), [(1, 'r'), (2, 'r')]);
}
