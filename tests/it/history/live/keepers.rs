//! Callers that archive what they have done, and operators who bring it back, delete it, or let it expire.

use pgmq_grpc::proto::v1::admin_service_client::AdminServiceClient;
use pgmq_grpc::proto::v1::{
    ArchiveFilter, DeleteArchivedMessagesRequest, DeleteArchivedMessagesResponse, Message,
    RedriveMessagesRequest, RedriveMessagesResponse, ReplayArchivedMessagesRequest,
    ReplayArchivedMessagesResponse,
};
use rand::Rng;

use super::lists::{list, list_archive};
use super::readers::{delete, read, settle_as};
use super::worker::{Asked, Worker};
use super::{BURIED, FLEETING, KEPT, ORDERS, WORN, senders};
use crate::history::operators::{Move, Shelf, Shown};
use crate::history::record::{Action, Micros, Part, Send};

/// Sends messages, and archives most of them.
pub(super) async fn archive(mut worker: Worker) {
    while worker.pause(80).await {
        let queue = if worker.chance(70) { KEPT } else { FLEETING };
        for _ in 0..worker.random.random_range(0..4) {
            let send = Send { queue: queue.to_owned(), body: worker.long_body(), ..Send::default() };
            match worker.chance(80) {
                true => senders::send_one(&mut worker, send).await,
                false => {
                    let other = Send { body: worker.long_body(), ..send.clone() };
                    senders::send_batch(&mut worker, queue, vec![send, other]).await;
                }
            }
        }
        let wait = worker.millis(300).as_secs_f64();
        let count = worker.random.random_range(1..20);
        let mut piles: [Vec<Message>; 4] = Default::default();
        for message in read(&mut worker, queue, count, 1.0, wait).await {
            let pile = match worker.random.random_range(0..100) {
                0..65 => 0,
                65..85 => 1,
                85..93 => 2,
                _ => 3,
            };
            piles[pile].push(message);
        }
        let [archived, deleted, released, _forgotten] = piles;
        settle_as(&mut worker, queue, queue, Action::Archive, &archived).await;
        if queue == FLEETING && worker.chance(30) {
            list_archive(&mut worker, FLEETING, &[]).await;
        }
        delete(&mut worker, queue, &deleted, false).await;
        settle_as(&mut worker, queue, queue, Action::Hide, &released).await;
        if worker.chance(1) {
            worker.disconnect();
        }
    }
}

/// Brings archived messages back, or deletes them: some by their ids, some by when they were archived, some by count; and
/// repeats that.
pub(super) async fn bring_back(mut worker: Worker) {
    while worker.pause(250).await {
        let queue = if worker.chance(75) { KEPT } else { ORDERS };
        let rows = list_archive(&mut worker, queue, &[]).await;
        let deletes = worker.chance(30);
        let moved = Move { deletes, ..choose(&mut worker, queue, &rows) };
        for _ in 0..worker.random.random_range(1..3) {
            if deletes {
                delete_archived(&mut worker, moved.clone()).await;
            } else {
                replay(&mut worker, moved.clone()).await;
            }
        }
        if !moved.msg_ids.is_empty() {
            list_archive(&mut worker, queue, &moved.msg_ids).await;
        }
    }
}

/// Brings dead letters back where they came from: some by their ids, and again, and some by count.
pub(super) async fn redrive_letters(mut worker: Worker) {
    while worker.pause(500).await {
        let moved = choose_letters(&mut worker, WORN, BURIED).await;
        for _ in 0..worker.random.random_range(1..3) {
            redrive(&mut worker, BURIED, moved.clone()).await;
        }
    }
}

/// Looks which dead letters of a queue there are, and chooses some.
pub(super) async fn choose_letters(worker: &mut Worker, queue: &str, dead_letter_queue: &str) -> Move {
    let rows = list(worker, dead_letter_queue, None, &[]).await;
    let msg_ids = match worker.chance(50) {
        true => some_ids(worker, &rows),
        false => Vec::new(),
    };
    let most = worker.random.random_range(1..15);
    Move { from: Shelf::DeadLetters, msg_ids, most, ..of(queue) }
}

