//! Callers that do several things at once: all of them or none.

use std::time::Duration;

use pgmq_grpc::proto::v1::open_transaction_request::Command;
use pgmq_grpc::proto::v1::open_transaction_response::Reply;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::transact_result::Result as Done;
use pgmq_grpc::proto::v1::transaction_service_client::TransactionServiceClient;
use pgmq_grpc::proto::v1::{
    Begin, Commit, DeleteRequest, Message, OpenTransactionRequest, OpenTransactionResponse, ReadBatchRequest,
    Rollback, SendBatchRequest, SendRequest, TransactOperation, TransactRequest,
};
use rand::Rng;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use super::readers::{answer, delete, deliver, read, reading, receipts, settles};
use super::senders::acknowledge;
use super::worker::{Asked, Worker, verdict};
use super::{ORDERS, RESULTS};
use crate::harness::client::outgoing;
use crate::harness::seconds;
use crate::history::record::{Action, Part, Read, Send, Verdict};

pub(super) fn operation(operation: Operation) -> TransactOperation {
    TransactOperation { operation: Some(operation) }
}

/// Takes messages from one queue and sends their results to another, in one transaction.
pub(super) async fn by_transact(mut worker: Worker) {
    // Receipts that are of no use any more: what they are used in must not happen.
    let mut used: Vec<Message> = Vec::new();
    while worker.pause(120).await {
        let count = worker.random.random_range(1..4);
        let mut messages = read(&mut worker, ORDERS, count, 2.0, 0.5).await;
        if messages.is_empty() {
            continue;
        }
        let old = used.pop().filter(|_| worker.chance(50));
        used.extend(messages.last().cloned());
        messages.extend(old);
        let (mut request, parts) = take_and_send(&mut worker, &messages);
        // Under a key it may be made again, until it is answered, and then once more.
        let tries = if worker.chance(50) { 3 } else { 1 };
        if tries > 1 {
            request.deduplication_id = format!("transaction {}", worker.body());
        }
        for _ in 0..tries {
            if transact(&mut worker, request.clone(), parts.clone()).await && worker.chance(60) {
                break;
            }
        }
        used.truncate(10);
    }
}

/// Deletes messages and sends others.
fn take_and_send(worker: &mut Worker, messages: &[Message]) -> (TransactRequest, Vec<Part>) {
    let sends: Vec<Send> =
        (0..3).map(|_| Send { queue: RESULTS.to_owned(), body: worker.body(), ..Send::default() }).collect();
    let (single, batch) = sends.split_first().expect("three sends");
    let delete =
        DeleteRequest { queue: ORDERS.to_owned(), receipts: receipts(messages), ..Default::default() };
    let send = SendRequest { queue: RESULTS.to_owned(), message: single.body.clone(), ..Default::default() };
    let bodies = batch.iter().map(|send| outgoing(&send.body)).collect();
    let send_batch = SendBatchRequest { queue: RESULTS.to_owned(), messages: bodies };
    let operations = vec![
        operation(Operation::Send(send)),
        operation(Operation::Delete(delete)),
        operation(Operation::SendBatch(send_batch)),
    ];
    let mut parts = settles(ORDERS, Action::Delete, messages, false);
    parts.extend(sends.into_iter().map(Part::Send));
    (TransactRequest { operations, ..Default::default() }, parts)
}

/// Makes a transaction, and tells whether it was answered.
pub(super) async fn transact(worker: &mut Worker, request: TransactRequest, parts: Vec<Part>) -> bool {
    let mut client = worker.client();
    let mut call = Asked::whole("Transact", parts);
    call.key = Some(request.deduplication_id.clone()).filter(|key| !key.is_empty());
    worker
        .ask(
            call,
            request,
            async move |request| client.transact(request).await,
            |response, call, _| {
                call.repeated = response.deduplicated;
                let (mut ids, mut settled) = (Vec::new(), Vec::new());
                for result in &response.results {
                    match result.result.as_ref().expect("a result") {
                        Done::Send(sent) => ids.push(sent.msg_id),
                        Done::SendBatch(sent) => ids.extend(sent.results.iter().map(|result| result.msg_id)),
                        Done::Delete(deleted) => settled.extend_from_slice(&deleted.results),
                        Done::DeadLetter(moved) => settled.extend_from_slice(&moved.results),
                        Done::Release(released) => settled.extend_from_slice(&released.results),
                        other => panic!("not asked for: {other:?}"),
                    }
                }
                acknowledge(&mut call.parts, &ids);
                answer(&mut call.parts, &settled);
            },
        )
        .await
        .is_some()
}

