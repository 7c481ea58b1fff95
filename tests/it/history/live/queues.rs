//! The queues of everybody: how they are made, and what is in them at the end.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use pgmq_grpc::proto::v1::queue_service_client::QueueServiceClient;
use pgmq_grpc::proto::v1::{CreateQueueRequest, DropQueueRequest, QueueLayout, QueuePolicy, SendRequest};
use rand::Rng;
use tokio_postgres::Client;
use tonic::Code;

use super::worker::{Run, Worker, connection};
use super::{
    BURIED, BURIED_GROUPS, DOOMED, GROUPS, KEYED, ORDERS, PATIENCE, QUEUES, RESULTS, ROUTING_KEY, plain_sql,
    policies, readers,
};
use crate::harness::eventually;
use crate::history::operators::Policy;
use crate::history::record::{DeadLetter, History, Row, Tables};

/// Makes the queues, each in some layout, the table that refuses some messages, and the topic.
pub(super) async fn prepare(seed: u64, addresses: Vec<String>, database_url: &str) -> Arc<Run> {
    let alone = addresses.len() == 1;
    let mut worker =
        Worker::new(&Run::new(seed, addresses.clone(), String::new(), History::default()), "founder");
    let mut given: BTreeMap<String, Policy> =
        policies::QUEUES.map(|queue| (queue.to_owned(), policies::some_policy(&mut worker, queue))).into();
    let mut on_the_wire: BTreeMap<String, QueuePolicy> =
        given.iter().map(|(queue, policy)| (queue.clone(), policies::on_the_wire(policy))).collect();
    let (policy, wire) = policies::of_groups();
    given.insert(GROUPS.to_owned(), policy);
    on_the_wire.insert(GROUPS.to_owned(), wire);
    let history = History {
        deduplication_window: 2_000_000,
        patience: PATIENCE,
        policies: given,
        // A change holds at once at the server that makes it.
        policy_lag: if alone { 0 } else { PATIENCE },
        ..History::default()
    };
    let run = Run::new(seed, addresses, database_url.to_owned(), history);
    for queue in [BURIED, BURIED_GROUPS].into_iter().chain(QUEUES) {
        let layout = [QueueLayout::Tuned, QueueLayout::Pgmq][worker.random.random_range(0..2)];
        let request = CreateQueueRequest {
            queue: queue.to_owned(),
            layout: layout.into(),
            policy: on_the_wire.get(queue).cloned(),
            ..Default::default()
        };
        // The server that was started last may still be making its schema.
        eventually("a queue", async || worker.client().create_queue(request.clone()).await.ok()).await;
    }
    until_policies_are_known(&run, &mut worker).await;
    let client = eventually("a connection", async || plain_sql::connect(&run).await).await;
    let refuse = format!(
        "ALTER TABLE pgmq.q_{ORDERS} ADD CONSTRAINT refused CHECK (message::text NOT LIKE '\"{DOOMED}%')"
    );
    client.batch_execute(&refuse).await.expect("a constraint");
    for queue in [KEYED, RESULTS] {
        let bind = format!("SELECT pgmq.bind_topic('{ROUTING_KEY}', '{queue}')");
        client.batch_execute(&bind).await.expect("a binding");
    }
    let apart = plain_sql::clocks_apart(&client).await;
    assert!(apart < 5_000_000, "the clocks of database and machine are {apart} µs apart");
    run
}

/// Waits until every server goes by the policies, which one of them has set: until a queue that was made after all others
/// refuses there what its policy forbids. Policies are learned all at once.
async fn until_policies_are_known(run: &Arc<Run>, worker: &mut Worker) {
    let queue = "known".to_owned();
    let policy = Some(QueuePolicy { max_message_bytes: Some(1_024), ..Default::default() });
    let create = CreateQueueRequest { queue: queue.clone(), policy, ..Default::default() };
    eventually("a queue", async || worker.client().create_queue(create.clone()).await.ok()).await;
    let message = format!("\"{}\"", "x".repeat(2_000));
    let send = SendRequest { queue: queue.clone(), message, ..Default::default() };
    for address in &run.addresses {
        let mut client = QueueServiceClient::new(connection(address));
        eventually("a server that knows the policies", async || {
            client.send(send.clone()).await.err().filter(|error| error.code() == Code::InvalidArgument)
        })
        .await;
    }
    let drop_it = DropQueueRequest { queue };
    eventually("no queue", async || worker.client().drop_queue(drop_it.clone()).await.ok()).await;
}

