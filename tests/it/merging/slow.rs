//! Queues whose statements take long: they have their part of the pool, and the others find connections.

use std::time::{Duration, Instant};

use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::{
    ConsumeStart, DeleteRequest, GetQueueMetricsRequest, ItemResult, Outcome, PopRequest, ReadBatchRequest,
    SendBatchRequest, SendRequest, SendTopicRequest, SettleAction, TransactOperation, TransactRequest,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::consume::{Consumer, start};
use crate::harness::client::outgoing;
use crate::harness::wire::{Call, call};
use crate::harness::{Client, PATIENCE, Refusal, Test, eventually, seconds};
use crate::server_state::eventually_shows;

/// The connections of a server's pool.
const POOL: usize = 8;

/// More than the pool has connections.
const SLOW: usize = 12;

/// What slow queues have of it.
const THEIRS: i64 = 4;

/// What reads of slow queues have of it.
const THEIR_READS: i64 = 3;

/// What one method has of it with one queue.
const ONE_USE: i64 = 5;

/// What one queue has of it, and what is sent to topics.
const ONE_QUEUE: i64 = 6;

/// How many sessions wait for a table.
const WAITING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'relation'";

const OTHERS: usize = 20;

/// How long a statement waits for a table.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Queues of which some take their time for a kind of writes, each with a message.
async fn with_slow_queues(kind: &str) -> (Test, Vec<String>, Vec<String>) {
    let test = Test::start().await;
    let slow: Vec<String> = (0..SLOW).map(|number| format!("slow_{number}")).collect();
    let others: Vec<String> = (0..OTHERS).map(|number| format!("other_{number}")).collect();
    for queue in slow.iter().chain(&others) {
        test.run(&format!(
            "SELECT pgmq.create('{queue}'); SELECT pgmq.send('{queue}', '0') FROM generate_series(1, 2)"
        ))
        .await;
    }
    // As slow as it takes to be known for it, and then until it is told to end.
    test.run(
        "CREATE TABLE pace (waits boolean); INSERT INTO pace VALUES (false);
         CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           PERFORM set_config('client_connection_check_interval', '0', true);
           PERFORM pg_sleep(1);
           WHILE (SELECT waits FROM pace) LOOP PERFORM pg_sleep(0.01); END LOOP;
           IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
           RETURN NEW;
         END $$",
    )
    .await;
    for queue in &slow {
        test.run(&format!(
            "CREATE TRIGGER take_time BEFORE {kind} ON pgmq.q_{queue} FOR EACH ROW EXECUTE FUNCTION take_time()"
        ))
        .await;
    }
    (test, slow, others)
}

async fn send(mut client: Client, queue: String) -> Result<(), Status> {
    let request = SendRequest { queue, message: "1".to_owned(), ..Default::default() };
    client.queue.send(request).await.map(|_: tonic::Response<_>| ())
}

async fn delete(mut client: Client, queue: String, msg_id: i64) -> Result<(), Status> {
    let request = DeleteRequest { queue, msg_ids: vec![msg_id], ..Default::default() };
    let results = client.queue.delete(request).await?.into_inner().results;
    assert_eq!(results.iter().map(ItemResult::outcome).collect::<Vec<_>>(), [Outcome::Done]);
    Ok(())
}

/// Has every slow queue wait in one call, and checks that calls of the others are answered meanwhile. `call` gets the number of
/// a queue's earlier calls. So many of the slow ones have a connection.
async fn expect_others_answered<C: Future<Output = Result<(), Status>> + Send + 'static>(
    kind: &str,
    theirs: i64,
    call: impl Fn(Client, String, i64) -> C,
) {
    let (test, slow, others) = with_slow_queues(kind).await;
    let first = slow.iter().map(|queue| call(test.client.clone(), queue.clone(), 0));
    for answered in first.collect::<JoinSet<_>>().join_all().await {
        answered.expect("a slow call");
    }
    test.run("UPDATE pace SET waits = true").await;
    let mut waiting = JoinSet::new();
    for queue in &slow {
        waiting.spawn(call(test.client.clone(), queue.clone(), 1));
    }
    let at_work = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event = 'PgSleep' AND pid <> pg_backend_pid()";
    eventually("as many slow calls as may be", async || {
        (test.value::<i64>(at_work).await == theirs).then_some(())
    })
    .await;
    for queue in &others {
        let answered = call(test.client.clone(), queue.clone(), 0);
        tokio::time::timeout(PATIENCE, answered).await.expect("an answer").expect("a quick call");
    }
    assert_eq!(waiting.len(), SLOW);
    assert!(waiting.try_join_next().is_none(), "a slow call has ended before its time");
    test.run("UPDATE pace SET waits = false").await;
    for answered in tokio::time::timeout(PATIENCE, waiting.join_all()).await.expect("the others' end") {
        answered.expect("a slow call");
    }
}

#[tokio::test]
async fn sends_to_slow_queues_leave_connections_to_those_of_others() {
    expect_others_answered("INSERT", THEIRS, |client, queue, _| send(client, queue)).await;
}

#[tokio::test]
async fn settles_of_slow_queues_leave_connections_to_those_of_others() {
    expect_others_answered("DELETE", THEIRS, |client, queue, before| delete(client, queue, before + 1)).await;
}

#[tokio::test]
async fn reads_of_slow_queues_leave_connections_to_those_of_others() {
    expect_others_answered("UPDATE", THEIR_READS, |mut client, queue, _| async move {
        let request = ReadBatchRequest { queue, max_messages: 1, ..Default::default() };
        let read = client.queue.read_batch(request).await?.into_inner();
        assert_eq!(read.messages.len(), 1);
        Ok(())
    })
    .await;
}

