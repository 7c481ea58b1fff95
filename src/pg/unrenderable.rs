//! Messages that Postgres holds and cannot render: jsonb is compact, and its text can exceed what a value may have.
//!
//! One of them fails every statement that would show it, so a read that meets one looks for it without rendering.

use tokio_postgres::types::Type;

use super::database::{Connection, Parameter};
use super::dead_letter::{UNREADABLE_PAUSE_MS, Unreadable};
use super::error;
use super::statement::{Effect, Statement};
use crate::domain::{Delivery, Error, ReadOrder, Result, Taken};

/// Renders one message, and gives only its size.
const RENDER: Statement = Statement::new(
    "render",
    Effect::Reads,
    "-- pgmq-grpc: render
SELECT octet_length(q.message::text) AS message_bytes, octet_length(q.headers::text) AS headers_bytes
FROM {q} AS q WHERE q.msg_id = $1::bigint AND q.enqueued_at = $2::timestamptz",
);

const UNRENDERABLE: Unreadable = Unreadable { reason: "the database cannot render it", uncounted: 1 };

impl Connection {
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
        only: Option<&[i64]>,
        failed: Error,
    ) -> Result<Taken> {
        let mut taken = self.take(order, count, i64::MAX, only, Some(without_texts)).await?;
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
        let queue = &order.queue;
        let all: Vec<&Delivery> = unrenderable.iter().collect();
        let stuck = self.set_all_unreadable_aside(queue, &all, &UNRENDERABLE, &mut taken.set_aside).await;
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

/// A statement of reading that claims the same messages and shows none of their texts.
fn without_texts(statement: &Statement) -> Statement {
    let text = statement.text.replace(
        "r.message::text AS message, r.headers::text AS headers",
        "NULL::text AS message, NULL::text AS headers",
    );
    Statement { text: text.into(), ..statement.clone() }
}