/// An interactive transaction, as far as its caller has come.
pub(super) struct Open {
    commands: mpsc::Sender<OpenTransactionRequest>,
    replies: Streaming<OpenTransactionResponse>,
}

impl Open {
    pub(super) async fn begin(worker: &mut Worker) -> Result<Self, Status> {
        let (commands, received) = mpsc::channel(10);
        let mut client = TransactionServiceClient::new(worker.connection());
        let replies =
            client.open_transaction(Request::new(ReceiverStream::new(received))).await?.into_inner();
        let mut open = Self { commands, replies };
        open.done(Command::Begin(Begin::default())).await?;
        Ok(open)
    }

    pub(super) async fn done(&mut self, command: Command) -> Result<Reply, Status> {
        let command = OpenTransactionRequest { command: Some(command) };
        // A stream that has ended takes none, and its end says why.
        let _ = self.commands.send(command).await;
        let reply = tokio::time::timeout(Duration::from_secs(20), self.replies.message()).await;
        let reply = reply.map_err(|_| Status::unknown("no reply"))??;
        reply.and_then(|reply| reply.reply).ok_or_else(|| Status::unknown("an end without a reply"))
    }
}

/// How an interactive transaction is to end.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Commit,
    Rollback,
    Leave,
}

/// Reads, deletes and sends in interactive transactions; what was read in one that is rolled back is used afterwards, when
/// another may have read it under the same count.
pub(super) async fn interactively(mut worker: Worker) {
    while worker.pause(200).await {
        let end = match worker.random.random_range(0..10) {
            0..4 => End::Commit,
            4..8 => End::Rollback,
            _ => End::Leave,
        };
        let messages = one_transaction(&mut worker, end).await;
        if end != End::Commit {
            worker.pause(300).await;
            delete(&mut worker, ORDERS, &messages, false).await;
        }
    }
}

/// Makes one transaction, writes it down, and returns what it read and did not delete.
async fn one_transaction(worker: &mut Worker, end: End) -> Vec<Message> {
    let asked = worker.run.now();
    let (mut parts, mut left) = (Vec::new(), Vec::new());
    let mut committing = false;
    let result = steps(worker, end, &mut parts, &mut left, &mut committing).await;
    let verdict = match result {
        Ok(()) if end == End::Commit => Verdict::Done,
        Ok(()) => Verdict::Refused("rolled back".to_owned()),
        // Nothing is applied without a commit, whatever went wrong before.
        Err(_) if !committing => Verdict::Refused("failed before commit".to_owned()),
        Err(status) => verdict(&status, false),
    };
    worker.record(Asked::whole("OpenTransaction", parts), asked, verdict);
    left
}

async fn steps(
    worker: &mut Worker,
    end: End,
    parts: &mut Vec<Part>,
    left: &mut Vec<Message>,
    committing: &mut bool,
) -> Result<(), Status> {
    let mut open = Open::begin(worker).await?;
    let body = worker.body();
    parts.push(Part::Send(Send { queue: RESULTS.to_owned(), body: body.clone(), ..Send::default() }));
    let send = SendRequest { queue: RESULTS.to_owned(), message: body, ..Default::default() };
    if let Reply::Send(sent) = open.done(Command::Send(send)).await? {
        acknowledge(parts, &[sent.msg_id]);
    }
    let read = ReadBatchRequest {
        queue: ORDERS.to_owned(),
        max_messages: 3,
        visibility_timeout: seconds(2.0),
        ..Default::default()
    };
    let mut messages = Vec::new();
    if let Reply::ReadBatch(read) = open.done(Command::ReadBatch(read)).await? {
        messages = read.messages;
    }
    parts.push(Part::Read(Read { takes_any: false, ..reading(ORDERS) }));
    deliver(parts, &messages, worker.run.now());
    let deleted = messages.split_off(messages.len() / 2);
    left.extend(messages);
    if !deleted.is_empty() {
        let request =
            DeleteRequest { queue: ORDERS.to_owned(), receipts: receipts(&deleted), ..Default::default() };
        let mut settles = settles(ORDERS, Action::Delete, &deleted, false);
        let reply = open.done(Command::Delete(request)).await;
        if let Ok(Reply::Delete(deleted)) = &reply {
            answer(&mut settles, &deleted.results);
        }
        parts.extend(settles);
        reply?;
    }
    worker.pause(50).await;
    match end {
        End::Commit => {
            *committing = true;
            open.done(Command::Commit(Commit {})).await?;
        }
        End::Rollback => {
            open.done(Command::Rollback(Rollback {})).await?;
        }
        End::Leave => {}
    }
    Ok(())
}
