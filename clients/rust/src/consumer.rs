//! Consuming: a stream of messages that survives restarts.

mod driver;

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::future::{BoxFuture, FutureExt as _, join_all};
use futures_util::stream::Stream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use self::driver::{Command, Driver, Order};
use crate::pb::{self, ConsumeStart, ItemResult};
use crate::settle::Settlement;
use crate::{Client, Error, Message, Queue};

/// How messages are consumed. Its methods are the options; [`start`](Self::start) begins.
///
/// While messages are in hand, their visibility timeouts are extended (`auto_extend`), unless that is turned off.
#[derive(Clone, Debug)]
#[must_use = "nothing is consumed before `start`"]
pub struct Consume {
    queue: Queue,
    pub(crate) start: ConsumeStart,
}

impl Consume {
    pub(crate) fn new(queue: &Queue) -> Self {
        let start = ConsumeStart { queue: queue.name().to_owned(), auto_extend: true, ..Default::default() };
        Self { queue: queue.clone(), start }
    }

    /// Begins to consume, within a runtime of tokio.
    pub fn start(self) -> Consumer {
        let (commands, received) = mpsc::unbounded_channel();
        let (deliver, messages) = mpsc::unbounded_channel();
        let messages = Arc::new(Mutex::new(messages));
        let has_retry_backoff = Arc::new(AtomicBool::new(false));
        let client = self.queue.client().clone();
        let link = commands.downgrade();
        match client.inner.life.check_open() {
            Ok(()) => {
                let untaken = messages.clone();
                let backoff = has_retry_backoff.clone();
                let driver = Driver::new(client, self.start, deliver, untaken, received, link, backoff);
                tokio::spawn(driver.run_until_closed());
            }
            // It is there to be taken.
            Err(closed) => drop(deliver.send(Err(closed))),
        }
        let stopper = Stopper { stopping: Arc::new(AtomicBool::new(false)), commands };
        let given_back = Vec::new();
        Consumer { queue: self.queue, messages, stopper, given_back, ending: Ending::No, has_retry_backoff }
    }
}

/// A stream of messages, at most `max_in_flight` of them unsettled.
///
/// It is a [`Stream`], and has [`next`](Self::next) and [`try_next`](Self::try_next) by itself. It opens its connection
/// again when that breaks, so its end is either asked for or an error that no repetition cures. A consumer that is dropped
/// takes no more; messages in hand can still be settled.
pub struct Consumer {
    queue: Queue,
    messages: Untaken,
    stopper: Stopper,
    /// The answers to what was given back because it came too late.
    given_back: Vec<oneshot::Receiver<Result<Vec<ItemResult>, Error>>>,
    ending: Ending,
    /// Whether the queue's policy says how long a message waits after a failure.
    has_retry_backoff: Arc<AtomicBool>,
}

/// Messages on their way from the driver to the consumer.
type Untaken = Arc<Mutex<mpsc::UnboundedReceiver<Result<pb::Message, Error>>>>;

