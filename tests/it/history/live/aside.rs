//! Callers that set messages aside, and release others, in transactions.

use pgmq_grpc::proto::v1::open_transaction_request::Command;
use pgmq_grpc::proto::v1::open_transaction_response::Reply;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::{
    Commit, DeadLetterRequest, Message, ReadBatchRequest, ReleaseRequest, Rollback, SendRequest,
    TransactRequest,
};
use tonic::Status;

use super::readers::{answer, deliver, leave_to_policy, read, reading, receipts, settles};
use super::senders::acknowledge;
use super::transactions::{Open, operation, transact};
use super::worker::{Asked, Worker, verdict};
use super::{RESULTS, WORN};
use crate::harness::seconds;
use crate::history::record::{Action, Part, Read, Send, Verdict};

/// Sets messages aside and tells another queue, by turns in one call and step by step.
pub(super) async fn in_transactions(mut worker: Worker) {
    while worker.pause(500).await {
        if worker.chance(50) {
            in_one_call(&mut worker).await;
        } else {
            step_by_step(&mut worker).await;
        }
    }
}

fn told(worker: &mut Worker) -> (SendRequest, Part) {
    let body = worker.body();
    let send = SendRequest { queue: RESULTS.to_owned(), message: body.clone(), ..Default::default() };
    (send, Part::Send(Send { queue: RESULTS.to_owned(), body, ..Send::default() }))
}

async fn in_one_call(worker: &mut Worker) {
    let messages = read(worker, WORN, 2, 2.0, 0.3).await;
    if messages.is_empty() {
        return;
    }
    let (send, sent) = told(worker);
    let (dead, released) = messages.split_at(messages.len().min(1));
    let mut operations = vec![operation(Operation::DeadLetter(dead_letter(dead, &send.message)))];
    let mut parts = settles(WORN, Action::DeadLetter, dead, false);
    if !released.is_empty() {
        operations.push(operation(Operation::Release(release(released))));
        parts.extend(releases(released));
    }
    operations.push(operation(Operation::Send(send)));
    parts.push(sent);
    let request = TransactRequest { operations, ..Default::default() };
    transact(worker, request, parts).await;
}

fn dead_letter(messages: &[Message], reason: &str) -> DeadLetterRequest {
    DeadLetterRequest { queue: WORN.to_owned(), receipts: receipts(messages), reason: format!("in {reason}") }
}

/// Releases that leave it to the policy how long the messages are hidden.
fn release(messages: &[Message]) -> ReleaseRequest {
    ReleaseRequest { queue: WORN.to_owned(), receipts: receipts(messages), delay: None }
}

fn releases(messages: &[Message]) -> Vec<Part> {
    let mut parts = settles(WORN, Action::Hide, messages, false);
    leave_to_policy(&mut parts);
    parts
}

async fn step_by_step(worker: &mut Worker) {
    let (asked, commits) = (worker.run.now(), worker.chance(60));
    let (mut parts, mut committing) = (Vec::new(), false);
    let verdict = match steps(worker, commits, &mut parts, &mut committing).await {
        Ok(()) if commits => Verdict::Done,
        Ok(()) => Verdict::Refused("rolled back".to_owned()),
        // Nothing is applied without a commit, whatever went wrong before.
        Err(_) if !committing => Verdict::Refused("failed before commit".to_owned()),
        Err(status) => verdict(&status, false),
    };
    worker.record(Asked::whole("OpenTransaction", parts), asked, verdict);
}

async fn steps(
    worker: &mut Worker,
    commits: bool,
    parts: &mut Vec<Part>,
    committing: &mut bool,
) -> Result<(), Status> {
    let mut open = Open::begin(worker).await?;
    let (send, sent) = told(worker);
    parts.push(sent);
    let reason = send.message.clone();
    if let Reply::Send(sent) = open.done(Command::Send(send)).await? {
        acknowledge(parts, &[sent.msg_id]);
    }
    let request = ReadBatchRequest {
        queue: WORN.to_owned(),
        max_messages: 2,
        visibility_timeout: seconds(2.0),
        ..Default::default()
    };
    let mut messages = Vec::new();
    if let Reply::ReadBatch(read) = open.done(Command::ReadBatch(request)).await? {
        messages = read.messages;
    }
    parts.push(Part::Read(Read { takes_any: false, ..reading(WORN) }));
    deliver(parts, &messages, worker.run.now());
    let (dead, released) = messages.split_at(messages.len().min(1));
    if !dead.is_empty() {
        let mut settles = settles(WORN, Action::DeadLetter, dead, false);
        let reply = open.done(Command::DeadLetter(dead_letter(dead, &reason))).await;
        if let Ok(Reply::DeadLetter(moved)) = &reply {
            answer(&mut settles, &moved.results);
        }
        parts.extend(settles);
        reply?;
    }
    if !released.is_empty() {
        let mut settles = releases(released);
        let reply = open.done(Command::Release(release(released))).await;
        if let Ok(Reply::Release(done)) = &reply {
            answer(&mut settles, &done.results);
        }
        parts.extend(settles);
        reply?;
    }
    let last = if commits { Command::Commit(Commit {}) } else { Command::Rollback(Rollback {}) };
    *committing = commits;
    open.done(last).await.map(drop)
}
