//! Administration on the wire.

use std::time::Duration;

use super::message::{each, queue_name};
use super::queues::{layout, partitioning, prefix};
use super::time::{duration, span, timestamp};
use super::{Fields, FromRequest};
use crate::domain::bounds;
use crate::domain::page::{Page, Paged};
use crate::domain::queue::NotificationSettings;
use crate::domain::{DescribedQueue, Invalid, Kind};
use crate::pg::Upgrade;
use crate::proto::v1;
use crate::queue::{self, Rules};

/// What can rewrite a whole table has an hour.
const LONG: Option<Duration> = Some(Duration::from_hours(1));

const MAX_THROTTLE: Duration = Duration::from_hours(24);
const DEFAULT_THROTTLE_MS: i32 = 250;
const DEFAULT_LEADING_PARTITION: i32 = 10;

fn throttle_ms(fields: &mut Fields, interval: Option<prost_types::Duration>) -> Option<i32> {
    let parsed = interval.map_or(Ok(DEFAULT_THROTTLE_MS), |interval| {
        let millis = span(interval).and_then(|interval| bounds::millis(interval, MAX_THROTTLE))?;
        i32::try_from(millis).map_err(|_| Invalid::new(Kind::InvalidDuration, "is too long"))
    });
    fields.take("throttle_interval", parsed)
}

impl FromRequest<v1::InstallPgmqRequest> for queue::InstallPgmq {
    const DEFAULT_DEADLINE: Option<Duration> = LONG;

    fn parse(_: v1::InstallPgmqRequest, _: &Rules, _: &mut Fields) -> Option<Self> {
        Some(Self)
    }
}

impl From<Upgrade> for v1::InstallPgmqResponse {
    fn from(upgrade: Upgrade) -> Self {
        Self {
            previous_version: upgrade.previous_version.unwrap_or_default(),
            pgmq_version: upgrade.pgmq_version.unwrap_or_default(),
        }
    }
}

impl FromRequest<v1::SetQueueLayoutRequest> for queue::SetQueueLayout {
    const DEFAULT_DEADLINE: Option<Duration> = LONG;

    fn queue(request: &v1::SetQueueLayoutRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::SetQueueLayoutRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let queue = queue_name(fields, request.queue);
        let layout = match layout(fields, request.layout) {
            Some(None) => {
                fields.refuse("layout", Invalid::new(Kind::MissingField, "a layout is needed"));
                None
            }
            given => given.flatten(),
        };
        Some(Self { queue: queue?, layout: layout? })
    }
}

impl From<DescribedQueue> for v1::SetQueueLayoutResponse {
    fn from(queue: DescribedQueue) -> Self {
        Self { queue: Some(queue.into()) }
    }
}

impl FromRequest<v1::CreateFifoIndexRequest> for queue::CreateFifoIndex {
    const DEFAULT_DEADLINE: Option<Duration> = LONG;

    fn queue(request: &v1::CreateFifoIndexRequest) -> Option<&str> {
        match &request.target {
            Some(v1::create_fifo_index_request::Target::Queue(queue)) => Some(queue),
            Some(v1::create_fifo_index_request::Target::AllQueues(_)) | None => None,
        }
    }

    fn parse(request: v1::CreateFifoIndexRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        use v1::create_fifo_index_request::Target;
        match request.target {
            Some(Target::Queue(queue)) => Some(Self { queue: Some(queue_name(fields, queue)?) }),
            Some(Target::AllQueues(true)) => Some(Self { queue: None }),
            Some(Target::AllQueues(false)) | None => {
                fields.refuse(
                    "target",
                    Invalid::new(Kind::MissingField, "a queue, or all_queues = true, is needed"),
                );
                None
            }
        }
    }
}

impl From<()> for v1::CreateFifoIndexResponse {
    fn from((): ()) -> Self {
        Self {}
    }
}

