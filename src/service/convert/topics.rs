//! Topics on the wire.

use super::message::{each, outgoing, outgoing_batch, queue_name, schedule};
use super::queues::optional_queue;
use super::time::{moment, span, timestamp};
use super::{Fields, FromRequest};
use crate::domain::bounds::{self, MAX_DELAY};
use crate::domain::page::{Page, Paged};
use crate::domain::queue::{TopicBinding, TopicCopy};
use crate::domain::topic::{Pattern, RoutingKey};
use crate::domain::{ClientRole, Schedule};
use crate::proto::v1;
use crate::queue::{self, Rules};

impl FromRequest<v1::BindTopicRequest> for queue::BindTopic {
    fn queue(request: &v1::BindTopicRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::BindTopicRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let pattern = fields.take("pattern", Pattern::try_from(request.pattern));
        let queue = queue_name(fields, request.queue);
        Some(Self { pattern: pattern?, queue: queue? })
    }
}

impl From<bool> for v1::BindTopicResponse {
    fn from(created: bool) -> Self {
        Self { created }
    }
}

impl FromRequest<v1::UnbindTopicRequest> for queue::UnbindTopic {
    fn queue(request: &v1::UnbindTopicRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::UnbindTopicRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let pattern = fields.take("pattern", Pattern::try_from(request.pattern));
        let queue = queue_name(fields, request.queue);
        Some(Self { pattern: pattern?, queue: queue? })
    }
}

impl From<bool> for v1::UnbindTopicResponse {
    fn from(removed: bool) -> Self {
        Self { removed }
    }
}

impl FromRequest<v1::ListTopicBindingsRequest> for queue::ListTopicBindings {
    fn queue(request: &v1::ListTopicBindingsRequest) -> Option<&str> {
        Some(request.queue.as_str()).filter(|queue| !queue.is_empty())
    }

    fn parse(request: v1::ListTopicBindingsRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let page = Page::parse("topic_bindings", &[&request.queue], request.page_size, &request.page_token);
        let page = fields.take_all(page);
        let queue = optional_queue(fields, request.queue);
        Some(Self { queue: queue?, page: page? })
    }
}

impl From<TopicBinding> for v1::TopicBinding {
    fn from(binding: TopicBinding) -> Self {
        Self {
            pattern: binding.pattern,
            queue: binding.queue,
            bound_at: Some(timestamp(binding.bound_at)),
            compiled_regex: binding.compiled_regex,
        }
    }
}

impl From<Paged<TopicBinding>> for v1::ListTopicBindingsResponse {
    fn from(paged: Paged<TopicBinding>) -> Self {
        Self { bindings: each(paged.items), next_page_token: paged.next_page_token }
    }
}

impl FromRequest<v1::TestRoutingRequest> for queue::TestRouting {
    fn parse(request: v1::TestRoutingRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        Some(Self { routing_key: fields.take("routing_key", RoutingKey::try_from(request.routing_key))? })
    }
}

impl From<Vec<TopicBinding>> for v1::TestRoutingResponse {
    fn from(matches: Vec<TopicBinding>) -> Self {
        Self { matches: each(matches) }
    }
}

impl FromRequest<v1::SendTopicRequest> for queue::SendTopic {
    const FOLLOWS_POLICY: bool = true;
    const ROLE: Option<ClientRole> = Some(ClientRole::Producer);

    fn parse(request: v1::SendTopicRequest, rules: &Rules, fields: &mut Fields) -> Option<Self> {
        let v1::SendTopicRequest {
            routing_key,
            message,
            headers,
            group,
            deduplication_id,
            require_match,
            schedule,
        } = request;
        let routing_key = fields.take("routing_key", RoutingKey::try_from(routing_key));
        let schedule = schedule!(fields, schedule, v1::send_topic_request::Schedule, rules.of_topic());
        let message =
            outgoing(fields, rules.of_topic(), message, headers, &group, schedule, deduplication_id);
        Some(Self { routing_key: routing_key?, message: message?, require_match })
    }
}

impl FromRequest<v1::SendTopicBatchRequest> for queue::SendTopicBatch {
    const FOLLOWS_POLICY: bool = true;
    const ROLE: Option<ClientRole> = Some(ClientRole::Producer);

    fn parse(request: v1::SendTopicBatchRequest, rules: &Rules, fields: &mut Fields) -> Option<Self> {
        let routing_key = fields.take("routing_key", RoutingKey::try_from(request.routing_key));
        let messages = outgoing_batch(fields, rules.of_topic(), request.messages);
        Some(Self { routing_key: routing_key?, messages: messages?, require_match: request.require_match })
    }
}

impl From<TopicCopy> for v1::TopicCopy {
    fn from(copy: TopicCopy) -> Self {
        Self {
            queue: copy.queue.to_string(),
            msg_id: copy.msg_id,
            message_index: copy.message_index,
            deduplicated: copy.deduplicated,
        }
    }
}

impl From<Vec<TopicCopy>> for v1::SendTopicResponse {
    fn from(copies: Vec<TopicCopy>) -> Self {
        let deduplicated = !copies.is_empty() && copies.iter().all(|copy| copy.deduplicated);
        Self { copies: each(copies), deduplicated }
    }
}

impl From<Vec<TopicCopy>> for v1::SendTopicBatchResponse {
    fn from(copies: Vec<TopicCopy>) -> Self {
        Self { copies: each(copies) }
    }
}