/// Has more callers than connections come back to a locked table for as long as others are served, and checks that at no moment
/// more connections wait for it than may. The calls get their numbers.
async fn expect_lock_hurts_no_other(most: i64, call: impl Fn(usize) -> Call + Send + Sync + Clone + 'static) {
    let test = Test::with_queue("locked").await;
    test.client.clone().create("orders").await;
    for number in 0..POOL {
        test.client.clone().create(&format!("tenant_{number}")).await;
    }
    test.run("SELECT pgmq.bind_topic('locked.#', 'locked')").await;
    let other = test.database.connect().await;
    other.batch_execute("BEGIN; LOCK TABLE pgmq.q_locked").await.unwrap();
    let over = CancellationToken::new();
    let mut waiting = JoinSet::new();
    for number in 0..2 * POOL {
        let (channel, call, over) = (test.client.channel.clone(), call.clone(), over.clone());
        waiting.spawn(async move {
            while !over.is_cancelled() {
                // Nobody waits for a lock, or for a connection, for ever.
                if let Err(status) = call(number).make(&channel).await {
                    let reason = if status.code() == Code::Aborted { "QUEUE_BUSY" } else { "OVERLOADED" };
                    Refusal::expect(&status, status.code(), reason);
                }
            }
        });
    }
    eventually_shows(&test.client, "callers who wait", |state| state.calls_waiting_for_database > 0).await;
    for _ in 0..OTHERS {
        let answered = send(test.client.clone(), "orders".to_owned());
        tokio::time::timeout(PATIENCE, answered).await.expect("an answer").expect("a quick call");
        let now = test.value::<i64>(WAITING).await;
        assert!(now <= most, "{now} connections wait for one table");
    }
    over.cancel();
    other.batch_execute("COMMIT").await.unwrap();
    tokio::time::timeout(PATIENCE, waiting.join_all()).await.expect("the others' end");
}

fn locked() -> String {
    "locked".to_owned()
}

fn send_batch() -> Call {
    call(SendBatchRequest { queue: locked(), messages: vec![outgoing("1")] })
}

fn pop() -> Call {
    call(PopRequest { queue: locked(), ..Default::default() })
}

/// Sends to queues in one transaction.
fn transact(queues: &[String]) -> Call {
    let operations = queues.iter().map(|queue| {
        let send = SendRequest { queue: queue.clone(), message: "1".to_owned(), ..Default::default() };
        TransactOperation { operation: Some(Operation::Send(send)) }
    });
    call(TransactRequest { operations: operations.collect(), ..Default::default() })
}

#[tokio::test]
async fn callers_of_a_locked_queue_leave_connections_to_those_of_others() {
    tokio::join!(
        expect_lock_hurts_no_other(ONE_USE, |_| send_batch()),
        expect_lock_hurts_no_other(ONE_USE, |_| transact(&[locked()])),
        expect_lock_hurts_no_other(ONE_USE, |_| {
            call(GetQueueMetricsRequest { queue: locked(), ..Default::default() })
        }),
        expect_lock_hurts_no_other(ONE_QUEUE, |number| if number % 2 == 0 { send_batch() } else { pop() }),
    );
}

#[tokio::test]
async fn a_locked_queue_leaves_connections_also_where_calls_name_it_beside_others_or_not_at_all() {
    tokio::join!(
        expect_lock_hurts_no_other(ONE_USE, |number| transact(&[
            locked(),
            format!("tenant_{}", number % POOL)
        ])),
        expect_lock_hurts_no_other(ONE_QUEUE, |number| {
            let (routing_key, message) = (format!("locked.{number}"), "1".to_owned());
            call(SendTopicRequest { routing_key, message, ..Default::default() })
        }),
    );
}

#[tokio::test]
async fn streams_of_locked_queues_leave_connections_to_those_of_others() {
    let test = Test::with_queue("orders").await;
    let locked: Vec<String> = (0..SLOW).map(|number| format!("locked_{number}")).collect();
    let tables: Vec<String> = locked.iter().map(|queue| format!("pgmq.q_{queue}")).collect();
    let mut holding = Vec::new();
    for queue in &locked {
        test.run(&format!("SELECT pgmq.create('{queue}'); SELECT pgmq.send('{queue}', '0')")).await;
        // What it holds is looked at now and then.
        let mut consumer = Consumer::start(&test.client, start(queue)).await;
        consumer.message().await;
        holding.push(consumer);
    }
    let mut orders = Consumer::start(&test.client, start("orders")).await;
    let other = test.database.connect().await;
    other.batch_execute(&format!("BEGIN; LOCK TABLE {}", tables.join(", "))).await.unwrap();
    let mut reading = Vec::new();
    for queue in &locked {
        // Its reads go by themselves.
        let start = ConsumeStart { visibility_timeout: seconds(60.0), ..start(queue) };
        reading.push(Consumer::start(&test.client, start).await);
    }
    // Once all of them are known to be slow, they leave half to others. One looks at all idle queues.
    eventually("that connections are left", async || {
        let (began, mut most) = (Instant::now(), 0);
        while began.elapsed() < 2 * LOCK_TIMEOUT {
            let answered = send(test.client.clone(), "orders".to_owned());
            tokio::time::timeout(PATIENCE, answered).await.expect("an answer").expect("a quick call");
            let message = orders.message().await;
            assert_eq!(orders.settle(SettleAction::Delete, &[&message]).await, [Outcome::Done]);
            most = most.max(test.value::<i64>(WAITING).await);
        }
        (most > 0 && most <= THEIRS + 1).then_some(())
    })
    .await;
    other.batch_execute("COMMIT").await.unwrap();
    drop(holding);
    for (queue, consumer) in locked.iter().zip(&mut reading) {
        send(test.client.clone(), queue.clone()).await.expect("a send");
        consumer.some().await;
    }
}
