//! `ReplayArchivedMessages` and `DeleteArchivedMessages`: messages out of an archive, in steps.

pub(crate) mod delete;

use pgmq_grpc::proto::v1::{
    ArchiveFilter, ArchiveRequest, DropQueueRequest, Outcome, ReplayArchivedMessagesRequest,
    ReplayArchivedMessagesResponse,
};
use tonic::Code;

use crate::bad_input::contents;
use crate::browse::archive::{archived_ids, day, with_archive, with_equal_ids};
use crate::harness::{Client, Refusal, Test};
use crate::read_batch::{all_of, ids};

pub(crate) fn replay_of(queue: &str) -> ReplayArchivedMessagesRequest {
    ReplayArchivedMessagesRequest { queue: queue.to_owned(), ..Default::default() }
}

pub(crate) async fn replay(
    client: &mut Client,
    request: ReplayArchivedMessagesRequest,
) -> ReplayArchivedMessagesResponse {
    client.admin.replay_archived_messages(request).await.expect("a replay").into_inner()
}

fn replayed(replayed_count: i64, more: bool) -> ReplayArchivedMessagesResponse {
    ReplayArchivedMessagesResponse { replayed_count, more }
}

/// A queue whose archive holds so many messages, whose bodies are their ids.
pub(crate) async fn archive_of(count: i64) -> Test {
    let test = Test::with_queue("orders").await;
    test.run(&format!(
        "INSERT INTO pgmq.a_orders (msg_id, read_ct, vt, message)
         SELECT n, 1, now(), to_jsonb(n) FROM generate_series(1, {count}) AS n;
         SELECT setval('pgmq.q_orders_msg_id_seq', {count} + 1, false)"
    ))
    .await;
    test
}

/// The bodies of a table of pgmq's, by id.
pub(crate) async fn bodies(test: &Test, table: &str) -> Vec<String> {
    test.value(&format!(
        "SELECT coalesce(array_agg(message::text ORDER BY msg_id), '{{}}') FROM pgmq.{table}"
    ))
    .await
}

#[tokio::test]
async fn a_replayed_message_is_a_new_one_with_its_body_and_headers() {
    let mut test = Test::with_queue("orders").await;
    test.run(
        r#"SELECT pgmq.send('orders', '{"n": 1}', '{"x-pgmq-group": "a", "x-pgmq-dead-letter": {"reason": "r"}}'::jsonb)"#,
    )
    .await;
    let old = test.client.read_one("orders").await;
    let request = ArchiveRequest {
        queue: "orders".to_owned(),
        receipts: vec![old.receipt.clone()],
        ..Default::default()
    };
    test.client.queue.archive(request).await.unwrap();

    assert_eq!(replay(&mut test.client, replay_of("orders")).await, replayed(1, false));

    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.a_orders").await, 0);
    // The old receipt names nothing, neither before the message is read again nor after.
    assert_eq!(test.client.delete("orders", &[&old.receipt]).await, [Outcome::NotFound]);
    let new = test.client.read_one("orders").await;
    assert_eq!((new.msg_id, new.read_ct), (old.msg_id + 1, 1));
    assert_eq!((new.message, new.headers), (old.message, old.headers));
    assert_eq!(test.client.delete("orders", &[&old.receipt]).await, [Outcome::NotFound]);
    assert_eq!(test.client.delete("orders", &[&new.receipt]).await, [Outcome::Done]);
}

#[tokio::test]
async fn replayed_messages_keep_the_order_of_their_ids() {
    let mut test = archive_of(3_500).await;
    // However they lie in the archive.
    test.run("CREATE TABLE shuffled AS SELECT * FROM pgmq.a_orders ORDER BY random(); TRUNCATE pgmq.a_orders; INSERT INTO pgmq.a_orders SELECT * FROM shuffled")
        .await;
    assert_eq!(replay(&mut test.client, replay_of("orders")).await, replayed(3_500, false));
    let expected: Vec<String> = (1..=3_500).map(|n: i64| n.to_string()).collect();
    assert_eq!(bodies(&test, "q_orders").await, expected);
    assert_eq!(test.value::<i64>("SELECT min(msg_id) FROM pgmq.q_orders").await, 3_501);
}

