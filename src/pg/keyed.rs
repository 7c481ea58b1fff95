//! Messages with deduplication ids: each id is stored once within its window.
//!
//! The key of a message is its queue, the moment at which that queue was made, and the id. Whoever inserts the key stores
//! the message, in the same statement; whoever finds it there gets the id of the message that is stored. Keys are
//! always inserted in their order, so that those who insert several cannot wait for each other in a ring.
//!
//! A crash of the database empties unlogged queues and leaves their keys. So a key says with which contents of the queue it
//! was made (`unlogged_contents`, which the same crash empties), and one of other contents counts as expired.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::types::Type;

use super::catalog::QueueTable;
use super::database::Connection;
use super::row::column;
use super::send::Columns;
use super::statement::{Effect, Statement};
use crate::domain::{DeduplicationId, Error, Kind, OutgoingMessage, QueueName, Result, Sent};

/// How often a key is tried that expires just when it is looked at.
const ROUNDS: usize = 8;

/// Draws the number of the contents of unlogged queues, if a crash has taken it away. It is never 0, with which it begins.
macro_rules! renew_contents {
    () => {
        "INSERT INTO pgmq_grpc.unlogged_contents (contents)
  SELECT 1 + floor(random() * 9007199254740991)::bigint WHERE NOT EXISTS (SELECT FROM pgmq_grpc.unlogged_contents)
  ON CONFLICT DO NOTHING"
    };
}
pub(super) use renew_contents;

/// A statement that ended so soon because of a lock did not wait for a table, which takes the session's 2 s.
const SOON: Duration = Duration::from_secs(1);

/// Gives an ordinal for each message, with the id of those stored now: all without a key, and those whose key was not there
/// or had expired. `DO NOTHING` instead of the update would lose the message behind an expired key. Ids are drawn
/// before it is known who needs one, so a repeat leaves a gap. No row at all: the queue is not there. Where a trigger
/// of the user's swallows a message, the division by zero takes back the others and the keys.
///
/// So it is, too, as long as nobody has renewed the number of an unlogged queue's contents.
///
/// `$9` says how long to wait for others' keys, if not as long as the session waits for any lock. It holds from `brief` to
/// `patient`: what triggers on the queue's table wait for is no key.
const SEND_KEYED: Statement = Statement::new(
    "send_keyed",
    Effect::Writes,
    "-- pgmq-grpc: send_keyed
WITH queue AS (SELECT m.created_at, CASE WHEN m.is_unlogged THEN u.contents ELSE 0 END AS contents
  FROM pgmq.meta AS m LEFT JOIN pgmq_grpc.unlogged_contents AS u ON m.is_unlogged
  WHERE m.queue_name = $1::text AND (u.contents IS NOT NULL OR NOT m.is_unlogged)),
usual AS MATERIALIZED (SELECT current_setting('lock_timeout') AS wait),
brief AS MATERIALIZED (SELECT set_config('lock_timeout', coalesce($9::text, u.wait), true) AS wait FROM usual AS u),
item AS MATERIALIZED (
  SELECT i.ordinal, nextval($7::text::regclass) AS msg_id, queue.created_at, queue.contents,
    i.message::jsonb AS message, i.headers::jsonb AS headers, i.deduplication_id,
    coalesce(i.visible_at, clock_timestamp() + coalesce(i.delay_ms, 0) * interval '1 millisecond') AS vt
  FROM queue, brief, unnest($2::text[], $3::text[], $4::bigint[], $5::timestamptz[], $6::text[])
    WITH ORDINALITY AS i(message, headers, delay_ms, visible_at, deduplication_id, ordinal)
  WHERE brief.wait IS NOT NULL),
won AS (
  INSERT INTO pgmq_grpc.deduplication AS d
    (queue_name, queue_created_at, deduplication_id, content_hash, msg_id, contents, expires_at)
  SELECT $1::text, i.created_at, i.deduplication_id, pgmq_grpc.content_hash(i.message), i.msg_id, i.contents,
    clock_timestamp() + $8::bigint * interval '1 millisecond'
  FROM item AS i WHERE i.deduplication_id IS NOT NULL ORDER BY i.deduplication_id COLLATE \"C\"
  ON CONFLICT (queue_name, queue_created_at, deduplication_id) DO UPDATE
    SET content_hash = excluded.content_hash, msg_id = excluded.msg_id, contents = excluded.contents,
      expires_at = excluded.expires_at
    WHERE d.expires_at <= clock_timestamp() OR d.contents <> excluded.contents
  RETURNING d.msg_id),
patient AS MATERIALIZED (SELECT set_config('lock_timeout', u.wait, true) AS wait
  FROM usual AS u, (SELECT count(*) AS count FROM won) AS w WHERE w.count >= 0),
sent AS (
  INSERT INTO {q} (msg_id, vt, message, headers) OVERRIDING SYSTEM VALUE
  SELECT i.msg_id, i.vt, i.message, i.headers
  FROM item AS i CROSS JOIN patient LEFT JOIN won ON won.msg_id = i.msg_id
  WHERE patient.wait IS NOT NULL AND (i.deduplication_id IS NULL OR won.msg_id IS NOT NULL) ORDER BY i.msg_id
  RETURNING msg_id)
SELECT i.ordinal, sent.msg_id, 1 / ((SELECT count(*) FROM sent)
    = (SELECT count(*) FROM item AS i LEFT JOIN won ON won.msg_id = i.msg_id
       WHERE i.deduplication_id IS NULL OR won.msg_id IS NOT NULL))::integer AS all_or_none
FROM item AS i LEFT JOIN sent ON sent.msg_id = i.msg_id",
);

