//! What the servers write down of their clients, so that each can list those of all.

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::database::{Connection, Parameter};
use super::row::column;
use super::statement::{Effect, Statement};
use crate::domain::client::REMEMBERED;
use crate::domain::page::Page;
use crate::domain::{Client, ClientRole, Error, Result};

/// Columns of clients that a server writes down, one place a client.
#[derive(Debug, Default)]
pub struct ClientRows {
    names: Vec<String>,
    roles: Vec<&'static str>,
    queues: Vec<String>,
    addresses: Vec<String>,
    in_flight: Vec<i32>,
    since_ms: Vec<i64>,
    last_seen_ms: Vec<Option<i64>>,
    gone: Vec<bool>,
}

/// How a client is: its messages under way, and how long ago it was first and last seen; no last time while it is seen
/// again and again.
pub type ClientState = (i32, Duration, Option<Duration>);

impl ClientRows {
    /// Adds a client, or without a state one that is forgotten.
    pub fn push(
        &mut self,
        (name, role, queue, address): (String, ClientRole, String, String),
        state: Option<ClientState>,
    ) {
        let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        let (in_flight, since, last_seen) = state.unwrap_or_default();
        self.names.push(name);
        self.roles.push(role.as_str());
        self.queues.push(queue);
        self.addresses.push(address);
        self.in_flight.push(in_flight);
        self.since_ms.push(millis(since));
        self.last_seen_ms.push(last_seen.map(millis));
        self.gone.push(state.is_none());
    }
}

/// `$1` this server, `$2` for how many milliseconds a silent server is remembered, then the columns. Tells also whether
/// the server was unknown: then all that it wrote before is gone.
const WRITE: Statement = Statement::new(
    "write_clients",
    Effect::Repeatable,
    "-- pgmq-grpc: write_clients
WITH alive AS (
  INSERT INTO pgmq_grpc.replica AS r (replica, seen_at) VALUES ($1::text, clock_timestamp())
  ON CONFLICT (replica) DO UPDATE SET seen_at = excluded.seen_at RETURNING r.xmax = 0 AS is_new),
dead AS (
  DELETE FROM pgmq_grpc.replica AS d WHERE d.replica = ANY (ARRAY(
    SELECT r.replica FROM pgmq_grpc.replica AS r
    WHERE r.replica <> $1::text AND r.seen_at < clock_timestamp() - $2::bigint * interval '1 millisecond'
    FOR UPDATE SKIP LOCKED))
  RETURNING d.replica),
buried AS (DELETE FROM pgmq_grpc.client AS c USING dead WHERE c.replica = dead.replica),
told AS MATERIALIZED (
  SELECT i.* FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::integer[], $8::bigint[], $9::bigint[],
    $10::boolean[]) AS i(name, role, queue, address, in_flight, since_ms, last_seen_ms, gone)),
forgotten AS (
  DELETE FROM pgmq_grpc.client AS c USING told AS t
  WHERE t.gone AND c.replica = $1::text AND c.name = t.name AND c.role = t.role AND c.queue = t.queue
    AND c.address = t.address),
written AS (
  INSERT INTO pgmq_grpc.client AS c (replica, name, role, queue, address, in_flight, since, last_seen)
  SELECT $1::text, t.name, t.role, t.queue, t.address, t.in_flight,
    clock_timestamp() - t.since_ms * interval '1 millisecond', clock_timestamp() - t.last_seen_ms * interval '1 millisecond'
  FROM told AS t WHERE NOT t.gone
  ON CONFLICT (replica, name, role, queue, address) DO UPDATE SET in_flight = excluded.in_flight,
    last_seen = excluded.last_seen)
SELECT alive.is_new FROM alive",
);

/// `$1` this server.
const FORGET: Statement = Statement::new(
    "forget_clients",
    Effect::Repeatable,
    "-- pgmq-grpc: forget_clients
WITH gone AS (DELETE FROM pgmq_grpc.client AS c WHERE c.replica = $1::text)
DELETE FROM pgmq_grpc.replica AS r WHERE r.replica = $1::text",
);

