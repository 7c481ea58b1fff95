//! Giving back what no handler has seen: it is there again at once, and nobody counts it.

use pgmq_grpc::proto::v1::{
    ConsumeStart, Message, Ordering, Outcome, QueuePolicy, ReadBatchRequest, RetryBackoff, SettleAction,
};

use super::{Consumer, settle, start, stop};
use crate::dead_letters::at_most;
use crate::harness::{Client, Server, Test, TestDatabase, seconds};
use crate::policies::create;
use crate::read_batch::{all_of, ids, micros, now, until_a_reader_waits, waiting_for};

/// A queue `orders` with so many messages, and a stream that holds them and has stopped.
async fn stopped_with(count: usize) -> (Test, Consumer, Vec<Message>) {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &vec!["{}"; count]).await;
    let mut consumer = Consumer::start(&test.client, start("orders")).await;
    let held = consumer.take(count).await;
    consumer.send(stop());
    consumer.stopped(1).await;
    (test, consumer, held)
}

#[tokio::test]
async fn what_no_handler_saw_is_no_dead_letter() {
    let mut test = Test::start().await;
    test.client.create("failed").await;
    let slowly =
        RetryBackoff { minimum: seconds(600.0), maximum: seconds(600.0), multiplier: 1.0, jitter: 0.0 };
    let policy = QueuePolicy { retry_backoff: Some(slowly), ..at_most(1) };
    create(&mut test.client, "orders", Some(policy)).await.unwrap();
    test.client.send_all("orders", &["1", "2"]).await;

    let mut first = Consumer::start(&test.client, start("orders")).await;
    let held = first.take(2).await;
    assert_eq!(first.settle(SettleAction::Delete, &[&held[0]]).await, [Outcome::Done]);
    first.send(stop());
    first.stopped(1).await;
    assert_eq!(first.settle(SettleAction::GiveBack, &[&held[1]]).await, [Outcome::Done]);

    // By its policy it is handed over once, and so it is: by a backoff it would come in ten minutes.
    let mut second = Consumer::start(&test.client, start("orders")).await;
    let again = second.message().await;
    assert_eq!((again.message.as_str(), again.read_ct), ("2", 1));
    assert_eq!(second.settle(SettleAction::Release, &[&again]).await, [Outcome::Done]);
    let dead = "SELECT array_agg(headers -> 'x-pgmq-dead-letter' ->> 'read_ct') FROM pgmq.q_failed";
    assert_eq!(test.value::<Vec<String>>(dead).await, ["1"]);
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
}

#[tokio::test]
async fn a_receipt_that_gave_back_settles_nothing_any_more() {
    let (mut test, mut consumer, held) = stopped_with(1).await;
    let request_id = consumer.send(settle(SettleAction::GiveBack, &[&held[0], &held[0]]));
    let given_back = consumer.items(request_id).await;
    assert_eq!(given_back[0].outcome(), Outcome::Done);
    assert_eq!(given_back[0], given_back[1]);
    let vt = "SELECT (extract(epoch FROM vt) * 1000000)::bigint FROM pgmq.q_orders";
    assert_eq!(test.value::<i64>(vt).await, micros(given_back[0].vt.as_ref()));
    let every = [SettleAction::Delete, SettleAction::Archive, SettleAction::Release, SettleAction::GiveBack];
    // Neither before another delivery nor after it, which has the same count.
    for is_read in [false, true] {
        let again = if is_read { Some(test.client.read_one("orders").await) } else { None };
        assert!(again.is_none_or(|again| (again.msg_id, again.read_ct) == (1, held[0].read_ct)));
        let before = test.value::<String>("SELECT q::text FROM pgmq.q_orders AS q").await;
        for action in every {
            assert_eq!(consumer.settle(action, &[&held[0]]).await, [Outcome::Stale], "{action:?}");
        }
        assert_eq!(test.client.delete("orders", &[&held[0].receipt]).await, [Outcome::Stale]);
        assert_eq!(test.value::<String>("SELECT q::text FROM pgmq.q_orders AS q").await, before);
    }
}

#[tokio::test]
async fn what_was_read_again_or_is_gone_is_not_given_back() {
    let (mut test, mut consumer, held) = stopped_with(3).await;
    test.run("SELECT pgmq.set_vt('orders', 1, 0); SELECT pgmq.read('orders', 600, 1)").await;
    test.client.delete("orders", &[&held[1].receipt]).await;
    let all = [&held[2], &held[1], &held[0]];
    let expected = [Outcome::Done, Outcome::NotFound, Outcome::Stale];
    assert_eq!(consumer.settle(SettleAction::GiveBack, &all).await, expected);
    let visible =
        "SELECT array_agg(read_ct ORDER BY msg_id) FROM pgmq.q_orders WHERE vt <= clock_timestamp()";
    assert_eq!(test.value::<Vec<i32>>(visible).await, [0]);
    assert_eq!(test.value::<i32>("SELECT read_ct FROM pgmq.q_orders WHERE msg_id = 1").await, 2);
}

