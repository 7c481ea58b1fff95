//! Spans and moments between protobuf and the domain.

use std::time::Duration;

use crate::domain::{Invalid, Kind, Timestamp};

/// The least and the greatest second that protobuf's Timestamp can hold: years 1 to 9999.
const PROTOBUF_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// A span that is well-formed and not negative.
pub(super) fn span(duration: prost_types::Duration) -> Result<Duration, Invalid> {
    let nanos_fit = (0..1_000_000_000).contains(&duration.nanos);
    match u64::try_from(duration.seconds) {
        Ok(seconds) if nanos_fit => {
            Ok(Duration::new(seconds, u32::try_from(duration.nanos).unwrap_or_default()))
        }
        _ => Err(Invalid::new(
            Kind::InvalidDuration,
            "must not be negative, and its nanos must be below a second",
        )),
    }
}

/// A well-formed moment, cut to microseconds.
pub(super) fn moment(timestamp: prost_types::Timestamp) -> Result<Timestamp, Invalid> {
    let fits = (0..1_000_000_000).contains(&timestamp.nanos) && PROTOBUF_SECONDS.contains(&timestamp.seconds);
    if !fits {
        return Err(Invalid::new(Kind::InvalidTimestamp, "must be within the years 1 to 9999"));
    }
    Ok(Timestamp::from_unix_micros(timestamp.seconds * 1_000_000 + i64::from(timestamp.nanos) / 1_000))
}

/// A span for a reply.
pub(super) fn duration(span: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(span).ok()
}

/// A moment for a reply; Postgres' infinities become the ends of protobuf's range.
pub(super) fn timestamp(moment: Timestamp) -> prost_types::Timestamp {
    let micros = moment.unix_micros();
    let seconds = micros.div_euclid(1_000_000);
    if PROTOBUF_SECONDS.contains(&seconds) {
        let nanos = i32::try_from(micros.rem_euclid(1_000_000) * 1_000).unwrap_or_default();
        return prost_types::Timestamp { seconds, nanos };
    }
    let seconds = if micros < 0 { *PROTOBUF_SECONDS.start() } else { *PROTOBUF_SECONDS.end() };
    prost_types::Timestamp { seconds, nanos: 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn moments_survive_protobuf(micros in -62_135_596_800_000_000_i64..253_402_300_799_000_000) {
            let at = Timestamp::from_unix_micros(micros);
            prop_assert_eq!(moment(timestamp(at)), Ok(at));
        }

        #[test]
        fn any_duration_is_taken_or_refused(seconds: i64, nanos: i32) {
            let parsed = span(prost_types::Duration { seconds, nanos });
            prop_assert_eq!(parsed.is_ok(), seconds >= 0 && (0..1_000_000_000).contains(&nanos));
        }
    }

    #[test]
    fn infinities_become_the_ends_of_the_range() {
        assert_eq!(timestamp(Timestamp::from_unix_micros(i64::MAX)).seconds, 253_402_300_799);
        assert_eq!(timestamp(Timestamp::from_unix_micros(i64::MIN)).seconds, -62_135_596_800);
    }
}