/// What is stored under keys, and whether its content is the same. A key that is missing has expired meanwhile.
const FIND_KEYS: Statement = Statement::new(
    "find_keys",
    Effect::Reads,
    "-- pgmq-grpc: find_keys
SELECT w.ordinal, d.msg_id, d.content_hash = pgmq_grpc.content_hash(w.message::jsonb) AS same_content
FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS w(deduplication_id, message, ordinal)
JOIN pgmq.meta AS m ON m.queue_name = $1::text
LEFT JOIN pgmq_grpc.unlogged_contents AS u ON m.is_unlogged
JOIN pgmq_grpc.deduplication AS d ON d.queue_name = $1::text COLLATE \"C\" AND d.queue_created_at = m.created_at
  AND d.deduplication_id = w.deduplication_id COLLATE \"C\"
WHERE d.expires_at > clock_timestamp() AND d.contents = CASE WHEN m.is_unlogged THEN u.contents ELSE 0 END",
);

const RENEW_CONTENTS: Statement = Statement::new(
    "renew_contents",
    Effect::Reads,
    concat!("-- pgmq-grpc: renew_contents\n", renew_contents!()),
);

const IS_UNLOGGED: Statement = Statement::new(
    "is_unlogged",
    Effect::Reads,
    "-- pgmq-grpc: is_unlogged
SELECT FROM pgmq.meta AS m WHERE m.queue_name = $1::text AND m.is_unlogged",
);

/// Makes the keys that are missing as if they had expired, and locks all of them without changing any.
const LOCK_KEYS: Statement = Statement::new(
    "lock_keys",
    Effect::Reads,
    "-- pgmq-grpc: lock_keys
INSERT INTO pgmq_grpc.deduplication AS d
  (queue_name, queue_created_at, deduplication_id, content_hash, msg_id, expires_at)
SELECT w.queue_name, m.created_at, w.deduplication_id, '', 0, '-infinity'
FROM unnest($1::text[], $2::text[]) AS w(queue_name, deduplication_id)
JOIN pgmq.meta AS m ON m.queue_name = w.queue_name
ORDER BY w.queue_name COLLATE \"C\", w.deduplication_id COLLATE \"C\"
ON CONFLICT (queue_name, queue_created_at, deduplication_id) DO UPDATE SET msg_id = d.msg_id WHERE false",
);

/// How long to wait for keys that other transactions hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPatience {
    /// As long as another's statement and its commit take.
    Brief,
    /// Not at all.
    None,
}

impl KeyPatience {
    fn lock_timeout(self) -> &'static str {
        match self {
            Self::Brief => "20ms",
            Self::None => "1ms",
        }
    }
}

impl Connection {
    /// Stores messages of one queue, with a verdict for each in the same order: its id, and whether an earlier send has
    /// stored it under the same deduplication id; or `DeduplicationIdReused`. Messages without an id are stored in any
    /// case. Equal ids among the messages are repeats of the first.
    ///
    /// What is stored is stored in one statement, in the order of the messages. Outside a transaction a verdict that is
    /// an error leaves the others as they are; inside one, the caller decides.
    ///
    /// # Errors
    /// Then nothing is stored, or for `OutcomeUnknown` and its retry-safe form perhaps all: `QueueNotFound`; `QueueBusy`
    /// when another transaction holds one of the ids; `PgmqNotInstalled` where the schema `pgmq_grpc` is missing. The
    /// retry-safe form stands only where every message has an id.
    pub async fn send_keyed(
        &mut self,
        queue: &QueueName,
        messages: &[impl Borrow<OutgoingMessage> + Sync],
    ) -> Result<Vec<Result<Sent>>> {
        let verdicts = self.send_in_rounds(queue, messages, None).await?;
        Ok(verdicts.into_iter().flatten().collect())
    }

