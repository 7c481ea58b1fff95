//! How calls end that move messages in many small steps and have moved none: never with the advice to call again at once.

use std::time::{Duration, Instant};

use super::Broker;
use crate::domain::{Error, Kind, QueueName, Result, Timestamp};
use crate::pg;

/// For how long a call looks again that finds nothing but what others hold.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// The least pause before it does.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// A message's id, and when it came to where it is.
type Key = (i64, Timestamp);

/// What the database refuses to have moved of a call's messages.
#[derive(Default)]
pub(super) struct Refused {
    why: Option<Error>,
    /// When it was noticed first.
    since: Option<Instant>,
}

impl Refused {
    /// After a step that was refused: what is to be tried instead, the first part last. One message alone is left.
    ///
    /// # Errors
    /// That of the first message, if it has taken long enough and nothing has `moved`.
    pub(super) fn split<'a>(
        &mut self,
        step: &'a [Key],
        later: &'a [Key],
        error: Error,
        has_moved: bool,
    ) -> Result<Vec<&'a [Key]>> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let parts = match step {
            [(msg_id, _)] => {
                self.note(*msg_id, &error);
                vec![later]
            }
            _ => {
                let (first, second) = step.split_at(step.len() / 2);
                vec![later, second, first]
            }
        };
        match !has_moved && since.elapsed() > PATIENCE {
            true => Err(self.why.take().unwrap_or(error)),
            false => Ok(parts),
        }
    }

    /// Notes messages of which a trigger swallows the delete.
    pub(super) fn note_swallowed(&mut self, msg_ids: &[i64]) {
        if let Some(first) = msg_ids.first() {
            self.note(*first, &pg::swallowed());
        }
    }

    fn note(&mut self, msg_id: i64, why: &Error) {
        self.why.get_or_insert_with(|| why.clone().with("msg_id", msg_id.to_string()));
    }

    /// Why the first of them is refused, if any is.
    pub(super) fn why(&mut self) -> Option<Error> {
        self.why.take()
    }
}

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
