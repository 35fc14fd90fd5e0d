//! When a certificate is renewed: at about half of its life, spread so that a node's SVIDs do not all fall due at once.
use std::time::{Duration, SystemTime};

/// The moment from which a renewal is due: between 0.45 and 0.55 of the lifetime. `spread` is any number that differs
/// between certificates and stays the same for one (a hash of its name).
pub fn next(not_before: SystemTime, not_after: SystemTime, spread: u64) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or(Duration::ZERO);
    let share = 0.45 + (spread % 1001) as f64 / 10_000.0;
    not_before + life.mul_f64(share)
}

/// True once `next` has come. A certificate from the future is due too: the clock was set back.
pub fn due(not_before: SystemTime, not_after: SystemTime, spread: u64, now: SystemTime) -> bool {
    now < not_before || now >= next(not_before, not_after, spread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_day_old_certificate_is_renewed_around_noon() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let end = start + Duration::from_secs(86_400);
        let hours = |hours: f64| start + Duration::from_secs_f64(hours * 3600.0);
        assert!(!due(start, end, 500, hours(11.9)));
        assert!(due(start, end, 500, hours(12.1)));
        assert!(due(start, end, 500, start - Duration::from_secs(1)));
    }

    proptest! {
        #[test]
        fn renewal_is_due_well_before_the_end_and_never_at_once(
            start in 0u64..4_000_000_000, life in 0u64..400_000_000, spread: u64,
        ) {
            let start = SystemTime::UNIX_EPOCH + Duration::from_secs(start);
            let end = start + Duration::from_secs(life);
            let next = next(start, end, spread);
            prop_assert!(next >= start && next <= end);
            prop_assert!(due(start, end, spread, end));
            prop_assert!(life == 0 || !due(start, end, spread, start));
            prop_assert!(end.duration_since(next).unwrap() >= Duration::from_secs(life).mul_f64(0.44));
        }
    }
}
