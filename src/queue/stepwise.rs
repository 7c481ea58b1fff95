//! How calls end that move messages in many small steps and have moved none: never with the advice to call again at once.

use std::time::Duration;

use super::Broker;
use crate::domain::{Error, Kind, QueueName};

/// For how long a call looks again that finds nothing but what others hold.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// The least pause before it does.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// The error of a call that would be repeated in vain for ever if it told that more may be there.
pub(super) fn ended_in_vain(broker: &Broker) -> Error {
    match broker.drain.is_cancelled() {
        true => Error::draining(),
        false => Error::new(
            Kind::DeadlineExceeded,
            "no message that can be moved was found in time; nothing was applied",
        ),
    }
}

/// The error of a call that has found only messages of a queue that others hold.
pub(super) fn held(queue: &QueueName) -> Error {
    let why = "others hold the messages that are left, or take them; nothing was applied";
    Error::new(Kind::QueueBusy, why).with("queue", queue.as_str()).retry_after(Duration::from_secs(1))
}
