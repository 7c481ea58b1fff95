//! Consumers that wait cost the database next to nothing, however many there are.

use std::time::{Duration, Instant};

use pgmq_grpc::proto::v1::ReadRequest;

use crate::harness::postgres::Postgres;
use crate::harness::{Client, Test, eventually};
use crate::read_stream::Follower;

const QUEUES: usize = 200;
const STREAMS: usize = 2_000;

/// The server takes no more streams on a connection.
const STREAMS_PER_CONNECTION: usize = 200;

/// How long the statements are counted.
const SPELL: Duration = Duration::from_secs(10);

/// Opens streams, evenly on all queues.
async fn wait_everywhere(test: &Test) -> Vec<Follower> {
    let connections = (0..STREAMS.div_ceil(STREAMS_PER_CONNECTION)).map(|_| Client::connect(&test.server));
    let clients = futures_util::future::join_all(connections).await;
    let mut streams = Vec::with_capacity(STREAMS);
    // Not more at a time than may wait for the database.
    while streams.len() < STREAMS {
        let some = (streams.len()..STREAMS).take(1_000).map(|index| {
            let queue = format!("idle_{}", index % QUEUES);
            Follower::open(&clients[index % clients.len()], ReadRequest { queue, ..Default::default() })
        });
        streams.extend(futures_util::future::join_all(some).await);
    }
    streams
}

#[tokio::test]
async fn thousands_of_waiting_streams_cost_few_connections_and_two_statements_a_second() {
    let mut test = Test::start_with(&["--log", "info,pgmq_grpc::pg::database=trace"]).await;
    // A transaction may hold only so many locks.
    for first in (0..QUEUES).step_by(50) {
        let numbers = format!("generate_series({first}, {})", (first + 49).min(QUEUES - 1));
        test.run(&format!("SELECT pgmq.create('idle_' || number) FROM {numbers} AS number")).await;
    }
    let mut streams = wait_everywhere(&test).await;
    // The server's own count. The database's has also what autovacuum does, the health check, and the dozen statements of each
    // connection that is made, which on a busy machine happens at times because two tasks want one in the same moment.
    let statements = || test.server.log().matches("\"statement\":").count();

    // On a busy machine it takes a while until the first look at every queue is over.
    let mut spells = Vec::new();
    loop {
        let (begun, before) = (Instant::now(), statements());
        tokio::time::sleep(SPELL).await;
        let rate = (statements() - before) as f64 / begun.elapsed().as_secs_f64();
        spells.push(rate);
        if rate <= 2.0 {
            break;
        }
        assert!(spells.len() < 45, "never two statements a second, but {spells:?}");
    }
    // Asked from another database, so that asking does not count.
    let aside = Postgres::shared().connect("pgmq").await;
    eventually("few connections", async || {
        let connections =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name = 'pgmq-grpc'";
        // Besides the one that is at work: those of the health checks and of the announcements.
        let row = aside.query_one(connections, &[&test.database.name]).await.expect("a count");
        (row.get::<_, i64>(0) <= 4).then_some(())
    })
    .await;

    // None of them sleeps so deep that it misses a message.
    let woken = streams.len() - 1;
    let queue = format!("idle_{}", woken % QUEUES);
    let sent = test.client.send(&queue, "{}").await;
    let of_the_queue = streams.iter_mut().skip(woken % QUEUES).step_by(QUEUES);
    let messages = of_the_queue.map(|stream| Box::pin(stream.message()));
    let (message, _, _) = futures_util::future::select_all(messages).await;
    assert_eq!(message.msg_id, sent);
}
