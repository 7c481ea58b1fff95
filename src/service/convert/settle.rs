//! Settles on the wire.

use super::message::{each, queue_name};
use super::time::{moment, span, timestamp};
use super::{Fields, FromRequest};
use crate::domain::bounds::{self, MAX_BATCH, MAX_VISIBILITY};
use crate::domain::dead_letter::Cause;
use crate::domain::message::{ItemResult, Outcome};
use crate::domain::{ClientRole, Invalid, Kind, QueueName, Receipt, Settlement};
use crate::proto::v1;
use crate::queue::{self, Parted, Rules, Settled, Targets};

/// Exactly one of ids and receipts; without a good queue name receipts cannot be read.
fn targets(
    fields: &mut Fields,
    queue: Option<&QueueName>,
    msg_ids: Vec<i64>,
    texts: &[String],
) -> Option<Targets> {
    match (msg_ids.is_empty(), texts.is_empty()) {
        (true, true) => {
            let missing = Invalid::new(Kind::MissingField, "msg_ids or receipts are needed");
            fields.refuse("receipts", missing);
            None
        }
        (false, false) => {
            let both = Invalid::new(Kind::ConflictingFields, "give msg_ids or receipts, not both");
            fields.refuse("receipts", both);
            None
        }
        (false, true) => {
            fields.take("msg_ids", bounds::length(msg_ids.len(), MAX_BATCH)).map(|()| Targets::Ids(msg_ids))
        }
        (true, false) => receipts(fields, queue, texts).map(Targets::Receipts),
    }
}

/// Reads receipts of a queue; each bad one is remembered with its index.
pub(super) fn receipts(
    fields: &mut Fields,
    queue: Option<&QueueName>,
    texts: &[String],
) -> Option<Vec<Receipt>> {
    fields.take("receipts", bounds::length(texts.len(), MAX_BATCH))?;
    let queue = queue?;
    let parsed = texts.iter().enumerate();
    let parsed: Vec<Option<Receipt>> = parsed
        .map(|(index, text)| fields.take(&format!("receipts[{index}]"), Receipt::parse(text, queue)))
        .collect();
    parsed.into_iter().collect()
}

impl FromRequest<v1::DeleteRequest> for queue::Delete {
    const ROLE: Option<ClientRole> = Some(ClientRole::Consumer);

    fn queue(request: &v1::DeleteRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::DeleteRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let queue = queue_name(fields, request.queue);
        let targets = targets(fields, queue.as_ref(), request.msg_ids, &request.receipts);
        Some(Self { queue: queue?, targets: targets? })
    }
}

impl FromRequest<v1::ArchiveRequest> for queue::Archive {
    const ROLE: Option<ClientRole> = Some(ClientRole::Consumer);

    fn queue(request: &v1::ArchiveRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::ArchiveRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let queue = queue_name(fields, request.queue);
        let targets = targets(fields, queue.as_ref(), request.msg_ids, &request.receipts);
        Some(Self { queue: queue?, targets: targets? })
    }
}

/// After how many milliseconds released messages become visible; none as the queue's policy says.
pub(super) fn release_delay(
    fields: &mut Fields,
    delay: Option<prost_types::Duration>,
) -> Option<Option<i64>> {
    let delay = delay.map(|delay| span(delay).and_then(|delay| bounds::millis(delay, MAX_VISIBILITY)));
    fields.take("delay", delay.transpose())
}

impl FromRequest<v1::ReleaseRequest> for queue::Release {
    const ROLE: Option<ClientRole> = Some(ClientRole::Consumer);
    const FOLLOWS_POLICY: bool = true;

    fn queue(request: &v1::ReleaseRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::ReleaseRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let queue = queue_name(fields, request.queue);
        let receipts = receipts(fields, queue.as_ref(), &request.receipts);
        let delay_ms = release_delay(fields, request.delay);
        Some(Self { queue: queue?, receipts: receipts?, delay_ms: delay_ms? })
    }
}

impl FromRequest<v1::DeadLetterRequest> for queue::DeadLetter {
    const ROLE: Option<ClientRole> = Some(ClientRole::Consumer);
    const FOLLOWS_POLICY: bool = true;

    fn queue(request: &v1::DeadLetterRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::DeadLetterRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let queue = queue_name(fields, request.queue);
        let receipts = receipts(fields, queue.as_ref(), &request.receipts);
        let cause = fields.take("reason", Cause::requested(request.reason));
        Some(Self { queue: queue?, receipts: receipts?, cause: cause? })
    }
}

impl FromRequest<v1::SetVisibilityTimeoutRequest> for queue::SetVisibilityTimeout {
    const ROLE: Option<ClientRole> = Some(ClientRole::Consumer);

    fn queue(request: &v1::SetVisibilityTimeoutRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::SetVisibilityTimeoutRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        use v1::set_visibility_timeout_request::Visibility;
        let queue = queue_name(fields, request.queue);
        let targets = targets(fields, queue.as_ref(), request.msg_ids, &request.receipts);
        let visible = match request.visibility {
            None => {
                let missing = Invalid::new(Kind::MissingField, "visibility_timeout or visible_at is needed");
                fields.refuse("visibility_timeout", missing);
                None
            }
            Some(Visibility::VisibilityTimeout(timeout)) => {
                let timeout = span(timeout).and_then(|timeout| bounds::millis(timeout, MAX_VISIBILITY));
                fields.take("visibility_timeout", timeout).map(Settlement::VisibleAfterMillis)
            }
            Some(Visibility::VisibleAt(at)) => {
                let at = moment(at).and_then(|at| bounds::moment(at, MAX_VISIBILITY));
                fields.take("visible_at", at).map(Settlement::VisibleAt)
            }
        };
        let return_messages = request.return_messages;
        let reply_bytes = bounds::MAX_REPLY_BYTES;
        Some(Self { queue: queue?, targets: targets?, visible: visible?, return_messages, reply_bytes })
    }
}

impl From<ItemResult> for v1::ItemResult {
    fn from(result: ItemResult) -> Self {
        let outcome = match result.outcome {
            Outcome::Done => v1::Outcome::Done,
            Outcome::NotFound => v1::Outcome::NotFound,
            Outcome::Stale => v1::Outcome::Stale,
        };
        Self { outcome: outcome.into(), vt: result.vt.map(timestamp) }
    }
}

impl From<Vec<ItemResult>> for v1::DeleteResponse {
    fn from(results: Vec<ItemResult>) -> Self {
        Self { results: each(results) }
    }
}

impl From<Vec<ItemResult>> for v1::ArchiveResponse {
    fn from(results: Vec<ItemResult>) -> Self {
        Self { results: each(results) }
    }
}

impl From<Parted> for v1::ReleaseResponse {
    fn from(parted: Parted) -> Self {
        Self { results: each(parted.results) }
    }
}

impl From<Parted> for v1::DeadLetterResponse {
    fn from(parted: Parted) -> Self {
        Self { results: each(parted.results) }
    }
}

impl From<Settled> for v1::SetVisibilityTimeoutResponse {
    fn from(settled: Settled) -> Self {
        Self { results: each(settled.results), messages: each(settled.messages) }
    }
}
