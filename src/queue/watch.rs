//! Watching queues: a stream of what happens to them, which reads nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::stream::{GOODBYE, end_of_life, planned_end, retry_delay};
use super::watched::{EventKind, Inbox, Watched};
use super::{Broker, ClosingReason, OnConnection};
use crate::domain::{Deadline, Error, Kind, QueueName, Result, Timestamp};
use crate::engine::{OpenStream, StreamKind};
use crate::pg::Connection;

/// The shortest time between two replies with events.
const COALESCE: Duration = Duration::from_millis(100);

/// How long the first look may take.
const OPEN_TIME: Duration = Duration::from_secs(30);

/// What a client watches.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// The queues, each once.
    pub queues: Vec<QueueName>,
    /// The longest silence.
    pub heartbeat_interval: Duration,
}

/// What a watch gives.
#[derive(Debug)]
pub enum WatchItem {
    /// What happened, in the order of the queues' names.
    Events(Vec<(QueueName, EventKind, Timestamp)>),
    /// A sign of life.
    Heartbeat,
    /// The stream is about to end as planned.
    Closing {
        /// Why.
        reason: ClosingReason,
        /// How long to wait before opening it again.
        retry_delay: Duration,
    },
}

/// An open watch.
pub struct WatchStream {
    items: mpsc::Receiver<Result<WatchItem>>,
}

/// Whether the queues are there.
struct CheckQueues {
    queues: Vec<QueueName>,
}

impl OnConnection for CheckQueues {
    const NAME: &'static str = "watch";
    type Output = ();

    async fn apply(&self, connection: &mut Connection) -> Result<()> {
        for (index, queue) in self.queues.iter().enumerate() {
            let found = connection.get_queue(queue).await;
            found.map_err(|error| match error.kind() {
                Kind::QueueNotFound => error.with("index", index.to_string()),
                _ => error,
            })?;
        }
        Ok(())
    }
}

impl WatchStream {
    /// Opens a watch, after it has checked that the queues are there. What happens from then on is told.
    ///
    /// # Errors
    /// `QueueNotFound` with the queue's index; `Draining`; `DatabaseUnavailable`; `DeadlineExceeded`.
    pub async fn open(broker: &Arc<Broker>, options: WatchOptions, deadline: Deadline) -> Result<Self> {
        let opening = deadline.at_most(OPEN_TIME);
        broker.run(CheckQueues { queues: options.queues.clone() }, opening).await?;
        let inbox = Arc::new(Inbox::default());
        let watched: Vec<Arc<Watched>> =
            options.queues.iter().map(|queue| broker.watches.watch(broker, queue, &inbox)).collect();
        for watched in &watched {
            tokio::select! {
                () = watched.ready() => {}
                () = broker.drain.cancelled() => return Err(Error::draining()),
                () = sleep_until(opening.instant()) => return Err(Error::deadline_exceeded()),
            }
        }
        let (sender, items) = mpsc::channel(1);
        let watcher = Watcher {
            inbox,
            _watched: watched,
            _open: broker.streams.open(StreamKind::Watch),
            ends: end_of_life(broker.max_stream_age),
            heartbeat_interval: options.heartbeat_interval,
            broker: Arc::clone(broker),
            deadline,
        };
        broker.tasks.spawn(watcher.run(sender));
        Ok(Self { items })
    }

    /// The next item; none at the end.
    pub fn poll_next(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<WatchItem>>> {
        self.items.poll_recv(context)
    }
}

struct Watcher {
    broker: Arc<Broker>,
    inbox: Arc<Inbox>,
    _watched: Vec<Arc<Watched>>,
    _open: OpenStream,
    ends: Option<Instant>,
    heartbeat_interval: Duration,
    deadline: Deadline,
}

impl Watcher {
    async fn run(self, sender: mpsc::Sender<Result<WatchItem>>) {
        let mut heartbeat = Instant::now() + self.heartbeat_interval;
        loop {
            let item = tokio::select! {
                events = self.inbox.take() => match events {
                    Ok(events) => WatchItem::Events(events),
                    Err(error) if error.kind() != Kind::QueueNotFound => {
                        return say_goodbye(&sender, vec![Err(error)]).await;
                    }
                    Err(error) => {
                        let closing = closing(ClosingReason::QueueDropped);
                        return say_goodbye(&sender, vec![Ok(closing), Err(error)]).await;
                    }
                },
                () = sleep_until(heartbeat) => WatchItem::Heartbeat,
                () = sender.closed() => return,
                last = self.planned_end() => return say_goodbye(&sender, vec![last]).await,
            };
            heartbeat = Instant::now() + self.heartbeat_interval;
            let is_event = matches!(item, WatchItem::Events(_));
            // A client that does not read misses nothing: what happens meanwhile waits in one event a queue and kind.
            tokio::select! {
                sent = sender.send(Ok(item)) => if sent.is_err() { return },
                last = self.planned_end() => return say_goodbye(&sender, vec![last]).await,
            }
            if is_event {
                sleep(COALESCE).await;
            }
        }
    }

    async fn planned_end(&self) -> Result<WatchItem> {
        planned_end(&self.broker.drain, self.ends, self.deadline).await.map(closing)
    }
}

fn closing(reason: ClosingReason) -> WatchItem {
    WatchItem::Closing { reason, retry_delay: retry_delay() }
}

async fn say_goodbye(sender: &mpsc::Sender<Result<WatchItem>>, last: Vec<Result<WatchItem>>) {
    for item in last {
        let _ = timeout(GOODBYE, sender.send(item)).await;
    }
}