/// `$1` the server that asks, `$2` for how many milliseconds clients are remembered, `$3` prefix, `$4` queue or empty,
/// `$5..$9` the last key of the page before, `$10` rows.
const LIST: Statement = Statement::new(
    "list_clients",
    Effect::Reads,
    "-- pgmq-grpc: list_clients
SELECT c.name, c.role, c.queue, c.address, c.replica, c.in_flight, c.since, coalesce(c.last_seen, r.seen_at) AS last_seen
FROM pgmq_grpc.client AS c JOIN pgmq_grpc.replica AS r ON r.replica = c.replica
WHERE c.replica <> $1::text AND r.seen_at > clock_timestamp() - $2::bigint * interval '1 millisecond'
  AND coalesce(c.last_seen, r.seen_at) > clock_timestamp() - $2::bigint * interval '1 millisecond'
  AND starts_with(c.name, $3::text) AND ($4::text = '' OR c.queue = $4::text)
  AND ($5::text IS NULL OR (c.name, c.role, c.queue, c.address, c.replica)
    > ($5::text COLLATE \"C\", $6::text COLLATE \"C\", $7::text COLLATE \"C\", $8::text COLLATE \"C\", $9::text COLLATE \"C\"))
ORDER BY c.name, c.role, c.queue, c.address, c.replica LIMIT $10::bigint",
);

impl Connection {
    /// Writes down what has changed of a server's clients, and that the server is alive; forgets servers that have not
    /// been for long. Whether the server was unknown, so that it must write down all its clients anew.
    ///
    /// # Errors
    /// As any repeatable write.
    pub async fn write_clients(&mut self, replica: &str, rows: &ClientRows) -> Result<bool> {
        let remembered_ms = remembered_ms();
        let parameters: [Parameter<'_>; 10] = [
            (&replica, Type::TEXT),
            (&remembered_ms, Type::INT8),
            (&rows.names, Type::TEXT_ARRAY),
            (&rows.roles, Type::TEXT_ARRAY),
            (&rows.queues, Type::TEXT_ARRAY),
            (&rows.addresses, Type::TEXT_ARRAY),
            (&rows.in_flight, Type::INT4_ARRAY),
            (&rows.since_ms, Type::INT8_ARRAY),
            (&rows.last_seen_ms, Type::INT8_ARRAY),
            (&rows.gone, Type::BOOL_ARRAY),
        ];
        let answer = self.query(&WRITE, &parameters).await?;
        let row = answer.first().ok_or_else(|| Error::internal("a server's sign of life gave no row"))?;
        column(row, "is_new")
    }

    /// Forgets a server and its clients.
    ///
    /// # Errors
    /// As any repeatable write.
    pub async fn forget_clients(&mut self, replica: &str) -> Result<()> {
        self.query(&FORGET, &[(&replica, Type::TEXT)]).await.map(drop)
    }

    /// The clients of all servers but this one, as many as a page asks for: by name, role, queue, address and replica.
    ///
    /// # Errors
    /// As any statement that reads.
    pub async fn list_clients(
        &mut self,
        replica: &str,
        prefix: &str,
        queue: &str,
        page: &Page,
    ) -> Result<Vec<Client>> {
        let remembered_ms = remembered_ms();
        let after = [0, 1, 2, 3, 4].map(|part| page.after(part));
        let rows = page.rows();
        let parameters: [Parameter<'_>; 10] = [
            (&replica, Type::TEXT),
            (&remembered_ms, Type::INT8),
            (&prefix, Type::TEXT),
            (&queue, Type::TEXT),
            (&after[0], Type::TEXT),
            (&after[1], Type::TEXT),
            (&after[2], Type::TEXT),
            (&after[3], Type::TEXT),
            (&after[4], Type::TEXT),
            (&rows, Type::INT8),
        ];
        self.query(&LIST, &parameters).await?.iter().map(client_of).collect()
    }
}

fn remembered_ms() -> i64 {
    i64::try_from(REMEMBERED.as_millis()).unwrap_or(i64::MAX)
}

fn client_of(row: &Row) -> Result<Client> {
    let role: &str = column(row, "role")?;
    Ok(Client {
        name: column(row, "name")?,
        role: ClientRole::of_word(role).ok_or_else(|| Error::internal("a client has an unknown role"))?,
        queue: column(row, "queue")?,
        address: column(row, "address")?,
        replica: column(row, "replica")?,
        in_flight: column(row, "in_flight")?,
        since: column(row, "since")?,
        last_seen: column(row, "last_seen")?,
    })
}
