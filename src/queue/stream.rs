//! The server-streaming read: drains a queue, then follows it until the client leaves.
//!
//! One task a stream reads and waits; the transport pulls. A place in the channel is reserved before each read, so
//! that nothing is read that the client is not about to take.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::batch::idle_pause;
use super::{Broker, Handover, OnConnection};
use crate::domain::bounds::MAX_STREAM_BATCH_BYTES;
use crate::domain::{Deadline, Error, Kind, Ordering, Queue, ReadOrder, Result, Timestamp};
use crate::engine::{Waiter, Window};
use crate::pg::Connection;

/// How long one read of a stream may take.
const READ_TIME: Duration = Duration::from_secs(30);

/// How often a full window is checked for messages that were settled elsewhere.
const WINDOW_CHECK: Duration = Duration::from_secs(1);

/// The pause after a failure of the database, which the stream outlives.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How long a client may take to take the last item.
const GOODBYE: Duration = Duration::from_secs(2);

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
    items: mpsc::Receiver<Result<StreamItem>>,
}

impl ReadStream {
    /// Opens a stream, after it has checked that the queue can be read in this way; nothing is read yet.
    ///
    /// # Errors
    /// `QueueNotFound`; `PgmqVersionUnsupported`; `Draining`; `DatabaseUnavailable`; `DeadlineExceeded`.
    pub async fn open(broker: &Arc<Broker>, options: StreamOptions, deadline: Deadline) -> Result<Self> {
        let check = CheckReadable { order: options.order.clone() };
        let queue = broker.run(check, deadline.at_most(READ_TIME)).await?;

        let (sender, items) = mpsc::channel(1);
        let followed = broker.events.follow(&options.order.queue);
        let window = Arc::new(Window::new(options.max_in_flight));
        followed.add_window(&window);
        let reader = Reader {
            waiter: followed.waiter(options.order.ordering != Ordering::Unordered),
            left: options.max_messages,
            // Streams that were opened together do not end together.
            ends: broker
                .max_stream_age
                .map(|age| Instant::now() + age.mul_f64(rand::rng().random_range(0.9..1.0))),
            heartbeat: Instant::now() + options.heartbeat_interval,
            broker: Arc::clone(broker),
            queue_created_at: queue.created_at,
            options,
            window,
            deadline,
        };
        broker.tasks.spawn(reader.run(sender));
        Ok(Self { items })
    }

    /// The next item; none at the end.
    pub fn poll_next(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<StreamItem>>> {
        self.items.poll_recv(context)
    }
}

/// Whether queue, pgmq and database are there for a stream.
struct CheckReadable {
    order: ReadOrder,
}

impl OnConnection for CheckReadable {
    const NAME: &'static str = "read";
    type Output = Queue;

    async fn apply(&self, connection: &mut Connection) -> Result<Queue> {
        connection.check_ordering(self.order.ordering).await?;
        connection.get_queue(&self.order.queue).await
    }
}

type Sender = mpsc::Sender<Result<StreamItem>>;

struct Reader {
    broker: Arc<Broker>,
    queue_created_at: Timestamp,
    options: StreamOptions,
    window: Arc<Window>,
    waiter: Waiter,
    left: Option<usize>,
    ends: Option<Instant>,
    heartbeat: Instant,
    deadline: Deadline,
}

/// What a stream does next.
enum Next {
    Read,
    Heartbeat,
    Close(ClosingReason),
    Fail(Error),
    Gone,
}

impl Reader {
    async fn run(mut self, sender: Sender) {
        let mut next = Next::Read;
        loop {
            next = match next {
                Next::Read => self.read(&sender).await,
                Next::Heartbeat => self.beat(&sender).await,
                Next::Close(reason) => return self.close(&sender, reason).await,
                Next::Fail(error) => {
                    let _ = tokio::time::timeout(GOODBYE, sender.send(Err(error))).await;
                    return;
                }
                Next::Gone => return,
            };
        }
    }

    /// Reads once if there is room and the client is ready, and waits otherwise.
    async fn read(&mut self, sender: &Sender) -> Next {
        if self.left == Some(0) {
            return Next::Gone;
        }
        if self.window.room() == 0 {
            return self.wait_for_room(sender).await;
        }
        let place = tokio::select! {
            place = sender.reserve() => match place {
                Ok(place) => place,
                Err(_) => return Next::Gone,
            },
            // A client that does not read gets no heartbeat either: it has one waiting already.
            planned = Self::planned_end(&self.broker, self.ends, self.deadline) => return planned,
        };
        self.waiter.reset();
        let room = self.window.room().min(self.left.unwrap_or(usize::MAX));
        match self.read_once(room).await {
            Ok(Found::Messages(handover)) => {
                let receipts = handover.deliveries().iter().map(|delivery| delivery.receipt);
                self.window.take(receipts, self.options.order.visibility_timeout.span());
                if let Some(left) = &mut self.left {
                    *left -= handover.deliveries().len();
                }
                self.heartbeat = Instant::now() + self.options.heartbeat_interval;
                place.send(Ok(StreamItem::Messages(handover)));
                Next::Read
            }
            Ok(Found::Nothing { look_again_after }) => {
                drop(place);
                self.wait_for_messages(sender, look_again_after).await
            }
            Err(error) => {
                drop(place);
                self.after_failure(sender, error).await
            }
        }
    }

