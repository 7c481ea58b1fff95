//! What ends a wait: a message that falls due, however it was sent, and what somebody undid. And what does not cost a look
//! all the time.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use pgmq_grpc::proto::v1::open_transaction_request::Command;
use pgmq_grpc::proto::v1::set_visibility_timeout_request::Visibility;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::{
    BindTopicRequest, Message, OutgoingMessage, SendBatchRequest, SendRequest, SendTopicBatchRequest,
    SendTopicRequest, SetVisibilityTimeoutRequest, TransactOperation, TransactRequest, outgoing_message,
    send_request, send_topic_request,
};
use prost_types::Timestamp;
use tokio::task::JoinHandle;
use tonic::{Code, Request};

use crate::harness::wire::patient;
use crate::harness::{Client, Gate, Test, eventually, seconds};
use crate::read_batch::{begin_read, ids, micros, now, until_a_reader_waits, waiting_for};
use crate::read_stream::{Follower, follow};
use crate::transaction::{Open, rollback};

/// For how long what is sent here is hidden.
const HIDDEN: Duration = Duration::from_millis(300);

/// Half of what the slow poll takes that finds what nobody announces. The fastest of some rounds must beat it.
const AWAKE_MICROS: i64 = 400_000;
const ROUNDS: usize = 3;

/// A way to send a message that is hidden for a while.
#[derive(Debug, Clone, Copy)]
enum Way {
    At,
    BatchAt,
    Topic,
    TopicBatch,
}

const WAYS: [Way; 4] = [Way::At, Way::BatchAt, Way::Topic, Way::TopicBatch];

impl Way {
    async fn send(self, client: &mut Client) {
        let at = Timestamp::from(SystemTime::now() + HIDDEN);
        let delay = seconds(HIDDEN.as_secs_f64());
        let (queue, message) = ("orders".to_owned(), "{}".to_owned());
        let routing_key = "orders.new".to_owned();
        let batched = |schedule| OutgoingMessage { message: message.clone(), schedule, ..Default::default() };
        match self {
            Self::At => {
                let schedule = Some(send_request::Schedule::VisibleAt(at));
                let request = SendRequest { queue, message, schedule, ..Default::default() };
                client.queue.send(request).await.expect("a send");
            }
            Self::BatchAt => {
                let messages = vec![batched(Some(outgoing_message::Schedule::VisibleAt(at)))];
                client.queue.send_batch(SendBatchRequest { queue, messages }).await.expect("a send");
            }
            Self::Topic => {
                let schedule = delay.map(send_topic_request::Schedule::Delay);
                let request = SendTopicRequest { routing_key, message, schedule, ..Default::default() };
                client.topic.send_topic(request).await.expect("a send");
            }
            Self::TopicBatch => {
                let messages = vec![batched(delay.map(outgoing_message::Schedule::Delay))];
                let request = SendTopicBatchRequest { routing_key, messages, ..Default::default() };
                client.topic.send_topic_batch(request).await.expect("a send");
            }
        }
    }
}

async fn with_topic() -> Test {
    let mut test = Test::with_queue("orders").await;
    let bind = BindTopicRequest { pattern: "orders.*".to_owned(), queue: "orders".to_owned() };
    test.client.topic.bind_topic(bind).await.expect("a binding");
    test
}

/// How long after it was due a message was read; until then it was hidden.
async fn lateness(test: &Test, message: &Message) -> i64 {
    let due = "SELECT max(extract(epoch FROM enqueued_at) * 1000000)::bigint FROM pgmq.q_orders";
    let due = test.value::<i64>(due).await;
    let hidden_for = micros(message.last_read_at.as_ref()) - due;
    // The moment is the client's, from just before it sent.
    assert!(hidden_for > 0);
    hidden_for - i64::try_from(HIDDEN.as_micros()).expect("a short time")
}

#[tokio::test]
async fn a_waiting_read_gets_what_falls_due_however_it_was_sent() {
    let mut test = with_topic().await;
    for way in WAYS {
        let mut least_late = i64::MAX;
        for _ in 0..ROUNDS {
            let read = begin_read(&test, waiting_for("orders"));
            let since = now(&test).await;
            until_a_reader_waits(&test, &since).await;
            way.send(&mut test.client).await;
            let read = read.await.unwrap();
            assert_eq!((read.len(), read[0].read_ct), (1, 1), "{way:?}");
            least_late = least_late.min(lateness(&test, &read[0]).await);
        }
        assert!(least_late < AWAKE_MICROS, "{way:?}: {least_late} us");
    }
}

#[tokio::test]
async fn a_stream_gets_what_falls_due_however_it_was_sent() {
    let mut test = with_topic().await;
    let mut stream = Follower::open(&test.client, follow("orders")).await;
    for way in WAYS {
        let mut least_late = i64::MAX;
        for _ in 0..ROUNDS {
            way.send(&mut test.client).await;
            let message = stream.message().await;
            assert_eq!(message.read_ct, 1);
            least_late = least_late.min(lateness(&test, &message).await);
        }
        assert!(least_late < AWAKE_MICROS, "{way:?}: {least_late} us");
    }
}