fn lock(untaken: &Untaken) -> MutexGuard<'_, mpsc::UnboundedReceiver<Result<pb::Message, Error>>> {
    untaken.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Ending {
    No,
    /// What was given back is on its way.
    GivingBack(BoxFuture<'static, ()>),
    Done,
}

impl Consumer {
    /// The next message; `None` after a stop, after an error, or when the client is closed.
    pub async fn next(&mut self) -> Option<Result<Message, Error>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// The next message, with the error first, for `while let Some(message) = consumer.try_next().await?`.
    ///
    /// # Errors
    ///
    /// What no repetition cures, such as a queue that is missing.
    pub async fn try_next(&mut self) -> Result<Option<Message>, Error> {
        self.next().await.transpose()
    }

    /// Stops: takes no more messages, and gives back what nobody has seen. Messages in hand can still be settled.
    ///
    /// # Errors
    ///
    /// The error that had ended the stream already.
    pub async fn stop(mut self) -> Result<(), Error> {
        self.stopper.stop();
        while let Some(message) = self.next().await {
            message?;
        }
        Ok(())
    }

    /// What stops this consumer from elsewhere, such as the task that waits for a signal.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    pub(crate) fn client(&self) -> &Client {
        self.queue.client()
    }

    pub(crate) fn has_retry_backoff(&self) -> Arc<AtomicBool> {
        self.has_retry_backoff.clone()
    }

    fn give_back(&mut self, message: pb::Message) {
        let limit = self.queue.client().timeout();
        let (order, answer) = Order::asked(message.receipt, Settlement::give_back(), limit);
        if self.stopper.commands.send(Command::Settle(order)).is_ok() {
            self.given_back.push(answer);
        }
    }

    fn deliver(&self, message: pb::Message) -> Message {
        let delivery = Delivery {
            client: self.queue.client().clone(),
            queue: self.queue.name().to_owned(),
            receipt: message.receipt.clone(),
            commands: self.stopper.commands.clone(),
            settled: AtomicBool::new(false),
        };
        Message::new(self.queue.client(), self.queue.name(), message, Some(Arc::new(delivery)))
    }
}

impl Stream for Consumer {
    type Item = Result<Message, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match &mut self.ending {
                Ending::No => {}
                Ending::GivingBack(answers) => {
                    ready!(answers.poll_unpin(context));
                    self.ending = Ending::Done;
                }
                Ending::Done => return Poll::Ready(None),
            }
            let next = lock(&self.messages).poll_recv(context);
            match ready!(next) {
                Some(Ok(message)) if self.stopper.stopping.load(Relaxed) => self.give_back(message),
                Some(Ok(message)) => return Poll::Ready(Some(Ok(self.deliver(message)))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    let answers = std::mem::take(&mut self.given_back);
                    self.ending = Ending::GivingBack(join_all(answers).map(|_| ()).boxed());
                }
            }
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.stopper.stop();
        let mut untaken = Vec::new();
        {
            let mut messages = lock(&self.messages);
            messages.close();
            while let Ok(message) = messages.try_recv() {
                untaken.extend(message);
            }
        }
        untaken.into_iter().for_each(|message| self.give_back(message));
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("queue", &self.queue.name()).finish_non_exhaustive()
    }
}

/// Stops a consumer.
#[derive(Clone, Debug)]
pub struct Stopper {
    stopping: Arc<AtomicBool>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Stopper {
    /// Lets the consumer take no more messages, so that it ends when those in hand are done.
    pub fn stop(&self) {
        self.stopping.store(true, Relaxed);
        // A driver that is gone has stopped.
        let _ = self.commands.send(Command::Stop);
    }
}

/// One message that a consumer handed out.
pub(crate) struct Delivery {
    client: Client,
    queue: String,
    receipt: String,
    commands: mpsc::UnboundedSender<Command>,
    settled: AtomicBool,
}

impl Delivery {
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Relaxed)
    }

    /// Settles over the stream, or by a unary call while there is none.
    pub(crate) async fn settle(&self, settlement: Settlement) -> Result<Vec<ItemResult>, Error> {
        let ends = settlement.ends();
        let limit = self.client.timeout();
        let (order, answer) = Order::asked(self.receipt.clone(), settlement.clone(), limit);
        self.settled.fetch_or(ends, Relaxed);
        // Without a driver, which ends with the last message of its consumer or with its runtime, there is no stream either.
        let answered = match self.commands.send(Command::Settle(order)) {
            Ok(()) => timeout(limit, answer).await.map_err(|_| Error::deadline_exceeded())?.ok(),
            Err(_) => None,
        };
        let result = match answered {
            Some(result) => result,
            None => settlement.unary(&self.client, &self.queue, vec![self.receipt.clone()]).await,
        };
        if result.is_err() && ends {
            self.settled.store(false, Relaxed);
        }
        result
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.is_settled() {
            let _ = self.commands.send(Command::Dropped(std::mem::take(&mut self.receipt)));
        }
    }
}
