//! Handlers: a function for each message, which is settled by what becomes of it.

use std::fmt;
use std::future::IntoFuture;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::task::JoinSet;
use tonic::Code;

use crate::life::as_handler;
use crate::{Consumer, Error, Message};

/// Messages passed to a handler. Await it: it ends with the consumer, when the messages in hand are done.
#[must_use = "nothing is handled before it is awaited"]
pub struct Handling<F> {
    consumer: Consumer,
    handler: F,
    concurrency: usize,
    archive: bool,
    retry_delay: Option<Duration>,
}

impl Consumer {
    /// Passes each message to a handler, and settles it: success deletes it, an error or a panic releases it. What the
    /// handler has settled itself is left alone.
    ///
    /// It ends after [`Stopper::stop`](crate::Stopper::stop), or with an error that no repetition cures.
    pub fn handle<F, R, E>(self, handler: F) -> Handling<F>
    where
        F: Fn(Message) -> R + Send + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display + 'static,
    {
        Handling { consumer: self, handler, concurrency: 1, archive: false, retry_delay: None }
    }
}

impl<F> Handling<F> {
    /// How many messages are handled at a time. One without this; none is refused with `INVALID_ARGUMENT`.
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency;
        self
    }

    /// Archives messages after success, in place of deleting them.
    pub fn archive(mut self) -> Self {
        self.archive = true;
        self
    }

    /// How long a message waits after a failure. Without this the queue's policy says it, and where it has no backoff, a
    /// message waits for a second, and twice as long each time, up to a minute.
    pub fn retry_delay(mut self, delay: Duration) -> Self {
        self.retry_delay = Some(delay);
        self
    }
}

impl<F, R, E> IntoFuture for Handling<F>
where
    F: Fn(Message) -> R + Send + 'static,
    R: Future<Output = Result<(), E>> + Send + 'static,
    E: fmt::Display + 'static,
{
    type Output = Result<(), Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { mut consumer, handler, concurrency, archive, retry_delay } = self;
        async move {
            if concurrency == 0 {
                return Err(Error::local(Code::InvalidArgument, "concurrency has to be at least 1"));
            }
            let handlers = consumer.client().inner.life.handlers.clone();
            let has_retry_backoff = consumer.has_retry_backoff();
            let mut running = JoinSet::new();
            let end = loop {
                // Panics are caught in the task, so a task ends in one way only.
                while running.len() >= concurrency {
                    running.join_next().await;
                }
                // Before the message is here, so that whoever closes the client does not miss it.
                let at_work = handlers.begin();
                let message = match consumer.next().await {
                    Some(Ok(message)) => message,
                    Some(Err(error)) => break Err(error),
                    None => break Ok(()),
                };
                let work = AssertUnwindSafe(handler(message.clone())).catch_unwind();
                let has_retry_backoff = has_retry_backoff.clone();
                running.spawn(as_handler(at_work, async move {
                    let failure = match work.await {
                        Ok(Ok(())) => None,
                        Ok(Err(error)) => Some(error.to_string()),
                        Err(_) => Some("the handler has panicked".to_owned()),
                    };
                    let retry_delay = match retry_delay {
                        None if !has_retry_backoff.load(Relaxed) => Some(growing(message.read_ct)),
                        given => given,
                    };
                    settle(&message, failure, archive, retry_delay).await;
                }));
            };
            running.join_all().await;
            end
        }
        .boxed()
    }
}

/// How long a message that was read so often is hidden after a failure, where nobody has said it.
fn growing(read_ct: i32) -> Duration {
    let doubled = u32::try_from(read_ct - 1).unwrap_or_default().min(6);
    Duration::from_secs(60.min(1 << doubled)).mul_f64(rand::random_range(0.8..1.0))
}

async fn settle(message: &Message, failure: Option<String>, archive: bool, retry_delay: Option<Duration>) {
    if let Some(error) = &failure {
        tracing::warn!(queue = message.queue, msg_id = message.msg_id, error, "a message was not handled");
    }
    if message.is_settled() {
        return;
    }
    let settled = match failure {
        Some(_) => message.release(retry_delay).await,
        None if archive => message.archive().await,
        None => message.delete().await,
    };
    if let Err(error) = settled {
        tracing::warn!(queue = message.queue, msg_id = message.msg_id, %error, "a message was not settled");
    }
}

impl<F> fmt::Debug for Handling<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handling").field("consumer", &self.consumer).finish_non_exhaustive()
    }
}
