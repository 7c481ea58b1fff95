//! What bad input gets: a code, a reason and a field, and nothing written.
//!
//! Each test is a table of requests; each request is made, its refusal compared, and the whole of schema `pgmq` with
//! all its rows must be as it was before.

mod conflicts;
mod names;
mod pages;
mod pairs;
mod poison;
mod random_bytes;
mod receipts;
mod rights;
mod rules;
mod spans_and_counts;
mod swallowing;
mod texts;
mod topics;
mod transact;
mod transport;

use pgmq_grpc::proto::v1::{
    DeleteRequest, OutgoingMessage, SendRequest, TransactOperation, TransactRequest, transact_operation,
};
use tonic::Code;

use crate::harness::wire::{Call, call};
use crate::harness::{Refusal, Test};

/// A call, and the reason and the field for which it is refused.
pub(crate) struct Case {
    call: Call,
    reason: &'static str,
    field: String,
    /// What the error's metadata has besides the field.
    metadata: Vec<(&'static str, String)>,
}

/// A call that is refused for one field.
fn refused(call: Call, reason: &'static str, field: impl Into<String>) -> Case {
    Case { call, reason, field: field.into(), metadata: Vec::new() }
}

impl Case {
    fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.metadata.push((key, value.to_string()));
        self
    }
}

/// Makes all calls of a table; each is refused as it says, and none writes anything.
async fn check(test: &Test, cases: impl IntoIterator<Item = Case>) {
    for case in cases {
        let before = contents(test).await;
        let text = &case.call.text;
        let Err(status) = case.call.make(&test.client.channel).await else {
            panic!("not refused: {text}");
        };
        let refusal = Refusal::of(&status);
        let found = (refusal.code, refusal.reason.as_str(), refusal.fields.as_slice());
        let wanted = (Code::InvalidArgument, case.reason, [case.field.clone()]);
        assert_eq!(found, (wanted.0, wanted.1, wanted.2.as_slice()), "{text}: {refusal:?}");
        assert_eq!(refusal.metadata.get("field"), Some(&case.field), "{text}: {refusal:?}");
        for (key, value) in &case.metadata {
            assert_eq!(refusal.metadata.get(*key), Some(value), "{text}: {refusal:?}");
        }
        assert_eq!(contents(test).await, before, "{text} has written something");
    }
}

/// Everything in schema `pgmq`: its tables and indexes by name, and all rows of the tables.
pub(crate) async fn contents(test: &Test) -> Vec<String> {
    let relations = "SELECT format('%I', c.relname), c.relkind::text FROM pg_class AS c
        WHERE c.relnamespace = 'pgmq'::regnamespace ORDER BY c.relname";
    let mut contents = Vec::new();
    for relation in test.sql.query(relations, &[]).await.unwrap() {
        let (name, kind): (String, String) = (relation.get(0), relation.get(1));
        let rows = match kind.as_str() {
            "r" | "p" => {
                let rows = format!(
                    "SELECT coalesce(string_agg(r::text, ', ' ORDER BY r::text), '') FROM pgmq.{name} AS r"
                );
                test.value::<String>(&rows).await
            }
            _ => String::new(),
        };
        contents.push(format!("{kind} {name}: {rows}"));
    }
    contents
}

/// A good send to the queue `orders`, to be spoiled in one field.
fn good_send() -> SendRequest {
    SendRequest { queue: "orders".to_owned(), message: "{}".to_owned(), ..Default::default() }
}

/// A good message of a batch, to be spoiled in one field.
fn good_message() -> OutgoingMessage {
    OutgoingMessage { message: "{}".to_owned(), ..Default::default() }
}

/// A good delete, to be spoiled in one field.
fn good_delete() -> DeleteRequest {
    DeleteRequest { queue: "orders".to_owned(), msg_ids: vec![1], ..Default::default() }
}

/// A transaction of these operations.
fn transact(operations: impl IntoIterator<Item = transact_operation::Operation>) -> TransactRequest {
    let operations = operations.into_iter();
    TransactRequest {
        operations: operations.map(|operation| TransactOperation { operation: Some(operation) }).collect(),
        ..Default::default()
    }
}

#[tokio::test]
async fn at_most_ten_violations_are_listed() {
    let test = Test::with_queue("orders").await;
    let messages = vec![OutgoingMessage { message: "{".to_owned(), ..Default::default() }; 12];
    let request = pgmq_grpc::proto::v1::SendBatchRequest { queue: "orders".to_owned(), messages };
    let status = call(request).make(&test.client.channel).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::InvalidArgument, "INVALID_JSON");
    let listed: Vec<String> = (0..10).map(|index| format!("messages[{index}].message")).collect();
    assert_eq!(refusal.fields, listed);
    assert_eq!(refusal.metadata["field"], "messages[0].message");
}

#[tokio::test]
async fn all_wrong_fields_are_told_at_once_and_the_first_gives_the_reason() {
    let test = Test::with_queue("orders").await;
    let request = SendRequest {
        queue: "a;b".to_owned(),
        message: "{".to_owned(),
        headers: "[]".to_owned(),
        ..Default::default()
    };
    let status = call(request).make(&test.client.channel).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::InvalidArgument, "INVALID_QUEUE_NAME");
    assert_eq!(refusal.fields, ["queue", "message", "headers"]);
    assert_eq!(refusal.metadata["field"], "queue");
}
