//! Looks at the messages of a queue and of its archive, which change nothing.
//!
//! A page takes two statements. The first finds messages, without their texts, and looks at [`LOOK`] rows at most: what it
//! passes over on the way to a match would otherwise have no bound. The second shows the texts, as many as fit.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::database::{Connection, Parameter};
use super::row::{self, column};
use super::statement::{Effect, Statement};
use super::texts::{ARCHIVED_TEXTS, MESSAGE_TEXTS};
use crate::domain::page::{Page, Paged};
use crate::domain::{ArchiveFilter, ListedMessage, MessageState, QueueName, Result};

/// The most rows that the search for one page looks at.
const LOOK: i64 = 10_000;

macro_rules! columns {
    ($alias:literal) => {
        concat!(
            $alias,
            ".msg_id, ",
            $alias,
            ".read_ct, ",
            $alias,
            ".enqueued_at/*L*/, ",
            $alias,
            ".last_read_at/*/L*/, ",
            $alias,
            ".vt"
        )
    };
}

/// Gives what matches, and how far was looked if it was not to the end: one row of NULLs for no match. `$more` is what may
/// tell messages apart that have the same id: those that it does not come one behind the other.
macro_rules! found {
    ($looked_to:literal, $more:literal) => {
        concat!(
            "\nSELECT looked.looked_to, ",
            columns!("m"),
            $more,
            ", NULL::text AS message, NULL::text AS headers\nFROM (SELECT ",
            $looked_to,
            " AS looked_to) AS looked LEFT JOIN matching AS m ON true ORDER BY m.msg_id",
            $more
        )
    };
}

/// The messages of a queue in a state, in the order of their ids. `$1` the id after which, `$2` rows to look at, `$3` state,
/// `$4` messages. The look ends with the last message that is wanted.
const FIND_MESSAGES: Statement = Statement::new(
    "find_messages",
    Effect::Reads,
    concat!(
        "-- pgmq-grpc: find_messages\nWITH matching AS MATERIALIZED (SELECT ",
        columns!("s"),
        " FROM (SELECT ",
        columns!("q"),
        "
    FROM {q} AS q WHERE q.msg_id > $1::bigint ORDER BY q.msg_id LIMIT $2::bigint) AS s
  WHERE CASE $3::integer WHEN 0 THEN true WHEN 1 THEN s.vt <= now()
    WHEN 2 THEN s.vt > now() AND s.read_ct > 0 ELSE s.vt > now() AND s.read_ct = 0 END
  ORDER BY s.msg_id LIMIT $4::bigint)",
        found!(
            "CASE WHEN (SELECT count(*) FROM matching) < $4 THEN (SELECT q.msg_id FROM {q} AS q
    WHERE q.msg_id > $1 ORDER BY q.msg_id OFFSET $2 - 1 LIMIT 1) END",
            ""
        )
    ),
);

/// The same of certain messages. `$5` ids.
const FIND_MESSAGES_BY_ID: Statement = Statement::new(
    "find_messages_by_id",
    Effect::Reads,
    concat!(
        "-- pgmq-grpc: find_messages_by_id\nWITH matching AS MATERIALIZED (SELECT ",
        columns!("q"),
        "
  FROM {q} AS q WHERE q.msg_id = ANY ($5::bigint[]) AND q.msg_id > $1::bigint AND $2::bigint > 0
    AND CASE $3::integer WHEN 0 THEN true WHEN 1 THEN q.vt <= now()
      WHEN 2 THEN q.vt > now() AND q.read_ct > 0 ELSE q.vt > now() AND q.read_ct = 0 END
  ORDER BY q.msg_id LIMIT $4::bigint)",
        found!("NULL::bigint", "")
    ),
);

/// The messages of an archive, in the order of their ids. `$1` the id after which, `$2` messages, and all others with the id of
/// the last: those of a partitioned archive need not be unique.
const FIND_ARCHIVED: Statement = Statement::new(
    "find_archived",
    Effect::Reads,
    concat!(
        "-- pgmq-grpc: find_archived\nWITH matching AS MATERIALIZED (SELECT ",
        columns!("a"),
        ", a.archived_at FROM {a} AS a WHERE a.msg_id > $1::bigint ORDER BY a.msg_id FETCH FIRST ($2::bigint) ROWS WITH TIES)",
        found!("NULL::bigint", ", m.archived_at")
    ),
);

