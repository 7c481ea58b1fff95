//! Below the messages: broken bytes, broken frames, sizes, compression, unknown methods, request ids.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use pgmq_grpc::proto::DESCRIPTORS;
use pgmq_grpc::proto::v1::queue_service_client::QueueServiceClient;
use pgmq_grpc::proto::v1::*;
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::Code;
use tonic::codec::CompressionEncoding;
use tonic_types::StatusExt;

use super::{contents, good_message, good_send};
use crate::harness::wire::{Call, Rpc, call, frame, post};
use crate::harness::{Refusal, Server, Test};

const MIB: usize = 1 << 20;

/// The paths of all RPCs, from the descriptors; whether their requests can be empty bytes does not matter here.
pub(super) fn all_rpcs() -> Vec<String> {
    let descriptors = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let files = descriptors.file.iter().filter(|file| file.package() == "pgmq.v1");
    let services = files.flat_map(|file| &file.service);
    services
        .flat_map(|service| {
            let methods = service.method.iter();
            methods.map(move |method| format!("/pgmq.v1.{}/{}", service.name(), method.name()))
        })
        .collect()
}

#[tokio::test]
async fn bytes_that_are_no_message_are_refused_by_every_rpc() {
    let test = Test::with_queue("orders").await;
    let before = contents(&test).await;
    let bad = [
        // A string that is not UTF-8, one that ends too early, a wrong wire type, a field 0, an endless varint.
        &[0x0a, 0x02, 0xff, 0xfe][..],
        &[0x0a, 0x7f, b'a'],
        &[0x0d, 0x01],
        &[0x00, 0x00],
        &[0xff; 16],
    ];
    for path in all_rpcs() {
        // Messages without fields skip a field 1, whatever it holds.
        let known = !path.ends_with("/InstallPgmq") && !path.ends_with("/GetServerInfo");
        for bytes in if known { &bad[..] } else { &bad[1..] } {
            let call = Call::of_bytes(&path, bytes.to_vec());
            let Err(status) = call.make_to_its_end(&test.client.channel).await else {
                panic!("not refused: {}", call.text)
            };
            let refusal = Refusal::expect(&status, Code::InvalidArgument, "MALFORMED_REQUEST");
            assert!(refusal.metadata.is_empty() && refusal.fields.is_empty(), "{refusal:?}");
        }
    }
    assert_eq!(contents(&test).await, before);
}

#[tokio::test]
async fn broken_frames_are_refused() {
    let test = Test::with_queue("orders").await;
    let before = contents(&test).await;
    let message = good_send().encode_to_vec();
    let mut cut = frame(false, &message);
    cut.pop();
    let mut odd_flag = frame(false, &message);
    odd_flag[0] = 7;
    for body in [vec![], vec![0], vec![0, 0, 0], cut, odd_flag, frame(true, &message)] {
        let status = post(&test.server, SendRequest::PATH, &[], body.clone()).await;
        Refusal::expect(&status, Code::InvalidArgument, "MALFORMED_REQUEST");
    }
    let status =
        post(&test.server, SendRequest::PATH, &[("grpc-encoding", "gzip")], frame(true, b"no gzip")).await;
    Refusal::expect(&status, Code::InvalidArgument, "MALFORMED_REQUEST");
    assert_eq!(contents(&test).await, before);
}

#[tokio::test]
async fn a_request_of_more_than_8_mib_is_refused() {
    let mut test = Test::with_queue("orders").await;
    let before = contents(&test).await;
    let batch = |bytes| {
        let message = OutgoingMessage { message: format!("\"{}\"", "a".repeat(bytes)), ..Default::default() };
        SendBatchRequest { queue: "orders".to_owned(), messages: vec![message; 8] }
    };
    let status = call(batch(MIB)).make(&test.client.channel).await.unwrap_err();
    let refusal = Refusal::expect(&status, Code::InvalidArgument, "MESSAGE_TOO_LARGE");
    assert_eq!(refusal.metadata["limit"], (8 * MIB).to_string());
    assert_eq!(contents(&test).await, before);
    test.client.queue.send_batch(batch(MIB - 100)).await.unwrap();
}

#[tokio::test]
async fn compressed_requests_are_taken() {
    let test = Test::with_queue("orders").await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let mut client = QueueServiceClient::new(test.client.channel.clone()).send_compressed(encoding);
        let message = format!("\"{}\"", "a".repeat(100_000));
        client.send(SendRequest { message, ..good_send() }).await.unwrap();
    }
    let lengths = "SELECT array_agg(length(message::text)) FROM pgmq.q_orders";
    assert_eq!(test.value::<Vec<i32>>(lengths).await, [100_002, 100_002]);
}

#[tokio::test]
async fn a_compression_that_nobody_knows_is_unimplemented() {
    let test = Test::with_queue("orders").await;
    let body = frame(true, &good_send().encode_to_vec());
    let status = post(&test.server, SendRequest::PATH, &[("grpc-encoding", "br")], body).await;
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
}

