//! The gate: the one way to a connection, and the one function through which statements run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bb8::{Pool, PooledConnection, QueueStrategy, RunError};
use futures_util::future::poll_immediate;
use tokio::sync::AcquireError;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::catalog::Catalog;
use super::error;
use super::failures::ConnectFailures;
use super::guard::Guard;
use super::manager::{Manager, Session};
use super::policies::{LOOK, Policies};
use super::row::column;
use super::schema::{self, Schema};
use super::statement::{Effect, Plan, Statement, TimeLimit};
use super::tls;
use super::turns::{Subject, Turn, Turns};
use super::version::{self, Installation};
use crate::config::DatabaseUrl;
use crate::domain::{Deadline, Error, Kind, QueueName, Result};

/// The longest that a call waits for its turn on a connection.
const MAX_TURN_WAIT: Duration = Duration::from_secs(10);

/// Statement timeouts are rounded up to these milliseconds, so that sessions rarely have to change theirs.
const TIMEOUTS_MS: [u32; 9] = [250, 500, 1_000, 2_500, 5_000, 10_000, 20_000, 40_000, 60_000];

/// The longest that a database may say nothing: more than any `statement_timeout` of ours.
pub(super) const SILENCE: Duration = Duration::from_secs(70);

/// How long a connection rests in the pool before it is closed: the database has others to serve. Another is made within
/// milliseconds when it is needed.
const IDLE_TIME: Duration = Duration::from_secs(10);

/// A parameter with the type under which the statement takes it.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// How many connections a server may use, and how many calls may wait for one.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// Connections of the pool.
    pub connections: u32,
    /// Calls that may wait for a connection; more are refused at once.
    pub waiting_calls: usize,
}

/// How the connections of a server are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolUse {
    /// How many there may be.
    pub most: u32,
    /// How many are open, in use or not.
    pub open: u32,
    /// How many calls have one, or are about to have it.
    pub in_use: usize,
    /// How many calls wait for one.
    pub waiting_calls: usize,
}

/// The database, as far as the rest of the server sees it.
#[derive(Clone)]
pub struct Database {
    shared: Arc<Shared>,
}

struct Shared {
    pool: Pool<Manager>,
    tls: MakeRustlsConnect,
    failures: ConnectFailures,
    turns: Arc<Turns>,
    waiting: AtomicUsize,
    limits: PoolLimits,
    guard: Arc<Guard>,
    catalog: Catalog,
    installation: std::sync::RwLock<Option<Arc<Installation>>>,
    /// The era in which catalog and installation were learnt.
    era: AtomicU64,
    schema: std::sync::RwLock<Option<Schema>>,
    policies: Policies,
}