/// The same of certain messages that were archived in a span of time. `$3` and `$4` the span, `$5` ids.
const FIND_ARCHIVED_BY_ID: Statement = Statement::new(
    "find_archived_by_id",
    Effect::Reads,
    concat!(
        "-- pgmq-grpc: find_archived_by_id\nWITH matching AS MATERIALIZED (SELECT ",
        columns!("a"),
        ", a.archived_at FROM {a} AS a
  WHERE a.msg_id = ANY ($5::bigint[]) AND a.msg_id > $1::bigint
    AND a.archived_at >= $3::timestamptz AND a.archived_at < $4::timestamptz
  ORDER BY a.msg_id FETCH FIRST ($2::bigint) ROWS WITH TIES)",
        found!("NULL::bigint", ", m.archived_at")
    ),
);

/// The same of any that were archived in a span of time. If few were, they are found by their times and sorted; else the ids
/// are followed. Either way is an index's, and neither looks at more than `$5` rows.
const FIND_ARCHIVED_BY_TIME: Statement = Statement::new(
    "find_archived_by_time",
    Effect::Reads,
    concat!(
        "-- pgmq-grpc: find_archived_by_time\nWITH few AS MATERIALIZED (SELECT ",
        columns!("a"),
        ", a.archived_at FROM {a} AS a
  WHERE a.archived_at >= $3::timestamptz AND a.archived_at < $4::timestamptz
  ORDER BY a.archived_at LIMIT $5::bigint + 1),
known AS MATERIALIZED (SELECT count(*) <= $5 AS are_all FROM few),
matching AS MATERIALIZED ((SELECT ",
        columns!("f"),
        ", f.archived_at FROM few AS f
    WHERE (SELECT k.are_all FROM known AS k) AND f.msg_id > $1::bigint
    ORDER BY f.msg_id FETCH FIRST ($2::bigint) ROWS WITH TIES)
  UNION ALL (SELECT ",
        columns!("s"),
        ", s.archived_at FROM (SELECT ",
        columns!("a"),
        ", a.archived_at FROM {a} AS a WHERE a.msg_id > $1
      ORDER BY a.msg_id FETCH FIRST ($5) ROWS WITH TIES) AS s
    WHERE NOT (SELECT k.are_all FROM known AS k) AND s.archived_at >= $3 AND s.archived_at < $4
    ORDER BY s.msg_id FETCH FIRST ($2) ROWS WITH TIES))",
        found!(
            "CASE WHEN NOT (SELECT k.are_all FROM known AS k) AND (SELECT count(*) FROM matching) < $2
    THEN (SELECT a.msg_id FROM {a} AS a WHERE a.msg_id > $1 ORDER BY a.msg_id OFFSET $5 - 1 LIMIT 1) END",
            ", m.archived_at"
        )
    ),
);

/// What a search has found.
pub struct Found {
    /// The messages, by id.
    pub messages: Vec<ListedMessage>,
    /// The id after which another search goes on; none at the end.
    pub next_after: Option<i64>,
}

impl Found {
    /// Takes the rows of a search for one message more than the `wanted`.
    fn of(rows: &[Row], wanted: usize, has_last_read_at: bool, is_archived: bool) -> Result<Self> {
        let looked_to = rows.first().map(|row| column(row, "looked_to")).transpose()?.flatten();
        let mut messages = Vec::with_capacity(rows.len());
        for row in rows {
            if column::<Option<i64>>(row, "msg_id")?.is_none() {
                break;
            }
            let message = row::message(row, has_last_read_at)?;
            let archived_at = if is_archived { Some(column(row, "archived_at")?) } else { None };
            messages.push(ListedMessage { message, archived_at, texts_omitted: false });
        }
        if messages.len() <= wanted {
            return Ok(Self { messages, next_after: looked_to });
        }
        let beyond = messages.split_off(wanted);
        let page = Self::page(messages, beyond, None);
        let next_after = page.messages.last().map(|last| last.message.msg_id);
        Ok(Self { next_after, ..page })
    }

