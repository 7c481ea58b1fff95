//! Topics: bindings, routing, and sends to every queue that matches.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::database::Connection;
use super::row::column;
use super::send::Columns;
use super::statement::{Effect, Statement};
use super::version::Feature;
use crate::domain::page::{Page, Paged};
use crate::domain::queue::{TopicBinding, TopicCopy};
use crate::domain::topic::{Pattern, RoutingKey};
use crate::domain::{Error, Invalid, Kind, OutgoingMessage, Policy, QueueName, Result, Sent};

const BIND: Statement = Statement::new(
    "bind_topic",
    Effect::Repeatable,
    "-- pgmq-grpc: bind_topic
SELECT NOT EXISTS (SELECT FROM pgmq.topic_bindings AS b WHERE b.pattern = $1::text AND b.queue_name = $2::text) AS created,
  pgmq.bind_topic(pattern => $1::text, queue_name => m.queue_name::text)
FROM pgmq.meta AS m WHERE m.queue_name = $2::text",
);

const UNBIND: Statement = Statement::new(
    "unbind_topic",
    Effect::Repeatable,
    "-- pgmq-grpc: unbind_topic
SELECT pgmq.unbind_topic(pattern => $1::text, queue_name => m.queue_name::text) AS removed
FROM pgmq.meta AS m WHERE m.queue_name = $2::text",
);