impl Database {
    /// Prepares the pool; the first connection is made when the first one is needed. Deduplication ids are kept for the
    /// window.
    ///
    /// # Errors
    /// `Internal` for TLS files that cannot be read.
    pub fn new(url: &DatabaseUrl, limits: PoolLimits, deduplication_window: Duration) -> Result<Self> {
        let failures = ConnectFailures::new();
        let guard = Arc::new(Guard::default());
        let pool = Pool::builder()
            .error_sink(Box::new(failures.clone()))
            .max_size(limits.connections)
            .test_on_check_out(false)
            .retry_connection(false)
            // The last one that came back goes first: it is the warmest and has most likely prepared what comes next, and
            // those of a past peak rest, and are closed.
            .queue_strategy(QueueStrategy::Lifo)
            .idle_timeout(IDLE_TIME)
            .reaper_rate(IDLE_TIME / 4)
            .max_lifetime(Duration::from_hours(1))
            .build_unchecked(Manager::new(url, Arc::clone(&guard))?);
        let shared = Shared {
            pool,
            tls: tls::connector(url)?,
            failures,
            turns: Turns::new(limits.connections as usize),
            waiting: AtomicUsize::new(0),
            limits,
            guard,
            catalog: Catalog::new(),
            installation: std::sync::RwLock::new(None),
            era: AtomicU64::new(0),
            schema: std::sync::RwLock::new(None),
            policies: Policies::new(deduplication_window),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Waits for a turn and takes a connection for an operation, first come, first served.
    ///
    /// # Errors
    /// `Overloaded` when too many calls wait or the turn does not come in time; `DatabaseUnavailable` when no
    /// connection can be made. Nothing was applied in either case.
    pub async fn connect(&self, operation: &'static str, deadline: Deadline) -> Result<Connection> {
        self.connect_by(operation, deadline, self.shared.turns.take()).await
    }

    /// The same for an operation that concerns a subject, as a rule a queue. All that is done to it leaves connections to
    /// others, and so does what has turned out to be slow.
    ///
    /// # Errors
    /// As [`Database::connect`].
    pub async fn connect_for(
        &self,
        operation: &'static str,
        subject: impl Into<Subject<'_>>,
        deadline: Deadline,
    ) -> Result<Connection> {
        let subject = subject.into();
        self.connect_by(operation, deadline, self.shared.turns.take_for(operation, &subject)).await
    }

    /// Whether an operation is known to be slow with a queue.
    pub fn is_slow(&self, operation: &'static str, queue: &str) -> bool {
        self.shared.turns.is_slow(operation, queue)
    }

    async fn connect_by(
        &self,
        operation: &'static str,
        deadline: Deadline,
        turn: impl Future<Output = Result<Turn, AcquireError>>,
    ) -> Result<Connection> {
        let asked = Instant::now();
        // A little before the deadline, so that the caller still hears why.
        let patience = deadline.remaining().mul_f32(0.9).min(MAX_TURN_WAIT);
        let turn = self.turn(operation, patience, turn).await?;
        let session = tokio::time::timeout(patience.saturating_sub(asked.elapsed()), self.session())
            .await
            .map_err(|_| error::unavailable("the database does not answer"))??;
        tracing::trace!(operation, wait_us = asked.elapsed().as_micros(), "connection taken");
        Ok(Connection { session, database: self.clone(), marked: false, operation, deadline, turn })
    }

    /// How another connection to the same server is encrypted.
    pub(super) fn tls(&self) -> MakeRustlsConnect {
        self.shared.tls.clone()
    }

    /// What all connections to this database are checked by.
    pub(super) fn guard(&self) -> Arc<Guard> {
        Arc::clone(&self.shared.guard)
    }

    /// The last probe's findings, if the database was reached before.
    pub fn known_installation(&self) -> Option<Arc<Installation>> {
        self.shared.installation.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// How the pool is used now.
    pub fn pool_use(&self) -> PoolUse {
        let shared = &self.shared;
        PoolUse {
            most: shared.limits.connections,
            open: shared.pool.state().connections,
            in_use: shared.limits.connections as usize - shared.turns.free(),
            // More may be counted for the moment that it takes to refuse them.
            waiting_calls: shared.waiting.load(Ordering::Relaxed).min(shared.limits.waiting_calls),
        }
    }

    /// The policies of the queues.
    pub fn policies(&self) -> &Policies {
        &self.shared.policies
    }

    /// Forgets what is remembered of a queue's tables, because it was made, dropped or changed. Whether it had a policy, which
    /// is looked at soon then.
    pub fn forget(&self, queue: &QueueName) -> bool {
        self.shared.catalog.forget(queue);
        self.shared.policies.doubt(queue)
    }

    pub(super) fn remember(&self, found: Installation) -> Arc<Installation> {
        let found = Arc::new(found);
        let mut known = self.shared.installation.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if known.as_ref().is_some_and(|known| **known != *found) {
            self.shared.catalog.clear();
        }
        *known = Some(Arc::clone(&found));
        found
    }

    /// Whether this server's own schema is known to be ready, which deduplication needs.
    pub fn has_own_schema(&self) -> bool {
        matches!(self.known_schema(), Some(Schema::Ready { .. }))
    }

    pub(super) fn known_schema(&self) -> Option<Schema> {
        *self.shared.schema.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Keeps what was found of this server's own schema, and logs it if it is news.
    pub(super) fn remember_schema(&self, found: Schema) {
        let mut known = self.shared.schema.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if known.replace(found) != Some(found) {
            found.log();
            self.shared.policies.look_again();
        }
    }

    async fn turn(
        &self,
        operation: &str,
        patience: Duration,
        turn: impl Future<Output = Result<Turn, AcquireError>>,
    ) -> Result<Turn> {
        let mut turn = std::pin::pin!(turn);
        if let Some(taken) = poll_immediate(turn.as_mut()).await {
            return taken.map_err(|_| Error::draining());
        }
        // A look at policies, which the server takes by itself, takes no caller's place.
        let limit = self.shared.limits.waiting_calls;
        let place = (operation != LOOK).then(|| Place::take(&self.shared.waiting, limit));
        if let Some(None) = place {
            return Err(overloaded("too many calls wait for the database"));
        }
        match tokio::time::timeout(patience, turn).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) => Err(Error::draining()),
            Err(_) => Err(overloaded("no database connection became free in time")),
        }
    }

    /// A live session. The pool hands out dead ones of a restarted database too, but each knows that it was closed.
    async fn session(&self) -> Result<PooledConnection<'static, Manager>> {
        loop {
            let mut failures = self.shared.failures.subscribe();
            #[expect(clippy::disallowed_methods, reason = "the gate, after its turn was waited for")]
            let taken = self.shared.pool.get_owned();
            // With a turn for each connection, nobody else's can come instead of the one that failed.
            let session = tokio::select! {
                taken = taken => taken.map_err(|failed| match failed {
                    RunError::User(cause) => error::of_connecting(cause),
                    RunError::TimedOut => error::unavailable("the database does not answer"),
                })?,
                failure = failures.wait() => return Err(error::of_connecting(failure)),
            };
            // Of an ending server's idle connections not one is tried.
            if !session.client.is_closed() && self.shared.guard.is_fit(session.admission) {
                self.forget_other_eras();
                return Ok(session);
            }
        }
    }

    /// What was learnt of one database is not true of the next, which may lack its last queues. Whoever comes meanwhile waits
    /// until all is forgotten.
    fn forget_other_eras(&self) {
        let known = || self.shared.era.load(Ordering::Acquire);
        if known() == self.shared.guard.era() {
            return;
        }
        let mut installation =
            self.shared.installation.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let era = self.shared.guard.era();
        if known() != era {
            self.shared.catalog.clear();
            self.shared.policies.forget();
            *installation = None;
            *self.shared.schema.write().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
            self.shared.era.store(era, Ordering::Release);
        }
    }
}

fn overloaded(reason: &str) -> Error {
    Error::new(Kind::Overloaded, format!("{reason}; nothing was applied"))
        .retry_after(Duration::from_millis(500))
}

/// A place among the waiting calls, given back when dropped.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize, limit: usize) -> Option<Self> {
        let place = Self(waiting);
        (waiting.fetch_add(1, Ordering::Relaxed) < limit).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that one operation holds. What it can do stands in this module's siblings, one file a subject.
///
/// Dropped while a statement runs or a transaction is open, the connection is closed instead of pooled.
pub struct Connection {
    pub(super) session: PooledConnection<'static, Manager>,
    pub(super) database: Database,
    pub(super) marked: bool,
    operation: &'static str,
    deadline: Deadline,
    turn: Turn,
}

impl Connection {
    /// What is installed in this database, probed on this connection if nobody did before.
    ///
    /// # Errors
    /// As any statement that reads.
    pub async fn installation(&mut self) -> Result<Arc<Installation>> {
        if let Some(known) = self.database.known_installation() {
            return Ok(known);
        }
        let found = version::probe(&self.session.client).await?;
        Ok(self.database.remember(found))
    }