    /// A page of messages that ends before others. What has the same id stays on one page, because the next one begins
    /// behind an id; where all of a page have the same, the others with it are listed without their texts.
    pub(super) fn page(
        mut messages: Vec<ListedMessage>,
        mut beyond: Vec<ListedMessage>,
        next_after: Option<i64>,
    ) -> Self {
        let id = |listed: &ListedMessage| listed.message.msg_id;
        let Some(cut) = beyond.first().map(id) else {
            return Self { messages, next_after };
        };
        if messages.first().map(id) == Some(cut) {
            let left = beyond.split_off(beyond.partition_point(|listed| id(listed) == cut));
            beyond.iter_mut().for_each(|listed| listed.texts_omitted = true);
            messages.append(&mut beyond);
            return Self { messages, next_after: if left.is_empty() { next_after } else { Some(cut) } };
        }
        messages.truncate(messages.partition_point(|listed| id(listed) < cut));
        let next_after = messages.last().map(id);
        Self { messages, next_after }
    }
}

impl Connection {
    /// A page of the messages of a queue that are in a state (any if none is given) and have one of the ids, if some are
    /// given; by id.
    ///
    /// # Errors
    /// `QueueNotFound`.
    pub async fn list_messages(
        &mut self,
        queue: &QueueName,
        state: Option<MessageState>,
        msg_ids: Option<&[i64]>,
        page: &Page,
    ) -> Result<Paged<ListedMessage>> {
        let table = self.table(queue).await?;
        let state: i32 = match state {
            None => 0,
            Some(MessageState::Visible) => 1,
            Some(MessageState::InFlight) => 2,
            Some(MessageState::Delayed) => 3,
        };
        let (after, rows) = (page.after_id(), page.rows());
        let mut parameters: Vec<Parameter<'_>> =
            vec![(&after, Type::INT8), (&LOOK, Type::INT8), (&state, Type::INT4), (&rows, Type::INT8)];
        let statement = match &msg_ids {
            None => FIND_MESSAGES,
            Some(msg_ids) => {
                parameters.push((msg_ids, Type::INT8_ARRAY));
                FIND_MESSAGES_BY_ID
            }
        };
        let found = self.query(&statement.on(&table), &parameters).await;
        let rows = found.map_err(|error| self.missing(queue, error))?;
        let found = Found::of(&rows, page.size(), table.fenced_by_read_time, false)?;
        let shown = self.show(&MESSAGE_TEXTS.on(&table), found).await;
        let shown = shown.map_err(|error| self.missing(queue, error))?;
        Ok(page.up_to(shown.messages, shown.next_after))
    }

    /// A page of the messages of an archive that a filter means, by id.
    ///
    /// # Errors
    /// `QueueNotFound`.
    pub async fn list_archived(
        &mut self,
        queue: &QueueName,
        filter: &ArchiveFilter,
        page: &Page,
    ) -> Result<Paged<ListedMessage>> {
        let found = self.find_archived(queue, filter, page.after_id(), page.size()).await?;
        let table = self.table(queue).await?;
        let shown = self.show(&ARCHIVED_TEXTS.on(&table), found).await;
        let shown = shown.map_err(|error| self.missing(queue, error))?;
        Ok(page.up_to(shown.messages, shown.next_after))
    }

    /// The first messages of an archive after an id that a filter means, without their texts. They may be fewer than are
    /// wanted, and none, although more are there: then the search goes on where this one ended.
    ///
    /// # Errors
    /// `QueueNotFound`.
    pub async fn find_archived(
        &mut self,
        queue: &QueueName,
        filter: &ArchiveFilter,
        after: i64,
        wanted: usize,
    ) -> Result<Found> {
        let table = self.table(queue).await?;
        let rows = i64::try_from(wanted).unwrap_or(i64::MAX).saturating_add(1);
        let (begins, ends, msg_ids) = (filter.begins(), filter.ends(), filter.msg_ids());
        let mut parameters: Vec<Parameter<'_>> = vec![(&after, Type::INT8), (&rows, Type::INT8)];
        let times: [Parameter<'_>; 2] = [(&begins, Type::TIMESTAMPTZ), (&ends, Type::TIMESTAMPTZ)];
        let statement = if msg_ids.is_some() {
            parameters.extend(times);
            parameters.push((&msg_ids, Type::INT8_ARRAY));
            FIND_ARCHIVED_BY_ID
        } else if filter.has_times() {
            parameters.extend(times);
            parameters.push((&LOOK, Type::INT8));
            FIND_ARCHIVED_BY_TIME
        } else {
            FIND_ARCHIVED
        };
        let found = self.query(&statement.on(&table), &parameters).await;
        let rows = found.map_err(|error| self.missing(queue, error))?;
        Found::of(&rows, wanted, table.fenced_by_read_time, true)
    }
}