    /// As [`Connection::send_keyed`] outside a transaction, but hardly waits for other transactions' keys. What has no
    /// verdict was not stored, because another transaction holds one of the ids without a verdict.
    ///
    /// # Errors
    /// As [`Connection::send_keyed`], but `QueueBusy` only for locks of tables.
    pub async fn send_unheld(
        &mut self,
        queue: &QueueName,
        messages: &[impl Borrow<OutgoingMessage> + Sync],
        patience: KeyPatience,
    ) -> Result<Vec<Option<Result<Sent>>>> {
        self.send_in_rounds(queue, messages, Some(patience)).await
    }

    async fn send_in_rounds(
        &mut self,
        queue: &QueueName,
        messages: &[impl Borrow<OutgoingMessage> + Sync],
        patience: Option<KeyPatience>,
    ) -> Result<Vec<Option<Result<Sent>>>> {
        let messages: Vec<&OutgoingMessage> = messages.iter().map(Borrow::borrow).collect();
        self.require_schema().await?;
        let table = self.table(queue).await?;
        let mut verdicts: Vec<Option<Result<Sent>>> = vec![None; messages.len()];
        for _ in 0..ROUNDS {
            let open: Vec<usize> = (0..messages.len()).filter(|&index| verdicts[index].is_none()).collect();
            if open.is_empty() {
                break;
            }
            match self.try_keys(queue, &table, &messages, &open, patience, &mut verdicts).await {
                Ok(Tried::Free) => {}
                Ok(Tried::Held) => return Ok(verdicts),
                Err(error) if verdicts.iter().all(Option::is_none) => return Err(error),
                Err(error) => fill(&mut verdicts, &error),
            }
        }
        fill(&mut verdicts, &super::error::conflict());
        Ok(verdicts)
    }

    /// Draws the number of the contents of unlogged queues, if a crash has taken it away.
    pub(super) async fn renew_contents(&mut self) -> Result<()> {
        self.require_schema().await?;
        self.query(&RENEW_CONTENTS, &[]).await.map(drop)
    }

