//! Operators who look into queues and archives, page by page.

use pgmq_grpc::proto::v1::admin_service_client::AdminServiceClient;
use pgmq_grpc::proto::v1::{
    ArchiveFilter, ListArchivedMessagesRequest, ListArchivedMessagesResponse, ListMessagesRequest,
    ListMessagesResponse, Message, MessageState,
};
use rand::Rng;
use serde_json::Value;

use super::worker::{Asked, Worker, delivery, micros};
use super::{
    ASIDE, BURIED, CONSUMED, ELSEWHERE, FLEETING, GROUPS, HOMES, KEPT, KEYED, ORDERS, POPS, RESULTS, WORN,
};
use crate::history::operators::{List, Shown, State};
use crate::history::record::{DeadLetter, Micros, Part};

/// So many pages of one list are looked at.
const PAGES: usize = 4;

/// Looks into one queue or archive after the other.
pub(super) async fn look(mut worker: Worker) {
    let queues = [
        ORDERS, GROUPS, KEYED, CONSUMED, POPS, WORN, RESULTS, HOMES, ASIDE, KEPT, FLEETING, BURIED, ELSEWHERE,
    ];
    let archives = [ORDERS, KEYED, CONSUMED, KEPT, FLEETING];
    while worker.pause(250).await {
        if worker.chance(40) {
            let queue = archives[worker.random.random_range(0..archives.len())];
            list_archive(&mut worker, queue, &[]).await;
            continue;
        }
        let queue = queues[worker.random.random_range(0..queues.len())];
        let states = [None, None, None, Some(State::Visible), Some(State::InFlight), Some(State::Delayed)];
        let state = states[worker.random.random_range(0..states.len())];
        let rows = list(&mut worker, queue, state, &[]).await;
        let some: Vec<i64> =
            rows.iter().map(|row| row.message.msg_id).filter(|_| worker.chance(20)).take(20).collect();
        if !some.is_empty() {
            list(&mut worker, queue, None, &some).await;
        }
    }
}

/// Lists messages of a queue: all pages, or the first ones.
pub(super) async fn list(
    worker: &mut Worker,
    queue: &str,
    state: Option<State>,
    msg_ids: &[i64],
) -> Vec<Shown> {
    let page_size = worker.random.random_range(1..120);
    let wire_state = match state {
        None => MessageState::Unspecified,
        Some(State::Visible) => MessageState::Visible,
        Some(State::InFlight) => MessageState::InFlight,
        Some(State::Delayed) => MessageState::Delayed,
    };
    let mut request = ListMessagesRequest {
        queue: queue.to_owned(),
        state: wire_state.into(),
        msg_ids: msg_ids.to_vec(),
        page_size,
        ..Default::default()
    };
    let mut all: Vec<Shown> = Vec::new();
    for _ in 0..PAGES {
        let above = all.last().map_or(i64::MIN, |row| row.message.msg_id);
        let part = page(queue, false, state, msg_ids, above);
        let mut client = AdminServiceClient::new(worker.connection());
        let fill = |response: &ListMessagesResponse, call: &mut Asked, now| {
            let rows = response.messages.iter().map(|message| shown(message, None, now)).collect();
            show(call, rows, response.next_page_token.is_empty());
        };
        let call = Asked::new("ListMessages", vec![Part::List(part)]);
        let asked =
            worker.ask(call, request.clone(), async move |request| client.list_messages(request).await, fill);
        let Some(response) = asked.await else { break };
        all.extend(response.messages.iter().map(|message| shown(message, None, 0)));
        request.page_token = response.next_page_token;
        if request.page_token.is_empty() || response.messages.is_empty() {
            break;
        }
    }
    all
}

/// Lists messages of a queue's archive, as [`list`] does.
pub(super) async fn list_archive(worker: &mut Worker, queue: &str, msg_ids: &[i64]) -> Vec<Shown> {
    let filter = ArchiveFilter { msg_ids: msg_ids.to_vec(), ..Default::default() };
    let mut request = ListArchivedMessagesRequest {
        queue: queue.to_owned(),
        filter: Some(filter),
        page_size: worker.random.random_range(1..120),
        ..Default::default()
    };
    let rows = |response: &ListArchivedMessagesResponse, now| -> Vec<Shown> {
        let messages = response.messages.iter().filter_map(|archived| {
            let message = archived.message.as_ref()?;
            Some(shown(message, Some(micros(archived.archived_at)), now))
        });
        messages.collect()
    };
    let mut all: Vec<Shown> = Vec::new();
    for _ in 0..PAGES {
        let above = all.last().map_or(i64::MIN, |row| row.message.msg_id);
        let part = page(queue, true, None, msg_ids, above);
        let mut client = AdminServiceClient::new(worker.connection());
        let fill = |response: &ListArchivedMessagesResponse, call: &mut Asked, now| {
            show(call, rows(response, now), response.next_page_token.is_empty());
        };
        let call = Asked::new("ListArchivedMessages", vec![Part::List(part)]);
        let asked = worker.ask(
            call,
            request.clone(),
            async move |request| client.list_archived_messages(request).await,
            fill,
        );
        let Some(response) = asked.await else { break };
        all.extend(rows(&response, 0));
        request.page_token = response.next_page_token;
        if request.page_token.is_empty() || response.messages.is_empty() {
            break;
        }
    }
    all
}

fn page(queue: &str, archive: bool, state: Option<State>, msg_ids: &[i64], above: i64) -> List {
    let (queue, msg_ids) = (queue.to_owned(), msg_ids.to_vec());
    List { queue, archive, state, msg_ids, above, is_last: false, rows: Vec::new() }
}

fn show(call: &mut Asked, rows: Vec<Shown>, is_last: bool) {
    if let [Part::List(list)] = call.parts.as_mut_slice() {
        (list.rows, list.is_last) = (rows, is_last);
    }
}

fn shown(message: &Message, archived_at: Option<Micros>, now: Micros) -> Shown {
    assert!(message.receipt.is_empty(), "a list gives no receipts");
    Shown { message: delivery(message, now), archived_at, letter: letter(message) }
}

/// What a dead letter's header says of where it was.
fn letter(message: &Message) -> Option<DeadLetter> {
    let headers: Value = serde_json::from_str(&message.headers).ok()?;
    let letter = headers.get("x-pgmq-dead-letter")?;
    Some(DeadLetter {
        queue: letter.get("queue")?.as_str()?.to_owned(),
        msg_id: letter.get("msg_id")?.as_i64()?,
        body: message.message.clone(),
        handed_over: i32::try_from(letter.get("read_ct")?.as_i64()?).ok()?,
        reason: letter.get("reason")?.as_str()?.to_owned(),
    })
}