    async fn read_once(&mut self, room: usize) -> Result<Found> {
        let order = &self.options.order;
        let deadline = Deadline::within(READ_TIME);
        let mut connection = self.broker.database.connect("read", deadline).await?;
        let count = i32::try_from(room).unwrap_or(i32::MAX);
        let taken = connection.read(order, count, MAX_STREAM_BATCH_BYTES).await?;
        let read = Handover::new(&self.broker, &order.queue, taken.deliveries);
        if taken.queue_created_at != self.queue_created_at {
            // Dropped and made anew between two reads: what was read is another queue's, and goes back.
            return Err(Error::queue_not_found(order.queue.as_str()));
        }
        if !read.deliveries().is_empty() {
            return Ok(Found::Messages(read));
        }
        if taken.cut {
            return Ok(Found::Nothing { look_again_after: Duration::ZERO });
        }
        let next = connection.next_visible(&order.queue, taken.before_read).await?;
        Ok(Found::Nothing { look_again_after: idle_pause(next) })
    }

    async fn wait_for_messages(&mut self, sender: &Sender, longest: Duration) -> Next {
        tokio::select! {
            () = self.waiter.wait(longest) => Next::Read,
            () = sleep_until(self.heartbeat) => Next::Heartbeat,
            () = sender.closed() => Next::Gone,
            planned = Self::planned_end(&self.broker, self.ends, self.deadline) => planned,
        }
    }

    /// Waits until a slot is free: settled here, expired, or settled elsewhere, which the database tells.
    async fn wait_for_room(&mut self, sender: &Sender) -> Next {
        let check = Instant::now() + WINDOW_CHECK;
        let look = self.window.next_expiry().map_or(check, |expiry| expiry.min(check));
        tokio::select! {
            () = self.window.changed() => return Next::Read,
            () = sleep_until(look) => {}
            () = sleep_until(self.heartbeat) => return Next::Heartbeat,
            () = sender.closed() => return Next::Gone,
            planned = Self::planned_end(&self.broker, self.ends, self.deadline) => return planned,
        }
        match self.check_window().await {
            Ok(()) => Next::Read,
            Err(error) => self.after_failure(sender, error).await,
        }
    }

    async fn check_window(&mut self) -> Result<()> {
        let receipts = self.window.receipts();
        let mut connection =
            self.broker.database.connect("check_window", Deadline::within(READ_TIME)).await?;
        let hidden = connection.hidden_for(&self.options.order.queue, &receipts).await?;
        self.window.corrected(receipts.into_iter().zip(hidden));
        Ok(())
    }

    /// A stream outlives its database, but not its queue.
    async fn after_failure(&mut self, sender: &Sender, error: Error) -> Next {
        match error.kind() {
            Kind::QueueNotFound => {
                self.close(sender, ClosingReason::QueueDropped).await;
                Next::Fail(error)
            }
            Kind::DatabaseUnavailable
            | Kind::OutcomeUnknown
            | Kind::OutcomeUnknownRetrySafe
            | Kind::Overloaded
            | Kind::Conflict
            | Kind::QueueBusy
            | Kind::DeadlineExceeded
            | Kind::DatabaseResources => {
                let queue = self.options.order.queue.as_str();
                tracing::debug!(
                    queue,
                    error = crate::domain::error::chain(&error),
                    "stream waits for the database"
                );
                self.wait_for_messages(sender, RETRY_PAUSE).await
            }
            _ => Next::Fail(error),
        }
    }

    async fn beat(&mut self, sender: &Sender) -> Next {
        self.heartbeat = Instant::now() + self.options.heartbeat_interval;
        match sender.try_send(Ok(StreamItem::Heartbeat { in_flight: self.window.in_flight() })) {
            Err(mpsc::error::TrySendError::Closed(_)) => Next::Gone,
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Next::Read,
        }
    }

    /// Says goodbye; a client that does not read must not hold up the end.
    async fn close(&self, sender: &Sender, reason: ClosingReason) {
        let _ = tokio::time::timeout(GOODBYE, sender.send(Ok(self.closing(reason)))).await;
    }

    fn closing(&self, reason: ClosingReason) -> StreamItem {
        // Clients that were closed together do not come back together.
        let retry_delay = Duration::from_millis(rand::rng().random_range(100..2_000));
        StreamItem::Closing { reason, retry_delay }
    }

    async fn planned_end(broker: &Broker, ends: Option<Instant>, deadline: Deadline) -> Next {
        let aged = async {
            match ends {
                Some(ends) => sleep_until(ends).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = broker.drain.cancelled() => Next::Close(ClosingReason::Draining),
            () = aged => Next::Close(ClosingReason::StreamAge),
            () = sleep_until(deadline.instant()) => Next::Fail(Error::deadline_exceeded()),
        }
    }
}

enum Found {
    Messages(Handover),
    Nothing { look_again_after: Duration },
}
