//! Large messages and slow clients: pieces have a size, and what a client does not take goes back.

use std::time::Duration;

use pgmq_grpc::proto::v1::{Outcome, ReadRequest};
use prost::Message as _;

use super::{Follower, follow};
use crate::harness::{Client, Test, eventually, seconds};
use crate::read_batch::{body_of, ids};

const PIECE: usize = 1 << 20;

#[tokio::test]
async fn pieces_of_a_stream_stay_small() {
    let mut test = Test::with_queue("orders").await;
    for _ in 0..8 {
        test.client.send("orders", &body_of(300_000)).await;
    }
    let mut stream = Follower::open(&test.client, follow("orders")).await;
    let mut read = Vec::new();
    while read.len() < 8 {
        let reply = stream.next().await.unwrap().unwrap();
        assert!(reply.encoded_len() < PIECE, "{}", reply.encoded_len());
        assert!(reply.messages.iter().all(|message| message.read_ct == 1));
        read.extend(ids(&reply.messages));
    }
    assert_eq!(read, [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[tokio::test]
async fn a_message_larger_than_a_piece_comes_alone() {
    let mut test = Test::start_with(&["--max-message-bytes", "3MiB"]).await;
    test.client.create("orders").await;
    for bytes in [10, 2_000_000, 10, 3_000_000] {
        test.client.send("orders", &body_of(bytes)).await;
    }
    let mut stream = Follower::open(&test.client, follow("orders")).await;
    for msg_id in 1..=4 {
        let reply = stream.next().await.unwrap().unwrap();
        assert_eq!(ids(&reply.messages), [msg_id]);
        assert_eq!(reply.messages[0].read_ct, 1);
    }
}

#[tokio::test]
async fn a_message_too_large_for_any_reply_does_not_stop_a_stream() {
    let mut test = Test::with_queue("orders").await;
    test.run("SELECT pgmq.send('orders', to_jsonb(repeat('x', 4000000)))").await;
    let small = test.client.send("orders", "{}").await;
    let mut stream = Follower::open(&test.client, follow("orders")).await;
    assert_eq!(stream.message().await.msg_id, small);
    assert_eq!(test.value::<i64>("SELECT msg_id FROM pgmq.a_orders").await, 1);
}

/// How a stream ends whose client does not read.
#[derive(Debug, PartialEq, Eq)]
enum EndBy {
    Cancel,
    Disconnect,
    Deadline,
}

/// Opens a stream whose client never reads: the transport takes two messages ahead, the third one waits in the server.
/// After its end nobody has been given more than those two.
async fn what_was_not_taken_goes_back_after(end: EndBy) {
    let mut test = Test::with_queue("orders").await;
    for _ in 0..6 {
        test.client.send("orders", &body_of(900_000)).await;
    }
    let mut client = Client::connect_hesitantly(&test.server).await;
    // It is its end that gives back, and not the time for which messages may wait.
    let request = ReadRequest { visibility_timeout: seconds(600.0), ..follow("orders") };
    let mut request = tonic::Request::new(request);
    if end == EndBy::Deadline {
        request.set_timeout(Duration::from_secs(8));
    }
    let stream = client.queue.read(request).await.unwrap().into_inner();
    let read = "SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 1";
    // Not more: a client that does not read is not read for. What a read takes beyond a piece goes back at once.
    eventually("three messages on their way", async || (test.value::<i64>(read).await == 3).then_some(()))
        .await;
    let mut unread = None;
    let kept = match end {
        EndBy::Cancel => {
            drop(stream);
            Some(client)
        }
        EndBy::Disconnect => {
            drop((stream, client));
            None
        }
        EndBy::Deadline => {
            unread = Some(stream);
            Some(client)
        }
    };
    let given_back = "SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 0 AND vt <= clock_timestamp()";
    eventually("the give-back", async || (test.value::<i64>(given_back).await >= 4).then_some(())).await;
    let hidden = "SELECT count(*) FROM pgmq.q_orders WHERE vt > clock_timestamp()";
    assert!(test.value::<i64>(hidden).await <= 2);
    let again = test.client.read("orders", 3).await;
    assert!(again.iter().all(|message| message.read_ct == 1));
    drop((kept, unread));
}

#[tokio::test]
async fn a_cancelled_stream_gives_back_what_its_client_did_not_take() {
    what_was_not_taken_goes_back_after(EndBy::Cancel).await;
}

#[tokio::test]
async fn a_stream_whose_client_vanishes_gives_back_what_it_did_not_take() {
    what_was_not_taken_goes_back_after(EndBy::Disconnect).await;
}

#[tokio::test]
async fn a_stream_gives_back_at_its_deadline_what_its_client_did_not_take() {
    what_was_not_taken_goes_back_after(EndBy::Deadline).await;
}

#[tokio::test]
async fn slow_streams_hold_nothing_back_from_others_and_their_end_gives_all_back() {
    const SLOW: i64 = 6;
    const LARGE: i64 = SLOW * 10;
    let mut test = Test::with_queue("orders").await;
    let long = || ReadRequest { visibility_timeout: seconds(600.0), ..follow("orders") };
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        let mut client = Client::connect_hesitantly(&test.server).await;
        slow.push(client.queue.read(long()).await.unwrap().into_inner());
    }
    let body = body_of(300_000);
    for _ in 0..LARGE {
        test.client.send("orders", &body).await;
    }
    let mut brisk = Follower::open(&test.client, ReadRequest { max_in_flight: 3, ..long() }).await;
    // Nobody takes from the slow ones, and still what comes is delivered.
    for _ in 0..5 {
        test.client.send("orders", "{}").await;
    }
    let mut seen = Vec::new();
    while !(LARGE + 1..=LARGE + 5).all(|msg_id| seen.contains(&msg_id)) {
        let reply = brisk.next().await.unwrap().unwrap();
        seen.extend(ids(&reply.messages));
        for message in &reply.messages {
            test.client.delete("orders", &[&message.receipt]).await;
        }
    }

    drop((slow, brisk));

    // What the transport had taken counts as delivered; nothing else does.
    let back = "SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 0 AND vt <= clock_timestamp()";
    let delivered = "SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 1 AND vt > clock_timestamp()";
    let total: i64 = test.value("SELECT count(*) FROM pgmq.q_orders").await;
    eventually("the give-back", async || {
        let (back, delivered) = (test.value::<i64>(back).await, test.value::<i64>(delivered).await);
        (back + delivered == total && back > 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_slow_client_gets_everything_once_and_in_order() {
    let mut test = Test::with_queue("orders").await;
    for _ in 0..12 {
        test.client.send("orders", &body_of(200_000)).await;
    }
    let mut client = Client::connect_hesitantly(&test.server).await;
    let request = ReadRequest { max_messages: 12, ..follow("orders") };
    let mut stream = client.queue.read(request).await.unwrap().into_inner();
    let mut read = Vec::new();
    while let Some(reply) = stream.message().await.unwrap() {
        assert!(reply.messages.iter().all(|message| message.read_ct == 1));
        read.extend(ids(&reply.messages));
        // Others of this queue are not held up meanwhile.
        test.client.send("orders", "{}").await;
    }
    assert_eq!(read, (1..=12).collect::<Vec<i64>>());
}

#[tokio::test]
async fn what_a_stalled_client_lets_lie_is_another_readers_after_half_its_timeout() {
    let mut test = Test::with_queue("orders").await;
    for _ in 0..6 {
        test.client.send("orders", &body_of(900_000)).await;
    }
    let mut stalled = Client::connect_hesitantly(&test.server).await;
    // Two messages are in the transport's hands, the third one waits in the server.
    let request = ReadRequest { visibility_timeout: seconds(12.0), ..follow("orders") };
    let mut stream = stalled.queue.read(request).await.unwrap().into_inner();
    let read = "SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 1";
    eventually("three messages on their way", async || (test.value::<i64>(read).await == 3).then_some(()))
        .await;
    let back = "SELECT count(*) FROM pgmq.q_orders WHERE read_ct = 0 AND vt <= clock_timestamp()";
    eventually("the give-back", async || (test.value::<i64>(back).await == 4).then_some(())).await;

    // Another has it meanwhile, for good, and the client that comes back gets what is left.
    let read = test.client.read("orders", 1).await;
    assert_eq!((read[0].msg_id, read[0].read_ct), (3, 1));
    assert_eq!(test.client.delete("orders", &[&read[0].receipt]).await, [Outcome::Done]);
    let mut fresh = Vec::new();
    while fresh.len() < 3 {
        let reply = stream.message().await.unwrap().expect("no end");
        fresh.extend(reply.messages.into_iter().filter(|message| message.msg_id > 2));
    }
    assert_eq!(ids(&fresh), [4, 5, 6]);
    for message in &fresh {
        assert_eq!(message.read_ct, 1);
        assert_eq!(test.client.delete("orders", &[&message.receipt]).await, [Outcome::Done]);
    }
}
