//! Messages: as they are sent, and as they come.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Serialize, de::DeserializeOwned};

use crate::consumer::Delivery;
use crate::pb::{self, ErrorReason, Outcome, OutgoingMessage, SettleAction};
use crate::settle::Settlement;
use crate::time::{moment, span};
use crate::{Client, Error};

/// What can be sent: a reference to anything that serde serializes, a [`serde_json::Value`], or an [`OutgoingMessage`] with
/// options of its own.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be sent as it is",
    note = "pass a reference to what serde serializes, such as `&order`, a `serde_json::Value`, or an `OutgoingMessage`"
)]
pub trait IntoMessage {
    /// The message for the wire.
    ///
    /// # Errors
    ///
    /// `INVALID_JSON` where the value has no JSON.
    fn into_message(self) -> Result<OutgoingMessage, Error>;
}

impl IntoMessage for OutgoingMessage {
    fn into_message(self) -> Result<OutgoingMessage, Error> {
        Ok(self)
    }
}

impl<T: Serialize + ?Sized> IntoMessage for &T {
    fn into_message(self) -> Result<OutgoingMessage, Error> {
        OutgoingMessage::json(self)
    }
}

impl IntoMessage for serde_json::Value {
    fn into_message(self) -> Result<OutgoingMessage, Error> {
        Ok(OutgoingMessage::text(self.to_string()))
    }
}

impl OutgoingMessage {
    /// A message whose body is this value. JSON has no NaN and no infinity: serde_json makes `null` of them.
    ///
    /// # Errors
    ///
    /// `INVALID_JSON` where the value has no JSON.
    pub fn json<T: Serialize + ?Sized>(body: &T) -> Result<Self, Error> {
        Ok(Self::text(to_json(body, ErrorReason::InvalidJson, "message")?))
    }

    /// A message whose body is this JSON text, as it is: from another JSON library, or kept from elsewhere.
    pub fn text(body: impl Into<String>) -> Self {
        Self { message: body.into(), ..Self::default() }
    }

    /// The headers: a value that serializes as an object.
    ///
    /// # Errors
    ///
    /// `INVALID_HEADERS` where the value has no JSON.
    pub fn with_headers<T: Serialize + ?Sized>(mut self, headers: &T) -> Result<Self, Error> {
        self.headers = to_json(headers, ErrorReason::InvalidHeaders, "headers")?;
        Ok(self)
    }

    /// The headers, as the JSON text of an object.
    #[must_use]
    pub fn with_headers_text(mut self, headers: impl Into<String>) -> Self {
        self.headers = headers.into();
        self
    }

    /// Gives the message a deduplication id, unless it has one: it can then be sent again without being stored twice.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        if self.deduplication_id.is_empty() {
            self.deduplication_id = new_id();
        }
        self
    }
}

/// Requests that send one message have its fields, and some of their own, which are named last.
macro_rules! same_message {
    ($($from:ident($from_module:ident) => $to:ident($to_module:ident) { $($own:tt)* })*) => { $(
        impl From<pb::$from> for pb::$to {
            fn from(from: pb::$from) -> Self {
                Self {
                    message: from.message,
                    headers: from.headers,
                    schedule: from.schedule.map(|schedule| match schedule {
                        pb::$from_module::Schedule::Delay(delay) => pb::$to_module::Schedule::Delay(delay),
                        pb::$from_module::Schedule::VisibleAt(at) => pb::$to_module::Schedule::VisibleAt(at),
                    }),
                    group: from.group,
                    deduplication_id: from.deduplication_id,
                    $($own)*
                }
            }
        }
    )* };
}

same_message! {
    SendRequest(send_request) => OutgoingMessage(outgoing_message) {}
    OutgoingMessage(outgoing_message) => SendRequest(send_request) { queue: String::new() }
    OutgoingMessage(outgoing_message) => SendTopicRequest(send_topic_request) {
        routing_key: String::new(), require_match: false
    }
}

pub(crate) fn to_json<T: Serialize + ?Sized>(
    value: &T,
    reason: ErrorReason,
    field: &str,
) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::json(reason, field, error))
}

/// An id that nobody else makes.
pub(crate) fn new_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// A message that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The id of the message.
    pub msg_id: i64,
    /// Whether a message with the same deduplication id was there already: nothing was stored by this call.
    pub deduplicated: bool,
}

/// A message of a queue, with what is needed to settle it.
///
/// One that a [`Consumer`](crate::Consumer) gave is settled over the consumer's stream. When the last copy of such a message
/// is dropped unsettled, its visibility timeout is extended no more, and it comes back when that has passed.
#[derive(Clone)]
#[non_exhaustive]
pub struct Message {
    /// The queue.
    pub queue: String,
    /// The id of the message in its queue.
    pub msg_id: i64,
    /// How often it was read, this time included.
    pub read_ct: i32,
    /// When it was sent, by the database's clock.
    pub enqueued_at: SystemTime,
    /// When it was read last, this time included.
    pub last_read_at: Option<SystemTime>,
    /// When it becomes visible, as it was at the time of this read.
    pub vt: SystemTime,
    /// The body, as JSON text. Empty for SQL's NULL, which only plain SQL can send.
    pub message_text: String,
    /// The headers, as the JSON text of an object. Empty means none.
    pub headers_text: String,
    /// What names this delivery. Empty where nothing was read: after `pop`, and in listings.
    pub receipt: String,
    client: Client,
    delivery: Option<Arc<Delivery>>,
}

