//! Ids that another transaction holds: who sends them waits, and nobody else does.

use std::collections::HashSet;
use std::time::Instant;

use pgmq_grpc::proto::v1::SendRequest;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use super::{bodies, item, keyed, send};
use crate::harness::client::outgoing;
use crate::harness::{Refusal, Test, eventually, seconds};
use crate::produce::{Stream, frame, reasons};

type Sending = JoinHandle<Result<pgmq_grpc::proto::v1::SendResponse, Status>>;

fn sending(test: &Test, request: SendRequest) -> Sending {
    let mut client = test.client.clone();
    tokio::spawn(async move { send(&mut client, request).await })
}

/// Plain SQL that has inserted keys and not committed them: other servers' transactions do the same.
async fn hold(test: &Test, ids: &[&str]) -> tokio_postgres::Client {
    hold_of(test, "orders", ids).await
}

async fn hold_of(test: &Test, queue: &str, ids: &[&str]) -> tokio_postgres::Client {
    let other = test.database.connect().await;
    other.batch_execute("BEGIN").await.unwrap();
    let insert = "INSERT INTO pgmq_grpc.deduplication
          (queue_name, queue_created_at, deduplication_id, content_hash, msg_id, expires_at)
        SELECT m.queue_name, m.created_at, id, pgmq_grpc.content_hash('77'), 77, now() + interval '1 hour'
        FROM pgmq.meta AS m, unnest($1::text[]) AS id WHERE m.queue_name = $2";
    other.execute(insert, &[&ids, &queue]).await.unwrap();
    other
}

/// Waits until a send with an id has come to the database.
async fn until_tried(test: &Test) {
    let tried = "SELECT count(*) FROM pg_stat_activity
        WHERE query LIKE '-- pgmq-grpc: send_keyed%' AND datname = current_database()";
    eventually("a send with an id", async || (test.value::<i64>(tried).await > 0).then_some(())).await;
}

#[track_caller]
fn expect_busy(status: &Status, id: &str) {
    let refusal = Refusal::expect(status, Code::Aborted, "QUEUE_BUSY");
    assert_eq!((&refusal.metadata["queue"][..], &refusal.metadata["deduplication_id"][..]), ("orders", id));
    assert!(refusal.retry_delay.is_some());
}

#[tokio::test]
async fn strangers_are_stored_while_ids_are_held() {
    let test = Test::with_queue("orders").await;
    let other = hold(&test, &["held 1", "held 2", "held 3"]).await;
    let held: Vec<(String, Sending)> = (0..9)
        .map(|number| {
            let id = format!("held {}", number % 3 + 1);
            (id.clone(), sending(&test, keyed("orders", &id, "1")))
        })
        .collect();
    let mut strangers: Vec<Sending> =
        (0..200).map(|number| sending(&test, keyed("orders", &format!("k{number}"), "2"))).collect();
    strangers.extend((0..50).map(|_| sending(&test, keyed("orders", "", "3"))));
    let mut ids = HashSet::new();
    for stranger in strangers {
        ids.insert(stranger.await.unwrap().expect("a send").msg_id);
    }
    assert_eq!(ids.len(), 250);
    for (id, sending) in held {
        expect_busy(&sending.await.unwrap().unwrap_err(), &id);
    }
    other.batch_execute("ROLLBACK").await.unwrap();
    for id in ["held 1", "held 2", "held 3"] {
        assert!(!send(&mut test.client.clone(), keyed("orders", id, "4")).await.unwrap().deduplicated);
    }
    assert_eq!(bodies(&test, "orders").await.len(), 253);
}

