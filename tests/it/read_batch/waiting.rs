//! Waits: what ends them, and what a caller leaves behind who goes away.

use std::time::{Duration, Instant};

use pgmq_grpc::proto::v1::{GetServerInfoRequest, Ordering, ReadBatchRequest, SendRequest, send_request};
use tonic::Request;

use super::{all_of, begin_read, ids, micros, now, until_a_reader_waits, waiting_for};
use crate::harness::{Test, eventually, seconds};

/// Half of what the slow poll takes that finds what nobody announces. The fastest of some rounds must beat it, or
/// nothing woke the reader.
const AWAKE: Duration = Duration::from_millis(400);
const ROUNDS: usize = 5;

#[tokio::test]
async fn a_read_that_does_not_wait_answers_empty() {
    let mut test = Test::with_queue("orders").await;
    assert!(test.client.read("orders", 10).await.is_empty());
}

#[tokio::test]
async fn a_read_that_claimed_more_than_it_found_is_repeated() {
    let mut test = Test::with_queue("orders").await;
    // As if the row had been changed between the read's snapshot and its lock: claimed, and then not found.
    test.run(
        "CREATE SEQUENCE tries;
         CREATE FUNCTION not_the_first() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF nextval('tries') = 1 THEN RETURN NULL; END IF; RETURN NEW; END $$;
         CREATE TRIGGER not_the_first BEFORE UPDATE ON pgmq.q_orders
           FOR EACH ROW EXECUTE FUNCTION not_the_first()",
    )
    .await;
    let sent = test.client.send("orders", "{}").await;
    assert_eq!(ids(&test.client.read("orders", 10).await), [sent], "without a wait");
    assert_eq!(test.value::<i64>("SELECT last_value FROM tries").await, 2);
}

#[tokio::test]
async fn a_wait_that_ends_in_vain_answers_empty() {
    let mut test = Test::with_queue("orders").await;
    let begun = Instant::now();
    let request = ReadBatchRequest { wait: seconds(0.3), ..all_of("orders") };
    assert!(test.client.read_as(request).await.is_empty());
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_wait_answers_empty_before_the_callers_deadline() {
    let mut test = Test::with_queue("orders").await;
    let mut request = Request::new(ReadBatchRequest { wait: seconds(50.0), ..all_of("orders") });
    request.set_timeout(Duration::from_secs(3));
    let answer = test.client.queue.read_batch(request).await.expect("an empty answer in time");
    assert!(answer.into_inner().messages.is_empty());
}

#[tokio::test]
async fn a_send_wakes_a_waiting_read() {
    let mut test = Test::with_queue("orders").await;
    let mut fastest = Duration::MAX;
    for _ in 0..ROUNDS {
        let read = begin_read(&test, waiting_for("orders"));
        let since = now(&test).await;
        until_a_reader_waits(&test, &since).await;
        let begun = Instant::now();
        let sent = test.client.send("orders", "{}").await;
        assert_eq!(ids(&read.await.unwrap()), [sent]);
        fastest = fastest.min(begun.elapsed());
    }
    assert!(fastest < AWAKE, "{fastest:?}");
}

#[tokio::test]
async fn a_send_by_plain_sql_is_found_by_a_waiting_read() {
    let test = Test::with_queue("orders").await;
    let read = begin_read(&test, waiting_for("orders"));
    let since = now(&test).await;
    until_a_reader_waits(&test, &since).await;
    let sent = test.value::<i64>("SELECT pgmq.send('orders', '{}')").await;
    assert_eq!(ids(&read.await.unwrap()), [sent]);
}

#[tokio::test]
async fn a_message_that_is_parked_for_ever_keeps_nobody_from_the_others() {
    let mut test = Test::with_queue("orders").await;
    test.run("INSERT INTO pgmq.q_orders (vt, message) VALUES ('infinity', '0')").await;
    let read = begin_read(&test, waiting_for("orders"));
    let since = now(&test).await;
    until_a_reader_waits(&test, &since).await;
    let sent = test.client.send("orders", "{}").await;
    assert_eq!(ids(&read.await.unwrap()), [sent]);
}

#[tokio::test]
async fn a_waiting_read_gets_a_delayed_message_when_it_falls_due() {
    let mut test = Test::with_queue("orders").await;
    let mut least_late = i64::MAX;
    for _ in 0..ROUNDS {
        let delay = seconds(0.3).map(send_request::Schedule::Delay);
        let request = SendRequest {
            queue: "orders".to_owned(),
            message: "{}".to_owned(),
            schedule: delay,
            ..Default::default()
        };
        let sent = test.client.queue.send(request).await.unwrap().into_inner().msg_id;
        let due = format!(
            "SELECT (extract(epoch FROM vt) * 1000000)::bigint FROM pgmq.q_orders WHERE msg_id = {sent}"
        );
        let due = test.value::<i64>(&due).await;
        let read = test.client.read_as(waiting_for("orders")).await;
        assert_eq!(ids(&read), [sent]);
        let late = micros(read[0].last_read_at.as_ref()) - due;
        assert!(late >= 0);
        least_late = least_late.min(late);
    }
    assert!(least_late < 250_000, "{least_late} us");
}

#[tokio::test]
async fn a_waiting_read_gets_a_message_whose_visibility_timeout_ends() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let shortest = ReadBatchRequest { visibility_timeout: seconds(1.0), ..all_of("orders") };
    let first = test.client.read_as(shortest).await.remove(0);
    let again = test.client.read_as(waiting_for("orders")).await;
    assert_eq!((again[0].msg_id, again[0].read_ct), (first.msg_id, 2));
    assert!(micros(again[0].last_read_at.as_ref()) >= micros(first.vt.as_ref()));
}

