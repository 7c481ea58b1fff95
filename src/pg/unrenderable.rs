//! Messages that Postgres holds and cannot render: jsonb is compact, and its text can exceed what a value may have.
//!
//! One of them fails every statement that would show it, so a read that meets one looks for it without rendering.

use tokio_postgres::types::Type;

use super::database::{Connection, Parameter};
use super::dead_letter::UNREADABLE_PAUSE_MS;
use super::error;
use super::read::POP;
use super::row::column;
use super::statement::{Effect, Statement};
use crate::domain::bounds::MAX_REPLY_BYTES;
use crate::domain::message::Message;
use crate::domain::{Delivery, Error, QueueName, ReadOrder, Result, Taken};

/// Renders one message, and gives only its size.
const RENDER: Statement = Statement::new(
    "render",
    Effect::Reads,
    "-- pgmq-grpc: render
SELECT octet_length(q.message::text) AS message_bytes, octet_length(q.headers::text) AS headers_bytes
FROM {q} AS q WHERE q.msg_id = $1::bigint AND q.enqueued_at = $2::timestamptz",
);

/// What a pop finds, without a look at it. `$1` the id after which, `$2` number.
const VISIBLE: Statement = Statement::new(
    "visible",
    Effect::Reads,
    "-- pgmq-grpc: visible
SELECT q.msg_id FROM {q} AS q WHERE q.vt <= clock_timestamp() AND q.msg_id > $1::bigint
ORDER BY q.msg_id LIMIT $2::integer",
);

/// How many messages a pop around an unrenderable one looks for at once.
const STEP: i32 = 100;

impl Connection {
    /// After a pop that the database could not answer: pops the messages one by one and passes over those that cannot be
    /// rendered.
    ///
    /// # Errors
    /// As [`Connection::pop`].
    pub(super) async fn pop_around_unrenderable(
        &mut self,
        queue: &QueueName,
        count: i32,
    ) -> Result<Vec<Message>> {
        if self.in_transaction() {
            return self.pop_one_by_one(queue, count).await;
        }
        self.begin().await?;
        let popped = self.pop_one_by_one(queue, count).await;
        self.conclude(popped, false).await
    }

    async fn pop_one_by_one(&mut self, queue: &QueueName, count: i32) -> Result<Vec<Message>> {
        let wanted = usize::try_from(count).unwrap_or(0);
        let table = self.table(queue).await?;
        let mut popped = Vec::new();
        let mut left = MAX_REPLY_BYTES;
        let mut after = i64::MIN;
        loop {
            let rows = self.query(&VISIBLE.on(&table), &[(&after, Type::INT8), (&STEP, Type::INT4)]).await?;
            for row in &rows {
                after = column(row, "msg_id")?;
                self.mark().await?;
                let parameters: [Parameter<'_>; 3] =
                    [(&1_i32, Type::INT4), (&left, Type::INT8), (&after, Type::INT8)];
                match self.pop_by(&pop_of_one(), queue, &parameters).await {
                    Ok(found) => popped.extend(found),
                    Err(error) if error::is_unrenderable(&error) => self.return_to_mark().await?,
                    Err(error) => return Err(error),
                }
                let bytes: usize = popped.iter().map(Message::text_bytes).sum();
                left = MAX_REPLY_BYTES - i64::try_from(bytes).unwrap_or(i64::MAX);
                if popped.len() >= wanted || left < MAX_REPLY_BYTES / 2 {
                    return Ok(popped);
                }
            }
            if rows.is_empty() {
                return Ok(popped);
            }
        }
    }

    /// After a read that the database could not answer: takes the same messages without their texts, moves those that
    /// cannot be rendered aside, and gives the others back for the next read. One that cannot be moved is hidden for a while,
    /// so that the next read passes over it.
    ///
    /// # Errors
    /// The read's own, if each of the messages can be rendered.
    pub(super) async fn read_around_unrenderable(
        &mut self,
        order: &ReadOrder,
        count: i32,
        failed: Error,
    ) -> Result<Taken> {
        let mut taken = self.take(order, count, i64::MAX, Some(without_texts)).await?;
        let (mut unrenderable, mut others) = (Vec::new(), Vec::new());
        let mut looked = Ok(());
        for delivery in std::mem::take(&mut taken.deliveries) {
            // After a failure the rest is only given back.
            let is_unrenderable = match looked {
                Ok(()) => self.is_unrenderable(order, &delivery).await,
                Err(_) => Ok(false),
            };
            match is_unrenderable {
                Ok(true) => unrenderable.push(delivery),
                is_unrenderable => {
                    looked = looked.and(is_unrenderable.map(drop));
                    others.push(delivery);
                }
            }
        }
        // Some may have gone aside for other reasons, and with them what could not be rendered.
        let is_found = !unrenderable.is_empty() || !taken.set_aside.is_empty();
        let (queue, why) = (&order.queue, "the database cannot render it");
        let all: Vec<&Delivery> = unrenderable.iter().collect();
        let stuck = self.set_all_unreadable_aside(queue, &all, why, &mut taken.set_aside).await;
        unrenderable.retain(|delivery| stuck.contains(&delivery.message.msg_id));
        let given_back = self.give_back(queue, &others).await;
        let given_back =
            given_back.and(self.give_back_after(queue, &unrenderable, UNREADABLE_PAUSE_MS).await);
        match looked.and(given_back) {
            Ok(()) if !is_found => Err(failed),
            // What has gone aside is told by a reply alone, and the next read meets the failure first.
            Err(error) if taken.set_aside.is_empty() || self.in_transaction() => Err(error),
            Ok(()) => Ok(Taken { cut: true, ..taken }),
            Err(error) => {
                let (queue, error) = (queue.as_str(), crate::domain::error::chain(&error));
                let messages = others.len() + unrenderable.len();
                tracing::warn!(queue, error, messages, "messages could not be given back");
                Ok(Taken { cut: true, ..taken })
            }
        }
    }

    /// Whether the database cannot render a message.
    async fn is_unrenderable(&mut self, order: &ReadOrder, delivery: &Delivery) -> Result<bool> {
        self.mark().await?;
        match self.render(order, delivery).await {
            Ok(()) => Ok(false),
            Err(error) if error::is_unrenderable(&error) => self.return_to_mark().await.map(|()| true),
            Err(error) => Err(error),
        }
    }

    async fn render(&mut self, order: &ReadOrder, delivery: &Delivery) -> Result<()> {
        let table = self.table(&order.queue).await?;
        let receipt = &delivery.receipt;
        let parameters: [Parameter<'_>; 2] =
            [(&receipt.msg_id(), Type::INT8), (&receipt.enqueued_at(), Type::TIMESTAMPTZ)];
        let rendered = self.query(&RENDER.on(&table), &parameters).await;
        rendered.map(drop).map_err(|error| self.missing(&order.queue, error))
    }
}

/// A pop of the message `$3`, if it can be popped.
fn pop_of_one() -> Statement {
    let text = POP.text.replace("WHERE q.vt <=", "WHERE q.msg_id = $3::bigint AND q.vt <=");
    Statement { text: text.into(), ..POP }
}

/// A statement of reading that claims the same messages and shows none of their texts.
fn without_texts(statement: &Statement) -> Statement {
    let text = statement.text.replace(
        "r.message::text AS message, r.headers::text AS headers",
        "NULL::text AS message, NULL::text AS headers",
    );
    Statement { text: text.into(), ..statement.clone() }
}
