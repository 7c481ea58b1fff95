//! Interactive transactions on the wire.

use std::time::Duration;

use super::Fields;
use super::time::span;
use crate::domain::{Invalid, Kind};
use crate::proto::v1;

/// How long the transaction may be idle: at most as long as the server lets it.
pub(in crate::service) fn idle_timeout(
    fields: &mut Fields,
    begin: v1::Begin,
    limit: Duration,
) -> Option<Duration> {
    let parsed = begin.idle_timeout.map_or(Ok(limit), |given| {
        let idle = span(given)?;
        match (Duration::from_millis(1)..=limit).contains(&idle) {
            true => Ok(idle),
            false => {
                let millis = limit.as_millis();
                Err(Invalid::new(Kind::InvalidDuration, format!("must be 1 ms to {millis} ms"))
                    .with("limit_ms", millis))
            }
        }
    });
    fields.take("idle_timeout", parsed)
}
