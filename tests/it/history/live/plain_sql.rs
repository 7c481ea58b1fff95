//! Users of the same database who know nothing of any server.

use std::time::Duration;

use pgmq_grpc::domain::Timestamp;
use rand::Rng;
use tokio_postgres::{Client, NoTls, Row};

use super::worker::{Asked, Run, Worker};
use super::{GROUPS, ORDERS, QUIET};
use crate::history::record::{
    Action, Delivery, FaultKind, Micros, Outcome, Part, Read, Send, Settle, Target, Verdict,
};

/// A connection, if the database takes one now.
pub(super) async fn connect(run: &Run) -> Option<Client> {
    let (client, connection) = tokio_postgres::connect(&run.database_url, NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}

/// The columns of a delivery, moments as microseconds.
const COLUMNS: &str = "msg_id, read_ct, (extract(epoch FROM enqueued_at) * 1000000)::bigint,
    (extract(epoch FROM last_read_at) * 1000000)::bigint, (extract(epoch FROM vt) * 1000000)::bigint, message::text";

/// Sends, reads and deletes by pgmq's own functions.
pub(super) async fn by_functions(mut worker: Worker) {
    let mut connection: Option<Client> = None;
    while worker.pause(150).await {
        let Some(client) = connection.take().filter(|client| !client.is_closed()) else {
            connection = connect(&worker.run).await;
            continue;
        };
        send(&mut worker, &client, ORDERS).await;
        let (asked, columns) = (worker.run.now(), COLUMNS);
        let sql = format!("SELECT {columns} FROM pgmq.read(queue_name => '{ORDERS}', vt => 2, qty => 3)");
        let rows = client.query(&sql, &[]).await;
        let deliveries: Vec<Delivery> =
            rows.iter().flatten().map(|row| delivery(row, worker.run.now())).collect();
        let read = Read { queue: ORDERS.to_owned(), deliveries: deliveries.clone(), ..Read::default() };
        record(&worker, "pgmq.read", asked, rows.is_ok(), vec![Part::Read(read)]);
        for delivery in &deliveries {
            if worker.chance(80) {
                delete(&worker, &client, delivery).await;
            }
        }
        connection = Some(client);
    }
}

/// Sends one message, of which no server hears.
async fn send(worker: &mut Worker, client: &Client, queue: &str) {
    let (asked, body) = (worker.run.now(), worker.body());
    let sql = format!("SELECT send FROM pgmq.send(queue_name => '{queue}', msg => $1::text::jsonb)");
    let sent = client.query_one(&sql, &[&body]).await;
    let msg_id = sent.as_ref().ok().map(|row| row.get(0));
    let part = Part::Send(Send { queue: queue.to_owned(), body, msg_id, ..Send::default() });
    record(worker, "pgmq.send", asked, sent.is_ok(), vec![part]);
}

async fn delete(worker: &Worker, client: &Client, delivery: &Delivery) {
    let asked = worker.run.now();
    let sql = format!("SELECT pgmq.delete('{ORDERS}', $1::bigint)");
    let deleted = client.query_one(&sql, &[&delivery.msg_id]).await;
    let outcome = deleted.as_ref().ok().map(|row| if row.get(0) { Outcome::Done } else { Outcome::NotFound });
    let target = Target::Id(delivery.msg_id);
    let (queue, action) = (ORDERS.to_owned(), Action::Delete);
    let part = Settle { queue, action, target, by_policy: false, outcome, vt: None };
    record(worker, "pgmq.delete", asked, deleted.is_ok(), vec![Part::Settle(part)]);
}

/// An error of a connection says nothing about what became of its statement.
fn record(worker: &Worker, what: &'static str, asked: Micros, is_done: bool, parts: Vec<Part>) {
    let verdict = if is_done { Verdict::Done } else { Verdict::Unknown("connection lost".to_owned()) };
    worker.record(Asked::new(what, parts), asked, verdict);
}

fn delivery(row: &Row, seen: Micros) -> Delivery {
    Delivery {
        msg_id: row.get(0),
        read_ct: row.get(1),
        enqueued_at: row.get(2),
        last_read_at: row.get(3),
        vt: row.get(4),
        body: row.get(5),
        seen,
    }
}

/// Sends to the quiet queue now and then, behind the servers' backs.
pub(super) async fn quietly(mut worker: Worker) {
    let mut connection: Option<Client> = None;
    while worker.pause(1_500).await {
        let Some(client) = connection.take().filter(|client| !client.is_closed()) else {
            connection = connect(&worker.run).await;
            continue;
        };
        send(&mut worker, &client, QUIET).await;
        connection = Some(client);
    }
}

/// Locks some rows for a while, again and again.
pub(super) async fn by_locks(mut worker: Worker) {
    while worker.pause(1_500).await {
        let Some(mut client) = connect(&worker.run).await else { continue };
        let queue = if worker.chance(30) { GROUPS } else { ORDERS };
        let Ok(transaction) = client.transaction().await else { continue };
        let from = worker.run.now();
        let count: i64 = worker.random.random_range(1..6);
        let sql = format!(
            "SELECT msg_id FROM pgmq.q_{queue} ORDER BY random() LIMIT {count} FOR UPDATE SKIP LOCKED"
        );
        let Ok(rows) = transaction.query(&sql, &[]).await else { continue };
        let msg_ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        // Some longer than anybody waits for a lock.
        let pause = match worker.random.random_range(0..100) {
            0..10 => Duration::from_secs(10),
            10..30 => worker.millis(4_000),
            _ => worker.millis(600),
        };
        worker.goes_on(pause).await;
        let _ = transaction.rollback().await;
        worker.run.record_fault(FaultKind::Locked { queue: queue.to_owned(), msg_ids }, from);
    }
}

/// This machine's clock and the database's, in microseconds apart.
pub(super) async fn clocks_apart(client: &Client) -> Micros {
    let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let row = client.query_one(sql, &[]).await.expect("the database's clock");
    (row.get::<_, Micros>(0) - Timestamp::now().unix_micros()).abs()
}
