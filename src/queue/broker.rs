//! What every operation works with, and how one is run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Budget, MergedCalls, Merging, Rules, Transactions, Watches};
use crate::domain::error::chain;
use crate::domain::{Deadline, Error, Kind, QueueName, Result};
use crate::engine::{Changes, Clients, Dispatch, Events, Streams};
use crate::pg::{Connection, Database, Subject, Upgrader};

/// How often an operation is tried that collides with others.
const ATTEMPTS: u32 = 3;

/// The server's means, shared by all operations.
pub struct Broker {
    /// The database.
    pub database: Database,
    /// Who calls.
    pub clients: Clients,
    /// What happens to queues, and whom it wakes.
    pub events: Events,
    /// Merges the sends and settles of all callers.
    pub merging: Merging,
    /// The memory of batches and transactions, which are not merged.
    pub budget: Budget,
    /// Reads on behalf of many.
    pub dispatch: Dispatch,
    /// Installs and upgrades pgmq.
    pub upgrader: Upgrader,
    /// The queues that somebody watches.
    pub watches: Watches,
    /// The transactions that callers hold open.
    pub transactions: Transactions,
    /// The streams that are open.
    pub streams: Streams,
    /// The merged calls under way.
    pub merged_calls: Arc<dyn MergedCalls>,
    /// When the server began.
    pub began: Instant,
    /// What requests are checked by.
    pub rules: Rules,
    /// This server's name among those on the same database.
    pub replica: String,
    /// The longest life of a stream; none for no limit.
    pub max_stream_age: Option<Duration>,
    /// How long a stream that is to end still serves settles.
    pub settle_grace: Duration,
    /// Cancelled when the server begins to end.
    pub drain: CancellationToken,
    /// Everything that works on the database without its caller, waited for at the end.
    pub tasks: TaskTracker,
}

/// Something that a caller can ask for with one request and one answer.
pub trait Operation: Sized + Send + 'static {
    /// The operation's name in logs.
    const NAME: &'static str;
    /// What it gives.
    type Output: Send + 'static;

    /// The bytes of the messages that it holds.
    fn held_bytes(&self) -> usize {
        0
    }

    /// Does it for a caller who waits until the deadline.
    fn run(
        self,
        broker: &Arc<Broker>,
        deadline: Deadline,
    ) -> impl Future<Output = Result<Self::Output>> + Send;

    /// Serves a caller, who may leave before it is done.
    fn call(
        self,
        broker: &Arc<Broker>,
        deadline: Deadline,
    ) -> impl Future<Output = Result<Self::Output>> + Send {
        broker.run_detached(self, deadline)
    }
}

/// An operation that needs one connection for one short while, and can be tried again if it collided with others.
pub trait OnConnection: Send + Sync + 'static {
    /// The operation's name in logs.
    const NAME: &'static str;
    /// What it gives.
    type Output: Send + 'static;

    /// What it is done to: a queue as a rule. Whoever does the same to the same leaves connections to others.
    fn subject(&self) -> Subject<'_> {
        Subject::Queue("")
    }

    /// The bytes of the messages that it holds.
    fn held_bytes(&self) -> usize {
        0
    }

    /// Does it on a connection.
    fn apply(&self, connection: &mut Connection) -> impl Future<Output = Result<Self::Output>> + Send;

    /// Adds to what the database gave what this server knows by itself.
    fn complete(_output: &mut Self::Output, _broker: &Broker) {}

    /// Says what has changed, for those who wait; they hear of it after the commit.
    fn tell(&self, _output: &Self::Output, _changes: &mut Changes) {}

    /// Says what others passed over while it was tried, and is there again after it has failed.
    fn undone(&self, _changes: &mut Changes) {}

    /// Serves a caller, who may leave before it is done: on a connection of its own, or merged with others.
    fn call(
        self,
        broker: &Arc<Broker>,
        deadline: Deadline,
    ) -> impl Future<Output = Result<Self::Output>> + Send
    where
        Self: Sized,
    {
        broker.run_detached(self, deadline)
    }
}

impl<T: OnConnection> Operation for T {
    const NAME: &'static str = T::NAME;
    type Output = T::Output;

    fn held_bytes(&self) -> usize {
        OnConnection::held_bytes(self)
    }