/// A queue whose table is so large that nobody looks for what nobody tells before a wait's end; a reader who waits; and a
/// message that falls due in some seconds, of which nobody was told.
async fn with_a_silent_message() -> (Test, JoinHandle<Vec<Message>>, i64) {
    let mut test = Test::with_queue("orders").await;
    let bodies = "ARRAY(SELECT to_jsonb(repeat(md5(n::text), 8)) FROM generate_series(1, 20000) AS n)";
    test.run(&format!("SELECT pgmq.send_batch('orders', {bodies}); DELETE FROM pgmq.q_orders")).await;
    let msg_id = test.value("SELECT pgmq.send('orders', '{}', 600)").await;
    let read = begin_read(&test, waiting_for("orders"));
    // By then it is clear that nothing is about to come.
    looks(&test, 4).await;
    test.run("UPDATE pgmq.q_orders SET vt = clock_timestamp() + interval '5 s'").await;
    test.client.create("slow").await;
    (test, read, msg_id)
}

fn hide(msg_id: i64) -> SetVisibilityTimeoutRequest {
    SetVisibilityTimeoutRequest {
        queue: "orders".to_owned(),
        msg_ids: vec![msg_id],
        visibility: seconds(600.0).map(Visibility::VisibilityTimeout),
        ..Default::default()
    }
}

async fn until_due(test: &Test) {
    let due = "SELECT vt <= clock_timestamp() FROM pgmq.q_orders";
    eventually("the moment", async || test.value::<bool>(due).await.then_some(())).await;
}

#[tokio::test]
async fn a_rollback_wakes_those_who_passed_over_what_it_held() {
    let (test, read, msg_id) = with_a_silent_message().await;
    let mut open = Open::begin(&test.client).await;
    open.done(Command::SetVisibilityTimeout(hide(msg_id))).await;
    until_due(&test).await;
    assert!(!read.is_finished());
    open.done(rollback()).await;
    let read = read.await.unwrap();
    assert_eq!((ids(&read), read[0].read_ct), (vec![msg_id], 1));
}

#[tokio::test]
async fn a_transact_that_fails_wakes_those_who_passed_over_what_it_held() {
    let (test, read, msg_id) = with_a_silent_message().await;
    let _gate = Gate::close(&test, "slow", "INSERT").await;
    let send = SendRequest { queue: "slow".to_owned(), message: "{}".to_owned(), ..Default::default() };
    let operations = [Operation::SetVisibilityTimeout(hide(msg_id)), Operation::Send(send)];
    let operations = operations.map(|operation| TransactOperation { operation: Some(operation) }).to_vec();
    let mut request = Request::new(TransactRequest { operations, ..Default::default() });
    request.set_timeout(Duration::from_secs(8));
    let mut client = patient(&test.server);
    let failed = client.transact(request).await.expect_err("an error");
    assert_eq!(failed.code(), Code::DeadlineExceeded);
    let read = read.await.unwrap();
    assert_eq!((ids(&read), read[0].read_ct), (vec![msg_id], 1));
}

/// The looks of the server at idle queues that are seen from now on until there are so many, in their order: whether each
/// was a close one.
async fn looks(test: &Test, count: usize) -> Vec<bool> {
    let look = "SELECT query_start::text, query LIKE '%EXISTS%' FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE '-- pgmq-grpc: look_around%'";
    let mut seen = BTreeSet::new();
    eventually("looks", async || {
        let rows = test.sql.query(look, &[]).await.unwrap();
        seen.extend(rows.iter().map(|row| (row.get::<_, String>(0), row.get::<_, bool>(1))));
        (seen.len() >= count).then_some(())
    })
    .await;
    seen.into_iter().map(|(_, closely)| closely).collect()
}

#[tokio::test]
async fn a_large_partitioned_queue_is_not_looked_at_closely_all_the_time() {
    let test = Test::with_queue("orders").await;
    // As pg_partman would cut it; all its rows are in one partition, and none is visible.
    test.run(
        "CREATE TABLE pgmq.parent (LIKE pgmq.q_orders INCLUDING DEFAULTS INCLUDING IDENTITY) PARTITION BY RANGE (msg_id);
         DROP TABLE pgmq.q_orders; ALTER TABLE pgmq.parent RENAME TO q_orders;
         CREATE TABLE pgmq.q_orders_p1 PARTITION OF pgmq.q_orders FOR VALUES FROM (1) TO (1000000);
         UPDATE pgmq.meta SET is_partitioned = true WHERE queue_name = 'orders';
         INSERT INTO pgmq.q_orders (vt, message) SELECT now() + interval '1 day', to_jsonb(repeat(md5(n::text), 8))
           FROM generate_series(1, 20000) AS n",
    )
    .await;
    let read = begin_read(&test, waiting_for("orders"));
    let looks = looks(&test, 6).await;
    // Its size is not known at first, and the transaction that filled it may still be among those that run.
    assert!(!looks.iter().skip(2).any(|closely| *closely), "{looks:?}");
    assert!(!read.is_finished());
    read.abort();
}
