//! Names of queues: missing, malformed, unknown, in every RPC that takes one.

use std::collections::BTreeSet;

use pgmq_grpc::proto::DESCRIPTORS;
use pgmq_grpc::proto::v1::create_fifo_index_request::Target;
use pgmq_grpc::proto::v1::set_visibility_timeout_request::Visibility;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::validate_name_request::Name;
use pgmq_grpc::proto::v1::*;
use prost::Message;
use prost_types::{FieldDescriptorProto, FileDescriptorSet};
use tonic::Code;
use tonic_types::StatusExt;

use super::receipts::never_given;
use super::{Case, check, contents, good_message, refused, transact};
use crate::harness::wire::{Call, call};
use crate::harness::{Refusal, Test, seconds};

/// Calls of every RPC that uses a queue, good but for the queue's name; each with the field that holds the name.
fn uses_of(queue: &str) -> Vec<(Call, &'static str)> {
    let queue = || queue.to_owned();
    let receipts = || vec![never_given(&queue())];
    let msg_ids = || vec![1];
    let policy = || Some(QueuePolicy { default_wait: seconds(0.0), ..Default::default() });
    let send = || SendRequest { queue: queue(), message: "{}".to_owned(), ..Default::default() };
    let send_batch = || SendBatchRequest { queue: queue(), messages: vec![good_message()] };
    let delete = || DeleteRequest { queue: queue(), msg_ids: msg_ids(), receipts: vec![] };
    let archive = || ArchiveRequest { queue: queue(), msg_ids: msg_ids(), receipts: vec![] };
    let release = || ReleaseRequest { queue: queue(), receipts: receipts(), delay: None };
    let dead_letter = || DeadLetterRequest { queue: queue(), receipts: receipts(), reason: String::new() };
    let set = || SetVisibilityTimeoutRequest {
        queue: queue(),
        msg_ids: msg_ids(),
        visibility: seconds(5.0).map(Visibility::VisibilityTimeout),
        ..Default::default()
    };
    let pattern = || "logs.*".to_owned();
    vec![
        (call(GetQueueRequest { queue: queue() }), "queue"),
        (call(DropQueueRequest { queue: queue() }), "queue"),
        (call(PurgeQueueRequest { queue: queue() }), "queue"),
        (call(GetQueueMetricsRequest { queue: queue(), include_archive: true }), "queue"),
        (call(send()), "queue"),
        (call(send_batch()), "queue"),
        (call(ReadBatchRequest { queue: queue(), ..Default::default() }), "queue"),
        (call(ReadRequest { queue: queue(), ..Default::default() }), "queue"),
        (call(PopRequest { queue: queue(), max_messages: 0 }), "queue"),
        (call(delete()), "queue"),
        (call(archive()), "queue"),
        (call(release()), "queue"),
        (call(dead_letter()), "queue"),
        (call(set()), "queue"),
        (call(transact([Operation::Send(send())])), "operations[0].send.queue"),
        (call(transact([Operation::SendBatch(send_batch())])), "operations[0].send_batch.queue"),
        (call(transact([Operation::Delete(delete())])), "operations[0].delete.queue"),
        (call(transact([Operation::Archive(archive())])), "operations[0].archive.queue"),
        (call(transact([Operation::Release(release())])), "operations[0].release.queue"),
        (call(transact([Operation::DeadLetter(dead_letter())])), "operations[0].dead_letter.queue"),
        (
            call(transact([Operation::SetVisibilityTimeout(set())])),
            "operations[0].set_visibility_timeout.queue",
        ),
        (call(BindTopicRequest { pattern: pattern(), queue: queue() }), "queue"),
        (call(UpdateQueueRequest { queue: queue(), policy: policy(), update_mask: None }), "queue"),
        (call(SetQueueLayoutRequest { queue: queue(), layout: 1 }), "queue"),
        (call(ListMessagesRequest { queue: queue(), ..Default::default() }), "queue"),
        (call(ListArchivedMessagesRequest { queue: queue(), ..Default::default() }), "queue"),
        (call(DeleteArchivedMessagesRequest { queue: queue(), ..Default::default() }), "queue"),
        (call(ReplayArchivedMessagesRequest { queue: queue(), ..Default::default() }), "queue"),
        (
            call(RedriveMessagesRequest { dead_letter_queue: queue(), ..Default::default() }),
            "dead_letter_queue",
        ),
        (call(CreateFifoIndexRequest { target: Some(Target::Queue(queue())) }), "queue"),
        (call(ConvertArchivePartitionedRequest { queue: queue(), ..Default::default() }), "queue"),
        (call(EnableNotificationsRequest { queue: queue(), throttle_interval: None }), "queue"),
        (call(UpdateNotificationsRequest { queue: queue(), throttle_interval: None }), "queue"),
        (call(DisableNotificationsRequest { queue: queue() }), "queue"),
    ]
}

