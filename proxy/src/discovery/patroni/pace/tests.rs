use super::*;

const fn at(millis: u64) -> Moment {
    Moment::from_millis(millis)
}

/// A pace at rest, that heard something at 10 s.
fn rested() -> Pace {
    let mut pace = Pace::new(Moment::ZERO);
    pace.looked(at(9_990));
    pace.heard(at(10_000), false);
    pace.feel(false, None, at(10_000));
    pace
}

#[test]
fn in_peace_one_look_after_the_other() {
    let mut pace = rested();
    assert_eq!(pace.look_at(3), at(12_250));
    assert_eq!(pace.lost_at(), None);
    pace.looked(at(12_250));
    assert_eq!((pace.look_at(3), pace.lost_at()), (at(12_650), Some(at(15_250))));
    pace.looked(at(12_650)); // the first one hangs
    assert!(!pace.is_lost(at(15_249)) && pace.is_lost(at(15_250)));
    pace.heard(at(12_700), false);
    assert_eq!((pace.look_at(3), pace.lost_at()), (at(14_950), None));
}

#[test]
fn quick_while_something_happens_and_calmer_after_a_minute() {
    let mut pace = rested();
    pace.feel(true, None, at(10_100));
    assert_eq!(pace.look_at(1), at(10_240));
    assert_eq!(pace.look_at(2), at(10_115));
    pace.feel(true, None, at(70_099));
    assert_eq!(pace.look_at(1), at(10_240));
    pace.feel(true, None, at(70_100));
    assert_eq!(pace.look_at(1), at(10_990));
    pace.feel(false, None, at(70_200));
    assert_eq!(pace.look_at(1), at(12_250));
}

#[test]
fn news_and_a_silent_leader_make_it_quick_for_a_time() {
    let mut pace = rested();
    pace.heard(at(20_000), true);
    for (now, silent, quick) in [
        (20_000, None, true),
        (24_999, None, true),
        (25_000, None, false),
        (30_000, Some(at(29_000)), true),
        (148_999, Some(at(29_000)), true),
        (149_000, Some(at(29_000)), false),
    ] {
        pace.feel(false, silent, at(now));
        assert_eq!(pace.quick_since.is_some(), quick, "{now}");
    }
}

#[test]
fn statuses_follow_loop_wait_within_bounds() {
    let mut pace = rested();
    assert_eq!(pace.status_at(3, Duration::from_secs(10)), Moment::ZERO);
    pace.asked_status(at(10_000));
    let due = |pace: &Pace, members, seconds| pace.status_at(members, Duration::from_secs(seconds));
    assert_eq!(due(&pace, 3, 10), at(12_250));
    assert_eq!(due(&pace, 3, 3), at(11_000));
    assert_eq!(due(&pace, 1, 0), at(11_000));
    assert_eq!(due(&pace, 0, 60), at(16_750));
    pace.feel(true, None, at(10_000));
    assert_eq!(due(&pace, 4, 10), at(10_250));
}

#[test]
fn settings_and_history_take_turns() {
    let mut pace = rested();
    assert_eq!(pace.next_fact(at(0)), Question::Config);
    assert_eq!(pace.facts_at(), Moment::ZERO);
    assert_eq!(pace.next_fact(at(0)), Question::History);
    assert_eq!(pace.facts_at(), at(60_000));
    pace.wants_facts_again(at(20_000));
    assert_eq!(pace.facts_at(), at(21_000));
}
