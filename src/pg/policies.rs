//! The policies of all queues, kept in memory: one hash lookup a call, and no query.
//!
//! All of them are read at once, and only if one has changed. Whoever changes one tells all servers with its commit, by a
//! trigger on the table. What is not heard is found by looking: rarely while announcements arrive and no queue has a
//! policy, else every second. So it is with a queue that plain SQL drops and makes anew: nobody tells that its policy is
//! gone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering as Order};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rand::Rng;
use tokio::sync::Notify;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use super::database::{Connection, Database};
use super::row::column;
use super::statement::{Effect, Statement};
use crate::domain::bounds::VisibilityTimeout;
use crate::domain::policy::{DeadLetterPolicy, Policy, RetryBackoff};
use crate::domain::{Deadline, Error, Kind, Ordering, QueueName, Result, error};

/// How often policies are looked at while announcements arrive, and there is none that could go without one.
const CALM: Duration = Duration::from_secs(20);

/// The same otherwise.
const WARY: Duration = Duration::from_secs(1);

/// The least time between two looks that nobody waits for.
const INTERVAL: Duration = Duration::from_millis(100);

/// The name of a look.
pub(super) const LOOK: &str = "policies";

/// How long one look may take: as long as other work that the server does by itself, so that a session that does both in
/// turn keeps its limit.
const LOOK_TIME: Duration = Duration::from_secs(15);

/// The columns of a policy `p`.
macro_rules! policy_columns {
    () => {
        "p.default_visibility_timeout_s, p.default_delay_ms, p.default_wait_ms, p.max_message_bytes,
  p.dead_letter_queue, p.dead_letter_max_receives, p.retry_backoff_minimum_ms, p.retry_backoff_maximum_ms,
  p.retry_backoff_multiplier, p.retry_backoff_jitter, p.deduplication_window_ms, p.default_ordering,
  p.archive_retention_ms"
    };
}
pub(super) use policy_columns;

/// What a policy `p` and its queue `m` have in common.
macro_rules! policy_of_queue {
    () => {
        "p.queue_name = m.queue_name::text COLLATE \"C\" AND p.queue_created_at = m.created_at"
    };
}
pub(super) use policy_of_queue;