#[tokio::test]
async fn a_release_wakes_a_waiting_read() {
    let mut test = Test::with_queue("orders").await;
    test.client.send("orders", "{}").await;
    let mut held = test.client.read_one("orders").await;
    let mut fastest = Duration::MAX;
    for round in 1..=ROUNDS {
        let read = begin_read(&test, waiting_for("orders"));
        let since = now(&test).await;
        until_a_reader_waits(&test, &since).await;
        let begun = Instant::now();
        crate::settle::release(&mut test.client, "orders", &[&held.receipt], None).await;
        held = read.await.unwrap().remove(0);
        fastest = fastest.min(begun.elapsed());
        assert_eq!(usize::try_from(held.read_ct), Ok(round + 1));
    }
    assert!(fastest < AWAKE, "{fastest:?}");
}

#[tokio::test]
async fn settling_the_head_of_a_group_wakes_a_read_that_waits_for_the_next_one() {
    let mut test = Test::with_queue("orders").await;
    for _ in 0..=ROUNDS {
        test.client.send_to_group("orders", "a", "{}").await;
    }
    let heads = || ReadBatchRequest { ordering: Ordering::GroupedHead.into(), ..waiting_for("orders") };
    let mut head = test.client.read_as(heads()).await.remove(0);
    let mut fastest = Duration::MAX;
    for _ in 0..ROUNDS {
        let read = begin_read(&test, heads());
        let since = now(&test).await;
        until_a_reader_waits(&test, &since).await;
        let begun = Instant::now();
        test.client.delete("orders", &[&head.receipt]).await;
        let next = read.await.unwrap();
        fastest = fastest.min(begun.elapsed());
        assert_eq!(ids(&next), [head.msg_id + 1]);
        head = next.into_iter().next().unwrap();
    }
    assert!(fastest < AWAKE, "{fastest:?}");
}

#[tokio::test]
async fn one_message_ends_the_wait_of_one_reader_only() {
    let mut test = Test::with_queue("orders").await;
    let short = ReadBatchRequest { wait: seconds(3.0), ..all_of("orders") };
    let reads = [begin_read(&test, short.clone()), begin_read(&test, short)];
    let sent = test.client.send("orders", "{}").await;
    let mut got = Vec::new();
    for read in reads {
        got.extend(ids(&read.await.unwrap()));
    }
    assert_eq!(got, [sent]);
}

#[tokio::test]
async fn many_waiting_reads_need_no_connection_each() {
    let mut test = Test::start_with(&["--pool-size", "2"]).await;
    test.client.create("orders").await;
    let one = || ReadBatchRequest { max_messages: 1, ..waiting_for("orders") };
    let reads: Vec<_> = (0..40).map(|_| begin_read(&test, one())).collect();
    let since = now(&test).await;
    until_a_reader_waits(&test, &since).await;
    let sent = test.client.send_all("orders", &["{}"; 40]).await;
    let mut got = Vec::new();
    for read in reads {
        got.extend(ids(&read.await.unwrap()));
    }
    got.sort_unstable();
    assert_eq!(got, sent);
}

#[tokio::test]
async fn a_caller_that_went_away_while_waiting_takes_nothing() {
    let mut test = Test::with_queue("orders").await;
    let read = begin_read(&test, waiting_for("orders"));
    let since = now(&test).await;
    until_a_reader_waits(&test, &since).await;
    read.abort();
    let sent = test.client.send("orders", "{}").await;
    let read = test.client.read_as(waiting_for("orders")).await;
    assert_eq!((read[0].msg_id, read[0].read_ct), (sent, 1));
}

#[tokio::test]
async fn messages_read_for_a_caller_that_has_gone_are_given_back_and_not_counted() {
    let mut test = Test::with_queue("orders").await;
    test.client.send_all("orders", &["1", "2", "3"]).await;
    let since = now(&test).await;
    let locker = test.database.connect().await;
    locker.batch_execute("BEGIN; LOCK TABLE pgmq.q_orders IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let read = begin_read(&test, all_of("orders"));
    let blocked = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'
         AND query LIKE '%pgmq-grpc: read%' AND wait_event_type = 'Lock' AND query_start > '{since}'
         AND pid <> pg_backend_pid()"
    );
    eventually("a blocked read", async || (test.value::<i64>(&blocked).await > 0).then_some(())).await;
    read.abort();
    assert!(read.await.is_err());
    // Answered on the same connection, so the server has seen that the other call was cancelled.
    test.client.queue.get_server_info(GetServerInfoRequest {}).await.unwrap();
    locker.batch_execute("COMMIT").await.unwrap();

    let mut again = test.client.read_as(waiting_for("orders")).await;
    while again.len() < 3 {
        again.extend(test.client.read_as(waiting_for("orders")).await);
    }
    assert_eq!(again.iter().map(|message| message.read_ct).collect::<Vec<_>>(), [1, 1, 1]);
}