#[tokio::test]
async fn large_messages_are_replayed_in_smaller_steps() {
    let mut test = Test::with_queue("orders").await;
    // Random text is stored as large as it is: three messages fill a step.
    test.run(
        "INSERT INTO pgmq.a_orders (msg_id, vt, message)
         SELECT n, now(), to_jsonb(n || (SELECT string_agg(md5(n::text || i), '') FROM generate_series(1, 100000) AS i))
         FROM generate_series(1, 8) AS n",
    )
    .await;
    let expected = "SELECT array_agg(md5(message::text) ORDER BY msg_id) FROM pgmq.";
    let before: Vec<String> = test.value(&format!("{expected}a_orders")).await;
    assert_eq!(replay(&mut test.client, replay_of("orders")).await, replayed(8, false));
    assert_eq!(test.value::<Vec<String>>(&format!("{expected}q_orders")).await, before);
    let steps = "SELECT count(DISTINCT enqueued_at) FROM pgmq.q_orders";
    assert_eq!(test.value::<i64>(steps).await, 3);
}

#[tokio::test]
async fn a_replay_takes_what_its_filter_means_and_leaves_the_rest() {
    let mut test = with_archive(9).await;
    let by = |msg_ids, archived_after, archived_before| {
        Some(ArchiveFilter { msg_ids, archived_after, archived_before })
    };
    for (filter, taken) in [
        (by(vec![2, 77, 2], None, None), vec!["2"]),
        (by(vec![], day(8), None), vec!["8", "9"]),
        (by(vec![], day(3), day(5)), vec!["3", "4"]),
        (by(vec![1, 5], day(2), None), vec!["5"]),
        (by(vec![2, 8], None, None), vec![]),
    ] {
        let request = ReplayArchivedMessagesRequest { filter, ..replay_of("orders") };
        let count = i64::try_from(taken.len()).unwrap();
        assert_eq!(replay(&mut test.client, request).await, replayed(count, false));
        assert_eq!(bodies(&test, "q_orders").await, taken);
        test.run("TRUNCATE pgmq.q_orders").await;
    }
    assert_eq!(archived_ids(&mut test.client, "orders", ArchiveFilter::default()).await, [1, 6, 7]);
}

