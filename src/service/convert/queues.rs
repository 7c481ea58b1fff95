//! Queues, their measures, and the server's own facts on the wire.

use super::message::{each, known, queue_name};
use super::policy::policy;
use super::time::{duration, timestamp};
use super::{Fields, FromRequest};
use crate::domain::page::{Page, Paged};
use crate::domain::policy::PolicyField;
use crate::domain::queue::{MeasuredQueue, Metrics, Partitioning};
use crate::domain::topic::{Pattern, RoutingKey};
use crate::domain::{DescribedQueue, Error, Invalid, Kind, NewQueueName, QueueKind, QueueLayout, QueueName};
use crate::proto::v1;
use crate::queue::{self, CreatedQueue, Rules, ServerInfo, ServerState};
use crate::service::status::code_and_reason;

/// The fields of a partitioning, below `partitioning.`.
pub(super) fn partitioning(fields: &mut Fields, given: v1::Partitioning) -> Option<Partitioning> {
    fields.take("partitioning", Partitioning::parse(given.interval, given.retention, given.premake))
}

/// A layout, or none where it is left open.
pub(super) fn layout(fields: &mut Fields, given: i32) -> Option<Option<QueueLayout>> {
    fields.take("layout", known::<v1::QueueLayout>(given)).map(|layout| match layout {
        v1::QueueLayout::Unspecified => None,
        v1::QueueLayout::Tuned => Some(QueueLayout::Tuned),
        v1::QueueLayout::Pgmq => Some(QueueLayout::Pgmq),
    })
}

impl FromRequest<v1::CreateQueueRequest> for queue::CreateQueue {
    fn queue(request: &v1::CreateQueueRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::CreateQueueRequest, rules: &Rules, fields: &mut Fields) -> Option<Self> {
        let queue = fields.take("queue", NewQueueName::try_from(request.queue));
        let kind = fields.take("kind", known::<v1::QueueKind>(request.kind)).map(|kind| match kind {
            v1::QueueKind::Unspecified | v1::QueueKind::Standard => QueueKind::Standard,
            v1::QueueKind::Unlogged => QueueKind::Unlogged,
            v1::QueueKind::Partitioned => QueueKind::Partitioned,
        });
        let cut = match request.partitioning {
            None => Some(None),
            Some(_) if kind.is_some_and(|kind| kind != QueueKind::Partitioned) => {
                let description = "only a queue of kind PARTITIONED has it";
                fields.refuse("partitioning", Invalid::new(Kind::InvalidPartitioning, description));
                None
            }
            Some(given) => partitioning(fields, given).map(Some),
        };
        let layout = layout(fields, request.layout).map(|given| given.unwrap_or(rules.limits.queue_layout));
        let policy = match request.policy {
            None => Some(None),
            Some(given) => {
                let of = queue.as_ref().map(NewQueueName::as_existing);
                policy(fields, of, given, &PolicyField::ALL).map(Some)
            }
        };
        Some(Self {
            queue: queue?,
            kind: kind?,
            partitioning: cut?,
            layout: layout?,
            policy: policy?,
            fail_if_exists: request.fail_if_exists,
        })
    }
}

impl From<DescribedQueue> for v1::Queue {
    fn from(described: DescribedQueue) -> Self {
        let DescribedQueue { queue, policy } = described;
        let kind = match queue.kind {
            QueueKind::Standard => v1::QueueKind::Standard,
            QueueKind::Unlogged => v1::QueueKind::Unlogged,
            QueueKind::Partitioned => v1::QueueKind::Partitioned,
        };
        let layout = match queue.layout {
            None => v1::QueueLayout::Unspecified,
            Some(QueueLayout::Tuned) => v1::QueueLayout::Tuned,
            Some(QueueLayout::Pgmq) => v1::QueueLayout::Pgmq,
        };
        Self {
            id: queue.id,
            name: queue.name,
            kind: kind.into(),
            created_at: Some(timestamp(queue.created_at)),
            layout: layout.into(),
            policy: (!policy.is_empty()).then(|| policy.into()),
        }
    }
}

impl From<CreatedQueue> for v1::CreateQueueResponse {
    fn from(created: CreatedQueue) -> Self {
        Self { queue: Some(created.queue.into()), created: created.created }
    }
}

