//! The server-streaming read: drains a queue, then follows it until the client leaves.
//!
//! One task a stream says how much it wants and waits; the transport pulls. A place in the channel is reserved before
//! anything is wanted, so nothing is read for a client that does not take what it was given; and what it does not take
//! for half of its timeout goes back.

mod reader;
mod shelf;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rand::Rng;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::reader::{Offer, Reader};
use super::Broker;
use crate::domain::bounds::MAX_STREAM_BATCH_BYTES;
use crate::domain::{Caller, ClientRole, Deadline, Error, Queue, ReadOrder, Result};
use crate::engine::{Handover, StreamKind, Window};

/// How long the look may take with which a stream opens.
const OPENING: Duration = Duration::from_secs(30);

/// How often a full window is checked for messages that were settled elsewhere.
pub(super) const WINDOW_CHECK: Duration = Duration::from_secs(1);

/// The most bytes of one piece.
pub(super) const PIECE_BYTES: usize = MAX_STREAM_BATCH_BYTES as usize;

/// How long a client may take to take the last item of a stream.
pub const GOODBYE: Duration = Duration::from_secs(2);

/// How a client wants its stream.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// What to read.
    pub order: ReadOrder,
    /// The most messages that the client holds at a time.
    pub max_in_flight: usize,
    /// The most messages of the whole stream; none for no end.
    pub max_messages: Option<usize>,
    /// The longest silence.
    pub heartbeat_interval: Duration,
}

/// Why a stream ends as planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClosingReason {
    /// The server ends.
    Draining,
    /// The stream is old.
    StreamAge,
    /// The queue was dropped.
    QueueDropped,
}

/// What a stream gives.
pub enum StreamItem {
    /// Messages, to be handed over by the transport.
    Messages(Handover),
    /// A sign of life.
    Heartbeat {
        /// How many messages the client holds.
        in_flight: usize,
    },
    /// The stream is about to end as planned.
    Closing {
        /// Why.
        reason: ClosingReason,
        /// How long to wait before opening it again.
        retry_delay: Duration,
    },
}

/// An open stream.
pub struct ReadStream {
    items: mpsc::Receiver<Result<Offer>>,
}

impl ReadStream {
    /// Opens a stream, after it has checked that the queue can be read in this way; nothing is read yet.
    ///
    /// # Errors
    /// `QueueNotFound`; `PgmqVersionUnsupported`; `Draining`; `Overloaded`; `QueueBusy`; `DatabaseUnavailable`;
    /// `DeadlineExceeded`.
    pub async fn open(
        broker: &Arc<Broker>,
        caller: &Caller,
        options: StreamOptions,
        deadline: Deadline,
    ) -> Result<Self> {
        let queue = check_readable(broker, &options.order, deadline).await?;

        let (sender, items) = mpsc::channel(1);
        let followed = broker.events.follow(&options.order.queue);
        let window = Arc::new(Window::new(options.max_in_flight));
        followed.add_window(&window);
        let subscription = broker.dispatch.subscribe(&options.order, queue.created_at, PIECE_BYTES)?;
        let presence = broker.clients.stream(caller, ClientRole::Consumer, options.order.queue.as_str());
        let reader = Reader {
            subscription,
            _followed: followed,
            _open: broker.streams.open(StreamKind::Read),
            presence,
            left: options.max_messages,
            shelf: None,
            look_failed: false,
            ends: end_of_life(broker.max_stream_age),
            heartbeat: Instant::now() + options.heartbeat_interval,
            dispatch: broker.dispatch.clone(),
            drain: broker.drain.clone(),
            options,
            window,
            deadline,
        };
        broker.tasks.spawn(reader.run(sender));
        Ok(Self { items })
    }

    /// The next item; none at the end.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<StreamItem>>> {
        loop {
            let item = match ready!(self.items.poll_recv(context)) {
                Some(Ok(Offer::Messages(shelf))) => match shelf.take() {
                    Some(handover) => Ok(StreamItem::Messages(handover)),
                    // It came too late for these.
                    None => continue,
                },
                Some(Ok(Offer::Notice(item))) => Ok(item),
                Some(Err(error)) => Err(error),
                None => return Poll::Ready(None),
            };
            return Poll::Ready(Some(item));
        }
    }
}

/// Checks that queue, pgmq and database are there for a stream.
///
/// # Errors
/// `QueueNotFound`; `PgmqVersionUnsupported`; `Draining`; `Overloaded`; `QueueBusy`; `DatabaseUnavailable`;
/// `DeadlineExceeded`.
pub(super) async fn check_readable(
    broker: &Arc<Broker>,
    order: &ReadOrder,
    deadline: Deadline,
) -> Result<Queue> {
    if broker.drain.is_cancelled() {
        return Err(Error::draining());
    }
    let looked = async { broker.merging.look(order).await.wait().await };
    broker.until(deadline.at_most(OPENING), looked).await
}

/// When a stream or a connection that begins now is old. Those that were opened together do not end together.
pub fn end_of_life(max_age: Option<Duration>) -> Option<Instant> {
    max_age.map(|age| Instant::now() + age.mul_f64(rand::rng().random_range(0.9..1.0)))
}

/// How long to wait before a closed stream is opened again. Clients that were closed together do not come back
/// together.
pub fn retry_delay() -> Duration {
    Duration::from_millis(rand::rng().random_range(100..2_000))
}

/// Waits for the moment at which a stream ends by itself, and tells why.
///
/// # Errors
/// `DeadlineExceeded` if its caller's deadline comes first.
pub(super) async fn planned_end(
    drain: &CancellationToken,
    ends: Option<Instant>,
    deadline: Deadline,
) -> Result<ClosingReason> {
    let aged = async {
        match ends {
            Some(ends) => sleep_until(ends).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = drain.cancelled() => Ok(ClosingReason::Draining),
        () = aged => Ok(ClosingReason::StreamAge),
        () = sleep_until(deadline.instant()) => Err(Error::deadline_exceeded()),
    }
}
