//! The server-streaming read: drains a queue, then follows it until the client leaves.
//!
//! One task a stream says how much it wants and waits; the transport pulls. A place in the channel is reserved before
//! anything is wanted, so that nothing is read that the client is not about to take.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Broker, OnConnection};
use crate::domain::bounds::MAX_STREAM_BATCH_BYTES;
use crate::domain::{Caller, ClientRole, Deadline, Error, Kind, Queue, ReadOrder, Result};
use crate::engine::{Handover, Presence, QueueEvents, Subscription, Window};
use crate::pg::Connection;

/// How long one read of a stream may take.
pub(super) const READ_TIME: Duration = Duration::from_secs(30);

/// How often a full window is checked for messages that were settled elsewhere.
pub(super) const WINDOW_CHECK: Duration = Duration::from_secs(1);

/// The most bytes of one piece.
pub(super) const PIECE_BYTES: usize = MAX_STREAM_BATCH_BYTES as usize;

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
    pub async fn open(
        broker: &Arc<Broker>,
        caller: &Caller,
        options: StreamOptions,
        deadline: Deadline,
    ) -> Result<Self> {
        let check = CheckReadable { order: options.order.clone() };
        let queue = broker.run(check, deadline.at_most(READ_TIME)).await?;

        let (sender, items) = mpsc::channel(1);
        let followed = broker.events.follow(&options.order.queue);
        let window = Arc::new(Window::new(options.max_in_flight));
        followed.add_window(&window);
        let subscription = broker.dispatch.subscribe(&options.order, queue.created_at, PIECE_BYTES)?;
        let reader = Reader {
            subscription,
            _followed: followed,
            presence: broker.clients.stream(caller, ClientRole::Consumer, options.order.queue.as_str()),
            left: options.max_messages,
            look_failed: false,
            ends: end_of_life(broker),
            heartbeat: Instant::now() + options.heartbeat_interval,
            broker: Arc::clone(broker),
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
pub(super) struct CheckReadable {
    /// In which way.
    pub(super) order: ReadOrder,
}

impl OnConnection for CheckReadable {
    const NAME: &'static str = "read";
    type Output = Queue;

    async fn apply(&self, connection: &mut Connection) -> Result<Queue> {
        connection.check_ordering(self.order.ordering).await?;
        connection.get_queue(&self.order.queue).await
    }
}

/// When a stream that begins now is old. Streams that were opened together do not end together.
pub fn end_of_life(broker: &Broker) -> Option<Instant> {
    broker.max_stream_age.map(|age| Instant::now() + age.mul_f64(rand::rng().random_range(0.9..1.0)))
}

/// How long to wait before a closed stream is opened again. Clients that were closed together do not come back
/// together.
pub fn retry_delay() -> Duration {
    Duration::from_millis(rand::rng().random_range(100..2_000))
}

type Sender = mpsc::Sender<Result<StreamItem>>;

struct Reader {
    broker: Arc<Broker>,
    subscription: Subscription,
    options: StreamOptions,
    window: Arc<Window>,
    _followed: Arc<QueueEvents>,
    presence: Presence,
    left: Option<usize>,
    /// The last look at the window failed: the next one is not hurried.
    look_failed: bool,
    ends: Option<Instant>,
    heartbeat: Instant,
    deadline: Deadline,
}

/// What a stream does next.
enum Next {
    Give(StreamItem),
    Close(ClosingReason),
    Fail(Error),
    Dropped(Error),
    Gone,
}

impl Reader {
    async fn run(mut self, sender: Sender) {
        loop {
            let place = match sender.try_reserve() {
                Ok(place) => place,
                Err(_) => {
                    // Nothing is read for a client that does not take what it was given. It gets no heartbeat either.
                    self.subscription.set_demand(0);
                    tokio::select! {
                        place = sender.reserve() => match place {
                            Ok(place) => place,
                            Err(_) => return,
                        },
                        planned = Self::planned_end(&self.broker, self.ends, self.deadline) => {
                            return self.end(&sender, planned).await;
                        }
                    }
                }
            };
            match self.next(&sender).await {
                Next::Give(item) => place.send(Ok(item)),
                end => {
                    drop(place);
                    return self.end(&sender, end).await;
                }
            }
        }
    }

    /// What comes next, for a client that is ready to take it.
    async fn next(&mut self, sender: &Sender) -> Next {
        loop {
            if self.left == Some(0) {
                return Next::Gone;
            }
            self.presence.set_in_flight(self.window.in_flight());
            let room = self.window.room().min(self.left.unwrap_or(usize::MAX));
            self.subscription.set_demand(room);
            let look = Instant::now() + WINDOW_CHECK;
            let hurried = self.window.next_expiry().filter(|_| !self.look_failed);
            let look = hurried.map_or(look, |expiry| expiry.min(look));
            tokio::select! {
                handover = self.subscription.next() => match handover {
                    Ok(handover) => return Next::Give(self.take(handover)),
                    Err(error) => match error.kind() {
                        Kind::QueueNotFound => return Next::Dropped(error),
                        Kind::Draining => return Next::Close(ClosingReason::Draining),
                        _ => return Next::Fail(error),
                    },
                },
                () = self.window.changed() => {}
                () = sleep_until(look), if room == 0 => match self.broker.dispatch.check_window(&self.options.order.queue, &self.window).await {
                    Err(error) if error.kind() == Kind::QueueNotFound => return Next::Dropped(error),
                    // Another look comes soon.
                    looked => self.look_failed = looked.is_err(),
                },
                () = sleep_until(self.heartbeat) => {
                    self.heartbeat = Instant::now() + self.options.heartbeat_interval;
                    return Next::Give(StreamItem::Heartbeat { in_flight: self.window.in_flight() });
                }
                () = sender.closed() => return Next::Gone,
                planned = Self::planned_end(&self.broker, self.ends, self.deadline) => return planned,
            }
        }
    }

    /// Counts messages as held by the client.
    fn take(&mut self, handover: Handover) -> StreamItem {
        let receipts = handover.deliveries().iter().map(|delivery| delivery.receipt);
        self.window.take(receipts, self.options.order.visibility_timeout.span());
        self.presence.set_in_flight(self.window.in_flight());
        if let Some(left) = &mut self.left {
            *left -= handover.deliveries().len();
        }
        self.heartbeat = Instant::now() + self.options.heartbeat_interval;
        StreamItem::Messages(handover)
    }

    async fn end(&self, sender: &Sender, end: Next) {
        match end {
            Next::Close(reason) => self.close(sender, reason).await,
            Next::Dropped(error) => {
                self.close(sender, ClosingReason::QueueDropped).await;
                let _ = timeout(GOODBYE, sender.send(Err(error))).await;
            }
            Next::Fail(error) => {
                let _ = timeout(GOODBYE, sender.send(Err(error))).await;
            }
            Next::Give(_) | Next::Gone => {}
        }
    }

    /// Says goodbye; a client that does not read must not hold up the end.
    async fn close(&self, sender: &Sender, reason: ClosingReason) {
        let _ = timeout(GOODBYE, sender.send(Ok(self.closing(reason)))).await;
    }

    fn closing(&self, reason: ClosingReason) -> StreamItem {
        StreamItem::Closing { reason, retry_delay: retry_delay() }
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
