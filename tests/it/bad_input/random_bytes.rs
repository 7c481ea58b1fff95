//! Random bytes for every RPC: whatever comes, the server neither fails nor panics.

use std::time::Duration;

use pgmq_grpc::proto::v1::set_visibility_timeout_request::Visibility;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio::time::timeout;
use tonic::Code;

use super::receipts::never_given;
use super::transport::all_rpcs;
use super::{good_message, good_send, transact};
use crate::harness::wire::{Call, call};
use crate::harness::{PATIENCE, Test, seconds};

const CASES: usize = 60;

/// One field of a protobuf message: a number, a wire type, and what may or may not fit it.
fn field() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![8 => 1..9_u8, 1 => 9..16_u8];
    let text = prop_oneof![
        Just("orders".to_owned()),
        Just("{}".to_owned()),
        Just("logs.*".to_owned()),
        Just(never_given("orders")),
        ".{0,12}",
    ];
    let content = prop_oneof![
        text.prop_map(String::into_bytes),
        vec(any::<u8>(), 0..24),
        // A span or a moment.
        (any::<i16>(), any::<i16>()).prop_map(|(seconds, nanos)| {
            let span = prost_types::Duration { seconds: seconds.into(), nanos: nanos.into() };
            prost::Message::encode_to_vec(&span)
        }),
    ];
    let delimited = (number.clone(), content).prop_map(|(number, content)| {
        let mut field = vec![number << 3 | 2];
        prost::encoding::encode_varint(content.len() as u64, &mut field);
        field.extend(content);
        field
    });
    let varint = (number, prop_oneof![any::<i64>(), -2..1_002_i64]).prop_map(|(number, value)| {
        let mut field = vec![number << 3];
        prost::encoding::encode_varint(value.cast_unsigned(), &mut field);
        field
    });
    prop_oneof![delimited, varint]
}

/// Bytes: wild ones, and ones that look like a message.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        1 => vec(any::<u8>(), 0..64),
        4 => vec(field(), 0..7).prop_map(|fields| fields.concat()),
    ]
}

/// Good requests, to be damaged.
fn good_requests() -> Vec<Call> {
    let queue = || "orders".to_owned();
    let batch = SendBatchRequest { queue: queue(), messages: vec![good_message(), good_message()] };
    let set = SetVisibilityTimeoutRequest {
        queue: queue(),
        receipts: vec![never_given("orders")],
        visibility: seconds(5.0).map(Visibility::VisibilityTimeout),
        ..Default::default()
    };
    let topic =
        SendTopicRequest { routing_key: "logs.a".to_owned(), message: "1".to_owned(), ..Default::default() };
    let read = ReadBatchRequest {
        queue: queue(),
        visibility_timeout: seconds(1.0),
        conditional: r#"{"a":1}"#.to_owned(),
        max_messages: 10,
        ..Default::default()
    };
    vec![
        call(SendRequest { headers: r#"{"a":1}"#.to_owned(), group: "g".to_owned(), ..good_send() }),
        call(transact([Operation::SendBatch(batch.clone()), Operation::SetVisibilityTimeout(set.clone())])),
        call(batch),
        call(set),
        call(topic),
        call(read),
        call(CreateQueueRequest { queue: "new".to_owned(), ..Default::default() }),
        call(ListQueuesRequest { page_size: 1, prefix: "o".to_owned(), ..Default::default() }),
    ]
}

/// Makes a call, which may be refused but not fail.
async fn try_out(test: &Test, call: Call) {
    // A wait or a stream may be asked for.
    let Ok(answer) = timeout(PATIENCE, call.make_with(&test.client.channel, &[("grpc-timeout", "2S")])).await
    else {
        panic!("no answer: {}", call.text);
    };
    if let Err(status) = answer {
        let ours = status.metadata().get("pgmq-reason").is_some();
        // The client's own timeout is CANCELLED.
        assert!(ours || status.code() == Code::Cancelled, "{}: {status:?}", call.text);
        let failed = [Code::Internal, Code::Unknown, Code::DataLoss].contains(&status.code());
        assert!(!failed, "{}: {status:?}", call.text);
    }
}

#[tokio::test]
async fn no_bytes_make_an_rpc_fail() {
    let test = Test::with_queue("orders").await;
    let mut runner = TestRunner::default();
    let rpcs = all_rpcs().into_iter().filter(|path| !path.ends_with("/InstallPgmq"));
    for path in rpcs {
        let calls: Vec<Call> = (0..CASES)
            .map(|_| Call::of_bytes(&path, bytes().new_tree(&mut runner).unwrap().current()))
            .collect();
        for some in calls.chunks(16) {
            futures_util::future::join_all(some.iter().map(|call| try_out(&test, call.clone()))).await;
        }
    }
}

#[tokio::test]
async fn no_damage_to_a_good_request_makes_its_rpc_fail() {
    let test = Test::with_queue("orders").await;
    let mut runner = TestRunner::default();
    for good in good_requests() {
        good.make(&test.client.channel).await.ok();
        let damage = (any::<prop::sample::Index>(), any::<u8>(), 0..3_u8);
        for _ in 0..CASES {
            let mut bytes = good.bytes.to_vec();
            for (at, byte, how) in vec(damage.clone(), 1..4).new_tree(&mut runner).unwrap().current() {
                let at = at.index(bytes.len().max(1)).min(bytes.len());
                match how {
                    0 => bytes.insert(at, byte),
                    1 => bytes.truncate(at),
                    _ if at < bytes.len() => bytes[at] = byte,
                    _ => bytes.push(byte),
                }
            }
            try_out(&test, Call::of_bytes(&good.path, bytes)).await;
        }
    }
    // It still works.
    timeout(Duration::from_secs(10), call(ListQueuesRequest::default()).make(&test.client.channel))
        .await
        .unwrap()
        .unwrap();
}
