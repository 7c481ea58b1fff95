//! Sequences of ids that are behind their tables, as a crash or a failover leaves them.

use pgmq_grpc::proto::v1::SendRequest;

use crate::harness::{Client, Server, TestDatabase, health};

#[tokio::test]
async fn a_sequence_that_is_behind_is_moved_when_a_server_starts() {
    let database = TestDatabase::create().await;
    let sql = database.connect().await;
    // One behind its queue, one behind its archive, one never used with an archive, one in order, one without a table.
    sql.batch_execute(
        "SELECT pgmq.create(n) FROM unnest(ARRAY['queue', 'archive', 'fresh', 'fine', 'broken', 'Mixed-Case']) AS n;
         SELECT pgmq.send(q, '1') FROM unnest(ARRAY['queue', 'archive', 'fine', 'Mixed-Case']) AS q, generate_series(1, 5);
         SELECT pgmq.archive('archive', n) FROM generate_series(1, 5) AS n;
         SELECT setval('pgmq.q_queue_msg_id_seq', 2), setval('pgmq.q_archive_msg_id_seq', 1),
           setval('pgmq.\"q_mixed-case_msg_id_seq\"', 4);
         INSERT INTO pgmq.a_fresh (msg_id, vt, message) VALUES (1, now(), '1');
         DROP TABLE pgmq.q_broken",
    )
    .await
    .unwrap();

    let server = Server::start_on(&database, &[]).await;
    let mut client = Client::connect(&server).await;
    health::serving(&client).await;

    for (queue, next) in [("queue", 6), ("archive", 6), ("fresh", 2), ("fine", 6), ("Mixed-Case", 6)] {
        assert_eq!(client.send(queue, "{}").await, next, "{queue}");
    }
    assert_eq!(server.log().matches("are moved").count(), 1, "{}", server.log());
    let broken = SendRequest { queue: "broken".to_owned(), message: "{}".to_owned(), ..Default::default() };
    client.queue.send(broken).await.unwrap_err();
}

#[tokio::test]
async fn hundreds_of_queues_are_looked_at_and_left_alone() {
    let database = TestDatabase::create().await;
    let sql = database.connect().await;
    sql.batch_execute(
        "SELECT pgmq.create('q' || n) FROM generate_series(1, 230) AS n; SELECT pgmq.send('q200', '1');
         SELECT setval('pgmq.q_q200_msg_id_seq', 1, false)",
    )
    .await
    .unwrap();

    let server = Server::start_on(&database, &[]).await;
    let mut client = Client::connect(&server).await;
    health::serving(&client).await;

    assert_eq!(client.send("q200", "{}").await, 2);
    assert_eq!(client.send("q230", "{}").await, 1);
    assert!(server.log().contains("\"moved\":1"), "{}", server.log());
}

#[tokio::test]
async fn a_page_of_queues_without_tables_does_not_hide_those_behind_it() {
    let database = TestDatabase::create().await;
    let sql = database.connect().await;
    sql.batch_execute(
        "INSERT INTO pgmq.meta (queue_name, is_partitioned, is_unlogged)
           SELECT 'a' || n, false, false FROM generate_series(1, 150) AS n;
         SELECT pgmq.create('behind'); SELECT pgmq.send('behind', '1'), pgmq.send('behind', '2');
         SELECT setval('pgmq.q_behind_msg_id_seq', 1)",
    )
    .await
    .unwrap();

    let server = Server::start_on(&database, &[]).await;
    let mut client = Client::connect(&server).await;
    health::serving(&client).await;

    assert_eq!(client.send("behind", "{}").await, 3);
}