fn of(queue: &str) -> Move {
    let (queue, msg_ids) = (queue.to_owned(), Vec::new());
    let (from, to, deletes) = (Shelf::Archive, None, false);
    let (after, before, count, more) = (None, None, None, false);
    Move { queue, from, to, deletes, msg_ids, after, before, most: 1, count, more }
}

fn some_ids(worker: &mut Worker, rows: &[Shown]) -> Vec<i64> {
    let ids = rows.iter().map(|row| row.message.msg_id);
    ids.filter(|_| worker.chance(30)).take(12).collect()
}

/// Which of the archived messages are meant.
pub(super) fn choose(worker: &mut Worker, queue: &str, rows: &[Shown]) -> Move {
    let most = worker.random.random_range(1..30);
    let mut moved = Move { most, ..of(queue) };
    let mut moments: Vec<Micros> = rows.iter().filter_map(|row| row.archived_at).collect();
    moments.sort_unstable();
    moments.dedup();
    match worker.random.random_range(0..10) {
        0..4 => moved.msg_ids = some_ids(worker, rows),
        4..7 if moments.len() > 1 => {
            let place = worker.random.random_range(1..moments.len());
            moved.before = Some(moments[place]);
            moved.after = Some(moments[worker.random.random_range(0..place)]).filter(|_| worker.chance(50));
        }
        _ => {}
    }
    moved
}

fn filter(moved: &Move) -> ArchiveFilter {
    let moment = |micros: Micros| prost_types::Timestamp {
        seconds: micros.div_euclid(1_000_000),
        nanos: i32::try_from(micros.rem_euclid(1_000_000) * 1_000).expect("a part of a second"),
    };
    ArchiveFilter {
        msg_ids: moved.msg_ids.clone(),
        archived_after: moved.after.map(moment),
        archived_before: moved.before.map(moment),
    }
}

fn most(moved: &Move) -> i32 {
    i32::try_from(moved.most).expect("a small number")
}

/// Writes down how many were moved.
fn count(call: &mut Asked, count: i64, more: bool) {
    if let [Part::Move(moved)] = call.parts.as_mut_slice() {
        (moved.count, moved.more) = (Some(count), more);
    }
}

/// Moves archived messages back into their queue or into another one.
pub(super) async fn replay(worker: &mut Worker, moved: Move) {
    let request = ReplayArchivedMessagesRequest {
        queue: moved.queue.clone(),
        filter: Some(filter(&moved)),
        target_queue: moved.to.clone().unwrap_or_default(),
        max_messages: most(&moved),
    };
    let mut client = AdminServiceClient::new(worker.connection());
    let fill = |response: &ReplayArchivedMessagesResponse, call: &mut Asked, _| {
        count(call, response.replayed_count, response.more);
    };
    let call = Asked::new("ReplayArchivedMessages", vec![Part::Move(moved)]);
    worker
        .ask(call, request, async move |request| client.replay_archived_messages(request).await, fill)
        .await;
}

async fn delete_archived(worker: &mut Worker, moved: Move) {
    let request = DeleteArchivedMessagesRequest {
        queue: moved.queue.clone(),
        filter: Some(filter(&moved)),
        max_messages: most(&moved),
    };
    let mut client = AdminServiceClient::new(worker.connection());
    let fill = |response: &DeleteArchivedMessagesResponse, call: &mut Asked, _| {
        count(call, response.deleted_count, response.more);
    };
    let call = Asked::new("DeleteArchivedMessages", vec![Part::Move(moved)]);
    worker
        .ask(call, request, async move |request| client.delete_archived_messages(request).await, fill)
        .await;
}

/// Moves dead letters back into their queue or into another one.
pub(super) async fn redrive(worker: &mut Worker, dead_letter_queue: &str, moved: Move) {
    let request = RedriveMessagesRequest {
        dead_letter_queue: dead_letter_queue.to_owned(),
        msg_ids: moved.msg_ids.clone(),
        target_queue: moved.to.clone().unwrap_or_default(),
        max_messages: most(&moved),
    };
    let mut client = AdminServiceClient::new(worker.connection());
    let fill = |response: &RedriveMessagesResponse, call: &mut Asked, _| {
        count(call, response.moved_count, response.more);
    };
    let call = Asked::new("RedriveMessages", vec![Part::Move(moved)]);
    worker.ask(call, request, async move |request| client.redrive_messages(request).await, fill).await;
}
