//! How long a released message is hidden before it is tried again.

use super::policy::RetryBackoff;

impl RetryBackoff {
    /// How many milliseconds a message stays hidden that was read so many times, `drawn` at random from 0 to 1.
    pub fn delay_ms(&self, read_ct: i32, drawn: f64) -> i64 {
        let times = read_ct.saturating_sub(1).max(0);
        // What is beyond all numbers is infinite, so that the longest delay is the lesser one.
        let whole = (self.minimum_ms as f64 * self.multiplier.powi(times)).min(self.maximum_ms as f64);
        (whole * (1.0 - self.jitter * drawn)).round() as i64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backoff(minimum_ms: i64, maximum_ms: i64, multiplier: f64, jitter: f64) -> RetryBackoff {
        RetryBackoff::parse(minimum_ms, maximum_ms, multiplier, jitter).expect("a good backoff")
    }

    #[test]
    fn a_delay_grows_with_each_read_up_to_its_maximum() {
        let backoff = backoff(100, 1_000, 2.0, 0.0);
        let delays = [0, 1, 2, 3, 4, 5, 6, i32::MAX].map(|read_ct| backoff.delay_ms(read_ct, 0.9));
        assert_eq!(delays, [100, 100, 200, 400, 800, 1_000, 1_000, 1_000]);
    }

    #[test]
    fn jitter_takes_its_share_off() {
        let backoff = backoff(10_000, 20_000, 2.0, 0.2);
        assert_eq!([0.0, 0.5, 1.0].map(|drawn| backoff.delay_ms(1, drawn)), [10_000, 9_000, 8_000]);
    }

    proptest! {
        #[test]
        fn a_delay_is_never_longer_than_the_maximum_nor_shorter_than_jitter_allows(
            minimum_ms in 1_i64..43_200_000,
            more_ms in 0_i64..43_200_000,
            multiplier in 1.0_f64..=100.0,
            jitter in 0.0_f64..=1.0,
            read_ct: i32,
            drawn in 0.0_f64..=1.0,
        ) {
            let delay_ms = backoff(minimum_ms, minimum_ms + more_ms, multiplier, jitter).delay_ms(read_ct, drawn);
            prop_assert!(delay_ms <= minimum_ms + more_ms);
            prop_assert!(delay_ms as f64 >= minimum_ms as f64 * (1.0 - jitter) - 1.0);
        }
    }
}