impl FromRequest<v1::GetQueueRequest> for queue::GetQueue {
    fn queue(request: &v1::GetQueueRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::GetQueueRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        Some(Self { queue: queue_name(fields, request.queue)? })
    }
}

impl From<DescribedQueue> for v1::GetQueueResponse {
    fn from(queue: DescribedQueue) -> Self {
        Self { queue: Some(queue.into()) }
    }
}

impl FromRequest<v1::ListQueuesRequest> for queue::ListQueues {
    fn parse(request: v1::ListQueuesRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let prefix = prefix(fields, request.prefix);
        let mut filters = vec![prefix.as_deref().unwrap_or_default()];
        // A list without this filter has the tokens that it had before there was one.
        filters.extend(Some(request.dead_letter_queue.as_str()).filter(|queue| !queue.is_empty()));
        let page = Page::parse("queues", &filters, request.page_size, &request.page_token);
        let page = fields.take_all(page);
        let dead_letter_queue = match request.dead_letter_queue {
            name if name.is_empty() => Some(None),
            name => fields.take("dead_letter_queue", QueueName::try_from(name)).map(Some),
        };
        Some(Self { prefix: prefix?, dead_letter_queue: dead_letter_queue?, page: page? })
    }
}

/// A prefix of names; any text but NUL, which Postgres' text cannot hold.
pub(super) fn prefix(fields: &mut Fields, prefix: String) -> Option<String> {
    if prefix.contains('\0') {
        fields.refuse("prefix", Invalid::new(Kind::InvalidQueueName, "must not contain a NUL character"));
        return None;
    }
    Some(prefix)
}

impl From<Paged<DescribedQueue>> for v1::ListQueuesResponse {
    fn from(paged: Paged<DescribedQueue>) -> Self {
        Self { queues: each(paged.items), next_page_token: paged.next_page_token }
    }
}

impl FromRequest<v1::DropQueueRequest> for queue::DropQueue {
    fn queue(request: &v1::DropQueueRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::DropQueueRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        Some(Self { queue: queue_name(fields, request.queue)? })
    }
}

impl From<()> for v1::DropQueueResponse {
    fn from((): ()) -> Self {
        Self {}
    }
}

impl FromRequest<v1::PurgeQueueRequest> for queue::PurgeQueue {
    fn queue(request: &v1::PurgeQueueRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::PurgeQueueRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        Some(Self { queue: queue_name(fields, request.queue)? })
    }
}

impl From<i64> for v1::PurgeQueueResponse {
    fn from(purged_count: i64) -> Self {
        Self { purged_count }
    }
}

impl FromRequest<v1::GetQueueMetricsRequest> for queue::GetQueueMetrics {
    fn queue(request: &v1::GetQueueMetricsRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::GetQueueMetricsRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let include_archive = request.include_archive;
        Some(Self { queue: queue_name(fields, request.queue)?, include_archive })
    }
}

impl FromRequest<v1::ListQueueMetricsRequest> for queue::ListQueueMetrics {
    fn parse(request: v1::ListQueueMetricsRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let prefix = prefix(fields, request.prefix);
        let filter = prefix.as_deref().unwrap_or_default();
        let page = Page::parse("queue_metrics", &[filter], request.page_size, &request.page_token);
        let page = fields.take_all(page);
        Some(Self { prefix: prefix?, page: page?, include_archive: request.include_archive })
    }
}

impl From<MeasuredQueue> for v1::QueueMetrics {
    fn from(measured: MeasuredQueue) -> Self {
        let queue = measured.name;
        match measured.measured {
            Ok(metrics) => Self { queue, ..metrics.into() },
            Err(error) => Self { queue, error: Some(error.into()), ..Default::default() },
        }
    }
}

impl From<Metrics> for v1::QueueMetrics {
    fn from(metrics: Metrics) -> Self {
        let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        Self {
            queue: String::new(),
            queue_length: metrics.queue_length,
            visible_length: metrics.visible_length,
            in_flight_length: metrics.in_flight_length,
            delayed_length: metrics.delayed_length,
            newest_message_age: metrics.newest_message_age.and_then(duration),
            oldest_message_age: metrics.oldest_message_age.and_then(duration),
            total_messages: metrics.total_messages,
            default_partition_length: metrics.default_partition_length,
            archive_length: metrics.archive_length,
            scraped_at: Some(timestamp(metrics.scraped_at)),
            error: None,
            oldest_visible_message_age: metrics.oldest_visible_message_age.and_then(duration),
            dead_lettered_count: count(metrics.moved.dead_lettered),
            redriven_count: count(metrics.moved.redriven),
            replayed_count: count(metrics.moved.replayed),
        }
    }
}

