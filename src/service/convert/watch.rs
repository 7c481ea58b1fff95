//! Watches on the wire.

use std::collections::BTreeSet;

use super::read::{closing, heartbeat, heartbeat_pause};
use super::time::timestamp;
use super::{Fields, FromRequest};
use crate::domain::bounds::length;
use crate::domain::{QueueName, Timestamp};
use crate::proto::v1;
use crate::queue::{EventKind, Rules, WatchItem, WatchOptions};

/// The most queues of one watch.
const MAX_QUEUES: usize = 100;

impl FromRequest<v1::WatchRequest> for WatchOptions {
    fn parse(request: v1::WatchRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let counted = fields.take("queues", length(request.queues.len(), MAX_QUEUES));
        let heartbeat_interval = heartbeat_pause(fields, request.heartbeat_interval);
        counted?;
        let mut seen = BTreeSet::new();
        let mut queues: Vec<Option<QueueName>> = Vec::with_capacity(request.queues.len());
        for (index, queue) in request.queues.into_iter().enumerate() {
            let queue = fields.take(&format!("queues[{index}]"), QueueName::try_from(queue));
            if queue.as_ref().is_none_or(|queue| seen.insert(queue.clone())) {
                queues.push(queue);
            }
        }
        let queues = queues.into_iter().collect::<Option<_>>()?;
        Some(Self { queues, heartbeat_interval: heartbeat_interval? })
    }
}

/// One item of a watch as a reply.
pub(in crate::service) fn watch_response(item: WatchItem) -> v1::WatchResponse {
    match item {
        WatchItem::Events(events) => {
            v1::WatchResponse { events: events.into_iter().map(event).collect(), ..Default::default() }
        }
        WatchItem::Heartbeat => v1::WatchResponse { heartbeat: Some(heartbeat(0)), ..Default::default() },
        WatchItem::Closing { reason, retry_delay } => {
            v1::WatchResponse { closing: Some(closing(reason, retry_delay)), ..Default::default() }
        }
    }
}

fn event((queue, kind, at): (QueueName, EventKind, Timestamp)) -> v1::QueueEvent {
    let kind = match kind {
        EventKind::Sent => v1::QueueEventKind::Sent,
        EventKind::Visible => v1::QueueEventKind::Visible,
    };
    v1::QueueEvent { queue: queue.to_string(), kind: kind.into(), at: Some(timestamp(at)) }
}