    /// Checks that this server's own schema can be used, by a look at it if nobody has looked before.
    ///
    /// # Errors
    /// `PgmqNotInstalled`, naming the remedy; `PermissionDenied`.
    pub(super) async fn require_schema(&self) -> Result<()> {
        if let Some(known) = self.database.known_schema() {
            return known.require();
        }
        schema::find(&self.session.client).await?.require()
    }

    /// Whether this server's own schema is known to be ready.
    pub(super) fn has_own_schema(&self) -> bool {
        self.database.has_own_schema()
    }

    /// The policies of the queues.
    pub fn policies(&self) -> Policies {
        self.database.policies().clone()
    }

    /// What follows is for a queue, and tells whether that is slow.
    pub fn goes_on_for(&mut self, operation: &'static str, queue: &str) {
        self.turn.goes_on_for(operation, queue);
    }

    /// What it is used for was ended because it takes long: it is slow.
    pub fn found_slow(&mut self) {
        self.turn.found_slow();
    }

    /// Sets anew until when statements may run, so that the wait for the connection does not count.
    pub fn set_deadline(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }

    /// How long statements of this session wait for a lock, until it is set again.
    pub(super) async fn set_lock_timeout(&mut self, limit: &'static str) -> Result<()> {
        let set = self.batch(&format!("SET lock_timeout = '{limit}'")).await;
        // A session whose limit is unknown is not pooled.
        self.session.busy = set.is_err();
        set
    }

