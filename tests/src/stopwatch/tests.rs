use super::*;

const OLD: &str = "127.0.0.11:5432";
const NEW: &str = "127.0.0.12:5432";

/// An attempt of 5 ms that begins `at` milliseconds after `start`.
fn attempt(start: Instant, at: u64, outcome: Result<(&str, bool), &str>) -> Attempt {
    let begun = start + Duration::from_millis(at);
    let outcome = outcome
        .map(|(server, in_recovery)| Reached { in_recovery, server: server.parse().unwrap() })
        .map_err(str::to_owned);
    Attempt { begun, ended: begun + Duration::from_millis(5), outcome }
}

fn judge_ms(attempts: &[Attempt], written: Instant) -> Result<Verdict> {
    judge("test", attempts, OLD.parse().unwrap(), NEW.parse().unwrap(), written)
}

#[test]
fn verdict_counts_and_times() {
    let start = Instant::now();
    let attempts = [
        attempt(start, 100, Ok((OLD, false))),
        attempt(start, 110, Err("refused")),
        attempt(start, 120, Err("refused")),
        attempt(start, 130, Ok((OLD, true))),
        attempt(start, 400, Ok((NEW, true))),
        attempt(start, 620, Ok((NEW, false))),
        attempt(start, 610, Ok((NEW, false))),
    ];
    let verdict = judge_ms(&attempts, start + Duration::from_millis(605)).unwrap();
    assert_eq!((verdict.attempts, verdict.failed, verdict.wrong_role), (7, 2, 2));
    assert_eq!(verdict.outage, Duration::from_millis(510));
    assert!((verdict.share_ms - 10.0).abs() < 0.001, "{}", verdict.share_ms);
    assert_eq!(verdict.slowest, Duration::from_millis(5));
    assert_eq!(verdict.errors.get("refused"), Some(&2));
    assert!(!verdict.lost_at_one_stroke);
}

#[test]
fn share_may_be_below_zero() {
    let start = Instant::now();
    let attempts = [attempt(start, 100, Ok((OLD, false))), attempt(start, 598, Ok((NEW, false)))];
    let verdict = judge_ms(&attempts, start + Duration::from_millis(605)).unwrap();
    assert!((verdict.share_ms + 2.0).abs() < 0.001, "{}", verdict.share_ms);
}

#[test]
fn a_replica_is_not_the_new_primary() {
    let start = Instant::now();
    let attempts = [attempt(start, 100, Ok((OLD, false))), attempt(start, 600, Ok((NEW, true)))];
    judge_ms(&attempts, start).unwrap_err();
}

#[test]
fn medians() {
    assert!((median(&[3.0, 1.0, 2.0]).unwrap() - 2.0).abs() < f64::EPSILON);
    assert!((median(&[4.0, 1.0, 2.0, 3.0]).unwrap() - 2.5).abs() < f64::EPSILON);
    median(&[]).unwrap_err();
}
