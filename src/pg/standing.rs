//! What a server says of itself on a new connection: whether it takes writes, and where it stands in its cluster's
//! history.

use std::sync::atomic::{AtomicU8, Ordering};

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, Row};

/// How every session is set up. Fences need read committed, whatever the role's default is. No statement of ours takes so long
/// that it would be worth compiling, but one with many parts can be expected to cost enough for it.
const SETTINGS: &str = "\
SET timezone = 'UTC'; \
SET default_transaction_isolation = 'read committed'; \
SET lock_timeout = '2s'; \
SET jit = off; \
SET idle_in_transaction_session_timeout = '60s'; \
SET statement_timeout = 0";

/// An abandoned statement ends within a second of its client.
const ABANDONED_STATEMENTS: &str = "SET client_connection_check_interval = '1s'";

const STANDING: &str = "-- pgmq-grpc: standing
SELECT pg_is_in_recovery() AS in_recovery, current_setting('transaction_read_only') = 'on' AS read_only,
  current_setting('synchronous_commit') AS synchronous_commit,
  current_setting('synchronous_standby_names', true) IS DISTINCT FROM '' AS has_synchronous_standbys";

/// How well a server tells its position; some providers close one or both functions.
const POSITIONS: [&str; 2] = [
    "-- pgmq-grpc: position
SELECT (SELECT c.system_identifier FROM pg_control_system() AS c) AS system, CASE WHEN NOT pg_is_in_recovery()
  THEN ('x' || lpad(substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), 16, '0'))::bit(64)::bigint END AS timeline",
    "-- pgmq-grpc: position
SELECT NULL::bigint AS system, CASE WHEN NOT pg_is_in_recovery()
  THEN ('x' || lpad(substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), 16, '0'))::bit(64)::bigint END AS timeline",
];

/// Where a primary stands: its cluster, and how many promotions lie behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// The cluster's identifier, where the server tells it.
    pub(super) system: Option<i64>,
    /// The number of its timeline.
    pub(super) timeline: i64,
}

/// What a server says of itself.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    /// It is a standby.
    pub(super) in_recovery: bool,
    /// Its transactions are read-only.
    pub(super) read_only: bool,
    /// What a commit waits for.
    pub(super) synchronous_commit: String,
    /// A commit waits for standbys too, if `synchronous_commit` says so.
    pub(super) has_synchronous_standbys: bool,
    /// Where it stands; none for a standby, and where the server does not tell.
    pub(super) position: Option<Position>,
}

/// Sets sessions up and asks for the server's standing, all in one round trip.
#[derive(Default)]
pub(super) struct Greeting {
    /// Index into [`POSITIONS`]; beyond them the server is not asked.
    position: AtomicU8,
}

impl Greeting {
    /// Sets a new session up and asks its server where it stands.
    pub(super) async fn exchange(&self, client: &Client) -> Result<Standing, Error> {
        let level = self.position.load(Ordering::Relaxed);
        // Polled in this order, all of them go out in one packet.
        let (set, _, standing, position) = futures_util::future::join4(
            client.batch_execute(SETTINGS),
            // Not every platform's Postgres can do this.
            client.batch_execute(ABANDONED_STATEMENTS),
            client.query_typed_one(STANDING, &[]),
            ask_position(client, level),
        )
        .await;
        set?;
        let mut standing = Standing::of(&standing?)?;
        standing.position = match position {
            Err(refused) if is_refused(&refused) => self.ask_for_less(client, level, refused).await?,
            position => position?,
        };
        Ok(standing)
    }

    /// A server that does not tell everything is used all the same, with a weaker guard.
    async fn ask_for_less(
        &self,
        client: &Client,
        refused_level: u8,
        refused: Error,
    ) -> Result<Option<Position>, Error> {
        let (mut level, mut refused) = (refused_level, refused);
        loop {
            if self.position.fetch_max(level + 1, Ordering::Relaxed) <= level {
                let code = refused.code().map_or("", SqlState::code);
                let meaning = match level {
                    0 => {
                        "the database does not tell its system identifier: it is guarded by its timeline alone"
                    }
                    _ => {
                        "the database does not tell its timeline: an old primary cannot be told from the true one"
                    }
                };
                tracing::warn!(sqlstate = code, "{meaning}");
            }
            level += 1;
            match ask_position(client, level).await {
                Err(again) if is_refused(&again) => refused = again,
                answer => return answer,
            }
        }
    }
}

async fn ask_position(client: &Client, level: u8) -> Result<Option<Position>, Error> {
    let Some(question) = POSITIONS.get(usize::from(level)) else { return Ok(None) };
    let row = client.query_typed_one(question, &[]).await?;
    let (system, timeline) = (row.try_get("system")?, row.try_get::<_, Option<i64>>("timeline")?);
    Ok(timeline.map(|timeline| Position { system, timeline }))
}

/// Whether the server will not answer this, now and later; and not that it ends or just becomes a primary.
fn is_refused(error: &Error) -> bool {
    error.code().is_some_and(|code| !["08", "25", "53", "55", "57"].contains(&&code.code()[..2]))
}

impl Standing {
    fn of(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            in_recovery: row.try_get("in_recovery")?,
            read_only: row.try_get("read_only")?,
            synchronous_commit: row.try_get("synchronous_commit")?,
            has_synchronous_standbys: row.try_get("has_synchronous_standbys")?,
            position: None,
        })
    }
}