/// Reads and deletes everything that is left, through the servers.
///
/// # Panics
/// If a queue does not get shorter for [`crate::harness::PATIENCE`]: what is in it, nobody can read.
pub(super) async fn drain(run: &Arc<Run>) {
    join_all(QUEUES.map(|queue| drain_one(run, queue))).await;
}

async fn drain_one(run: &Arc<Run>, queue: &str) {
    let mut worker = Worker::new(run, &format!("drainer of {queue}"));
    worker.impatience = 0;
    let mut left = i64::MAX;
    while left > 0 {
        left = eventually(&format!("fewer messages than {left} in {queue}"), async || {
            let messages = readers::read(&mut worker, queue, 500, 5.0, 0.2).await;
            readers::delete(&mut worker, queue, &messages, false).await;
            let client = plain_sql::connect(run).await?;
            let count = client.query_one(&format!("SELECT count(*) FROM pgmq.q_{queue}"), &[]).await.ok()?;
            Some(count.get::<_, i64>(0)).filter(|&count| count < left)
        })
        .await;
    }
}

/// What the tables hold, once nothing of the servers is under way any more.
pub(super) async fn tables(run: &Run) -> BTreeMap<String, Tables> {
    let client = eventually("a connection", async || plain_sql::connect(run).await).await;
    eventually("the end of all statements", async || {
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'
            AND pid <> pg_backend_pid() AND query ~ '^-- pgmq-grpc: (send|delete|archive|set_vt|give_back|redrive|dead_letter|replay)'";
        let busy = client.query_one(sql, &[]).await.expect("the activity").get::<_, i64>(0);
        (busy == 0).then_some(())
    })
    .await;
    let mut names: BTreeMap<String, String> = run.made().clone();
    names.extend(QUEUES.map(|queue| (queue.to_owned(), queue.to_owned())));
    let mut tables = BTreeMap::new();
    for (label, queue) in names {
        let (queue_rows, archive) =
            (rows(&client, &format!("q_{queue}")).await, rows(&client, &format!("a_{queue}")).await);
        tables.insert(label, Tables { queue: queue_rows, archive });
    }
    tables
}

/// What the dead-letter queues hold, by what its headers say.
pub(super) async fn dead_letters(run: &Run) -> Vec<DeadLetter> {
    let client = eventually("a connection", async || plain_sql::connect(run).await).await;
    let sql = format!(
        "SELECT d.letter ->> 'queue', (d.letter ->> 'msg_id')::bigint, d.body, (d.letter ->> 'read_ct')::integer,
           d.letter ->> 'reason'
         FROM (SELECT headers -> 'x-pgmq-dead-letter' AS letter, message::text AS body
         FROM (SELECT headers, message FROM pgmq.q_{BURIED} UNION ALL SELECT headers, message FROM pgmq.q_{BURIED_GROUPS}) AS q) AS d"
    );
    let rows = client.query(&sql, &[]).await.expect("rows");
    let letter = |row: &tokio_postgres::Row| DeadLetter {
        queue: row.get(0),
        msg_id: row.get(1),
        body: row.get(2),
        handed_over: row.get(3),
        reason: row.get(4),
    };
    rows.iter().map(letter).collect()
}

/// The rows of a table; none of one that is not there, because making it failed or dropping it has come true.
async fn rows(client: &Client, table: &str) -> Vec<Row> {
    let sql = format!("SELECT to_regclass('pgmq.{table}') IS NOT NULL");
    if !client.query_one(&sql, &[]).await.expect("an answer").get::<_, bool>(0) {
        return Vec::new();
    }
    let sql = format!("SELECT msg_id, message::text FROM pgmq.{table} ORDER BY msg_id");
    let rows = client.query(&sql, &[]).await.expect("rows");
    rows.iter().map(|row| Row { msg_id: row.get(0), body: row.get(1) }).collect()
}