    async fn run(self, broker: &Arc<Broker>, deadline: Deadline) -> Result<Self::Output> {
        let mut connection = broker.database.connect_for(T::NAME, self.subject(), deadline).await?;
        // It may be the first one to another database.
        connection.learn_policies().await?;
        let mut attempt = 1;
        let mut output = loop {
            match self.apply(&mut connection).await {
                Err(error) if error.kind() == Kind::Conflict && attempt < ATTEMPTS => attempt += 1,
                done => break done,
            }
        };
        drop(connection);
        let mut changes = Changes::default();
        match &mut output {
            Ok(output) => {
                Self::complete(output, broker);
                self.tell(output, &mut changes);
                broker.tell(changes).await;
            }
            Err(_) => {
                self.undone(&mut changes);
                changes.undone(&broker.events);
            }
        }
        output
    }

    fn call(
        self,
        broker: &Arc<Broker>,
        deadline: Deadline,
    ) -> impl Future<Output = Result<Self::Output>> + Send {
        OnConnection::call(self, broker, deadline)
    }
}

impl Broker {
    /// Tells those who wait of changes that are committed. Changed policies hold afterwards.
    pub async fn tell(&self, changes: Changes) {
        let mut policies = changes.concern_policies();
        for queue in changes.remade_queues() {
            policies |= self.database.forget(queue);
        }
        changes.tell(&self.events);
        if !policies {
            return;
        }
        if let Err(error) = Box::pin(self.database.refresh_policies()).await {
            tracing::debug!(cause = chain(&error), "a changed policy will be found later");
        }
    }

    /// Makes sure that the policies of queues are known. As a rule they are, and nothing is asked.
    ///
    /// # Errors
    /// `DatabaseUnavailable`, `Overloaded`; `DeadlineExceeded`.
    pub async fn learn_policies(&self, deadline: Deadline) -> Result<()> {
        match self.database.policies().are_known() {
            true => Ok(()),
            false => self.until(deadline, self.database.learn_policies()).await,
        }
    }

    /// Whether the queue's policy gives a delay to releases that name none.
    pub fn has_retry_backoff(&self, queue: &QueueName) -> bool {
        self.database.policies().policy_of(queue).retry_backoff.is_some()
    }

    /// Serves a caller. What is handed to the database runs to its end, whether the caller stays or not.
    ///
    /// # Errors
    /// The operation's own; `DeadlineExceeded` when the caller's time ran out first; `Draining` when the server ends.
    pub async fn run<O: Operation>(self: &Arc<Self>, operation: O, deadline: Deadline) -> Result<O::Output> {
        if self.drain.is_cancelled() {
            return Err(Error::draining());
        }
        self.run_while_draining(operation, deadline).await
    }

    /// As [`Broker::run`], also when the server ends: for what was begun before, and must come to its end.
    ///
    /// # Errors
    /// Those of [`Broker::run`], but for `Draining`.
    pub async fn run_while_draining<O: Operation>(
        self: &Arc<Self>,
        operation: O,
        deadline: Deadline,
    ) -> Result<O::Output> {
        if deadline.remaining().is_zero() {
            return Err(Error::deadline_exceeded());
        }
        operation.call(self, deadline).await
    }

    /// Waits for something that may be dropped at any time, until the caller's deadline.
    ///
    /// # Errors
    /// Its own; `DeadlineExceeded`.
    pub(super) async fn until<T>(
        &self,
        deadline: Deadline,
        done: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::time::timeout_at(deadline.instant(), done)
            .await
            .unwrap_or_else(|_| Err(Error::deadline_exceeded()))
    }

    /// Runs an operation in a task of its own: a dropped future does not stop SQL, and a half done one would spoil its
    /// connection.
    async fn run_detached<O: Operation>(
        self: &Arc<Self>,
        operation: O,
        deadline: Deadline,
    ) -> Result<O::Output> {
        let held = self.budget.take(operation.held_bytes())?;
        let (answer, answered) = oneshot::channel();
        let broker = Arc::clone(self);
        self.tasks.spawn(async move {
            let result = operation.run(&broker, deadline).await;
            drop(held);
            // A caller who has gone meanwhile hears nothing, and what was done stays done.
            let _ = answer.send(result);
        });
        let answered = async {
            answered
                .await
                .unwrap_or_else(|_| Err(Error::internal("the operation's task ended without an answer")))
        };
        self.until(deadline, answered).await
    }
}