#[tokio::test]
async fn who_waits_for_a_held_id_gets_what_became_of_it() {
    for (end, is_repeat) in [("COMMIT", true), ("ROLLBACK", false)] {
        let test = Test::with_queue("orders").await;
        let other = hold(&test, &["held"]).await;
        let waiting: Vec<Sending> = (0..5).map(|_| sending(&test, keyed("orders", "held", "77"))).collect();
        until_tried(&test).await;
        other.batch_execute(end).await.unwrap();
        let mut answers = Vec::new();
        for waiting in waiting {
            let sent = waiting.await.unwrap().expect("a send");
            answers.push((sent.msg_id, sent.deduplicated));
        }
        let stored = bodies(&test, "orders").await.len();
        let first = answers.iter().filter(|(_, deduplicated)| !deduplicated).count();
        assert_eq!((stored, first), if is_repeat { (0, 0) } else { (1, 1) });
        let ids: HashSet<i64> = answers.iter().map(|(msg_id, _)| *msg_id).collect();
        assert_eq!(ids.len(), 1);
        assert_eq!(ids.contains(&77), is_repeat);
    }
}

#[tokio::test]
async fn more_held_ids_than_a_flush_searches_for_keep_nobody_from_an_answer() {
    let test = Test::with_queue("orders").await;
    let held: Vec<String> = (0..100).map(|number| format!("held {number}")).collect();
    let other = hold(&test, &held.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let held: Vec<Sending> = held.iter().map(|id| sending(&test, keyed("orders", id, "1"))).collect();
    let strangers: Vec<Sending> =
        (0..100).map(|number| sending(&test, keyed("orders", &format!("k{number}"), "2"))).collect();
    for stranger in strangers {
        stranger.await.unwrap().expect("a send");
    }
    for (number, sending) in held.into_iter().enumerate() {
        expect_busy(&sending.await.unwrap().unwrap_err(), &format!("held {number}"));
    }
    other.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(bodies(&test, "orders").await.len(), 100);
}

#[tokio::test]
async fn strangers_are_stored_beside_hundreds_of_held_ids() {
    // On a slow machine it takes long until everybody was tried.
    let mut test = Test::start_with(&["--default-deadline", "10m"]).await;
    test.client.create("orders").await;
    let ids: Vec<String> = (0..600).map(|number| format!("held {number}")).collect();
    let other = hold(&test, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let (mut held, mut strangers) = (Vec::new(), Vec::new());
    // The strangers come in between.
    for (some, ids) in ids.chunks(150).enumerate() {
        let client = test.fresh_client().await;
        for (number, id) in ids.iter().enumerate() {
            let send = |id: String| {
                let mut client = client.clone();
                tokio::spawn(async move { send(&mut client, keyed("orders", &id, "1")).await })
            };
            held.push((id.clone(), send(id.clone())));
            if number % 10 == 0 {
                strangers.push(send(format!("free {some} {number}")));
            }
        }
    }
    for stranger in strangers {
        stranger.await.unwrap().expect("a send");
    }
    for (id, sending) in held {
        expect_busy(&sending.await.unwrap().unwrap_err(), &id);
    }
    other.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(bodies(&test, "orders").await.len(), 60);
}

#[tokio::test]
async fn a_stranger_whose_turn_comes_late_is_stored_all_the_same() {
    let mut test = Test::start_with(&["--default-deadline", "10m"]).await;
    test.client.create("orders").await;
    // Two turns, which find 64 held ids, take longer than anybody waits who was tried.
    test.run(
        "CREATE FUNCTION slow_down() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.1); RETURN NULL; END $$;
         CREATE TRIGGER slow_down BEFORE INSERT ON pgmq_grpc.deduplication FOR EACH STATEMENT EXECUTE FUNCTION slow_down()",
    )
    .await;
    let ids: Vec<String> = (0..100).map(|number| format!("held {number}")).collect();
    let other = hold(&test, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut held = vec![sending(&test, keyed("orders", "held 0", "1"))];
    until_tried(&test).await;
    held.extend(ids[1..].iter().map(|id| sending(&test, keyed("orders", id, "1"))));
    let strangers: Vec<Sending> =
        (0..5).map(|number| sending(&test, keyed("orders", &format!("free {number}"), "1"))).collect();
    for stranger in strangers {
        stranger.await.unwrap().expect("a send");
    }
    for (sending, id) in held.into_iter().zip(&ids) {
        expect_busy(&sending.await.unwrap().unwrap_err(), id);
    }
    other.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(bodies(&test, "orders").await.len(), 5);
}

#[tokio::test]
async fn hundreds_who_wait_for_one_id_hold_up_nobody_and_all_hear_of_it() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("others").await;
    let _other = hold(&test, &["held"]).await;
    let freed = hold_of(&test, "others", &["freed"]).await;
    let held: Vec<Sending> =
        (0..400).map(|number| sending(&test, keyed("orders", "held", &number.to_string()))).collect();
    let waiting: Vec<Sending> = (0..5).map(|_| sending(&test, keyed("others", "freed", "1"))).collect();
    let strangers: Vec<Sending> =
        (0..100).map(|number| sending(&test, keyed("orders", &format!("k{number}"), "2"))).collect();
    until_tried(&test).await;
    freed.batch_execute("ROLLBACK").await.unwrap();
    let mut ids = HashSet::new();
    for waiting in waiting {
        ids.insert(waiting.await.unwrap().expect("a send").msg_id);
    }
    assert_eq!(ids.len(), 1);
    for stranger in strangers {
        stranger.await.unwrap().expect("a send");
    }
    for sending in held {
        expect_busy(&sending.await.unwrap().unwrap_err(), "held");
    }
    assert_eq!((bodies(&test, "orders").await.len(), bodies(&test, "others").await.len()), (100, 1));
}

/// Every other frame has ids, and some have messages of both kinds; the message of a number has the id `held`.
fn frames(count: u64, held: u64) -> Vec<pgmq_grpc::proto::v1::ProduceRequest> {
    let message = |number: u64| match number {
        number if number == held => item("held", &number.to_string()),
        number if number / 4 % 2 == 0 || number % 3 == 0 => item(&format!("k{number}"), &number.to_string()),
        number => outgoing(&number.to_string()),
    };
    (0..count)
        .map(|first| frame("orders", first * 2, vec![message(first * 2), message(first * 2 + 1)]))
        .collect()
}

/// The messages' numbers in the order of their ids.
async fn numbers(test: &Test) -> Vec<u64> {
    bodies(test, "orders").await.iter().map(|body| body.parse().unwrap()).collect()
}

#[tokio::test]
async fn what_a_stream_sends_behind_a_held_id_waits_with_it_and_keeps_its_order() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("others").await;
    let other = hold(&test, &["held"]).await;
    let mut stream = Stream::open(&test.client).await;
    let mut waiting = frames(60, 50).into_iter();
    for frame in waiting.by_ref().take(25) {
        stream.give(frame).await;
    }
    stream.give(waiting.next().unwrap()).await;
    let giving = tokio::spawn({
        let frames = stream.frames.clone();
        async move {
            for frame in waiting {
                frames.send(frame).await.expect("an open stream");
            }
        }
    });
    eventually("all before the held one", async || (numbers(&test).await.len() == 50).then_some(())).await;
    let stranger = send(&mut test.client, keyed("orders", "stranger", "1000")).await.expect("a send");
    other.batch_execute("ROLLBACK").await.unwrap();
    for _ in 0..60 {
        assert_eq!(reasons(&stream.answer().await), []);
    }
    giving.await.unwrap();
    let mut stored = numbers(&test).await;
    // The stranger's came in between.
    assert_eq!(stored.remove(50), 1_000);
    assert_eq!(stored, (0..120).collect::<Vec<_>>());
    assert!(stranger.msg_id > 50);
}

#[tokio::test]
async fn a_held_id_of_one_queue_stops_no_frames_for_another() {
    let mut test = Test::with_queue("orders").await;
    test.client.create("others").await;
    let other = hold(&test, &["held"]).await;
    let mut stream = Stream::open(&test.client).await;
    stream.give(frame("orders", 0, vec![item("held", "0")])).await;
    until_tried(&test).await;
    // The server knows that it is held as soon as two more flushes are through.
    for id in ["k1", "k2"] {
        send(&mut test.client, keyed("orders", id, "1000")).await.expect("a send");
    }
    for number in 1..=20 {
        let (id, body) = (format!("k{number}"), number.to_string());
        let ours = if number % 2 == 0 { outgoing(&body) } else { item(&format!("own {number}"), &body) };
        stream.give(frame("orders", number, vec![ours])).await;
        stream.give(frame("others", 100 + number, vec![item(&id, &body)])).await;
    }
    let mut answered = Vec::new();
    for _ in 0..20 {
        let answer = stream.answer().await;
        assert_eq!(reasons(&answer), []);
        answered.push(answer.first_sequence);
    }
    answered.sort_unstable();
    assert_eq!(answered, (101..=120).collect::<Vec<_>>(), "all before the held one");
    other.batch_execute("ROLLBACK").await.unwrap();
    let mut stored = Vec::new();
    for _ in 0..21 {
        let answer = stream.answer().await;
        assert_eq!(reasons(&answer), []);
        stored.push((answer.first_sequence, answer.msg_ids));
    }
    stored.sort_unstable();
    assert!(stored.is_sorted_by_key(|(_, msg_ids)| msg_ids.clone()), "{stored:?}");
    assert_eq!(numbers(&test).await[2..], (0..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stream_goes_on_without_the_message_whose_id_is_held_for_too_long() {
    let test = Test::with_queue("orders").await;
    let other = hold(&test, &["held"]).await;
    let mut stream = Stream::open(&test.client).await;
    for frame in frames(40, 20) {
        stream.give(frame).await;
    }
    let mut failures = Vec::new();
    for _ in 0..40 {
        let answer = stream.answer().await;
        failures.extend(
            reasons(&answer).into_iter().map(|(index, reason, _)| (answer.first_sequence, index, reason)),
        );
        for error in answer.failures.into_iter().filter_map(|failure| failure.error) {
            assert_eq!((error.request_id, error.retry_delay), (stream.stream_id.clone(), seconds(1.0)));
        }
    }
    assert_eq!(failures, [(20, 0, "QUEUE_BUSY".to_owned())]);
    other.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(numbers(&test).await, (0..80).filter(|number| *number != 20).collect::<Vec<_>>());
}

#[tokio::test]
async fn who_comes_while_others_wait_for_a_locked_table_waits_no_longer_than_they() {
    let test = Test::with_queue("orders").await;
    for id in ["", "first"] {
        send(&mut test.client.clone(), keyed("orders", id, "1")).await.expect("a send");
    }
    let other = test.database.connect().await;
    other.batch_execute("BEGIN; LOCK TABLE pgmq.q_orders").await.unwrap();
    for ids in [[""; 5], ["a", "b", "c", "d", "e"]] {
        let begun = Instant::now();
        let first = sending(&test, keyed("orders", ids[0], "2"));
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
            AND query LIKE '-- pgmq-grpc: send%' AND wait_event_type = 'Lock'";
        eventually("a send that waits", async || (test.value::<i64>(waits).await > 0).then_some(())).await;
        let others: Vec<Sending> =
            ids[1..].iter().map(|id| sending(&test, keyed("orders", id, "2"))).collect();
        Refusal::expect(&first.await.unwrap().unwrap_err(), Code::Aborted, "QUEUE_BUSY");
        let waited = begun.elapsed();
        for other in others {
            Refusal::expect(&other.await.unwrap().unwrap_err(), Code::Aborted, "QUEUE_BUSY");
        }
        assert!(begun.elapsed() < waited * 3 / 2, "{waited:?}, and {:?} for the others", begun.elapsed());
    }
    other.batch_execute("COMMIT").await.unwrap();
    assert_eq!(bodies(&test, "orders").await.len(), 2);
}

#[tokio::test]
async fn a_table_that_is_locked_makes_all_its_senders_wait_as_before() {
    let test = Test::with_queue("orders").await;
    send(&mut test.client.clone(), keyed("orders", "first", "1")).await.expect("a send");
    let other = test.database.connect().await;
    other.batch_execute("BEGIN; LOCK TABLE pgmq.q_orders").await.unwrap();
    let waiting: Vec<Sending> =
        (0..20).map(|number| sending(&test, keyed("orders", &format!("k{number}"), "2"))).collect();
    until_tried(&test).await;
    other.batch_execute("COMMIT").await.unwrap();
    for waiting in waiting {
        waiting.await.unwrap().expect("a send");
    }
    assert_eq!(bodies(&test, "orders").await.len(), 21);
}
