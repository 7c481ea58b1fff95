//! Reading one value from its text. Every complaint continues a sentence that begins with the text, and says what
//! would be right.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::domain::QueueLayout;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// Reads a whole number within the range.
pub(super) fn count<T: TryFrom<u64>>(text: &str, range: RangeInclusive<u64>) -> Result<T, String> {
    let number = text.parse::<u64>().ok().filter(|number| range.contains(number));
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("is not a whole number from {} to {}", range.start(), range.end()))
}

/// Reads `true`, `false`, `1` or `0`.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("is neither true nor false (1 and 0 will do)".to_owned()),
    }
}

/// Reads a duration within the range, such as `500ms`, `30s`, `2m`, `1h` or plain seconds.
pub(crate) fn duration(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    parse_duration(text).filter(|duration| range.contains(duration)).ok_or_else(|| {
        let (from, to) = (show_duration(*range.start()), show_duration(*range.end()));
        format!("is not a duration from {from} to {to}, such as 500ms, 30s, 2m, 1h or plain seconds")
    })
}

/// Reads a duration as `duration` does, where 0 means none.
pub(super) fn duration_or_none(
    text: &str,
    range: RangeInclusive<Duration>,
) -> Result<Option<Duration>, String> {
    if parse_duration(text) == Some(Duration::ZERO) {
        return Ok(None);
    }
    duration(text, range).map(Some).map_err(|complaint| format!("{complaint}, or 0 for none"))
}

/// Reads a number of bytes within the range, such as `65536`, `64KiB` or `1MiB`.
pub(super) fn size(text: &str, range: RangeInclusive<u64>) -> Result<usize, String> {
    let bytes = parse_size(text).filter(|bytes| range.contains(bytes));
    bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(|| {
        let (from, to) = (show_size(*range.start()), show_size(*range.end()));
        format!("is not a size from {from} to {to}, such as 65536 (bytes), 64KiB or 1MiB")
    })
}

/// Reads a layout of queues.
pub(super) fn queue_layout(text: &str) -> Result<QueueLayout, String> {
    match text {
        "tuned" => Ok(QueueLayout::Tuned),
        "pgmq" => Ok(QueueLayout::Pgmq),
        _ => Err("is not a layout: tuned or pgmq".to_owned()),
    }
}

/// Reads a path; any text but none is one.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("is not a path".to_owned());
    }
    Ok(PathBuf::from(text))
}

fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "" | "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        "h" => Some(Duration::from_secs(number.checked_mul(3600)?)),
        _ => None,
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    match unit {
        "" => Some(number),
        "KiB" => number.checked_mul(KIB),
        "MiB" => number.checked_mul(MIB),
        _ => None,
    }
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.strip_prefix(' ').unwrap_or(unit)))
}

fn show_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (duration.subsec_millis(), seconds) {
        (0, seconds) if seconds >= 3600 && seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        (0, seconds) if seconds >= 60 && seconds % 60 == 0 => format!("{}m", seconds / 60),
        (0, seconds) => format!("{seconds}s"),
        _ => format!("{}ms", duration.as_millis()),
    }
}

fn show_size(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= MIB && bytes % MIB == 0 => format!("{}MiB", bytes / MIB),
        bytes if bytes >= KIB && bytes % KIB == 0 => format!("{}KiB", bytes / KIB),
        bytes => format!("{bytes}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY_TIME: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);

    #[test]
    fn durations_have_a_unit_or_are_seconds() {
        let read = |text| duration(text, ANY_TIME).ok().map(|duration| duration.as_millis());
        assert_eq!(read("500ms"), Some(500));
        assert_eq!(read("30s"), Some(30_000));
        assert_eq!(read("30"), Some(30_000));
        assert_eq!(read("30 s"), Some(30_000));
        assert_eq!(read("2m"), Some(120_000));
        assert_eq!(read("1h"), Some(3_600_000));
        assert_eq!(read("0"), Some(0));
        for wrong in ["", "s", "-1s", "1.5s", "1d", "1S", "2h", "18446744073709551615h", "1m30s", "é", " 1s"]
        {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn no_duration_is_written_as_zero() {
        let range = Duration::from_secs(1)..=Duration::from_secs(60);
        assert_eq!(duration_or_none("0", range.clone()), Ok(None));
        assert_eq!(duration_or_none("0ms", range.clone()), Ok(None));
        assert_eq!(duration_or_none("2s", range.clone()), Ok(Some(Duration::from_secs(2))));
        let complaint = duration_or_none("1ms", range).expect_err("too short");
        assert!(complaint.starts_with("is not a duration from 1s to 1m,"), "{complaint}");
        assert!(complaint.ends_with(", or 0 for none"), "{complaint}");
    }

    #[test]
    fn sizes_are_bytes_or_have_a_binary_unit() {
        let read = |text| size(text, 1..=3 * MIB).ok();
        assert_eq!(read("65536"), Some(65_536));
        assert_eq!(read("64KiB"), Some(65_536));
        assert_eq!(read("3MiB"), Some(3_145_728));
        for wrong in ["", "0", "3145729", "4MiB", "64KB", "64k", "1GiB", "-1", "18446744073709551615MiB"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
        let complaint = size("x", 1..=3 * MIB).expect_err("not a size");
        assert!(complaint.starts_with("is not a size from 1 to 3MiB"), "{complaint}");
    }

    #[test]
    fn counts_stay_within_their_range() {
        assert_eq!(count::<u16>("65535", 1..=65_535), Ok(65_535));
        for wrong in ["0", "65536", "", "+-1", "-1", "1.0", "1e3", "99999999999999999999"] {
            assert!(count::<u16>(wrong, 1..=65_535).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn booleans_are_true_false_one_or_zero() {
        assert_eq!((boolean("true"), boolean("1")), (Ok(true), Ok(true)));
        assert_eq!((boolean("false"), boolean("0")), (Ok(false), Ok(false)));
        assert!(boolean("yes").is_err());
        assert!(boolean("").is_err());
    }
}
