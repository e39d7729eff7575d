use proptest::prelude::*;

use super::*;

fn at(millis: u64) -> Moment {
    Moment::from_start(Duration::from_millis(millis))
}

fn sick() -> Reading {
    Reading::Sick { why: "no member is within reach".to_owned() }
}

fn away() -> Reading {
    Reading::Away { why: "nobody answers".to_owned() }
}

/// A proxy that is known to be well at 0.
fn well() -> Health {
    let mut health = Health::new(at(0));
    assert_eq!(health.read(at(0), &Reading::Ready), Some(Proxy::Well));
    health
}

/// The first moment at which a reading every 100 ms brings the proxy down.
fn unwell_after(health: &mut Health, from: u64, reading: &Reading) -> u64 {
    let moments = (from..from + 60_000).step_by(100);
    let mut news = moments.map(|now| (now, health.read(at(now), reading)));
    news.find(|(_, news)| matches!(news, Some(Proxy::Unwell { .. }))).unwrap().0 - from
}

#[test]
fn each_kind_of_trouble_has_its_own_patience() {
    for (reading, patience) in [(sick(), 100), (away(), 2000), (Reading::Hung, 200)] {
        assert_eq!(unwell_after(&mut well(), 1000, &reading), patience, "{reading:?}");
    }
}

#[test]
fn what_was_never_heard_of_is_given_the_grace_once() {
    for reading in [sick(), away(), Reading::Hung] {
        assert_eq!(unwell_after(&mut Health::new(at(1000)), 1000, &reading), 2000, "{reading:?}");
    }
}

#[test]
fn a_restart_within_the_grace_is_nothing() {
    let mut health = well();
    // Draining, gone, starting, up without having looked at its clusters, well.
    let story = (1000..2900).step_by(100).map(|now| {
        let reading = if now < 2400 { away() } else { sick() };
        health.read(at(now), &reading)
    });
    assert_eq!(story.collect::<Vec<_>>(), vec![None; 19]);
    assert_eq!(health.read(at(2900), &Reading::Ready), None);
    // What comes later is judged anew.
    assert_eq!(health.read(at(3000), &sick()), None);
    assert!(health.read(at(3100), &sick()).is_some());
}

#[test]
fn it_has_to_be_well_for_a_second_without_a_break() {
    let mut health = well();
    unwell_after(&mut health, 1000, &sick());
    assert_eq!(health.read(at(2000), &Reading::Ready), None);
    assert_eq!(health.read(at(2900), &Reading::Ready), None);
    assert!(health.read(at(2950), &Reading::Hung).is_some(), "other words");
    assert_eq!(health.read(at(3000), &Reading::Ready), None);
    assert_eq!(health.read(at(3999), &Reading::Ready), None);
    assert_eq!(health.read(at(4000), &Reading::Ready), Some(Proxy::Well));
}

#[test]
fn the_words_of_an_unwell_proxy_follow_it_slowly() {
    let mut health = well();
    unwell_after(&mut health, 1000, &sick());
    assert_eq!(health.read(at(1200), &away()), None);
    assert_eq!(health.read(at(2100), &away()), Some(Proxy::Unwell { why: "nobody answers".to_owned() }));
    assert_eq!(health.read(at(9000), &away()), None);
}

fn readings() -> impl Strategy<Value = Vec<(u64, Reading)>> {
    let reading = prop_oneof![
        4 => Just(Reading::Ready),
        2 => Just(sick()),
        2 => Just(away()),
        1 => Just(Reading::Hung),
    ];
    let step = prop_oneof![8 => Just(100u64), 1 => 0u64..3000];
    prop::collection::vec((step, reading), 1..200)
}

proptest! {
    /// The rules, looked at from outside: the whole history is known to who checks.
    #[test]
    fn the_rules_hold_whatever_is_read(story in readings()) {
        let mut health = Health::new(at(0));
        let mut now = 0;
        let mut history: Vec<(u64, Reading)> = Vec::new();
        let mut said: Option<Proxy> = None;
        for (step, reading) in story {
            now += step;
            history.push((now, reading.clone()));
            let news = health.read(at(now), &reading);
            let was_unwell = matches!(said, Some(Proxy::Unwell { .. }));
            match &news {
                Some(Proxy::Well) => {
                    prop_assert_eq!(&reading, &Reading::Ready);
                    if was_unwell {
                        let last_bad = history.iter().rposition(|(_, r)| *r != Reading::Ready);
                        let first = last_bad.and_then(|last| history.get(last + 1)).unwrap();
                        prop_assert!(now - first.0 >= 1000);
                    }
                }
                Some(Proxy::Unwell { .. }) if !was_unwell => {
                    prop_assert_ne!(&reading, &Reading::Ready);
                    let run = history.iter().rev().take_while(|(_, r)| *r != Reading::Ready).collect::<Vec<_>>();
                    let never_well = run.len() == history.len();
                    let away = run.iter().rev().find(|(_, r)| matches!(r, Reading::Away { .. }));
                    let count = |of: &Reading| run.iter().filter(|(_, r)| r == of).count();
                    let away = if never_well { Some(0) } else { away.map(|(since, _)| *since) };
                    match away {
                        Some(since) => prop_assert!(now - since >= 2000),
                        None => prop_assert!(count(&sick()) >= 2 || count(&Reading::Hung) >= 3),
                    }
                }
                Some(Proxy::Unwell { .. }) | None => {}
            }
            said = news.or(said);
            prop_assert_eq!(&said, &health.said);
        }
        // Whatever has happened, five seconds of one thing settle it.
        let mut settle = |reading: &Reading| {
            for _ in 0..50 {
                now += 100;
                health.read(at(now), reading);
            }
            health.said.clone()
        };
        prop_assert_eq!(settle(&Reading::Ready), Some(Proxy::Well));
        let is_unwell = matches!(settle(&Reading::Hung), Some(Proxy::Unwell { .. }));
        prop_assert!(is_unwell);
        prop_assert_eq!(settle(&Reading::Ready), Some(Proxy::Well));
    }
}