/// The same for RPCs about bindings and clients that need not be there.
fn binding_uses_of(queue: &str) -> Vec<(Call, &'static str)> {
    let queue = || queue.to_owned();
    vec![
        (call(UnbindTopicRequest { pattern: "logs.*".to_owned(), queue: queue() }), "queue"),
        (call(ListTopicBindingsRequest { queue: queue(), ..Default::default() }), "queue"),
        (call(ListClientsRequest { queue: queue(), ..Default::default() }), "queue"),
    ]
}

/// The same for RPCs that take the name of a new queue.
fn new_uses_of(queue: &str) -> Vec<(Call, &'static str)> {
    let queue = || queue.to_owned();
    vec![
        (call(CreateQueueRequest { queue: queue(), ..Default::default() }), "queue"),
        (call(ValidateNameRequest { name: Some(Name::Queue(queue())) }), "queue"),
    ]
}

fn refused_in_all(reason: &'static str, uses: Vec<(Call, &'static str)>) -> Vec<Case> {
    uses.into_iter().map(|(call, field)| refused(call, reason, field)).collect()
}

/// Whether a field names the queue that a call is about: by its name, or as a queue in the first place.
fn is_a_queue(field: &FieldDescriptorProto) -> bool {
    field.name() == "queue" || field.number() == 1 && field.name().ends_with("_queue")
}

#[test]
fn the_tables_here_have_every_rpc_with_a_queue() {
    let descriptors = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let messages = || descriptors.file.iter().flat_map(|file| &file.message_type);
    let with_queue: BTreeSet<String> = messages()
        .filter(|message| message.field.iter().any(is_a_queue))
        .map(|message| format!(".pgmq.v1.{}", message.name()))
        .collect();
    let mut wanted = BTreeSet::new();
    for file in descriptors.file.iter().filter(|file| file.package() == "pgmq.v1") {
        for service in &file.service {
            // The queues of a stream of requests are judged message by message, which its own tests look at.
            let methods = service.method.iter().filter(|method| !method.client_streaming());
            let methods = methods.filter(|method| with_queue.contains(method.input_type()));
            wanted.extend(methods.map(|method| format!("/pgmq.v1.{}/{}", service.name(), method.name())));
        }
    }
    let tables = [uses_of("a"), binding_uses_of("a"), new_uses_of("a")].concat();
    let mut here: BTreeSet<String> = tables.into_iter().map(|(call, _)| call.path).collect();
    here.remove("/pgmq.v1.QueueService/Transact");
    assert_eq!(here, wanted);
}

#[tokio::test]
async fn a_missing_name_is_refused_by_every_rpc() {
    let test = Test::with_queue("orders").await;
    let mut uses = [uses_of(""), new_uses_of("")].concat();
    uses.push(binding_uses_of("").remove(0));
    check(&test, refused_in_all("MISSING_FIELD", uses)).await;
}

#[tokio::test]
async fn a_name_that_no_queue_can_have_is_refused_by_every_rpc() {
    let test = Test::with_queue("orders").await;
    let too_long = "q".repeat(48);
    let too_long_in_two_bytes = "ü".repeat(48);
    for name in [
        too_long.as_str(),
        too_long_in_two_bytes.as_str(),
        "orders;",
        "orders'",
        "orders; DROP TABLE pgmq.meta",
        "orders' OR '1'='1",
        "orders--",
        "orders$1",
        "orders\0",
    ] {
        let uses = [uses_of(name), binding_uses_of(name), new_uses_of(name)].concat();
        check(&test, refused_in_all("INVALID_QUEUE_NAME", uses)).await;
    }
}

#[tokio::test]
async fn a_new_name_has_small_letters_digits_underscores_and_hyphens() {
    let test = Test::with_queue("orders").await;
    for name in ["Orders", "ORDERS", "2nd", "-a", "a b", "a.b", "a\"b", "über", "日本", "a/b", " a", "a\n"]
    {
        check(&test, refused_in_all("INVALID_QUEUE_NAME", new_uses_of(name))).await;
    }
}

#[tokio::test]
async fn converting_an_archive_takes_plain_names_only() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("my-orders").await;
    for name in ["my-orders", "Orders", "über", "a b", "orders\"", "orders;", "orders'"] {
        let request = ConvertArchivePartitionedRequest { queue: name.to_owned(), ..Default::default() };
        check(&test, [refused(call(request), "INVALID_QUEUE_NAME", "queue")]).await;
    }
}