impl From<Error> for v1::CommandError {
    fn from(error: Error) -> Self {
        let (code, reason) = code_and_reason(error.kind());
        let metadata =
            error.metadata().iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        Self {
            code: code.into(),
            reason: reason.into(),
            message: error.to_string(),
            metadata,
            request_id: String::new(),
            retry_delay: error.retry_delay().and_then(duration),
        }
    }
}

impl From<MeasuredQueue> for v1::GetQueueMetricsResponse {
    fn from(measured: MeasuredQueue) -> Self {
        Self { metrics: Some(measured.into()) }
    }
}

impl From<Paged<MeasuredQueue>> for v1::ListQueueMetricsResponse {
    fn from(paged: Paged<MeasuredQueue>) -> Self {
        Self { metrics: each(paged.items), next_page_token: paged.next_page_token }
    }
}

impl FromRequest<v1::ValidateNameRequest> for queue::ValidateName {
    fn queue(request: &v1::ValidateNameRequest) -> Option<&str> {
        match &request.name {
            Some(v1::validate_name_request::Name::Queue(queue)) => Some(queue),
            _ => None,
        }
    }

    fn parse(request: v1::ValidateNameRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        use v1::validate_name_request::Name;
        match request.name {
            None => {
                let missing = Invalid::new(Kind::MissingField, "queue, routing_key or pattern is needed");
                fields.refuse("name", missing);
                return None;
            }
            Some(Name::Queue(name)) => fields.take("queue", NewQueueName::try_from(name)).map(drop)?,
            Some(Name::RoutingKey(key)) => fields.take("routing_key", RoutingKey::try_from(key)).map(drop)?,
            Some(Name::Pattern(pattern)) => fields.take("pattern", Pattern::try_from(pattern)).map(drop)?,
        }
        Some(Self)
    }
}

impl From<()> for v1::ValidateNameResponse {
    fn from((): ()) -> Self {
        Self {}
    }
}

impl FromRequest<v1::GetServerInfoRequest> for queue::GetServerInfo {
    fn parse(_: v1::GetServerInfoRequest, _: &Rules, _: &mut Fields) -> Option<Self> {
        Some(Self)
    }
}

impl From<ServerInfo> for v1::GetServerInfoResponse {
    fn from(info: ServerInfo) -> Self {
        let installation = info.installation;
        Self {
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            replica: info.replica,
            pgmq_version: installation.pgmq_version.clone().unwrap_or_default(),
            pgmq_installed_by: installation.installed_by.map_or(String::new(), |by| by.word().to_owned()),
            postgres_version: installation.postgres_version.clone(),
            capabilities: info.capabilities,
            state: Some(info.state.into()),
        }
    }
}

impl From<ServerState> for v1::ServerState {
    fn from(state: ServerState) -> Self {
        let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        Self {
            uptime: duration(state.uptime),
            waiting_sends: count(state.sends.items),
            waiting_send_bytes: i64::try_from(state.sends.bytes).unwrap_or(i64::MAX),
            waiting_settles: count(state.settles.items),
            lanes: count(state.sends.lanes + state.settles.lanes),
            refusing_lanes: count(state.sends.refusing_lanes + state.settles.refusing_lanes),
            merged_calls: count(state.merged_calls),
            merged_calls_refused: state.refuses_merged_calls,
            dispatchers: count(state.dispatchers),
            read_streams: count(state.read_streams),
            consume_streams: count(state.consume_streams),
            produce_streams: count(state.produce_streams),
            watch_streams: count(state.watch_streams),
            open_transactions: count(state.open_transactions),
            max_database_connections: i32::try_from(state.pool.most).unwrap_or(i32::MAX),
            open_database_connections: i32::try_from(state.pool.open).unwrap_or(i32::MAX),
            used_database_connections: count(state.pool.in_use),
            calls_waiting_for_database: count(state.pool.waiting_calls),
        }
    }
}

/// The name of an existing queue in an optional field.
pub(super) fn optional_queue(fields: &mut Fields, name: String) -> Option<Option<QueueName>> {
    if name.is_empty() {
        return Some(None);
    }
    queue_name(fields, name).map(Some)
}
