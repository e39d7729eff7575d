use super::*;

#[test]
fn arithmetic_saturates_at_both_ends() {
    let a = Moment::from_millis(100);
    let b = a + Duration::from_millis(50);
    assert_eq!(b - a, Duration::from_millis(50));
    assert_eq!(a - b, Duration::ZERO);
    assert_eq!(a.until(b), Duration::from_millis(50));
    assert_eq!(b.until(a), Duration::ZERO);
    assert_eq!(a + Duration::MAX, Moment::NEVER);
    assert_eq!(a.earlier_by(Duration::from_secs(1)), Moment::ZERO);
}

#[test]
fn wall_time_saturates() {
    assert_eq!(UnixMillis(5).since(UnixMillis(9)), Duration::ZERO);
    assert_eq!(UnixMillis(9).since(UnixMillis(5)), Duration::from_millis(4));
    assert_eq!(UnixMillis(1) + Duration::MAX, UnixMillis(u64::MAX));
}

#[test]
fn wall_time_is_shown_as_rfc_3339() {
    // Reference values by `date -u -d @SECONDS`.
    for (millis, text) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_399_999, "2000-02-28T23:59:59.999Z"),
        (951_782_400_000, "2000-02-29T00:00:00.000Z"),
        (951_868_800_000, "2000-03-01T00:00:00.000Z"),
        (1_709_251_199_001, "2024-02-29T23:59:59.001Z"),
        (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
    ] {
        assert_eq!(UnixMillis(millis).to_string(), text);
    }
    assert!(!UnixMillis(u64::MAX).to_string().is_empty());
}
