//! The texts of messages that a listing shows, as many as fit a page, whatever they hold.

use tokio_postgres::types::Type;

use super::browse::Found;
use super::database::Connection;
use super::error;
use super::row::column;
use super::statement::{Effect, Statement};
use crate::domain::bounds::MAX_REPLY_BYTES;
use crate::domain::page::MAX_BYTES;
use crate::domain::{Error, ListedMessage, Result, Timestamp};

/// The most bytes of one page's texts.
const PAGE_BYTES: i64 = MAX_BYTES as i64;

/// The texts of messages, as many as fit. Sizes are counted first, so that what does not fit is nowhere kept. `$1` ids, `$2`
/// moments, `$3` bytes for all, `$4` bytes that one message may take, which then comes alone. The moments are compared so
/// that no index is used for them: thousands of messages can have the same. Nothing keeps a partitioned archive from having
/// messages that are the same in both: they are asked for one behind the other, and told apart by where they lie, which
/// changes for nobody within a statement.
macro_rules! texts {
    ($name:literal, $table:literal, $moment:literal) => {
        Statement::new(
            $name,
            Effect::Reads,
            concat!(
                "-- pgmq-grpc: ",
                $name,
                "
WITH wanted AS (SELECT w.msg_id, w.moment, min(w.ordinal) AS first, count(*) AS number
  FROM unnest($1::bigint[], $2::timestamptz[]) WITH ORDINALITY AS w(msg_id, moment, ordinal) GROUP BY w.msg_id, w.moment),
measured AS MATERIALIZED (SELECT w.first, w.number, w.msg_id, w.moment, t.tableoid AS lies_in, t.ctid AS lies_at,
    coalesce(octet_length(t.message::text), 0)::bigint AS body_bytes,
    coalesce(octet_length(t.headers::text), 0)::bigint AS headers_bytes
  FROM wanted AS w JOIN ",
                $table,
                " AS t ON t.msg_id = w.msg_id AND t.",
                $moment,
                " IS NOT DISTINCT FROM w.moment),
placed AS (SELECT m.first - 1 + row_number() OVER (PARTITION BY m.first ORDER BY m.lies_in, m.lies_at) AS ordinal,
    m.first + m.number AS beyond, m.msg_id, m.moment, m.lies_in, m.lies_at, m.body_bytes, m.headers_bytes FROM measured AS m),
judged AS (SELECT p.ordinal, p.msg_id, p.moment, p.lies_in, p.lies_at, p.body_bytes, p.headers_bytes,
    p.body_bytes + p.headers_bytes <= $4::bigint AS is_whole,
    p.body_bytes + p.headers_bytes <= $4 OR p.headers_bytes <= $3::bigint AS has_headers
  FROM placed AS p WHERE p.ordinal < p.beyond),
weighed AS (SELECT j.ordinal, j.msg_id, j.moment, j.lies_in, j.lies_at, j.is_whole, j.has_headers,
    sum(256 + CASE WHEN j.is_whole THEN j.body_bytes ELSE 0 END + CASE WHEN j.has_headers THEN j.headers_bytes ELSE 0 END)
      OVER (ORDER BY j.ordinal ROWS UNBOUNDED PRECEDING) AS bytes,
    row_number() OVER (ORDER BY j.ordinal) AS place FROM judged AS j)
SELECT w.ordinal, w.is_whole, CASE WHEN w.is_whole THEN t.message::text END AS message,
  CASE WHEN w.has_headers THEN t.headers::text END AS headers
FROM weighed AS w JOIN ",
                $table,
                " AS t ON t.ctid = w.lies_at AND t.tableoid = w.lies_in AND t.msg_id = w.msg_id AND t.",
                $moment,
                " = w.moment
WHERE w.bytes <= $3 OR w.place = 1 ORDER BY w.ordinal"
            ),
        )
    };
}

pub(super) const MESSAGE_TEXTS: Statement = texts!("message_texts", "{q}", "enqueued_at");
pub(super) const ARCHIVED_TEXTS: Statement = texts!("archived_texts", "{a}", "archived_at");

/// The texts of the message at a place.
struct Texts {
    place: usize,
    is_whole: bool,
    message: Option<String>,
    headers: Option<String>,
}

impl Texts {
    fn bytes(&self) -> usize {
        let texts = [&self.message, &self.headers].into_iter().flatten().map(String::len);
        256 + texts.sum::<usize>()
    }

    fn put_into(self, listed: &mut ListedMessage) {
        listed.texts_omitted = !self.is_whole;
        listed.message.message = self.message;
        listed.message.headers = self.headers;
    }
}

impl Connection {
    /// Gives the messages that were found their texts, and keeps as many as fit a page. Those that are gone since are left
    /// out.
    ///
    /// # Errors
    /// As any statement that reads.
    pub(super) async fn show(&mut self, statement: &Statement, found: Found) -> Result<Found> {
        let texts = match self.texts(statement, &found.messages).await {
            Err(error) if error::is_unrenderable(&error) => {
                return self.show_one_by_one(statement, found).await;
            }
            texts => texts?,
        };
        let Some(last) = texts.last().map(|last| last.place) else {
            return Ok(Found { messages: Vec::new(), ..found });
        };
        let mut seen = found.messages;
        let beyond = seen.split_off(last + 1);
        let mut listed: Vec<Option<ListedMessage>> = seen.into_iter().map(Some).collect();
        let mut messages = Vec::with_capacity(texts.len());
        for texts in texts {
            if let Some(mut message) = listed[texts.place].take() {
                texts.put_into(&mut message);
                messages.push(message);
            }
        }
        Ok(Found::page(messages, beyond, found.next_after))
    }

    /// The same where one of them cannot be rendered, which takes the database seconds to find out: the page ends with it.
    async fn show_one_by_one(&mut self, statement: &Statement, found: Found) -> Result<Found> {
        let mut shown: Vec<ListedMessage> = Vec::new();
        let mut left = MAX_BYTES;
        let mut unseen = found.messages.into_iter();
        while let Some(mut message) = unseen.next() {
            let texts = match self.texts(statement, std::slice::from_ref(&message)).await {
                Err(error) if error::is_unrenderable(&error) => {
                    self.headers_alone(statement, &message).await?.put_into(&mut message);
                    shown.push(message);
                    return Ok(Found::page(shown, unseen.collect(), found.next_after));
                }
                texts => texts?.pop(),
            };
            let Some(texts) = texts else {
                continue;
            };
            if !shown.is_empty() && texts.bytes() > left {
                let beyond = std::iter::once(message).chain(unseen).collect();
                return Ok(Found::page(shown, beyond, found.next_after));
            }
            left = left.saturating_sub(texts.bytes());
            texts.put_into(&mut message);
            shown.push(message);
        }
        Ok(Found { messages: shown, next_after: found.next_after })
    }

    /// The headers of a message whose body cannot be rendered, if they can.
    async fn headers_alone(&mut self, statement: &Statement, message: &ListedMessage) -> Result<Texts> {
        let without_body = Statement {
            text: statement.text.replace("t.message::text", "NULL::text").into(),
            ..statement.clone()
        };
        let headers = match self.texts(&without_body, std::slice::from_ref(message)).await {
            Err(error) if error::is_unrenderable(&error) => None,
            texts => texts?.pop().and_then(|texts| texts.headers),
        };
        Ok(Texts { place: 0, is_whole: false, message: None, headers })
    }

    async fn texts(&mut self, statement: &Statement, messages: &[ListedMessage]) -> Result<Vec<Texts>> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let msg_ids: Vec<i64> = messages.iter().map(|listed| listed.message.msg_id).collect();
        let moment = |listed: &ListedMessage| listed.archived_at.unwrap_or(listed.message.enqueued_at);
        let moments: Vec<Timestamp> = messages.iter().map(moment).collect();
        let rows = self
            .query(
                statement,
                &[
                    (&msg_ids, Type::INT8_ARRAY),
                    (&moments, Type::TIMESTAMPTZ_ARRAY),
                    (&PAGE_BYTES, Type::INT8),
                    (&MAX_REPLY_BYTES, Type::INT8),
                ],
            )
            .await?;
        let texts = rows.iter().map(|row| {
            let ordinal: i64 = column(row, "ordinal")?;
            let place = usize::try_from(ordinal - 1).ok().filter(|&place| place < messages.len());
            Ok(Texts {
                place: place.ok_or_else(|| Error::internal("texts of a message that was not asked for"))?,
                is_whole: column(row, "is_whole")?,
                message: column(row, "message")?,
                headers: column(row, "headers")?,
            })
        });
        texts.collect()
    }
}
