//! Looks into queues and archives, and messages taken out of archives, on the wire.

use super::message::{each, known, queue_name};
use super::time::{moment, timestamp};
use super::{Fields, FromRequest};
use crate::domain::page::{Page, Paged};
use crate::domain::{
    ArchiveFilter, ListedMessage, MessageState, QueueName, TakenFromArchive, archive, bounds,
};
use crate::proto::v1;
use crate::queue::{self, Fate, Rules, TakeArchived};

/// How many messages a call takes out of an archive or a dead-letter queue unless told otherwise, and at most.
const DEFAULT_TAKEN: i32 = 10_000;
const MAX_TAKEN: i32 = 1_000_000;

/// The fields of a filter, below `filter.`.
fn filter(fields: &mut Fields, given: Option<v1::ArchiveFilter>) -> Option<ArchiveFilter> {
    let given = given.unwrap_or_default();
    fields.within("filter.", |fields| {
        let mut time = |field: &str, given: Option<prost_types::Timestamp>| {
            given.map_or(Some(None), |given| fields.take(field, moment(given)).map(Some))
        };
        let after = time("archived_after", given.archived_after);
        let before = time("archived_before", given.archived_before);
        let parsed = ArchiveFilter::parse(given.msg_ids, after.flatten(), before.flatten());
        let filter = fields.take_all(parsed);
        after.and(before).and(filter)
    })
}

/// The field `max_messages` of calls that move or delete many.
pub(super) fn max_messages(fields: &mut Fields, given: i32) -> Option<usize> {
    let count = fields.take("max_messages", bounds::count(given, DEFAULT_TAKEN, MAX_TAKEN))?;
    usize::try_from(count).ok()
}

impl FromRequest<v1::ListMessagesRequest> for queue::ListMessages {
    fn queue(request: &v1::ListMessagesRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::ListMessagesRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let v1::ListMessagesRequest { queue, state, msg_ids, page_size, page_token } = request;
        let filters = [queue.as_str(), &state.to_string(), &format!("{msg_ids:?}")];
        let page = Page::parse_by_id("messages", &filters, page_size, &page_token);
        let queue = queue_name(fields, queue);
        let state = fields.take("state", known::<v1::MessageState>(state)).map(|state| match state {
            v1::MessageState::Unspecified => None,
            v1::MessageState::Visible => Some(MessageState::Visible),
            v1::MessageState::InFlight => Some(MessageState::InFlight),
            v1::MessageState::Delayed => Some(MessageState::Delayed),
        });
        fields.take("msg_ids", archive::some_ids(&msg_ids))?;
        let page = fields.take_all(page);
        Some(Self { queue: queue?, state: state?, msg_ids, page: page? })
    }
}

impl From<ListedMessage> for v1::Message {
    fn from(listed: ListedMessage) -> Self {
        Self { texts_omitted: listed.texts_omitted, ..listed.message.into() }
    }
}

impl From<Paged<ListedMessage>> for v1::ListMessagesResponse {
    fn from(paged: Paged<ListedMessage>) -> Self {
        Self { messages: each(paged.items), next_page_token: paged.next_page_token }
    }
}

impl FromRequest<v1::ListArchivedMessagesRequest> for queue::ListArchivedMessages {
    fn queue(request: &v1::ListArchivedMessagesRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::ListArchivedMessagesRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let v1::ListArchivedMessagesRequest { queue, filter: given, page_size, page_token } = request;
        let name = queue_name(fields, queue.clone());
        let filter = filter(fields, given)?;
        let filters = [queue.as_str(), &filter.words()];
        let page = Page::parse_by_id("archived_messages", &filters, page_size, &page_token);
        let page = fields.take_all(page);
        Some(Self { queue: name?, filter, page: page? })
    }
}

impl From<ListedMessage> for v1::ArchivedMessage {
    fn from(listed: ListedMessage) -> Self {
        let archived_at = listed.archived_at.map(timestamp);
        Self { message: Some(listed.into()), archived_at }
    }
}

impl From<Paged<ListedMessage>> for v1::ListArchivedMessagesResponse {
    fn from(paged: Paged<ListedMessage>) -> Self {
        Self { messages: each(paged.items), next_page_token: paged.next_page_token }
    }
}

impl FromRequest<v1::DeleteArchivedMessagesRequest> for TakeArchived {
    fn queue(request: &v1::DeleteArchivedMessagesRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::DeleteArchivedMessagesRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let queue = queue_name(fields, request.queue);
        let filter = filter(fields, request.filter);
        let max_messages = max_messages(fields, request.max_messages);
        Some(Self { queue: queue?, filter: filter?, fate: Fate::Deleted, max_messages: max_messages? })
    }
}

impl From<TakenFromArchive> for v1::DeleteArchivedMessagesResponse {
    fn from(taken: TakenFromArchive) -> Self {
        Self { deleted_count: taken.count, more: taken.more }
    }
}

impl FromRequest<v1::ReplayArchivedMessagesRequest> for TakeArchived {
    fn queue(request: &v1::ReplayArchivedMessagesRequest) -> Option<&str> {
        Some(&request.queue)
    }

    fn parse(request: v1::ReplayArchivedMessagesRequest, _: &Rules, fields: &mut Fields) -> Option<Self> {
        let queue = queue_name(fields, request.queue);
        let filter = filter(fields, request.filter);
        let target = match request.target_queue.is_empty() {
            true => queue.clone(),
            false => fields.take("target_queue", QueueName::try_from(request.target_queue)),
        };
        let max_messages = max_messages(fields, request.max_messages);
        let fate = target.map(Fate::SentTo);
        Some(Self { queue: queue?, filter: filter?, fate: fate?, max_messages: max_messages? })
    }
}

impl From<TakenFromArchive> for v1::ReplayArchivedMessagesResponse {
    fn from(taken: TakenFromArchive) -> Self {
        Self { replayed_count: taken.count, more: taken.more }
    }
}