impl FromRequest<v1::ConvertArchivePartitionedRequest> for queue::ConvertArchivePartitioned {
    const DEFAULT_DEADLINE: Option<Duration> = LONG;

    fn queue(request: &v1::ConvertArchivePartitionedRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::ConvertArchivePartitionedRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let queue = queue_name(fields, request.queue);
        // pgmq puts the name into this function's statements without quoting it.
        if queue.as_ref().is_some_and(|queue| !is_plain_identifier(queue.as_str())) {
            let description =
                "the archive of a queue can be converted only if its name has just a-z, 0-9 and _";
            fields.refuse("queue", Invalid::new(Kind::InvalidQueueName, description));
        }
        let given = request.partitioning.unwrap_or_default();
        if given.premake != 0 {
            let description = "convert_archive_partitioned takes no premake";
            fields.refuse("partitioning.premake", Invalid::new(Kind::InvalidPartitioning, description));
        }
        let cut = partitioning(fields, v1::Partitioning { premake: 0, ..given });
        let leading = bounds::count(request.leading_partition, DEFAULT_LEADING_PARTITION, i32::MAX);
        let leading = fields.take("leading_partition", leading);
        Some(Self { queue: queue?, partitioning: cut?, leading_partition: leading? })
    }
}

fn is_plain_identifier(name: &str) -> bool {
    name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

impl From<()> for v1::ConvertArchivePartitionedResponse {
    fn from((): ()) -> Self {
        Self {}
    }
}

impl From<NotificationSettings> for v1::NotificationSettings {
    fn from(settings: NotificationSettings) -> Self {
        Self {
            queue: settings.queue,
            throttle_interval: duration(settings.throttle_interval),
            last_notified_at: settings.last_notified_at.map(timestamp),
        }
    }
}

impl FromRequest<v1::EnableNotificationsRequest> for queue::EnableNotifications {
    fn queue(request: &v1::EnableNotificationsRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::EnableNotificationsRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let queue = queue_name(fields, request.queue);
        let throttle_ms = throttle_ms(fields, request.throttle_interval);
        Some(Self { queue: queue?, throttle_ms: throttle_ms? })
    }
}

impl From<NotificationSettings> for v1::EnableNotificationsResponse {
    fn from(settings: NotificationSettings) -> Self {
        Self { settings: Some(settings.into()) }
    }
}

impl FromRequest<v1::UpdateNotificationsRequest> for queue::UpdateNotifications {
    fn queue(request: &v1::UpdateNotificationsRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::UpdateNotificationsRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let queue = queue_name(fields, request.queue);
        let throttle_ms = throttle_ms(fields, request.throttle_interval);
        Some(Self { queue: queue?, throttle_ms: throttle_ms? })
    }
}

impl From<NotificationSettings> for v1::UpdateNotificationsResponse {
    fn from(settings: NotificationSettings) -> Self {
        Self { settings: Some(settings.into()) }
    }
}

impl FromRequest<v1::DisableNotificationsRequest> for queue::DisableNotifications {
    fn queue(request: &v1::DisableNotificationsRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::DisableNotificationsRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        Some(Self { queue: queue_name(fields, request.queue)? })
    }
}

impl From<()> for v1::DisableNotificationsResponse {
    fn from((): ()) -> Self {
        Self {}
    }
}

impl FromRequest<v1::ListNotificationsRequest> for queue::ListNotifications {
    fn parse(request: v1::ListNotificationsRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let prefix = prefix(fields, request.prefix);
        let filter = prefix.as_deref().unwrap_or_default();
        let page = Page::parse("notifications", &[filter], request.page_size, &request.page_token);
        let page = fields.take_all(page);
        Some(Self { prefix: prefix?, page: page? })
    }
}

impl From<Paged<NotificationSettings>> for v1::ListNotificationsResponse {
    fn from(paged: Paged<NotificationSettings>) -> Self {
        Self { notifications: each(paged.items), next_page_token: paged.next_page_token }
    }
}
