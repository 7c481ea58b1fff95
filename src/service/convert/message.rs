//! Messages on the wire.

use super::time::{moment, span, timestamp};
use super::{Fields, FromRequest};
use crate::domain::bounds::{self, MAX_BATCH, MAX_DELAY};
use crate::domain::{
    self, ClientRole, Delivery, Invalid, OutgoingMessage, QueueName, Receipt, Schedule, Sent,
};
use crate::proto::v1;
use crate::queue::{self, Rules, SendTerms};

/// Converts the schedule oneof, which each sending message of the contract has as a type of its own.
macro_rules! schedule {
    ($fields:expr, $schedule:expr, $type:path, $terms:expr) => {{
        use $type as Given;
        match $schedule {
            None => Some($terms.schedule),
            Some(Given::Delay(delay)) => {
                let delay = span(delay).and_then(|delay| bounds::millis(delay, MAX_DELAY));
                $fields.take("delay", delay).map(Schedule::AfterMillis)
            }
            Some(Given::VisibleAt(at)) => {
                let at = moment(at).and_then(|at| bounds::moment(at, MAX_DELAY));
                $fields.take("visible_at", at).map(Schedule::At)
            }
        }
    }};
}
pub(super) use schedule;

/// The queue's name in field `queue`.
pub(in crate::service) fn queue_name(fields: &mut Fields, name: String) -> Option<QueueName> {
    fields.take("queue", QueueName::try_from(name))
}

/// A message's texts and schedule.
pub(super) fn outgoing(
    fields: &mut Fields,
    terms: SendTerms,
    message: String,
    headers: String,
    group: &str,
    schedule: Option<Schedule>,
    deduplication_id: String,
) -> Option<OutgoingMessage> {
    // A refused schedule is remembered already; the texts are still worth checking.
    let when = schedule.unwrap_or(Schedule::NOW);
    let parsed = OutgoingMessage::parse(message, headers, group, when, terms.max_message_bytes);
    let message = fields.take_all(parsed).filter(|_| schedule.is_some());
    let id = fields.deduplication_id(deduplication_id);
    Some(message?.under(id?))
}

/// One message of several.
pub(in crate::service) fn outgoing_message(
    fields: &mut Fields,
    terms: SendTerms,
    message: v1::OutgoingMessage,
) -> Option<OutgoingMessage> {
    let v1::OutgoingMessage { message, headers, group, deduplication_id, schedule } = message;
    let schedule = schedule!(fields, schedule, v1::outgoing_message::Schedule, terms);
    outgoing(fields, terms, message, headers, &group, schedule, deduplication_id)
}

/// A batch of 1 to 1,000 messages.
pub(super) fn outgoing_batch(
    fields: &mut Fields,
    terms: SendTerms,
    messages: Vec<v1::OutgoingMessage>,
) -> Option<Vec<OutgoingMessage>> {
    fields.take("messages", bounds::length(messages.len(), MAX_BATCH))?;
    let parsed = messages.into_iter().enumerate().map(|(index, message)| {
        fields.within(&format!("messages[{index}]."), |fields| outgoing_message(fields, terms, message))
    });
    // All are checked, so that all that are wrong are named.
    let parsed: Vec<Option<OutgoingMessage>> = parsed.collect();
    parsed.into_iter().collect()
}

impl FromRequest<v1::SendRequest> for queue::Send {
    const FOLLOWS_POLICY: bool = true;
    const ROLE: Option<ClientRole> = Some(ClientRole::Producer);

    fn queue(request: &v1::SendRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::SendRequest, rules: &Rules, fields: &mut Fields) -> Option<Self> {
        let v1::SendRequest { queue, message, headers, group, deduplication_id, schedule } = request;
        let queue = queue_name(fields, queue);
        let terms = rules.of_queue(queue.as_ref());
        let schedule = schedule!(fields, schedule, v1::send_request::Schedule, terms);
        let message = outgoing(fields, terms, message, headers, &group, schedule, deduplication_id);
        Some(Self { queue: queue?, message: message? })
    }
}

impl From<Sent> for v1::SendResponse {
    fn from(sent: Sent) -> Self {
        Self { msg_id: sent.msg_id, deduplicated: sent.deduplicated }
    }
}

impl FromRequest<v1::SendBatchRequest> for queue::SendBatch {
    const FOLLOWS_POLICY: bool = true;
    const ROLE: Option<ClientRole> = Some(ClientRole::Producer);

    fn queue(request: &v1::SendBatchRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::SendBatchRequest, rules: &Rules, fields: &mut Fields) -> Option<Self> {
        let queue = queue_name(fields, request.queue);
        let messages = outgoing_batch(fields, rules.of_queue(queue.as_ref()), request.messages);
        Some(Self { queue: queue?, messages: messages? })
    }
}

impl From<Vec<Sent>> for v1::SendBatchResponse {
    fn from(sent: Vec<Sent>) -> Self {
        Self { results: each(sent) }
    }
}

impl From<Sent> for v1::SendResult {
    fn from(sent: Sent) -> Self {
        Self { msg_id: sent.msg_id, deduplicated: sent.deduplicated }
    }
}

impl From<domain::Message> for v1::Message {
    fn from(message: domain::Message) -> Self {
        Self {
            msg_id: message.msg_id,
            read_ct: message.read_ct,
            enqueued_at: Some(timestamp(message.enqueued_at)),
            last_read_at: message.last_read_at.map(timestamp),
            vt: Some(timestamp(message.vt)),
            message: message.message.unwrap_or_default(),
            headers: message.headers.unwrap_or_default(),
            receipt: String::new(),
            texts_omitted: false,
        }
    }
}

impl From<Delivery> for v1::Message {
    fn from(delivery: Delivery) -> Self {
        Self { receipt: delivery.receipt.encode(), ..delivery.message.into() }
    }
}

impl From<(domain::Message, Option<Receipt>)> for v1::Message {
    fn from((message, receipt): (domain::Message, Option<Receipt>)) -> Self {
        let receipt = receipt.map(|receipt| receipt.encode()).unwrap_or_default();
        Self { receipt, ..message.into() }
    }
}

/// Converts each item of a reply.
pub(super) fn each<T, U: From<T>>(items: Vec<T>) -> Vec<U> {
    items.into_iter().map(U::from).collect()
}

/// Refuses an enum's number that this server does not know.
pub(super) fn known<T: TryFrom<i32>>(number: i32) -> Result<T, Invalid> {
    T::try_from(number).map_err(|_| {
        Invalid::new(domain::Kind::InvalidEnum, format!("{number} is no value that this server knows"))
    })
}