/// All policies of queues that are there, if any has changed since `$1`, and what they are like now. A changed row is another
/// one, or at another place.
const READ: Statement = Statement::new(
    "policies",
    Effect::Reads,
    concat!(
        "-- pgmq-grpc: policies
WITH live AS MATERIALIZED (
  SELECT p.*, p.xmin::text || p.ctid::text AS version
  FROM pgmq_grpc.queue_policy AS p JOIN pgmq.meta AS m ON ",
        policy_of_queue!(),
        "),
state AS (SELECT md5(coalesce(string_agg(l.queue_name || ' ' || l.version, E'\\n' ORDER BY l.queue_name), '')) AS mark,
    (SELECT count(*) FROM pgmq_grpc.queue_policy) > count(*) AS has_dead
  FROM live AS l)
SELECT s.mark, s.has_dead, p.queue_name, ",
        policy_columns!(),
        "
FROM state AS s LEFT JOIN live AS p ON s.mark IS DISTINCT FROM $1::text"
    ),
);

/// Removes policies of queues that are gone. One that was made anew has another key, so its policy is never meant.
const REMOVE_DEAD: Statement = Statement::new(
    "remove_dead_policies",
    Effect::Repeatable,
    concat!(
        "-- pgmq-grpc: remove_dead_policies
DELETE FROM pgmq_grpc.queue_policy AS p WHERE NOT EXISTS (SELECT FROM pgmq.meta AS m WHERE ",
        policy_of_queue!(),
        ")"
    ),
);

/// The policies of all queues, as they were last read. A copy shares them.
#[derive(Clone)]
pub struct Policies {
    shared: Arc<Shared>,
}

struct Shared {
    known: ArcSwapOption<Known>,
    none: Arc<Policy>,
    /// The server's own window of deduplication.
    window_ms: i64,
    /// Goes up with each database that is left for another.
    generation: Mutex<u64>,
    /// The last look; held while the next one is taken.
    last: tokio::sync::Mutex<Look>,
    /// How many looks have begun.
    begun: AtomicU64,
    told: Notify,
    /// Whether the connection that listens has heard what was told over it, and whether it answers.
    hears: AtomicBool,
    answers: AtomicBool,
}

struct Look {
    number: u64,
    outcome: Result<()>,
}

#[derive(Default)]
struct Known {
    mark: Option<String>,
    concern_sends: bool,
    of: HashMap<QueueName, Arc<Policy>>,
}

impl Policies {
    /// Nothing is known yet. A deduplication id is remembered for the window where no policy has another.
    pub(super) fn new(window: Duration) -> Self {
        let shared = Shared {
            known: ArcSwapOption::empty(),
            none: Arc::default(),
            window_ms: i64::try_from(window.as_millis()).unwrap_or(i64::MAX),
            generation: Mutex::default(),
            last: tokio::sync::Mutex::new(Look { number: 0, outcome: Ok(()) }),
            begun: AtomicU64::new(0),
            told: Notify::new(),
            hears: AtomicBool::new(false),
            answers: AtomicBool::new(true),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The policy of a queue, an empty one if it has none. It takes one hash lookup, waits for nobody and asks nobody, so
    /// it may be asked for with each call; who works on one queue for longer should ask again each time, and not keep it.
    ///
    /// Before the policies were read for the first time, and of a queue that was made a moment ago by another server, it
    /// is empty too; [`Database::learn_policies`] rules out the former.
    pub fn policy_of(&self, queue: &QueueName) -> Arc<Policy> {
        let known = self.shared.known.load();
        let policy = known.as_ref().and_then(|known| known.of.get(queue));
        Arc::clone(policy.unwrap_or(&self.shared.none))
    }

    /// The queues whose archived messages are kept for some time only.
    pub(super) fn queues_with_retention(&self) -> Vec<QueueName> {
        let known = self.shared.known.load();
        let all = known.iter().flat_map(|known| &known.of);
        all.filter(|(_, policy)| policy.archive_retention_ms.is_some())
            .map(|(queue, _)| queue.clone())
            .collect()
    }

    /// The shortest time for which archived messages are kept, in milliseconds.
    pub(super) fn shortest_retention_ms(&self) -> Option<i64> {
        let known = self.shared.known.load();
        known
            .iter()
            .flat_map(|known| known.of.values())
            .filter_map(|policy| policy.archive_retention_ms)
            .min()
    }

    /// How long a deduplication id of a queue, or of no queue, is remembered, in milliseconds.
    pub(super) fn deduplication_window_ms(&self, queue: Option<&QueueName>) -> i64 {
        let own = queue.and_then(|queue| self.policy_of(queue).deduplication_window_ms);
        own.unwrap_or(self.shared.window_ms)
    }

    /// Whether a queue has a policy. It is looked at again soon, because the queue may be another one.
    pub(super) fn doubt(&self, queue: &QueueName) -> bool {
        let has_policy = self.shared.known.load().as_ref().is_some_and(|known| known.of.contains_key(queue));
        if has_policy {
            self.look_again();
        }
        has_policy
    }

    /// Looks again soon, because something may have changed.
    pub fn look_again(&self) {
        self.shared.told.notify_one();
    }

    /// Whether changes are told: if not, they have to be looked for often.
    pub fn set_hearing(&self, hears: bool) {
        if self.shared.hears.swap(hears, Order::Relaxed) != hears {
            self.look_again();
        }
    }

    /// Whether the connection over which they are told has answered lately. What was told before an answer was heard, so only
    /// silence is a reason to look at once.
    pub(super) fn set_answered(&self, answers: bool) {
        if self.shared.answers.swap(answers, Order::Relaxed) && !answers {
            self.look_again();
        }
    }

    /// Forgets everything, because another database is used from now on.
    pub(super) fn forget(&self) {
        let mut generation = self.shared.generation.lock().unwrap_or_else(PoisonError::into_inner);
        *generation += 1;
        self.shared.known.store(None);
        self.look_again();
    }

    /// Whether they were read.
    pub fn are_known(&self) -> bool {
        self.shared.known.load().is_some()
    }

    /// Whether any queue has a policy.
    fn are_any(&self) -> bool {
        self.shared.known.load().as_ref().is_some_and(|known| !known.of.is_empty())
    }

    /// Whether any queue's policy makes a difference for the messages that are sent to it.
    pub(super) fn concern_sends(&self) -> bool {
        self.shared.known.load().as_ref().is_some_and(|known| known.concern_sends)
    }

    fn generation(&self) -> u64 {
        *self.shared.generation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what was read, unless it is of a database that was left since, or something is known and this does not replace
    /// it.
    fn keep(&self, known: Known, read_in: u64, replaces: bool) -> Result<()> {
        let generation = self.shared.generation.lock().unwrap_or_else(PoisonError::into_inner);
        if *generation != read_in {
            return Err(super::error::superseded(Effect::Reads));
        }
        if replaces || !self.are_known() {
            self.shared.known.store(Some(Arc::new(known)));
        }
        Ok(())
    }
}

impl Database {
    /// Reads the policies if they were never read, so that no call is served without them.
    ///
    /// # Errors
    /// `DatabaseUnavailable`; `Overloaded`.
    pub async fn learn_policies(&self) -> Result<()> {
        match self.policies().are_known() {
            true => Ok(()),
            false => Box::pin(self.refresh_policies()).await,
        }
    }

    /// Reads the policies that have changed. Afterwards everything is known that was committed before the call. Those who
    /// come together share a look, and its failure.
    ///
    /// # Errors
    /// `DatabaseUnavailable`; `Overloaded`.
    pub async fn refresh_policies(&self) -> Result<()> {
        let shared = &self.policies().shared;
        let seen = shared.begun.load(Order::SeqCst);
        let mut last = shared.last.lock().await;
        if last.number <= seen {
            let number = shared.begun.fetch_add(1, Order::SeqCst) + 1;
            *last = Look { number, outcome: self.look_at_policies().await };
        }
        last.outcome.clone()
    }

    async fn look_at_policies(&self) -> Result<()> {
        let mut connection = self.connect(LOOK, Deadline::within(LOOK_TIME)).await?;
        connection.take_over_policies(true).await
    }
}

fn is_out_of_reach(error: &Error) -> bool {
    matches!(error.kind(), Kind::PgmqNotInstalled | Kind::PermissionDenied | Kind::QueueNotFound)
}

/// Keeps the policies as they are in the database until the token is cancelled.
pub async fn follow_policies(database: Database, stop: CancellationToken) {
    let shared = Arc::clone(&database.policies().shared);
    let work = async {
        loop {
            if let Err(error) = database.refresh_policies().await {
                tracing::debug!(cause = error::chain(&error), "policies stay as they were for now");
            }
            tokio::time::sleep(INTERVAL).await;
            let hears = shared.hears.load(Order::Relaxed) && shared.answers.load(Order::Relaxed);
            let pause = if hears && !database.policies().are_any() { CALM } else { WARY };
            let pause = pause.mul_f64(rand::rng().random_range(0.75..1.0)).saturating_sub(INTERVAL);
            let _ = tokio::time::timeout(pause, shared.told.notified()).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

impl Connection {
    /// Reads the policies if they are not known, as after a change to another database.
    ///
    /// # Errors
    /// As any statement that reads.
    pub async fn learn_policies(&mut self) -> Result<()> {
        match self.policies().are_known() {
            true => Ok(()),
            // Another look may see more, and be done sooner.
            false => self.take_over_policies(false).await,
        }
    }

    async fn take_over_policies(&mut self, replaces: bool) -> Result<()> {
        let policies = self.policies();
        let generation = policies.generation();
        let known = policies.shared.known.load_full();
        let mark = known.as_ref().and_then(|known| known.mark.as_deref());
        match self.read_policies(mark).await {
            Ok(None) => Ok(()),
            Ok(Some(changed)) => policies.keep(changed, generation, replaces),
            // A server without its schema has no policies, and may get it later.
            Err(error) if is_out_of_reach(&error) => {
                tracing::debug!(
                    cause = error::chain(&error),
                    "policies cannot be read, as if there were none"
                );
                policies.keep(Known::default(), generation, replaces)
            }
            Err(error) => Err(error),
        }
    }

    /// All policies, if they differ from those of the mark.
    async fn read_policies(&mut self, mark: Option<&str>) -> Result<Option<Known>> {
        self.require_schema().await?;
        let rows = self.query(&READ, &[(&mark, Type::TEXT)]).await?;
        let first = rows.first().ok_or_else(|| Error::internal("the look at policies gave no row"))?;
        let now: String = column(first, "mark")?;
        if column(first, "has_dead")? {
            self.remove_dead_policies().await;
        }
        if mark == Some(now.as_str()) {
            return Ok(None);
        }
        let mut of: HashMap<QueueName, Arc<Policy>> = HashMap::new();
        for row in &rows {
            let name: Option<String> = column(row, "queue_name")?;
            let queue = name.and_then(|name| QueueName::try_from(name).ok());
            let policy = policy_of(row)?;
            if let Some(queue) = queue.filter(|_| !policy.is_empty()) {
                of.insert(queue, Arc::new(policy));
            }
        }
        let concern_sends = of.values().any(|policy| policy.concerns_sends());
        Ok(Some(Known { mark: Some(now), concern_sends, of }))
    }

    /// Forgets policies of queues that are gone, whoever has dropped them. They harm nobody, so it may fail.
    async fn remove_dead_policies(&mut self) {
        if let Err(error) = self.query(&REMOVE_DEAD, &[]).await {
            tracing::debug!(cause = error::chain(&error), "policies of dropped queues stay for now");
        }
    }
}

/// The policy of a row; an empty one where the row has none. What no call would have set counts as unset.
pub(super) fn policy_of(row: &Row) -> Result<Policy> {
    let seconds: Option<i32> = column(row, "default_visibility_timeout_s")?;
    let timeout = seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    let ordering: Option<&str> = column(row, "default_ordering")?;
    Ok(Policy {
        default_visibility_timeout: timeout.and_then(|timeout| VisibilityTimeout::parse(timeout).ok()),
        default_delay_ms: column(row, "default_delay_ms")?,
        default_wait_ms: column(row, "default_wait_ms")?,
        max_message_bytes: column(row, "max_message_bytes")?,
        dead_letter: dead_letter_of(row)?,
        retry_backoff: retry_backoff_of(row)?,
        deduplication_window_ms: column(row, "deduplication_window_ms")?,
        default_ordering: ordering
            .and_then(|word| ORDERINGS.into_iter().find(|(_, known)| *known == word))
            .map(|(ordering, _)| ordering),
        archive_retention_ms: column(row, "archive_retention_ms")?,
    })
}

fn dead_letter_of(row: &Row) -> Result<Option<DeadLetterPolicy>> {
    let name: Option<String> = column(row, "dead_letter_queue")?;
    let queue = name.and_then(|name| QueueName::try_from(name).ok());
    let max_receives: Option<i32> = column(row, "dead_letter_max_receives")?;
    Ok(queue.zip(max_receives).map(|(queue, max_receives)| DeadLetterPolicy { queue, max_receives }))
}

fn retry_backoff_of(row: &Row) -> Result<Option<RetryBackoff>> {
    let minimum_ms: Option<i64> = column(row, "retry_backoff_minimum_ms")?;
    let maximum_ms: Option<i64> = column(row, "retry_backoff_maximum_ms")?;
    let multiplier: Option<f64> = column(row, "retry_backoff_multiplier")?;
    let jitter: Option<f64> = column(row, "retry_backoff_jitter")?;
    let numbers = minimum_ms.zip(maximum_ms).zip(multiplier.zip(jitter));
    Ok(numbers.and_then(|((minimum_ms, maximum_ms), (multiplier, jitter))| {
        RetryBackoff::parse(minimum_ms, maximum_ms, multiplier, jitter).ok()
    }))
}

const ORDERINGS: [(Ordering, &str); 4] = [
    (Ordering::Unordered, "unordered"),
    (Ordering::Grouped, "grouped"),
    (Ordering::GroupedRoundRobin, "grouped_round_robin"),
    (Ordering::GroupedHead, "grouped_head"),
];

/// The word for an ordering in the table.
pub(super) fn word_of(ordering: Ordering) -> &'static str {
    match ordering {
        Ordering::Unordered => ORDERINGS[0].1,
        Ordering::Grouped => ORDERINGS[1].1,
        Ordering::GroupedRoundRobin => ORDERINGS[2].1,
        Ordering::GroupedHead => ORDERINGS[3].1,
    }
}
