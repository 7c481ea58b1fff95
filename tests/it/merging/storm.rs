//! Everything that locks rows against everything else, through two servers on one database.

use pgmq_grpc::proto::v1::set_visibility_timeout_request::Visibility;
use pgmq_grpc::proto::v1::transact_operation::Operation;
use pgmq_grpc::proto::v1::{
    ArchiveRequest, CreateQueueRequest, DeleteRequest, DropQueueRequest, PurgeQueueRequest, ReadBatchRequest,
    SendRequest, SetVisibilityTimeoutRequest, TransactOperation, TransactRequest,
};
use tonic::Status;

use crate::harness::{Client, Refusal, Server, Test, seconds};

const ROUNDS: i64 = 40;
const QUEUE: &str = "orders";

fn queue() -> String {
    QUEUE.to_owned()
}

/// What a call under way may be told; never of a collision.
#[track_caller]
fn expect_calm<T>(answer: Result<T, Status>, besides: &[&str]) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(status) => {
            let refusal = Refusal::of(&status);
            let calm = ["QUEUE_BUSY", "QUEUE_NOT_FOUND"].contains(&refusal.reason.as_str())
                || besides.contains(&refusal.reason.as_str());
            assert!(calm, "{refusal:?}");
            None
        }
    }
}

/// Ids of which others work on some too, in an order of their own.
fn ids(round: i64, salt: i64) -> Vec<i64> {
    let mut ids: Vec<i64> = (0..12).map(|place| 1 + (round * 7 + place * salt) % (ROUNDS * 4)).collect();
    if salt % 2 == 0 {
        ids.reverse();
    }
    ids
}

async fn send(mut client: Client) {
    for _ in 0..ROUNDS * 4 {
        let request = SendRequest { queue: queue(), message: "{}".to_owned(), ..Default::default() };
        expect_calm(client.queue.send(request).await, &[]);
    }
}

async fn read_and_settle(mut client: Client, archives: bool) {
    for _ in 0..ROUNDS {
        let request = ReadBatchRequest {
            queue: queue(),
            max_messages: 9,
            visibility_timeout: seconds(1.0),
            ..Default::default()
        };
        let Some(read) = expect_calm(client.queue.read_batch(request).await, &[]) else {
            continue;
        };
        let mut receipts: Vec<String> =
            read.into_inner().messages.into_iter().map(|message| message.receipt).collect();
        receipts.reverse();
        if receipts.is_empty() {
            continue;
        }
        if archives {
            let request = ArchiveRequest { queue: queue(), receipts, msg_ids: vec![] };
            expect_calm(client.queue.archive(request).await, &[]);
        } else {
            let request = DeleteRequest { queue: queue(), receipts, msg_ids: vec![] };
            expect_calm(client.queue.delete(request).await, &[]);
        }
    }
}

async fn settle_by_id(mut client: Client, salt: i64) {
    for round in 0..ROUNDS {
        let visible = SetVisibilityTimeoutRequest {
            queue: queue(),
            msg_ids: ids(round, salt),
            visibility: seconds(0.0).map(Visibility::VisibilityTimeout),
            ..Default::default()
        };
        expect_calm(client.queue.set_visibility_timeout(visible).await, &[]);
        let gone = DeleteRequest { queue: queue(), msg_ids: ids(round, salt + 1), receipts: vec![] };
        expect_calm(client.queue.delete(gone).await, &[]);
    }
}

async fn transact(mut client: Client) {
    for round in 0..ROUNDS {
        let delete = DeleteRequest { queue: queue(), msg_ids: ids(round, 5), receipts: vec![] };
        let archive = ArchiveRequest { queue: queue(), msg_ids: ids(round, 8), receipts: vec![] };
        let operations = [Operation::Delete(delete), Operation::Archive(archive)];
        let operations = operations.map(|operation| TransactOperation { operation: Some(operation) });
        let request = TransactRequest { operations: operations.to_vec(), ..Default::default() };
        // Its own collisions are its own: it locks what it waits for.
        expect_calm(client.queue.transact(request).await, &["CONFLICT"]);
    }
}

async fn empty_and_remake(mut client: Client) {
    for round in 0..ROUNDS / 4 {
        if round % 2 == 0 {
            expect_calm(client.queue.purge_queue(PurgeQueueRequest { queue: queue() }).await, &["CONFLICT"]);
        } else {
            expect_calm(client.queue.drop_queue(DropQueueRequest { queue: queue() }).await, &["CONFLICT"]);
            let request = CreateQueueRequest { queue: queue(), ..Default::default() };
            expect_calm(client.queue.create_queue(request).await, &["CONFLICT"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merged_statements_of_two_servers_collide_with_nothing() {
    // Whoever waits for a lock has a connection for it, so nobody is refused for want of one, however slow the machine.
    let flags = ["--pool-size", "32"];
    let mut test = Test::start_with(&flags).await;
    test.client.create(QUEUE).await;
    let other = Server::start_on(&test.database, &flags).await;
    let mut tasks = Vec::new();
    for server in [&test.server, &other] {
        for _ in 0..3 {
            tasks.push(tokio::spawn(send(Client::connect(server).await)));
        }
        tasks.push(tokio::spawn(read_and_settle(Client::connect(server).await, true)));
        tasks.push(tokio::spawn(read_and_settle(Client::connect(server).await, false)));
        tasks.push(tokio::spawn(settle_by_id(Client::connect(server).await, 3)));
        tasks.push(tokio::spawn(settle_by_id(Client::connect(server).await, 4)));
        tasks.push(tokio::spawn(transact(Client::connect(server).await)));
    }
    tasks.push(tokio::spawn(empty_and_remake(test.client.clone())));
    for task in tasks {
        task.await.expect("a calm caller");
    }
}
