//! Transactions of several statements on one connection.

use std::time::Duration;

use super::database::{Connection, SILENCE};
use super::error;
use super::statement::{Effect, Statement};
use crate::domain::Result;

/// The longest that a request to end a statement may take.
const CANCEL_TIME: Duration = Duration::from_secs(5);

const BEGIN: Statement = Statement::new("begin", Effect::Reads, "BEGIN");

const DEFER_CONSTRAINTS: Statement =
    Statement::new("defer_constraints", Effect::Reads, "SET CONSTRAINTS ALL DEFERRED");

impl Connection {
    /// Begins a transaction.
    ///
    /// # Errors
    /// As any statement that reads: nothing was applied.
    pub async fn begin(&mut self) -> Result<()> {
        self.query(&BEGIN, &[]).await?;
        self.session.in_transaction = true;
        self.marked = false;
        Ok(())
    }

    /// Begins a transaction with deduplication ids. The number of the contents of unlogged queues is there then: if this
    /// transaction drew it, whoever needs it would wait until the end.
    ///
    /// # Errors
    /// As [`Connection::begin`]; `PgmqNotInstalled` where the schema `pgmq_grpc` is missing.
    pub async fn begin_keyed(&mut self) -> Result<()> {
        if !self.session.contents_known {
            self.renew_contents().await?;
            self.session.contents_known = true;
        }
        self.begin().await
    }

    /// Commits the open transaction.
    ///
    /// `COMMIT` of a failed transaction succeeds and rolls back, so a statement that would fail goes before it.
    ///
    /// # Errors
    /// `OutcomeUnknown` if the connection was lost meanwhile, or its retry-safe form if the transaction is `repeatable`.
    pub async fn commit(&mut self, repeatable: bool) -> Result<()> {
        let effect = if repeatable { Effect::Repeatable } else { Effect::Writes };
        self.check_usable()?;
        let unreplicated = self.session.link.unreplicated();
        self.session.busy = true;
        let committed = self.session.client.batch_execute("SELECT 1; COMMIT").await;
        self.answered(committed, effect, unreplicated, error::of_commit)?;
        self.session.in_transaction = false;
        Ok(())
    }

    /// Ends the transaction that a result came of: commits it, or takes everything back. An error then means that nothing
    /// was applied, even where the failed statement alone could not tell, but for an error of the commit itself.
    ///
    /// # Errors
    /// The result's own, or as [`Connection::commit`].
    pub async fn conclude<T>(&mut self, result: Result<T>, repeatable: bool) -> Result<T> {
        match result {
            Ok(value) => {
                self.commit(repeatable).await?;
                Ok(value)
            }
            Err(error) => {
                self.roll_back().await;
                Err(error.before_commit())
            }
        }
    }

    /// Lets the open transaction check its constraints at the commit, where they can be put off until then: pgmq's
    /// trigger of insert notifications would otherwise keep other senders waiting until the end.
    ///
    /// # Errors
    /// As any statement that reads.
    pub async fn defer_constraints(&mut self) -> Result<()> {
        self.query(&DEFER_CONSTRAINTS, &[]).await.map(drop)
    }

    /// Has the open transaction check its constraints with each statement, so that what breaks one is known: the commit names
    /// no statement.
    ///
    /// # Errors
    /// As any statement that reads; `RefusedByDatabase` if something that was done before does not hold yet.
    pub(super) async fn check_constraints(&mut self) -> Result<()> {
        self.batch("SET CONSTRAINTS ALL IMMEDIATE").await
    }

    /// Sets a mark to which the open transaction can return after a failed statement. Without one it does nothing.
    ///
    /// # Errors
    /// As any statement that reads.
    pub async fn mark(&mut self) -> Result<()> {
        if !self.session.in_transaction {
            return Ok(());
        }
        let text = if self.marked { "RELEASE SAVEPOINT mark; SAVEPOINT mark" } else { "SAVEPOINT mark" };
        self.batch(text).await?;
        self.marked = true;
        Ok(())
    }

    /// Undoes what the open transaction did since the last mark. Without one it does nothing.
    ///
    /// # Errors
    /// As any statement that reads.
    pub async fn return_to_mark(&mut self) -> Result<()> {
        match self.session.in_transaction && self.marked {
            true => self.batch("ROLLBACK TO SAVEPOINT mark").await,
            false => Ok(()),
        }
    }

    pub(super) async fn batch(&mut self, text: &str) -> Result<()> {
        self.check_usable()?;
        let unreplicated = self.session.link.unreplicated();
        self.session.busy = true;
        let done = self.session.client.batch_execute(text);
        let Ok(done) = tokio::time::timeout(SILENCE, done).await else {
            return Err(error::connection_lost(Effect::Reads));
        };
        self.answered(done, Effect::Reads, unreplicated, error::of_statement)
    }

    /// Ends the statement that was left while it ran, if one was, and closes the connection; with it goes the open
    /// transaction. Without this, the database would go on with the statement to its end.
    pub async fn abandon(self) {
        if self.session.busy && !self.session.client.is_closed() {
            let cancel = self.session.client.cancel_token();
            let _ = tokio::time::timeout(CANCEL_TIME, cancel.cancel_query(self.database.tls())).await;
        }
    }

    /// Whether a statement was left while it ran: the connection is of no more use.
    pub fn is_spoilt(&self) -> bool {
        self.session.busy
    }

    /// Whether a transaction is open.
    pub fn in_transaction(&self) -> bool {
        self.session.in_transaction
    }

    /// Ends the open transaction without its changes. If that fails, the connection is closed, which does it too.
    pub async fn roll_back(&mut self) {
        self.session.busy = true;
        if self.session.client.batch_execute("ROLLBACK").await.is_ok() {
            self.session.busy = false;
            self.session.in_transaction = false;
        }
    }
}