#[tokio::test]
async fn many_give_backs_at_once_and_those_of_others_go_together() {
    let (mut test, mut consumer, held) = stopped_with(100).await;
    let asked: Vec<u64> =
        held.iter().map(|message| consumer.send(settle(SettleAction::GiveBack, &[message]))).collect();
    for request_id in asked {
        assert_eq!(consumer.items(request_id).await[0].outcome(), Outcome::Done);
    }
    assert_eq!(consumer.heartbeat().await.in_flight, 0);
    let again = test.client.read_as(all_of("orders")).await;
    assert_eq!(ids(&again), ids(&held));
    assert!(again.iter().all(|message| message.read_ct == 1));
}

#[tokio::test]
async fn a_group_goes_on_with_what_was_given_back() {
    let mut test = Test::with_queue("orders").await;
    for group in ["a", "a", "a", "b"] {
        test.client.send_to_group("orders", group, "{}").await;
    }
    let heads = || ConsumeStart { ordering: Ordering::GroupedHead.into(), ..start("orders") };
    let mut first = Consumer::start(&test.client, heads()).await;
    let held = first.take(2).await;
    assert_eq!(ids(&held), [1, 4]);
    let mut second = Consumer::start(&test.client, heads()).await;
    first.send(stop());
    first.stopped(1).await;
    assert_eq!(first.settle(SettleAction::GiveBack, &[&held[0]]).await, [Outcome::Done]);
    for expected in [1, 2, 3] {
        let head = second.message().await;
        assert_eq!((head.msg_id, head.read_ct), (expected, 1));
        assert_eq!(second.settle(SettleAction::Delete, &[&head]).await, [Outcome::Done]);
    }
}

#[tokio::test]
async fn the_rest_of_a_batch_of_a_group_comes_again_in_its_order() {
    let mut test = Test::with_queue("orders").await;
    for _ in 0..4 {
        test.client.send_to_group("orders", "a", "{}").await;
    }
    let grouped = ConsumeStart { ordering: Ordering::Grouped.into(), ..start("orders") };
    let mut consumer = Consumer::start(&test.client, grouped).await;
    let held = consumer.take(4).await;
    consumer.send(stop());
    consumer.stopped(1).await;
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held[0]]).await, [Outcome::Done]);
    let backwards = [&held[3], &held[2], &held[1]];
    assert_eq!(consumer.settle(SettleAction::GiveBack, &backwards).await, [Outcome::Done; 3]);
    let request = ReadBatchRequest { ordering: Ordering::Grouped.into(), ..all_of("orders") };
    assert_eq!(ids(&test.client.read_as(request).await), [2, 3, 4]);
}

#[tokio::test]
async fn a_waiting_reader_gets_what_is_given_back() {
    let (test, mut consumer, mut held) = stopped_with(1).await;
    let (_server, elsewhere) = test.another().await;
    for client in [test.client.clone(), elsewhere] {
        let since = now(&test).await;
        let mut reader = client.clone();
        let read = tokio::spawn(async move { reader.read_as(waiting_for("orders")).await });
        until_a_reader_waits(&test, &since).await;
        assert_eq!(consumer.settle(SettleAction::GiveBack, &[&held[0]]).await, [Outcome::Done]);
        held = read.await.unwrap();
        assert_eq!((held.len(), held[0].read_ct), (1, 1));
    }
}

#[tokio::test]
async fn a_row_that_others_hold_is_given_back_when_they_let_go() {
    let (test, mut consumer, held) = stopped_with(2).await;
    let other = test.database.connect().await;
    other.batch_execute("BEGIN; SELECT FROM pgmq.q_orders WHERE msg_id = 1 FOR UPDATE").await.unwrap();
    let locked = consumer.send(settle(SettleAction::GiveBack, &[&held[0]]));
    assert_eq!(consumer.settle(SettleAction::GiveBack, &[&held[1]]).await, [Outcome::Done]);
    other.batch_execute("ROLLBACK").await.unwrap();
    let result = consumer.result(locked).await;
    if result.error.is_some() {
        // It was locked for too long, on a machine that stood still.
        assert_eq!(consumer.settle(SettleAction::GiveBack, &[&held[0]]).await, [Outcome::Done]);
    }
    let counts = "SELECT array_agg(read_ct) FROM pgmq.q_orders WHERE vt <= clock_timestamp()";
    assert_eq!(test.value::<Vec<i32>>(counts).await, [0, 0]);
}

#[tokio::test]
async fn with_receipts_that_could_be_anothers_a_give_back_counts() {
    let database = TestDatabase::create().await;
    let connection = database.connect().await;
    // As in a pgmq older than 1.10.
    let older = "ALTER TYPE pgmq.message_record DROP ATTRIBUTE last_read_at CASCADE;
        SELECT pgmq.create('orders'); ALTER TABLE pgmq.q_orders DROP COLUMN last_read_at";
    connection.batch_execute(older).await.expect("plain SQL");
    let server = Server::start_on(&database, &[]).await;
    let mut client = Client::connect(&server).await;
    client.send("orders", "{}").await;
    let mut consumer = Consumer::start(&client, start("orders")).await;
    let held = consumer.message().await;
    consumer.send(stop());
    consumer.stopped(1).await;
    assert_eq!(consumer.settle(SettleAction::GiveBack, &[&held]).await, [Outcome::Done]);
    let again = client.read_one("orders").await;
    assert_eq!((again.msg_id, again.read_ct), (1, 2));
    assert_eq!(consumer.settle(SettleAction::Delete, &[&held]).await, [Outcome::Stale]);
    assert_eq!(client.delete("orders", &[&again.receipt]).await, [Outcome::Done]);
}
