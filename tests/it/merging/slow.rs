//! Queues whose statements take long: they have their part of the pool, and the others find connections.

use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::{
    DeleteRequest, GetQueueMetricsRequest, ItemResult, Outcome, PopRequest, SendBatchRequest, SendRequest,
    TransactOperation, TransactRequest,
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::harness::client::outgoing;
use crate::harness::wire::{Call, call};
use crate::harness::{Client, PATIENCE, Refusal, Test, eventually};
use crate::server_state::eventually_shows;

/// The connections of a server's pool.
const POOL: usize = 8;

/// More than the pool has connections.
const SLOW: usize = 12;

/// What slow queues have of it.
const THEIRS: i64 = 4;

const OTHERS: usize = 20;

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
           PERFORM pg_sleep(0.3);
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
/// a queue's earlier calls.
async fn expect_others_answered<C: Future<Output = Result<(), Status>> + Send + 'static>(
    kind: &str,
    call: impl Fn(Client, String, i64) -> C,
) {
    let (test, slow, others) = with_slow_queues(kind).await;
    for queue in &slow {
        call(test.client.clone(), queue.clone(), 0).await.expect("a slow call");
    }
    test.run("UPDATE pace SET waits = true").await;
    let mut waiting = JoinSet::new();
    for queue in &slow {
        waiting.spawn(call(test.client.clone(), queue.clone(), 1));
    }
    let at_work = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event = 'PgSleep' AND pid <> pg_backend_pid()";
    eventually("as many slow calls as may be", async || {
        (test.value::<i64>(at_work).await == THEIRS).then_some(())
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
    expect_others_answered("INSERT", |client, queue, _| send(client, queue)).await;
}

#[tokio::test]
async fn settles_of_slow_queues_leave_connections_to_those_of_others() {
    expect_others_answered("DELETE", |client, queue, before| delete(client, queue, before + 1)).await;
}

/// Has more callers than connections wait for a locked table, and checks that other queues are served meanwhile.
async fn expect_lock_hurts_no_other(call: impl Fn() -> Call) {
    let test = Test::with_queue("locked").await;
    test.client.clone().create("orders").await;
    let other = test.database.connect().await;
    other.batch_execute("BEGIN; LOCK TABLE pgmq.q_locked").await.unwrap();
    let mut waiting = JoinSet::new();
    for _ in 0..2 * POOL {
        let (channel, call) = (test.client.channel.clone(), call());
        waiting.spawn(async move { call.make(&channel).await });
    }
    eventually_shows(&test.client, "callers who wait", |state| state.calls_waiting_for_database > 0).await;
    for _ in 0..OTHERS {
        let answered = send(test.client.clone(), "orders".to_owned());
        tokio::time::timeout(PATIENCE, answered).await.expect("an answer").expect("a quick call");
    }
    other.batch_execute("COMMIT").await.unwrap();
    for answered in tokio::time::timeout(PATIENCE, waiting.join_all()).await.expect("the others' end") {
        // Nobody waits for a lock, or for a connection, for ever.
        if let Err(status) = answered {
            let reason = if status.code() == Code::Aborted { "QUEUE_BUSY" } else { "OVERLOADED" };
            Refusal::expect(&status, status.code(), reason);
        }
    }
}

#[tokio::test]
async fn callers_of_a_locked_queue_leave_connections_to_those_of_others() {
    let queue = || "locked".to_owned();
    let send = || SendRequest { queue: queue(), message: "1".to_owned(), ..Default::default() };
    let step = || TransactOperation { operation: Some(Operation::Send(send())) };
    tokio::join!(
        expect_lock_hurts_no_other(|| call(SendBatchRequest {
            queue: queue(),
            messages: vec![outgoing("1")]
        })),
        expect_lock_hurts_no_other(|| call(PopRequest { queue: queue(), ..Default::default() })),
        expect_lock_hurts_no_other(|| call(TransactRequest {
            operations: vec![step()],
            ..Default::default()
        })),
        expect_lock_hurts_no_other(|| call(GetQueueMetricsRequest { queue: queue(), ..Default::default() })),
    );
}