    /// Runs a statement and gives its rows, once the statement's own transaction has been committed.
    pub(super) async fn query(
        &mut self,
        statement: &Statement,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>> {
        self.check_usable()?;
        let unreplicated = self.session.link.unreplicated();
        let started = Instant::now();
        let new_timeout_ms = self.new_statement_timeout_ms(statement.time_limit);
        let session: &mut Session = &mut self.session;
        session.busy = true;
        let asked = async {
            let prepared = match statement.plan != Plan::Once && !session.in_transaction {
                true => session.prepared.statement(&session.client, &statement.text, parameters).await?,
                false => None,
            };
            let asked = ask(&session.client, statement, prepared.as_ref(), parameters);
            let Some(timeout_ms) = new_timeout_ms else {
                return asked.await;
            };
            let setting = format!("SET statement_timeout = {timeout_ms}");
            // Polled in this order, both go out in one packet.
            let (set, answer) =
                futures_util::future::join(session.client.batch_execute(&setting), asked).await;
            if set.is_ok() {
                session.statement_timeout_ms = timeout_ms;
            }
            answer
        };
        let answer = match statement.time_limit {
            TimeLimit::None => asked.await,
            // The database ends the statement long before, unless it is gone without a word. Then the session stays
            // busy, which throws it away.
            TimeLimit::Deadline => match tokio::time::timeout(SILENCE, asked).await {
                Ok(answer) => answer,
                Err(_) => return Err(error::connection_lost(statement.effect)),
            },
        };
        match &answer {
            Err(_) if statement.plan != Plan::Once => self.session.prepared.forget(&statement.text),
            Ok(rows) if statement.plan == Plan::BySize => {
                if let Some(row) = rows.first() {
                    self.session.prepared.planned_for(&statement.text, column(row, "table_bytes")?);
                }
            }
            _ => {}
        }
        tracing::trace!(
            operation = self.operation,
            statement = statement.name,
            run_us = started.elapsed().as_micros(),
            "statement done"
        );
        self.answered(answer, statement.effect, unreplicated, error::of_statement)
    }

    /// Refuses to send anything to a server that is gone, or that another one has replaced. A session that has said its
    /// last word is gone, too, though its socket may be open for a moment. Else a statement runs from now on.
    pub(super) fn check_usable(&mut self) -> Result<()> {
        if self.session.busy || self.session.client.is_closed() {
            return Err(error::unavailable("the connection to the database was lost"));
        }
        if self.database.shared.guard.is_superseded(self.session.admission) {
            return Err(error::superseded(Effect::Reads));
        }
        self.turn.runs();
        Ok(())
    }

    /// Takes an answer for what it is worth: one of a server that was replaced meanwhile proves nothing, and a commit
    /// that its synchronous standby lacks may be undone.
    pub(super) fn answered<T>(
        &mut self,
        answer: Result<T, tokio_postgres::Error>,
        effect: Effect,
        unreplicated_before: u64,
        meaning: fn(tokio_postgres::Error, Effect) -> Error,
    ) -> Result<T> {
        let session: &mut Session = &mut self.session;
        session.busy = answer.as_ref().is_err_and(error::ends_session);
        if let Err(failed) = &answer {
            session.link.heard(failed);
        }
        let given = answer.map_err(|failed| meaning(failed, effect))?;
        if self.database.shared.guard.is_superseded(session.admission) {
            return Err(error::superseded(effect));
        }
        match session.link.unreplicated() != unreplicated_before {
            true => error::unreplicated(effect).map_or(Ok(given), Err),
            false => Ok(given),
        }
    }

    pub(super) fn catalog(&self) -> &Catalog {
        &self.database.shared.catalog
    }

    /// The session's next `statement_timeout`, if it has to change; inside a transaction it stays.
    pub(super) fn new_statement_timeout_ms(&self, limit: TimeLimit) -> Option<u32> {
        if self.session.in_transaction {
            return None;
        }
        let wanted = match limit {
            TimeLimit::None => 0,
            TimeLimit::Deadline => {
                let left_ms = self.deadline.remaining().as_millis();
                TIMEOUTS_MS.into_iter().find(|&timeout_ms| u128::from(timeout_ms) > left_ms).unwrap_or(60_000)
            }
        };
        (wanted != self.session.statement_timeout_ms).then_some(wanted)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // How long a server says nothing that is gone is not the fault of what was asked.
        if self.session.busy || self.session.client.is_closed() {
            self.turn.pardon();
        }
    }
}

/// Runs a statement in one round trip, in its prepared form if there is one.
pub(super) async fn ask(
    client: &Client,
    statement: &Statement,
    prepared: Option<&tokio_postgres::Statement>,
    parameters: &[Parameter<'_>],
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let Some(prepared) = prepared else {
        return client.query_typed(&statement.text, parameters).await;
    };
    let values: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|(value, _)| *value).collect();
    client.query(prepared, &values).await
}