    /// Locks keys for the open transaction before it sends under any of them, in the order in which everybody does.
    ///
    /// # Errors
    /// `QueueBusy` when another transaction holds one; `PgmqNotInstalled` where the schema `pgmq_grpc` is missing.
    pub async fn lock_keys<'a>(
        &mut self,
        keys: impl IntoIterator<Item = (&'a QueueName, &'a DeduplicationId)> + Send,
    ) -> Result<()> {
        let distinct: HashSet<(&str, &str)> =
            keys.into_iter().map(|(queue, id)| (queue.as_str(), id.as_str())).collect();
        if distinct.is_empty() {
            return Ok(());
        }
        self.require_schema().await?;
        let (queues, ids): (Vec<&str>, Vec<&str>) = distinct.into_iter().unzip();
        self.query(&LOCK_KEYS, &[(&queues, Type::TEXT_ARRAY), (&ids, Type::TEXT_ARRAY)]).await.map(drop)
    }

    /// Stores what is open and not a repeat, and finds what the repeats repeat.
    async fn try_keys(
        &mut self,
        queue: &QueueName,
        table: &Arc<QueueTable>,
        messages: &[&OutgoingMessage],
        open: &[usize],
        patience: Option<KeyPatience>,
        verdicts: &mut [Option<Result<Sent>>],
    ) -> Result<Tried> {
        // One statement cannot touch a key twice, so a twin within the parcel waits to be found.
        let mut seen = HashSet::new();
        let is_first = |index: &usize| match messages[*index].deduplication_id() {
            Some(id) => seen.insert(id),
            None => true,
        };
        let firsts: Vec<usize> = open.iter().copied().filter(is_first).collect();
        let Some(stored) = self.store(queue, table, messages, &firsts, patience).await? else {
            return Ok(Tried::Held);
        };
        for (index, msg_id) in stored {
            verdicts[index] = Some(Ok(Sent::now(msg_id)));
        }
        let repeats: Vec<usize> = open.iter().copied().filter(|&index| verdicts[index].is_none()).collect();
        if repeats.is_empty() {
            return Ok(Tried::Free);
        }
        for (index, msg_id, same_content) in self.find_keys(queue, messages, &repeats).await? {
            let sent = Sent { msg_id, deduplicated: true };
            verdicts[index] = Some(if same_content { Ok(sent) } else { Err(reused(messages[index])) });
        }
        Ok(Tried::Free)
    }

    /// The places and ids of the messages that were stored now; nothing if others held a key for longer than `patience`.
    async fn store(
        &mut self,
        queue: &QueueName,
        table: &Arc<QueueTable>,
        messages: &[&OutgoingMessage],
        places: &[usize],
        patience: Option<KeyPatience>,
    ) -> Result<Option<Vec<(usize, i64)>>> {
        let chosen: Vec<&OutgoingMessage> = places.iter().map(|&place| messages[place]).collect();
        let columns = Columns::of(&chosen);
        let mut statement = SEND_KEYED.on(table);
        if columns.deduplication_ids.iter().all(Option::is_some) {
            statement.effect = Effect::Repeatable;
        }
        let window_ms = self.policies().deduplication_window_ms(Some(queue));
        let lock_timeout = patience.map(KeyPatience::lock_timeout);
        let began = Instant::now();
        let rows = self
            .query(
                &statement,
                &[
                    (&queue.as_str(), Type::TEXT),
                    (&columns.messages, Type::TEXT_ARRAY),
                    (&columns.headers, Type::TEXT_ARRAY),
                    (&columns.delays_ms, Type::INT8_ARRAY),
                    (&columns.visible_at, Type::TIMESTAMPTZ_ARRAY),
                    (&columns.deduplication_ids, Type::TEXT_ARRAY),
                    (&table.sequence, Type::TEXT),
                    (&window_ms, Type::INT8),
                    (&lock_timeout, Type::TEXT),
                ],
            )
            .await;
        let rows = match rows {
            Err(error) if patience.is_some() && error.kind() == Kind::QueueBusy && began.elapsed() < SOON => {
                return Ok(None);
            }
            rows => rows.map_err(|error| self.missing(queue, error))?,
        };
        if rows.is_empty() {
            if !self.query(&IS_UNLOGGED, &[(&queue.as_str(), Type::TEXT)]).await?.is_empty() {
                self.renew_contents().await?;
                // It is tried again.
                return Ok(Some(Vec::new()));
            }
            self.catalog().forget(queue);
            return Err(Error::queue_not_found(queue.as_str()));
        }
        let mut stored = Vec::with_capacity(rows.len());
        for row in &rows {
            if let Some(msg_id) = column::<Option<i64>>(row, "msg_id")? {
                stored.push((place(places, column(row, "ordinal")?)?, msg_id));
            }
        }
        Ok(Some(stored))
    }

    /// The places of the messages whose keys are there, with the ids stored under them and whether the content is the same.
    async fn find_keys(
        &mut self,
        queue: &QueueName,
        messages: &[&OutgoingMessage],
        places: &[usize],
    ) -> Result<Vec<(usize, i64, bool)>> {
        let id = |&place: &usize| messages[place].deduplication_id().map(DeduplicationId::as_str);
        let ids: Vec<Option<&str>> = places.iter().map(id).collect();
        let bodies: Vec<&str> = places.iter().map(|&place| messages[place].message()).collect();
        let parameters = [
            (&queue.as_str() as _, Type::TEXT),
            (&ids as _, Type::TEXT_ARRAY),
            (&bodies as _, Type::TEXT_ARRAY),
        ];
        let rows = self.query(&FIND_KEYS, &parameters).await?;
        let found = rows.iter().map(|row| {
            let place = place(places, column(row, "ordinal")?)?;
            Ok((place, column(row, "msg_id")?, column(row, "same_content")?))
        });
        found.collect()
    }
}

/// What a try found of the keys.
enum Tried {
    /// It could have all that it wanted.
    Free,
    /// Another transaction holds one of them; nothing was stored.
    Held,
}

/// The error of a message whose id stands for another one.
fn reused(message: &OutgoingMessage) -> Error {
    let id = message.deduplication_id().map(DeduplicationId::as_str).unwrap_or_default();
    let why = format!("the deduplication id {id:?} was used for another message within its window");
    Error::new(Kind::DeduplicationIdReused, format!("{why}; this one was not stored"))
        .with("deduplication_id", id)
}

fn fill(verdicts: &mut [Option<Result<Sent>>], error: &Error) {
    for verdict in verdicts.iter_mut().filter(|verdict| verdict.is_none()) {
        *verdict = Some(Err(error.clone()));
    }
}

fn place(places: &[usize], ordinal: i64) -> Result<usize> {
    let place = usize::try_from(ordinal - 1).ok().and_then(|index| places.get(index));
    place.copied().ok_or_else(|| Error::internal("a statement gave an ordinal that it was not given"))
}
