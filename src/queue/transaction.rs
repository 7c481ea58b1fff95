//! Interactive transactions: one pinned connection, operations one after the other, a commit or a rollback.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::{Broker, OnConnection, ReadBatch};
use crate::config::TransactionLimits;
use crate::domain::bounds::MAX_REPLY_BYTES;
use crate::domain::{Deadline, Delivery, Error, Kind, Ordering, Result};
use crate::engine::{Changes, Interest, Wake};
use crate::pg::{Connection, not_committed};

/// The longest pause between two reads of an empty queue in a transaction.
const IDLE_POLL: Duration = Duration::from_secs(1);

/// The transactions that callers hold open, each with a connection of the pool: few at once, in turn.
pub struct Transactions {
    /// How many there may be, and for how long.
    pub limits: TransactionLimits,
    turns: Arc<Semaphore>,
}

impl Transactions {
    /// None are open yet.
    pub fn new(limits: TransactionLimits) -> Self {
        Self { limits, turns: Arc::new(Semaphore::new(limits.at_once)) }
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.limits.at_once - self.turns.available_permits()
    }

    async fn turn(&self, patience: Duration) -> Result<OwnedSemaphorePermit> {
        match timeout(patience, Arc::clone(&self.turns).acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) => Err(Error::draining()),
            Err(_) => {
                let at_once = self.limits.at_once;
                let message =
                    format!("all {at_once} transactions that may be open at once are; nothing was applied");
                Err(Error::new(Kind::Overloaded, message).retry_after(Duration::from_secs(1)))
            }
        }
    }
}

/// An open transaction. Dropped, it is rolled back, and its connection is closed.
pub struct Transaction {
    connection: Connection,
    broker: Arc<Broker>,
    changes: Changes,
    ends: Deadline,
    _turn: OwnedSemaphorePermit,
}

/// An operation that can be a part of an open transaction.
pub trait InTransaction: Sized + Send + 'static {
    /// What it gives.
    type Output: Send + 'static;

    /// Does it in a transaction.
    fn run_in(self, transaction: &mut Transaction) -> impl Future<Output = Result<Self::Output>> + Send;
}

impl<T: OnConnection> InTransaction for T {
    type Output = T::Output;

    async fn run_in(self, transaction: &mut Transaction) -> Result<Self::Output> {
        let mut output = self.apply(&mut transaction.connection).await?;
        Self::complete(&mut output, &transaction.broker);
        self.tell(&output, &mut transaction.changes);
        Ok(output)
    }
}

impl InTransaction for ReadBatch {
    /// The messages, which are nobody's to give back: a rollback does that.
    type Output = Vec<Delivery>;

    async fn run_in(self, transaction: &mut Transaction) -> Result<Vec<Delivery>> {
        let until = Instant::now() + self.wait;
        let queue = &self.order.queue;
        let interest = match self.order.ordering {
            Ordering::Unordered => Interest::Visible,
            _ => Interest::Groups,
        };
        let (followed, wake) = (transaction.broker.events.follow(queue), Arc::new(Wake::default()));
        followed.add_reader(&wake, interest);
        transaction.changes.read(queue);
        loop {
            wake.take();
            let taken = transaction.connection.read(&self.order, self.count, MAX_REPLY_BYTES).await?;
            for aside in &taken.set_aside {
                transaction.changes.set_aside(queue, aside);
            }
            if let Some(refused) = taken.refused {
                return Err(refused);
            }
            let left = until.saturating_duration_since(Instant::now());
            if !taken.deliveries.is_empty() || (left.is_zero() && !taken.cut) {
                return Ok(taken.deliveries);
            }
            if !taken.cut {
                let next = transaction.connection.next_visible(queue, taken.before_read).await?;
                wake.wait(idle_pause(next).min(left)).await;
            }
        }
    }
}

/// How long to leave an empty queue alone: until its next message is due, and no longer than a poll that finds what
/// nobody announces.
fn idle_pause(next_visible: Option<Duration>) -> Duration {
    let poll = IDLE_POLL.mul_f64(rand::rng().random_range(0.75..1.0));
    next_visible.map_or(poll, |next| next.min(poll))
}

impl Transaction {
    /// Waits for a turn, takes a connection and begins.
    ///
    /// # Errors
    /// `Overloaded` when no turn came in time; whatever prevents a connection.
    pub async fn begin(broker: &Arc<Broker>, deadline: Deadline) -> Result<Self> {
        let limits = broker.transactions.limits;
        let turn = broker.transactions.turn(limits.wait.min(deadline.remaining())).await?;
        let mut connection = broker.database.connect("open_transaction", deadline).await?;
        // From here on others do without the connection; that it had to be made first is not the caller's fault.
        let ends = Deadline::within(limits.total);
        connection.set_deadline(ends.min(deadline));
        // Outside, because what is looked up for the first time may fail, and then is looked up in another way.
        connection.installation().await?;
        // It may be the first connection to another database.
        connection.learn_policies().await?;
        connection.begin().await?;
        connection.defer_constraints().await?;
        let broker = Arc::clone(broker);
        Ok(Self { connection, broker, changes: Changes::default(), ends, _turn: turn })
    }

    /// When it has lasted too long.
    pub fn ends(&self) -> Deadline {
        self.ends
    }

    /// Does one operation. After an error the transaction can only be rolled back.
    ///
    /// # Errors
    /// The operation's own, without those that leave open what was applied: nothing is before the commit.
    pub async fn run<O: InTransaction>(&mut self, operation: O) -> Result<O::Output> {
        operation.run_in(self).await.map_err(Error::before_commit)
    }

    /// Commits, and tells those who wait what has changed.
    ///
    /// # Errors
    /// `TransactionFailed` or `Conflict` where nothing was applied; `OutcomeUnknown` if the connection was lost.
    pub async fn commit(mut self) -> Result<()> {
        match self.connection.commit(false).await {
            Ok(()) => {
                let Self { connection, broker, changes, .. } = self;
                drop(connection);
                broker.tell(changes).await;
                Ok(())
            }
            Err(error) if error.kind() == Kind::OutcomeUnknown => {
                // It may be committed: whoever waits looks.
                let Self { broker, changes, .. } = self;
                broker.tell(changes).await;
                Err(error)
            }
            Err(error) => {
                self.roll_back().await;
                Err(match error.kind() {
                    // No command of the caller's is to be blamed.
                    Kind::RefusedByDatabase => not_committed().caused_by(error),
                    _ => error,
                })
            }
        }
    }

    /// Undoes everything. A statement that was left while it ran is ended with its connection, which does it too.
    pub async fn roll_back(mut self) {
        // What was remembered of queues that were made inside does not hold.
        for queue in self.changes.remade_queues() {
            self.broker.database.forget(queue);
        }
        match self.connection.is_spoilt() {
            true => self.connection.abandon().await,
            false => self.connection.roll_back().await,
        }
        self.changes.undone(&self.broker.events);
    }
}