impl Message {
    pub(crate) fn new(
        client: &Client,
        queue: &str,
        message: pb::Message,
        delivery: Option<Arc<Delivery>>,
    ) -> Self {
        Self {
            queue: queue.to_owned(),
            msg_id: message.msg_id,
            read_ct: message.read_ct,
            enqueued_at: moment(message.enqueued_at).unwrap_or(SystemTime::UNIX_EPOCH),
            last_read_at: moment(message.last_read_at),
            vt: moment(message.vt).unwrap_or(SystemTime::UNIX_EPOCH),
            message_text: message.message,
            headers_text: message.headers,
            receipt: message.receipt,
            client: client.clone(),
            delivery,
        }
    }

    /// The body as a value.
    ///
    /// # Errors
    ///
    /// `INVALID_JSON` where the body is not of this type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let text = if self.message_text.is_empty() { "null" } else { &self.message_text };
        serde_json::from_str(text).map_err(|error| Error::json(ErrorReason::InvalidJson, "message", error))
    }

    /// The headers as a value, or `None` where there are none.
    ///
    /// # Errors
    ///
    /// `INVALID_HEADERS` where the headers are not of this type.
    pub fn headers<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        if self.headers_text.is_empty() {
            return Ok(None);
        }
        let headers = serde_json::from_str(&self.headers_text);
        headers.map(Some).map_err(|error| Error::json(ErrorReason::InvalidHeaders, "headers", error))
    }

    /// Deletes the message.
    ///
    /// # Errors
    ///
    /// Those of `Delete` in the contract, as for the other ways of settling. The outcome tells whether the message was still
    /// this reader's.
    pub async fn delete(&self) -> Result<Outcome, Error> {
        self.settle(Settlement::action(SettleAction::Delete)).await
    }

    /// Moves the message to the archive.
    ///
    /// # Errors
    ///
    /// Those of `Archive`.
    pub async fn archive(&self) -> Result<Outcome, Error> {
        self.settle(Settlement::action(SettleAction::Archive)).await
    }

    /// Gives the message back: visible after the delay, or without one as the queue's policy says, else at once.
    ///
    /// # Errors
    ///
    /// Those of `Release`.
    pub async fn release(&self, delay: impl Into<Option<Duration>>) -> Result<Outcome, Error> {
        self.settle(Settlement::release(delay.into())).await
    }

    /// Moves the message to the queue's dead-letter queue, with a reason for whoever looks there.
    ///
    /// # Errors
    ///
    /// Those of `DeadLetter`.
    pub async fn dead_letter(&self, reason: impl Into<String>) -> Result<Outcome, Error> {
        let settlement = Settlement::Settle(pb::Settle {
            action: SettleAction::DeadLetter.into(),
            reason: reason.into(),
            ..Default::default()
        });
        self.settle(settlement).await
    }

    /// Keeps the message invisible for this long from now.
    ///
    /// # Errors
    ///
    /// Those of `SetVisibilityTimeout`.
    pub async fn extend(&self, visibility_timeout: Duration) -> Result<Outcome, Error> {
        self.settle(Settlement::Extend(Some(span(visibility_timeout)))).await
    }

    /// Whether the message came from a consumer and something was done with it already.
    pub(crate) fn is_settled(&self) -> bool {
        self.delivery.as_ref().is_some_and(|delivery| delivery.is_settled())
    }

    async fn settle(&self, settlement: Settlement) -> Result<Outcome, Error> {
        let results = match &self.delivery {
            Some(delivery) => delivery.settle(settlement).await?,
            None => settlement.unary(&self.client, &self.queue, vec![self.receipt.clone()]).await?,
        };
        Ok(results.first().map_or(Outcome::Unspecified, pb::ItemResult::outcome))
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("queue", &self.queue)
            .field("msg_id", &self.msg_id)
            .field("read_ct", &self.read_ct)
            .finish_non_exhaustive()
    }
}

/// A message of an archive.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ArchivedMessage {
    /// The message as it was when it was archived.
    pub message: Message,
    /// When that was, by the database's clock.
    pub archived_at: SystemTime,
}

/// What names messages of a queue: a receipt, which only works for who holds the message, or an id, which always does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handle {
    /// An id.
    Id(i64),
    /// A receipt.
    Receipt(Receipt),
}

/// A receipt, for what only the holder of a message may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt(pub String);

impl From<&Message> for Receipt {
    fn from(message: &Message) -> Self {
        Self(message.receipt.clone())
    }
}

impl From<&str> for Receipt {
    fn from(receipt: &str) -> Self {
        Self(receipt.to_owned())
    }
}

impl From<String> for Receipt {
    fn from(receipt: String) -> Self {
        Self(receipt)
    }
}

impl From<i64> for Handle {
    fn from(msg_id: i64) -> Self {
        Self::Id(msg_id)
    }
}

impl From<&Message> for Handle {
    fn from(message: &Message) -> Self {
        Self::Receipt(message.into())
    }
}

impl From<&str> for Handle {
    fn from(receipt: &str) -> Self {
        Self::Receipt(receipt.into())
    }
}

impl From<String> for Handle {
    fn from(receipt: String) -> Self {
        Self::Receipt(receipt.into())
    }
}
