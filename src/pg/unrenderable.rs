//! Messages that Postgres holds and cannot render: jsonb is compact, and its text can exceed what a value may have.
//!
//! One of them fails every statement that would show it, so a read that meets one looks for it without rendering.

use std::borrow::Cow;

use tokio_postgres::types::Type;

use super::database::Connection;
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

impl Connection {
    /// After a read that the database could not answer: takes the same messages without their texts, moves those that
    /// cannot be rendered to the archive, and gives the others back for the next read.
    ///
    /// # Errors
    /// The read's own, if each of the messages can be rendered.
    pub(super) async fn read_around_unrenderable(
        &mut self,
        order: &ReadOrder,
        count: i32,
        failed: Error,
    ) -> Result<Taken> {
        let taken = self.take(order, count, i64::MAX, without_texts).await?;
        let mut others = Vec::with_capacity(taken.deliveries.len());
        let mut moved = Ok(false);
        for delivery in taken.deliveries {
            // After a failure the rest is only given back.
            if moved.is_ok() {
                match self.move_if_unrenderable(order, &delivery).await {
                    Ok(true) => {
                        moved = Ok(true);
                        continue;
                    }
                    Ok(false) => {}
                    Err(error) => moved = Err(error),
                }
            }
            others.push(delivery);
        }
        self.give_back(&order.queue, &others).await?;
        match moved? {
            true => Ok(Taken { deliveries: Vec::new(), cut: true, ..taken }),
            false => Err(failed),
        }
    }

    async fn move_if_unrenderable(&mut self, order: &ReadOrder, delivery: &Delivery) -> Result<bool> {
        self.mark().await?;
        match self.render(order, delivery).await {
            Ok(()) => Ok(false),
            Err(error) if error::is_unrenderable(&error) => {
                self.return_to_mark().await?;
                self.set_aside(&order.queue, delivery, "the database cannot render it").await.map(|()| true)
            }
            Err(error) => Err(error),
        }
    }

    async fn render(&mut self, order: &ReadOrder, delivery: &Delivery) -> Result<()> {
        let table = self.table(&order.queue).await?;
        let receipt = &delivery.receipt;
        let parameters: [super::database::Parameter<'_>; 2] =
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
    Statement { text: Cow::Owned(text), ..statement.clone() }
}