#[tokio::test]
async fn an_unknown_queue_is_not_found_by_every_rpc() {
    let test = Test::with_queue("orders").await;
    for name in ["nowhere", "Orders", "ORDERS"] {
        for (call, _) in uses_of(name) {
            if name != "nowhere" && call.path.ends_with("/ConvertArchivePartitioned") {
                continue;
            }
            let before = contents(&test).await;
            let text = &call.text;
            let Err(status) = call.make(&test.client.channel).await else { panic!("not refused: {text}") };
            let refusal = Refusal::of(&status);
            assert_eq!(
                (refusal.code, refusal.reason.as_str()),
                (Code::NotFound, "QUEUE_NOT_FOUND"),
                "{text}"
            );
            assert_eq!(refusal.metadata["queue"], name, "{text}");
            let resource = status.get_details_resource_info().unwrap_or_else(|| panic!("{text}"));
            assert_eq!(
                (resource.resource_type.as_str(), resource.resource_name.as_str()),
                ("pgmq.v1.Queue", name)
            );
            assert_eq!(contents(&test).await, before, "{text}");
        }
    }
}

#[tokio::test]
async fn odd_names_that_no_queue_has_are_not_found() {
    let test = Test::with_queue("orders").await;
    for name in ["a\"b", "two words", "日本", "a\\b", "../etc", "%s", "\u{1}"] {
        let status = call(GetQueueRequest { queue: name.to_owned() }).make(&test.client.channel).await;
        let refusal = Refusal::expect(&status.unwrap_err(), Code::NotFound, "QUEUE_NOT_FOUND");
        assert_eq!(refusal.metadata["queue"], name);
    }
}

#[tokio::test]
async fn an_unknown_queue_has_no_bindings() {
    let test = Test::with_queue("orders").await;
    let list = ListTopicBindingsRequest { queue: "nowhere".to_owned(), ..Default::default() };
    let listed = call(list).make(&test.client.channel).await.unwrap();
    assert_eq!(ListTopicBindingsResponse::decode(listed).unwrap(), ListTopicBindingsResponse::default());
}

#[tokio::test]
async fn a_queue_of_another_kind_is_told_with_its_kind() {
    let test = Test::with_queue("orders").await;
    let before = contents(&test).await;
    let request = CreateQueueRequest {
        queue: "orders".to_owned(),
        kind: QueueKind::Unlogged.into(),
        ..Default::default()
    };
    let status = call(request).make(&test.client.channel).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::FailedPrecondition, "QUEUE_KIND_MISMATCH");
    assert_eq!(refusal.metadata["queue"], "orders");
    assert_eq!(refusal.metadata["kind"], "QUEUE_KIND_STANDARD");
    assert_eq!(contents(&test).await, before);
}

#[tokio::test]
async fn an_existing_queue_is_told_when_it_must_not_exist() {
    let test = Test::with_queue("orders").await;
    let request =
        CreateQueueRequest { queue: "orders".to_owned(), fail_if_exists: true, ..Default::default() };
    let status = call(request).make(&test.client.channel).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::AlreadyExists, "QUEUE_ALREADY_EXISTS");
    assert_eq!(refusal.metadata["queue"], "orders");
    assert_eq!(status.get_details_resource_info().unwrap().resource_name, "orders");
}

#[tokio::test]
async fn metadata_that_names_another_queue_is_refused_by_every_rpc() {
    let test = Test::with_queue("orders").await;
    let uses = [uses_of("orders"), binding_uses_of("orders"), new_uses_of("orders")].concat();
    for (call, _) in uses.iter().filter(|(call, _)| !call.path.ends_with("/Transact")) {
        let (text, before) = (&call.text, contents(&test).await);
        for named in ["invoices", "Orders", "order", ""] {
            let answer = call.make_with(&test.client.channel, &[("pgmq-queue", named)]).await;
            let Err(status) = answer else { panic!("not refused: {text}") };
            let refusal = Refusal::expect_invalid(&status, "METADATA_MISMATCH", "queue");
            assert_eq!(refusal.metadata["field"], "queue", "{text}");
        }
        assert_eq!(contents(&test).await, before, "{text}");
    }
}

#[tokio::test]
async fn metadata_that_names_the_same_queue_is_fine() {
    let test = Test::with_queue("orders").await;
    let send = call(super::good_send());
    send.make_with(&test.client.channel, &[("pgmq-queue", "orders")]).await.unwrap();
    // Nothing to compare with.
    let list = call(ListQueuesRequest::default());
    list.make_with(&test.client.channel, &[("pgmq-queue", "orders")]).await.unwrap();
}
