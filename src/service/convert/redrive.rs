//! Messages moved out of dead-letter queues, on the wire.

use super::archive::max_messages;
use super::{Fields, FromRequest};
use crate::domain::{Invalid, Kind, QueueName, archive};
use crate::proto::v1;
use crate::queue::{RedriveMessages, Redriven, Rules};

/// The name of the queue that gets the messages; none to let each go back to where it came from.
fn target_queue(fields: &mut Fields, name: String, dead_letter_queue: &str) -> Option<Option<QueueName>> {
    if name.is_empty() {
        return Some(None);
    }
    // pgmq folds the names of tables.
    if name.to_lowercase() == dead_letter_queue.to_lowercase() {
        let same = Invalid::new(Kind::ConflictingFields, "must be another queue than dead_letter_queue");
        fields.refuse("target_queue", same);
        return None;
    }
    fields.take("target_queue", QueueName::try_from(name)).map(Some)
}

impl FromRequest<v1::RedriveMessagesRequest> for RedriveMessages {
    fn queue(request: &v1::RedriveMessagesRequest) -> Option<&str> {
        Some(&request.dead_letter_queue)
    }

    fn parse(request: v1::RedriveMessagesRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let v1::RedriveMessagesRequest {
            dead_letter_queue,
            msg_ids,
            target_queue: target,
            max_messages: most,
        } = request;
        let target = target_queue(fields, target, &dead_letter_queue);
        let dead_letter_queue = fields.take("dead_letter_queue", QueueName::try_from(dead_letter_queue));
        let checked = fields.take("msg_ids", archive::some_ids(&msg_ids));
        let max_messages = max_messages(fields, most);
        checked?;
        Some(Self {
            dead_letter_queue: dead_letter_queue?,
            msg_ids,
            target: target?,
            max_messages: max_messages?,
        })
    }
}

impl From<Redriven> for v1::RedriveMessagesResponse {
    fn from(redriven: Redriven) -> Self {
        Self { moved_count: redriven.count, more: redriven.more }
    }
}