/// `$1` queue or NULL, `$2` and `$3` last pattern and queue of the page before, `$4` rows.
const LIST: Statement = Statement::new(
    "list_topic_bindings",
    Effect::Reads,
    "-- pgmq-grpc: list_topic_bindings
SELECT b.pattern, b.queue_name, b.bound_at, b.compiled_regex FROM pgmq.list_topic_bindings() AS b
WHERE ($1::text IS NULL OR b.queue_name = $1::text)
  AND ($2::text IS NULL OR (b.pattern COLLATE \"C\", b.queue_name COLLATE \"C\") > ($2::text, $3::text))
ORDER BY b.pattern COLLATE \"C\", b.queue_name COLLATE \"C\" LIMIT $4::bigint",
);

const TEST: Statement = Statement::new(
    "test_routing",
    Effect::Reads,
    "-- pgmq-grpc: test_routing
SELECT r.pattern, r.queue_name, b.bound_at, r.compiled_regex FROM pgmq.test_routing(routing_key => $1::text) AS r
JOIN pgmq.topic_bindings AS b ON b.pattern = r.pattern AND b.queue_name = r.queue_name
ORDER BY r.pattern COLLATE \"C\", r.queue_name COLLATE \"C\"",
);

/// The most copies that one call makes: what a reply can name.
const MAX_COPIES: usize = 20_000;

/// How many messages are sent without asking first how many queues match.
const FEW_MESSAGES: usize = 20;

const COUNT_MATCHES: Statement = Statement::new(
    "count_matches",
    Effect::Reads,
    "-- pgmq-grpc: count_matches
SELECT count(DISTINCT r.queue_name) AS queues FROM pgmq.test_routing(routing_key => $1::text) AS r",
);

const MATCHING_QUEUES: Statement = Statement::new(
    "matching_queues",
    Effect::Reads,
    "-- pgmq-grpc: matching_queues
SELECT q.queue_name FROM (SELECT DISTINCT r.queue_name FROM pgmq.test_routing(routing_key => $1::text) AS r) AS q
ORDER BY q.queue_name COLLATE \"C\"",
);

/// One call of pgmq's for each message, because each has its own schedule; one statement, so all or none. Each queue that
/// matched before has a copy of each, else the division by zero takes back the others: a trigger of the user's swallowed
/// one, or the queue was unbound meanwhile.
const SEND: Statement = Statement::new(
    "send_topic",
    Effect::Writes,
    "-- pgmq-grpc: send_topic
WITH matching AS MATERIALIZED (SELECT DISTINCT m.queue_name FROM pgmq.test_routing(routing_key => $1::text) AS m),
sent AS MATERIALIZED (SELECT i.ordinal, r.queue_name, r.msg_id
FROM unnest($2::text[], $3::text[], $4::bigint[], $5::timestamptz[])
  WITH ORDINALITY AS i(message, headers, delay_ms, visible_at, ordinal)
CROSS JOIN LATERAL pgmq.send_batch_topic(routing_key => $1::text, msgs => ARRAY[i.message::jsonb],
  headers => ARRAY[i.headers::jsonb],
  delay => coalesce(i.visible_at, clock_timestamp() + coalesce(i.delay_ms, 0) * interval '1 millisecond')) AS r)
SELECT s.ordinal, s.queue_name, s.msg_id FROM sent AS s
WHERE 1 / ((SELECT count(*) FROM matching) * cardinality($2)
  = (SELECT count(*) FROM sent AS c JOIN matching AS m USING (queue_name)))::integer = 1
ORDER BY s.queue_name COLLATE \"C\", s.ordinal",
);

impl Connection {
    /// Binds a pattern to a queue and tells whether it was not bound before (`pgmq.bind_topic`).
    ///
    /// # Errors
    /// `QueueNotFound`; `PgmqVersionUnsupported` before pgmq 1.11.
    pub async fn bind_topic(&mut self, pattern: &Pattern, queue: &QueueName) -> Result<bool> {
        let created = self.change_binding(&BIND, pattern, queue, "created").await?;
        created.ok_or_else(|| Error::queue_not_found(queue.as_str()))
    }

    /// Removes a binding and tells whether it was there (`pgmq.unbind_topic`); a queue that is not there has none.
    ///
    /// # Errors
    /// `PgmqVersionUnsupported` before pgmq 1.11.
    pub async fn unbind_topic(&mut self, pattern: &Pattern, queue: &QueueName) -> Result<bool> {
        let removed = self.change_binding(&UNBIND, pattern, queue, "removed").await?;
        Ok(removed.unwrap_or(false))
    }

    /// What a statement says that it changed; none if the queue is not there.
    async fn change_binding(
        &mut self,
        statement: &Statement,
        pattern: &Pattern,
        queue: &QueueName,
        changed: &str,
    ) -> Result<Option<bool>> {
        self.installation().await?.require(Feature::Topics)?;
        let parameters = [(&pattern.as_str() as _, Type::TEXT), (&queue.as_str() as _, Type::TEXT)];
        let rows = self.query(statement, &parameters).await?;
        rows.first().map(|row| column(row, changed)).transpose()
    }

    /// A page of the bindings of one queue or of all, by pattern and queue (`pgmq.list_topic_bindings`).
    ///
    /// # Errors
    /// `PgmqVersionUnsupported` before pgmq 1.11.
    pub async fn list_topic_bindings(
        &mut self,
        queue: Option<&QueueName>,
        page: &Page,
    ) -> Result<Paged<TopicBinding>> {
        self.installation().await?.require(Feature::Topics)?;
        let parameters = [
            (&queue.map(QueueName::as_str) as _, Type::TEXT),
            (&page.after(0) as _, Type::TEXT),
            (&page.after(1) as _, Type::TEXT),
            (&page.rows() as _, Type::INT8),
        ];
        let rows = self.query(&LIST, &parameters).await?;
        let bindings = rows.iter().map(binding).collect::<Result<Vec<_>>>()?;
        let bytes = |binding: &TopicBinding| {
            binding.pattern.len() + binding.queue.len() + binding.compiled_regex.len()
        };
        Ok(page.cut(bindings, bytes, |binding| vec![binding.pattern.clone(), binding.queue.clone()]))
    }

    /// The bindings that a routing key matches (`pgmq.test_routing`).
    ///
    /// # Errors
    /// `PgmqVersionUnsupported` before pgmq 1.11.
    pub async fn test_routing(&mut self, routing_key: &RoutingKey) -> Result<Vec<TopicBinding>> {
        self.installation().await?.require(Feature::Topics)?;
        let rows = self.query(&TEST, &[(&routing_key.as_str(), Type::TEXT)]).await?;
        rows.iter().map(binding).collect()
    }

    /// Stores a copy of each message in every queue whose bindings match, all or none (`pgmq.send_batch_topic`).
    ///
    /// # Errors
    /// One that [`is_swallowed`](super::is_swallowed) where copies are missing, also those in a queue that was unbound
    /// meanwhile; `PgmqVersionUnsupported` before pgmq 1.11; `OutcomeUnknown` if the connection was lost meanwhile.
    pub async fn send_topic(
        &mut self,
        routing_key: &RoutingKey,
        messages: &[OutgoingMessage],
    ) -> Result<Vec<TopicCopy>> {
        self.installation().await?.require(Feature::Topics)?;
        if messages.len() > FEW_MESSAGES {
            self.check_copies(routing_key, messages.len()).await?;
        }
        let columns = Columns::of(messages);
        let rows = self
            .query(
                &SEND,
                &[
                    (&routing_key.as_str(), Type::TEXT),
                    (&columns.messages, Type::TEXT_ARRAY),
                    (&columns.headers, Type::TEXT_ARRAY),
                    (&columns.delays_ms, Type::INT8_ARRAY),
                    (&columns.visible_at, Type::TIMESTAMPTZ_ARRAY),
                ],
            )
            .await?;
        rows.iter().map(copy).collect()
    }

    /// Whether the policy of any queue may say something of the copies that a topic sends: then they are sent queue by queue.
    pub fn topics_follow_policies(&self) -> bool {
        self.policies().concern_sends()
    }

    /// Stores a copy of each message in every queue whose bindings match, as the queue's policy has it. Where messages have
    /// deduplication ids, each counts in each queue for itself, as [`Connection::send_keyed`] has it. It needs an open
    /// transaction, because it takes a statement for each queue. `field` names the field in which a message came.
    ///
    /// # Errors
    /// `MessageTooLarge` for what a queue's policy does not allow; `DeduplicationIdReused`; `PgmqVersionUnsupported` before
    /// pgmq 1.11; `PgmqNotInstalled` where the schema `pgmq_grpc` is missing.
    pub async fn send_topic_by_queue(
        &mut self,
        routing_key: &RoutingKey,
        messages: &[OutgoingMessage],
        field: fn(usize) -> String,
    ) -> Result<Vec<TopicCopy>> {
        let queues = self.matching_queues(routing_key).await?;
        check_copies(queues.len(), messages.len())?;
        let mut copies = Vec::with_capacity(queues.len() * messages.len());
        for queue in queues {
            let policy = self.policies().policy_of(&queue);
            check_sizes(messages, &queue, &policy, field)?;
            let scheduled: Vec<OutgoingMessage>;
            let own = match policy.default_delay_ms {
                None => messages,
                Some(_) => {
                    scheduled =
                        messages.iter().map(|message| message.clone().under_policy(&policy)).collect();
                    &scheduled
                }
            };
            let verdicts = self.send_to_queue(&queue, own).await.map_err(|error| match error.kind() {
                // Dropped since it was found to match: then it does not match any more.
                Kind::QueueNotFound => super::error::conflict().caused_by(error),
                _ => error,
            })?;
            for (index, verdict) in verdicts.into_iter().enumerate() {
                let sent = verdict.map_err(|error| {
                    error.with("queue", queue.as_str()).with("item_index", index.to_string())
                })?;
                copies.push(TopicCopy {
                    queue: queue.clone(),
                    msg_id: sent.msg_id,
                    message_index: i32::try_from(index).map_err(Error::internal)?,
                    deduplicated: sent.deduplicated,
                });
            }
        }
        Ok(copies)
    }

    async fn send_to_queue(
        &mut self,
        queue: &QueueName,
        messages: &[OutgoingMessage],
    ) -> Result<Vec<Result<Sent>>> {
        if messages.iter().any(|message| message.deduplication_id().is_some()) {
            return self.send_keyed(queue, messages).await;
        }
        let msg_ids = self.send(queue, messages).await?;
        Ok(msg_ids.into_iter().map(|msg_id| Ok(Sent { msg_id, deduplicated: false })).collect())
    }

    /// The queues whose bindings match a routing key, by name (`pgmq.test_routing`).
    ///
    /// # Errors
    /// `PgmqVersionUnsupported` before pgmq 1.11.
    pub async fn matching_queues(&mut self, routing_key: &RoutingKey) -> Result<Vec<QueueName>> {
        self.installation().await?.require(Feature::Topics)?;
        let rows = self.query(&MATCHING_QUEUES, &[(&routing_key.as_str(), Type::TEXT)]).await?;
        rows.iter().map(queue_name).collect()
    }

    /// Refuses a batch whose reply could not name all its copies, before anything is sent.
    async fn check_copies(&mut self, routing_key: &RoutingKey, messages: usize) -> Result<()> {
        let rows = self.query(&COUNT_MATCHES, &[(&routing_key.as_str(), Type::TEXT)]).await?;
        let queues: i64 = rows.first().map_or(Ok(0), |row| column(row, "queues"))?;
        check_copies(usize::try_from(queues).unwrap_or(usize::MAX), messages)
    }
}

fn check_copies(queues: usize, messages: usize) -> Result<()> {
    let copies = queues.saturating_mul(messages);
    if copies > MAX_COPIES {
        let description = format!(
            "{queues} queues match, so these would be {copies} copies; at most {MAX_COPIES} are made"
        );
        let invalid = Invalid::new(Kind::InvalidCount, description).with("limit", MAX_COPIES);
        return Err(Error::invalid(vec![invalid.at("messages")]));
    }
    Ok(())
}

fn check_sizes(
    messages: &[OutgoingMessage],
    queue: &QueueName,
    policy: &Policy,
    field: fn(usize) -> String,
) -> Result<()> {
    for (index, message) in messages.iter().enumerate() {
        if let Err(invalid) = message.check_size(policy) {
            return Err(Error::invalid(vec![invalid.at(field(index))]).with("queue", queue.as_str()));
        }
    }
    Ok(())
}

fn queue_name(row: &Row) -> Result<QueueName> {
    QueueName::try_from(column::<String>(row, "queue_name")?)
        .map_err(|Invalid { description, .. }| Error::new(Kind::Internal, description))
}

fn binding(row: &Row) -> Result<TopicBinding> {
    Ok(TopicBinding {
        pattern: column(row, "pattern")?,
        queue: column(row, "queue_name")?,
        bound_at: column(row, "bound_at")?,
        compiled_regex: column(row, "compiled_regex")?,
    })
}

fn copy(row: &Row) -> Result<TopicCopy> {
    let queue = queue_name(row)?;
    let ordinal: i64 = column(row, "ordinal")?;
    Ok(TopicCopy {
        queue,
        msg_id: column(row, "msg_id")?,
        message_index: i32::try_from(ordinal - 1).map_err(Error::internal)?,
        deduplicated: false,
    })
}