/// What the huge request takes when it is unpacked.
const UNPACKED_MIB: u64 = 96;

#[tokio::test]
async fn a_small_request_that_unpacks_to_a_huge_one_is_refused_and_the_server_does_not_grow() {
    let mut test = Test::with_queue("orders").await;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    for _ in 0..UNPACKED_MIB {
        gzip.write_all(&vec![b' '; MIB]).unwrap();
    }
    let bomb = gzip.finish().unwrap();
    assert!(bomb.len() < MIB);
    test.client.send("orders", "{}").await;
    let before = peak_mib(&test.server);
    for _ in 0..5 {
        let body = frame(true, &bomb);
        let status = post(&test.server, SendRequest::PATH, &[("grpc-encoding", "gzip")], body).await;
        let refusal = Refusal::expect(&status, Code::InvalidArgument, "MESSAGE_TOO_LARGE");
        assert_eq!(refusal.metadata["limit"], (8 * MIB).to_string());
    }
    // Not by one of the five; what the server holds of a request it holds once a thread.
    let grown = peak_mib(&test.server) - before;
    assert!(grown < UNPACKED_MIB, "the server has grown by {grown} MiB");
}

/// The most memory that a server has had.
fn peak_mib(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1_024
}

#[tokio::test]
async fn what_does_not_exist_is_unimplemented() {
    let test = Test::with_queue("orders").await;
    for path in ["/pgmq.v1.QueueService/Steal", "/pgmq.v1.NoService/Send", "/pgmq.v2.QueueService/Send", "/x"]
    {
        let call = Call::of_bytes(path, good_send().encode_to_vec());
        let status = call.make(&test.client.channel).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{path}: {status:?}");
    }
}

#[tokio::test]
async fn the_callers_request_id_is_taken_over() {
    let test = Test::with_queue("orders").await;
    let bad = call(SendRequest { queue: String::new(), message: "{}".to_owned(), ..Default::default() });
    let longest = "i".repeat(128);
    for id in ["7", "a-b_c.d/e:f", "01890a5d-ac96-774b-bcce-b302099a8057", &longest] {
        let status = bad.make_with(&test.client.channel, &[("x-request-id", id)]).await.unwrap_err();
        Refusal::of(&status);
        assert_eq!(status.metadata().get("x-request-id").unwrap().to_str().unwrap(), id);
        assert_eq!(status.get_details_request_info().unwrap().request_id, id);
    }
}

#[tokio::test]
async fn a_request_id_is_made_where_the_caller_has_no_good_one() {
    let test = Test::with_queue("orders").await;
    let bad = call(SendRequest { queue: String::new(), message: "{}".to_owned(), ..Default::default() });
    let too_long = "i".repeat(129);
    let mut made = std::collections::HashSet::new();
    for metadata in
        [&[][..], &[("x-request-id", "")], &[("x-request-id", "a b")], &[("x-request-id", &too_long)]]
    {
        let status = bad.make_with(&test.client.channel, metadata).await.unwrap_err();
        Refusal::of(&status);
        let id = status.get_details_request_info().unwrap().request_id;
        assert_eq!(id.len(), 36, "{id}");
        assert!(made.insert(id));
    }
}

#[tokio::test]
async fn a_request_that_was_broken_off_has_a_request_id_too() {
    let test = Test::with_queue("orders").await;
    let bad = Call::of_bytes(SendRequest::PATH, vec![0xff]);
    let status = bad.make_with(&test.client.channel, &[("x-request-id", "mine")]).await.unwrap_err();
    Refusal::of(&status);
    assert_eq!(status.get_details_request_info().unwrap().request_id, "mine");
}

#[tokio::test]
async fn a_stream_that_is_refused_does_not_open() {
    let mut test = Test::with_queue("orders").await;
    let unknown = ReadRequest { queue: "nowhere".to_owned(), ..Default::default() };
    let bad = ReadRequest { queue: "orders".to_owned(), max_in_flight: -1, ..Default::default() };
    // An error here, and not from the stream: there were no headers before it.
    let status = test.client.queue.read(unknown).await.unwrap_err();
    Refusal::expect(&status, Code::NotFound, "QUEUE_NOT_FOUND");
    let status = test.client.queue.read(bad).await.unwrap_err();
    Refusal::expect_invalid(&status, "INVALID_COUNT", "max_in_flight");
}

#[tokio::test]
async fn fields_that_nobody_knows_are_passed_over() {
    let test = Test::with_queue("orders").await;
    let mut bytes = good_send().encode_to_vec();
    bytes.extend([0xfa, 0x3f, 0x02, b'h', b'i']);
    Call::of_bytes(SendRequest::PATH, bytes).make(&test.client.channel).await.unwrap();
    let batch = SendBatchRequest { queue: "orders".to_owned(), messages: vec![good_message()] };
    call(batch).make(&test.client.channel).await.unwrap();
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 2);
}