#[tokio::test]
async fn messages_are_replayed_into_another_queue() {
    let mut test = archive_of(3).await;
    test.client.create("others").await;
    test.client.send("others", r#""first""#).await;
    let request = ReplayArchivedMessagesRequest { target_queue: "others".to_owned(), ..replay_of("orders") };
    assert_eq!(replay(&mut test.client, request).await, replayed(3, false));
    let read = test.client.read_as(all_of("others")).await;
    assert_eq!(ids(&read), [1, 2, 3, 4]);
    assert_eq!(read[3].message, "3");
    assert_eq!(test.value::<i64>("SELECT count(*) FROM pgmq.q_orders").await, 0);
}

#[tokio::test]
async fn each_replay_into_a_queue_takes_from_its_own_archive() {
    let mut test = archive_of(3).await;
    test.client.create("others").await;
    test.client.send("others", r#""own""#).await;
    test.run("SELECT pgmq.archive('others', 1)").await;
    let one = ReplayArchivedMessagesRequest { max_messages: 1, ..replay_of("orders") };
    let into_others = ReplayArchivedMessagesRequest { target_queue: "others".to_owned(), ..one.clone() };
    assert_eq!(replay(&mut test.client, into_others).await, replayed(1, true));
    assert_eq!(replay(&mut test.client, replay_of("others")).await, replayed(1, false));
    assert_eq!(replay(&mut test.client, one).await, replayed(1, true));
    assert_eq!(bodies(&test, "q_others").await, ["1", r#""own""#]);
    assert_eq!(bodies(&test, "q_orders").await, ["2"]);
    assert_eq!(bodies(&test, "a_orders").await, ["3"]);
}

#[tokio::test]
async fn a_queue_that_is_named_like_a_mark_of_a_statement_is_replayed_as_well() {
    let mut test = Test::start().await;
    test.run("SELECT pgmq.create('{q}'); SELECT pgmq.create('{a}'); SELECT pgmq.send('{q}', '7'); SELECT pgmq.archive('{q}', 1)")
        .await;
    let request = ReplayArchivedMessagesRequest { target_queue: "{a}".to_owned(), ..replay_of("{q}") };
    assert_eq!(replay(&mut test.client, request).await, replayed(1, false));
    assert_eq!(test.client.read_one("{a}").await.message, "7");
}

#[tokio::test]
async fn a_missing_target_is_named_and_nothing_is_moved() {
    let mut test = archive_of(3).await;
    test.client.create("empty").await;
    test.client.create("dropped").await;
    let to = |queue: &str, target: &str| ReplayArchivedMessagesRequest {
        target_queue: target.to_owned(),
        ..replay_of(queue)
    };
    // One that this server knows, and that is gone.
    test.client.send("dropped", "1").await;
    test.run("SELECT pgmq.drop_queue('dropped')").await;
    let before = contents(&test).await;
    for (queue, target) in
        [("orders", "nowhere"), ("empty", "nowhere"), ("orders", "dropped"), ("orders", "Orders")]
    {
        let refused = test.client.admin.replay_archived_messages(to(queue, target)).await.unwrap_err();
        let refusal = Refusal::expect(&refused, Code::NotFound, "QUEUE_NOT_FOUND");
        assert_eq!(refusal.metadata["queue"], target);
    }
    let refused = test.client.admin.replay_archived_messages(to("nowhere", "orders")).await.unwrap_err();
    assert_eq!(Refusal::expect(&refused, Code::NotFound, "QUEUE_NOT_FOUND").metadata["queue"], "nowhere");
    assert_eq!(contents(&test).await, before);
    let refused = test.client.admin.replay_archived_messages(to("orders", "a;b")).await.unwrap_err();
    Refusal::expect_invalid(&refused, "INVALID_QUEUE_NAME", "target_queue");
}

#[tokio::test]
async fn messages_with_the_same_id_are_each_replayed_once_and_no_more_than_asked() {
    for at_a_time in 1..=8 {
        let mut test = with_equal_ids().await;
        let mut left = 8;
        while left > 0 {
            let request = ReplayArchivedMessagesRequest { max_messages: at_a_time, ..replay_of("orders") };
            let done = replay(&mut test.client, request).await;
            assert_eq!((done.replayed_count, done.more), (at_a_time.min(left).into(), left > at_a_time));
            left -= at_a_time;
        }
        let mut replayed = bodies(&test, "q_orders").await;
        replayed.sort_unstable();
        assert_eq!(replayed, ["1", "2", "3", "4", "5", "6", "7", "8"]);
    }
}

#[tokio::test]
async fn a_replay_and_a_drop_of_its_queue_do_not_wait_in_a_ring() {
    for _ in 0..5 {
        let test = archive_of(3_000).await;
        let (mut replayer, mut dropper) = (test.client.clone(), test.client.clone());
        let replaying =
            tokio::spawn(async move { replayer.admin.replay_archived_messages(replay_of("orders")).await });
        let dropped = dropper.queue.drop_queue(DropQueueRequest { queue: "orders".to_owned() }).await;
        dropped.expect("a drop that waits for one step at most");
        match replaying.await.unwrap() {
            Ok(_) => {}
            Err(refused) => drop(Refusal::expect(&refused, Code::NotFound, "QUEUE_NOT_FOUND")),
        }
    }
}
